"""Anchored ensembles: the exact posterior where predictions are linear."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bayespot.inference.infer as module
from bayespot.inference.anchored import anchored, perturbation
from bayespot.inference.control_variates import control_variates
from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import flat, normal, prior
from bayespot.inference.target import LeastSquares, initial
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.tree import replace, take
from tests.oracles.linear_model import WIDTH, make
from tests.targets.test_force_matching import POTENTIAL, frames

DATA, TARGET, MEAN, COVARIANCE = make()
DATA = {**DATA, "frame": jnp.arange(64)}


def members(labels: str, number: int = 4000) -> np.ndarray:
    """Maxima ``(members, 3)``. The rates of ascent are 0.3 × eigenvalues of 1 to 4, so that 150 steps leave 1e-20."""
    algorithm = optimise(anchored(TARGET, labels, lambda batch: batch["frame"]), optax.sgd(0.3), average=0.0)
    start = initial(jax.random.key(1), TARGET, number)
    options = {"steps": 150, "batch_size": None, "chains_at_once": number, "progress": False}
    return np.asarray(infer(jax.random.key(2), algorithm, start, DATA, **options).params["a"])


@pytest.mark.parametrize("labels", ["perturbed", pytest.param("given", marks=pytest.mark.slow)])
def test_members_of_linear_regression_are_draws_of_the_posterior(labels):
    # 4000 independent members of 3 coordinates, whitened with the exact covariance: the standard error of a mean and of
    # a covariance is 1/√4000 = 1.6 %, of a variance √2 times that. None of 9 numbers beyond 5 of them: 1 − 5e-6.
    # With the labels as given the covariance is Σ P Σ, for the precision P of the prior; its mean is the same.
    exact = COVARIANCE if labels == "perturbed" else COVARIANCE @ COVARIANCE / WIDTH**2
    white = np.linalg.solve(np.linalg.cholesky(exact), (members(labels) - MEAN).T)
    error = 5 / np.sqrt(4000)
    assert np.abs(white.mean(1)).max() < error
    assert (np.abs(white @ white.T / 4000 - np.eye(3)) < error * (1 + 0.42 * np.eye(3))).all()


def test_every_frame_keeps_its_errors_in_any_minibatch(key):
    target = anchored(TARGET, number=lambda batch: batch["frame"])
    state, other = (target.init(jax.random.key(n), {"a": jnp.zeros(3)}) for n in (1, 2))
    point = {"a": jnp.asarray(MEAN) + 0.3}
    order = np.random.default_rng(0).permutation(64).reshape(8, 8)
    score = jax.jit(target.value_and_grad)
    value, gradient, *_ = score(jax.random.key(3), point, state, DATA)
    parts = [score(jax.random.key(4 + n), point, state, take(DATA, i))[:2] for n, i in enumerate(order)]
    np.testing.assert_allclose(np.mean([p[0] for p in parts]), value, rtol=1e-10)
    np.testing.assert_allclose(np.mean([p[1]["a"] for p in parts], 0), gradient["a"], rtol=1e-10)
    assert np.abs(score(key, point, other, DATA)[1]["a"] - gradient["a"]).min() > 1e-3
    for n in range(3):  # the gradient belongs to the value
        up, down = ({"a": point["a"].at[n].add(h)} for h in (1e-5, -1e-5))
        values = [score(jax.random.key(9), p, state, DATA)[0] for p in (up, down)]
        np.testing.assert_allclose((values[0] - values[1]) / 2e-5, gradient["a"][n], rtol=1e-6)


def test_control_variates_around_it_have_no_noise_at_the_centre(key):
    target = control_variates(anchored(TARGET, number=lambda batch: batch["frame"]), DATA)
    point = {"a": jnp.asarray(MEAN) + 0.3}
    score = jax.jit(target.value_and_grad)
    state = jax.jit(target.init)(key, point)
    whole = score(jax.random.key(3), point, state, DATA)[1]["a"]
    for n in range(3):
        part = score(jax.random.key(4 + n), point, state, take(DATA, slice(8 * n, 8 * n + 8)))[1]["a"]
        np.testing.assert_allclose(part, whole, rtol=1e-9)


@pytest.mark.slow
def test_a_killed_run_keeps_its_anchors_and_errors(tmp_path, monkeypatch):
    target = control_variates(anchored(TARGET, number=lambda batch: batch["frame"]), DATA)
    algorithm = optimise(target, optax.adam(1e-2), average=0.0)
    start, original, calls = initial(jax.random.key(1), target, 2), module._advance, []

    def run(**options):
        return infer(jax.random.key(2), algorithm, start, DATA, steps=75, batch_size=8, progress=False, **options)

    def dying(*arguments, **rest):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **rest)

    whole = run().params["a"]
    monkeypatch.setattr(module, "_advance", dying)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=str(tmp_path))
    np.testing.assert_array_equal(run(checkpoint=str(tmp_path)).params["a"], whole)
    assert len(calls) == 4  # the third of three segments twice


@pytest.mark.slow
def test_force_matching_meets_perturbed_energies_forces_and_stresses(key):
    data = frames([8, 12, 10])
    data = replace(data, has_energy=jnp.array([True, False, True]), has_forces=jnp.array([True, True, False]))
    noise = Noise(0.01, 0.2, 0.05)
    plain = force_matching(POTENTIAL, data, flat(), noise)
    target = anchored(plain)
    params = plain.initial(key)
    state = target.init(jax.random.key(1), params)
    assert jax.tree.all(jax.tree.map(lambda x: (x == 0).all(), state.slope))  # flat prior, and scales have no anchor
    shapes = jax.eval_shape(plain.least_squares.residuals, params, data)
    errors = jax.jit(perturbation)(state.seed, data.frame, jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))
    six = np.zeros((3, 3, 3))
    six[:, *np.triu_indices(3)] = errors["stress"]
    moved = replace(  # labels are subtracted from predictions
        data,
        energy=data.energy - 0.01 * errors["energy"] * data.atom_counts,
        forces=data.forces - 0.2 * errors["forces"],
        stress=data.stress - 0.05 * (six + np.triu(six, 1).swapaxes(1, 2)),
    )
    gradient = jax.jit(target.value_and_grad)(jax.random.key(2), params, state, data)[1]["potential"]
    expected = jax.jit(plain.value_and_grad)(jax.random.key(3), params, (), moved)[1]["potential"]
    for name in expected:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-9)
    assert np.std(np.concatenate([np.ravel(x) for x in jax.tree.leaves(errors)])) == pytest.approx(1, abs=0.2)


def test_the_anchor_has_the_width_of_the_prior(key):
    # the slope divided by the precision 1/s² is an anchor: 20 000 of them have the spread s within 5 × 0.5 %
    data = frames([8])
    target = anchored(force_matching(POTENTIAL, data, normal(0.3, skip=("epsilon",))))
    start = target.initial(key)
    slope = jax.jit(jax.vmap(target.init, (0, None)))(jax.random.split(jax.random.key(1), 20_000), start).slope
    assert np.std(slope["potential"]["sigma"]) * 0.09 == pytest.approx(0.3, rel=0.025)
    assert not slope["potential"]["epsilon"].any()
    assert not jnp.stack(list(slope["noise"].values())).any()


def test_what_is_not_gaussian_is_refused():
    import numpyro.distributions as dist

    data = frames([8])
    with pytest.raises(ValueError, match=r"Gaussian errors.*Use force_matching with Noise\(dof=None\)"):
        anchored(force_matching(POTENTIAL, data, flat(), Noise(dof=4.0)))
    with pytest.raises(ValueError, match="labels must be one of"):
        anchored(TARGET, "yes")
    heavy = prior(lambda name, leaf: dist.StudentT(3, 0, 1) if name == "sigma" else None)
    with pytest.raises(ValueError, match="needs a prior that is Gaussian, and independent"):
        anchored(force_matching(POTENTIAL, data, heavy))
    for location in (0.0, 5.0):  # no curvature at all, but a cusp
        pointed = prior(lambda name, leaf, m=location: dist.Laplace(m, 1))
        with pytest.raises(ValueError, match="needs a prior that is Gaussian, and independent"):
            anchored(force_matching(POTENTIAL, data, pointed))
    coupled = LeastSquares(TARGET.least_squares.residuals, lambda p: -0.5 * p["a"].sum() ** 2 - (p["a"] ** 2).sum())
    with pytest.raises(ValueError, match="needs a prior that is Gaussian, and independent"):
        anchored(TARGET._replace(least_squares=coupled))


def test_frames_that_share_a_number_are_refused():
    twice = {**DATA, "frame": DATA["frame"].at[3].set(4)}
    anchored(TARGET, "given").check(twice)
    with pytest.raises(ValueError, match="Every frame needs a number of its own"):
        anchored(TARGET, number=lambda batch: batch["frame"]).check(twice)
