"""Relative entropy: value and gradient of a harmonic model, whose free energy is known, and its stationary point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot.errors import Status
from bayespot.inference.infer import infer
from bayespot.inference.informed_subspace import informed_subspace
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import normal
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import initial
from bayespot.potentials.potential import Potential
from bayespot.records.dataset import dataset
from bayespot.records.system import system
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.targets import reference_frames
from bayespot.targets.reference_run import reference_run
from bayespot.targets.relative_entropy import _perturbed, relative_entropy

KT, OPEN = 0.5, np.zeros((3, 3))
CENTRE, VARIANCE = np.array([0.5, -0.3, 0.1]), 0.16
SPRING = Potential(
    lambda key: {"log_k": jnp.asarray(0.0), "c": jnp.zeros(3), "zero": jnp.asarray(0.0)},
    lambda p, s, n: 0.5 * jnp.exp(p["log_k"]) * ((s.position - p["c"]) ** 2).sum(-1) + p["zero"],
    1.0, (), {"name": "spring"},
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).normal(size=(60, 1, 3))
    x -= x.mean((0, 1))
    x *= np.sqrt(VARIANCE) / x.std()
    return dataset([system(CENTRE + one, [1], OPEN) for one in x], cutoff=1.0)


def springs(log_k=0.0, c=(0.0, 0.0, 0.0), zero=0.0):
    return {"potential": {"log_k": jnp.asarray(log_k), "c": jnp.asarray(c), "zero": jnp.asarray(zero)}, "noise": {}}


def target_of(data, prior=None, steps=2000, **other):
    start = system(np.zeros((1, 3)), [1], OPEN)
    options = {"every": 20, "replicas": 8, "skin": 5.0, "max_kT": 100.0} | other
    run = reference_run(start, nvt_langevin(kT=KT, dt=0.1, gamma=1.0), steps=steps, **options)
    return relative_entropy(SPRING, run, data, prior)


def test_value_and_gradient_against_the_exact_free_energy(key, data):
    """800 frames of 8 replicas; a path in five steps, along which the reference is made anew and followed.

    Errors: that of ⟨U⟩ of 2400 numbers, of which every second is independent, and of a few free energies as large.
    """
    target = target_of(data)
    evaluate = jax.jit(target.value_and_grad)
    x = np.asarray(data.system.position)[:, 0]
    state, simulated, share = target.init(key, springs()), [], np.linspace(0, 1, 5)
    for a in share:
        params = springs(1.2 * a, 0.5 * a * np.ones(3), 3.0 * a)  # the zero of the energy changes nothing
        value, gradient, state, info = evaluate(key, params, state, data)
        simulated.append(int(info["simulated"]))
        offset = value - _exact(params["potential"], x)
        assert offset == pytest.approx(0.0, abs=0.15)
        k, c = np.exp(1.2 * a), 0.5 * a
        slope = -0.5 * k * ((x - c) ** 2).sum(1).mean() / KT + 1.5
        error = 4 * np.sqrt(1.5 / (800 / 2))  # ⟨U⟩/kT has the variance 3/2
        assert gradient["potential"]["log_k"] == pytest.approx(slope, abs=error)
        np.testing.assert_allclose(
            gradient["potential"]["c"], k * (x.mean(0) - c) / KT, atol=4 * np.sqrt(k / KT / (800 / 2))
        )
        assert gradient["potential"]["zero"] == pytest.approx(0.0, abs=1e-9)
    assert simulated[0] == 1
    assert sum(simulated) > 1


def _exact(p, x):
    """Log likelihood per frame, up to a constant."""
    k, c = np.exp(float(p["log_k"])), np.asarray(p["c"])
    return -0.5 * k * ((x - c) ** 2).sum(1).mean() / KT + 1.5 * float(p["log_k"])


def test_the_gradient_is_the_derivative_of_the_value_at_fixed_frames(key, data):
    target = target_of(data, normal(1.0), steps=200, min_share=1e-9)
    evaluate = jax.jit(target.value_and_grad)
    _, _, state, _ = evaluate(key, springs(), target.init(key, springs()), data)
    params = springs(0.05, (0.02, 0.0, 0.0))
    _, gradient, _, _ = evaluate(key, params, state, data)
    for name, change in {"log_k": 1e-5, "c": np.array([1e-5, 0, 0])}.items():
        ends = [evaluate(key, _moved(params, name, s * change), state, data)[0] for s in (1, -1)]
        found = (gradient["potential"][name] * change).sum() / 1e-5
        np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def _moved(params, name, change):
    return {"potential": {**params["potential"], name: params["potential"][name] + change}, "noise": {}}


@pytest.mark.slow
def test_the_value_does_not_drift_while_parameters_follow_noisy_gradients(key, data):
    """100 steps, each by 0.05 of the gradient, whose noise of ten frames has a square of 2.

    On those frames a move looks better than it is by 0.05 × 2: by half of that with Bennett's acceptance ratio, which
    uses them and the new ones (over six seeds it drifted by 6). Energy differences scatter by 0.2 kT between frames,
    the free energy by 0.07 per step, 0.7 in all (−0.2 ± 0.4 over six seeds).
    """
    target = target_of(data, steps=200, every=40, replicas=2, equilibration=40, max_age=1)
    evaluate = jax.jit(target.value_and_grad)
    params, state, offsets = springs(np.log(KT / VARIANCE), CENTRE), target.init(key, springs()), []
    for _ in range(100):
        value, gradient, state, info = evaluate(key, params, state, data)
        assert info["simulated"] == 1
        offsets.append(value - _exact(params["potential"], np.asarray(data.system.position)[:, 0]))
        params = jax.tree.map(lambda x, g: x + 0.05 * g, params, gradient)
    assert offsets[-1] - offsets[0] == pytest.approx(0.0, abs=4 * 0.7)


@pytest.mark.slow
def test_the_optimum_has_the_mean_and_the_variance_of_the_data(key, data, optimised):
    """k = kT/variance; 150 steps with averaged parameters, some 30 reference runs of 400 independent frames: 3 %."""
    target = target_of(data)
    one, two = jax.random.split(key)
    algorithm = optimise(target, optax.adam(0.05), average=0.95)
    samples = infer(one, algorithm, initial(two, target, chains=1), data, steps=150, batch_size=None, progress=False)
    found = samples.params["potential"]
    assert float(np.exp(found["log_k"][0])) == pytest.approx(KT / VARIANCE, rel=0.1)
    np.testing.assert_allclose(found["c"][0], CENTRE, atol=0.03)


def test_a_free_energy_difference_from_few_frames():
    """Ten normal differences of mean 1/2 and variance 1 stand for 0; 20 000 sets, standard error 0.003.

    Of what is left of higher orders it is 0.02. Without the correction it would be 0.07.
    """
    difference = np.random.default_rng(0).normal(0.5, 1.0, size=(20_000, 10))
    assert jax.vmap(_perturbed)(jnp.asarray(difference)).mean() == pytest.approx(0.0, abs=0.035)


@pytest.mark.parametrize("kept", [True, False])
def test_the_information_of_the_frames(key, data, kept, monkeypatch):
    """N cov(∂U/∂θ) / kT² is N k/kT for every centre and 3/2 N for log k, times the prior's variance 1/4.

    3200 frames: relative standard errors of the strengths are 0.013 and 0.022; among three equal ones they differ more.
    """
    if not kept:
        monkeypatch.setattr(reference_frames, "MOST_SLOPES", 0)
    few = informed_subspace(key, target_of(data, normal(0.5, skip=())), springs(), runs=4, progress=False)
    exact = 0.5 * np.sqrt(len(data) * np.array([1 / KT, 1 / KT, 1 / KT, 1.5]))
    np.testing.assert_allclose(few.strengths[:4], exact, rtol=0.09)
    np.testing.assert_allclose(few.strengths[4:], 0.0, atol=1e-9)
    assert few.params["coordinates"].shape == (4,)


def test_failed_simulations_inform_of_nothing(key, data):
    target = target_of(data, normal(0.5, skip=()), steps=400, max_kT=1.0)
    with pytest.raises(ValueError, match="simulations with these parameters must be sound"):
        informed_subspace(key, target, springs(), runs=2, progress=False)
    state = target.init(key, springs())
    value, gradient, _, info = jax.jit(target.value_and_grad)(key, springs(), state, data)
    assert info["simulation_status"] == Status.UNSTABLE
    assert np.isnan(value)
    assert np.isnan(gradient["potential"]["log_k"])


def test_a_single_frame_does_not_fluctuate(key, data):
    target = target_of(data, normal(0.5, skip=()), steps=20, replicas=1)
    with pytest.raises(ValueError, match="two frames or more"):
        informed_subspace(key, target, springs(), progress=False)


@pytest.mark.slow
def test_the_informed_directions_have_their_posterior(key, data):
    """The centres given k: normal, of the precision N k/kT + 400, half of it the prior's.

    Steps of 0.1 widen the variance by 1 / 0.95. The last states of 100 chains, three numbers each: the relative
    standard error of the variance is 0.08.
    """
    k = KT / VARIANCE
    target = target_of(data, normal(0.05, skip=()), steps=1000, max_age=1)
    part = subset(target, springs(np.log(k)), "c")
    few = informed_subspace(key, part.target, part.params, runs=4, progress=False)
    start = jax.tree.map(lambda x: jnp.ones((100, *x.shape)), few.params)
    algorithm = sgld(few.target, 0.1 * len(data))
    drawn = infer(key, algorithm, start, data, steps=60, burn_in=59, batch_size=None, progress=False)
    found = np.asarray(part.complete(few.complete(drawn)).params["potential"]["c"])
    precision = len(data) * k / KT + 400.0
    x = np.asarray(data.system.position)[:, 0]
    standard = (found - x.mean(0) * len(data) * k / KT / precision) * precision**0.5
    assert standard.shape == (100, 3)
    np.testing.assert_allclose(standard.mean(0), 0.0, atol=4 * 0.1)
    assert standard.var() == pytest.approx(1 / 0.95, abs=4 * 0.08)


def test_other_systems_are_refused(data):
    start = system(np.zeros((2, 3)), [1, 1], OPEN)
    run = reference_run(start, nvt_langevin(kT=KT, dt=0.1), steps=20, every=20)
    with pytest.raises(ValueError, match="atoms of the start"):
        relative_entropy(SPRING, run, data)
    run = run._replace(start=system(np.zeros((1, 3)), [1], 9.0 * np.eye(3)))
    with pytest.raises(ValueError, match=r"boxes that differ by 9 Å"):
        relative_entropy(SPRING, run, data)
