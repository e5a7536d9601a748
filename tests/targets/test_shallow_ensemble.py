"""The shallow ensemble against sums written out by hand, and its members as ordinary samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from bayespot import tree
from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import flat, normal, scaled_normal
from bayespot.inference.schedules import cosine
from bayespot.inference.target import initial
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.descriptor_mlp import descriptor_mlp
from bayespot.potentials.teacher import add_noise, label
from bayespot.records.posterior import as_samples, check_spec
from bayespot.records.system import system
from bayespot.targets.force_matching import Noise
from bayespot.targets.shallow_ensemble import negative_crps, shallow_ensemble, split_heads
from bayespot.tree import replace, take
from bayespot.uq.predict import predict
from tests.targets.test_force_matching import EVALUATE, POTENTIAL, frames

HEADS = np.array([0.08, 0.1, 0.15])
PARAMS = {
    "potential": {"sigma": jnp.asarray(2.0), "epsilon": jnp.asarray(HEADS)},
    "noise": {"energy": jnp.log(0.3), "forces": jnp.log(0.2), "stress": jnp.log(0.05)},
}
NOISE = Noise(0.5, 0.4, 0.1)


def crps(error, spread):
    """By Gneiting and Raftery's second form, E|X − y| − E|X − X'|/2, with the moments of folded normals."""
    mean = stats.foldnorm(np.abs(error) / spread, scale=spread).mean()
    return mean - spread / np.sqrt(np.pi)


def by_hand(params, data, loss):
    """Score of all data and the prior, frame by frame."""
    result, members = (
        0.0,
        [{"sigma": params["potential"]["sigma"], "epsilon": e} for e in params["potential"]["epsilon"]],
    )
    floor = {k: float(np.exp(v)) for k, v in params["noise"].items()}
    for m in range(len(data)):
        n = data.atom_counts[m]
        frame = jax.tree.map(lambda x, m=m: x[m], (data.system, data.neighbors))
        e, f, s = (np.stack(x) for x in zip(*[EVALUATE(p, *frame) for p in members], strict=True))
        upper = np.triu_indices(3)
        labels = {
            "energy": (e / n, data.energy[m] / n),
            "forces": (f[:, :n], data.forces[m][:n]),
            "stress": (s[:, *upper], data.stress[m][upper]),
        }
        for name, (predicted, truth) in labels.items():
            if not getattr(data, f"has_{name}")[m]:
                continue
            error, spread = predicted.mean(0) - truth, np.sqrt(predicted.var(0, ddof=1) + floor[name] ** 2)
            if loss == "nll":
                result += stats.norm.logpdf(error, 0, spread).sum()
            else:
                result -= np.sum(crps(np.asarray(error), spread)) / NOISE.scales[name]
    for name, value in floor.items():
        result += stats.expon(scale=NOISE.scales[name]).logpdf(value) + np.log(value) + np.log(NOISE.scales[name])
    potential = params["potential"]
    return result + stats.norm(0, 2.0).logpdf([float(potential["sigma"]), *potential["epsilon"]]).sum()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nll", "crps"])
def test_the_score_is_the_sum_by_hand(key, loss):
    data = frames([8, 12, 10])
    data = replace(data, has_energy=jnp.array([True, False, True]), has_forces=jnp.array([True, True, False]))
    target = shallow_ensemble(POTENTIAL, data, normal(2.0, skip=()), NOISE, readout="epsilon", heads=3, loss=loss)
    value, gradient, *_ = jax.jit(target.value_and_grad)(key, PARAMS, (), data)
    np.testing.assert_allclose(3 * value, by_hand(PARAMS, data, loss), rtol=1e-10)

    def slope(change, h=1e-5):
        up, down = (by_hand(change(step), data, loss) for step in (h, -h))
        return (up - down) / (2 * h)

    potential, noise = PARAMS["potential"], PARAMS["noise"]
    for name, got in gradient["noise"].items():
        there = slope(lambda h, n=name: {**PARAMS, "noise": {**noise, n: noise[n] + h}})
        np.testing.assert_allclose(3 * got, there, rtol=1e-5)
    for n in range(3):
        moved = slope(
            lambda h, n=n: {**PARAMS, "potential": {**potential, "epsilon": potential["epsilon"].at[n].add(h)}}
        )
        np.testing.assert_allclose(3 * gradient["potential"]["epsilon"][n], moved, rtol=1e-5)
    moved = slope(lambda h: {**PARAMS, "potential": {**potential, "sigma": potential["sigma"] + h}})
    np.testing.assert_allclose(3 * gradient["potential"]["sigma"], moved, rtol=1e-4)


def test_crps_is_the_integral():
    for error, spread in [(0.0, 1.0), (-0.7, 0.3), (2.5, 0.9)]:
        below = integrate.quad(lambda x, s=spread: stats.norm.cdf(x, 0, s) ** 2, -np.inf, error)[0]
        above = integrate.quad(lambda x, s=spread: stats.norm.sf(x, 0, s) ** 2, error, np.inf)[0]
        np.testing.assert_allclose(-negative_crps(jnp.asarray(error), jnp.asarray(spread)), below + above, rtol=1e-7)


def squares(number, side, seed):
    """Distorted squares of four atoms with this side [Å], labelled by Lennard-Jones."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    systems = [system(side * corners + 0.08 * rng.normal(size=(4, 3)), [18] * 4) for _ in range(number)]
    return label(POTENTIAL, POTENTIAL.init(jax.random.key(0)), systems, 4.0)


@pytest.mark.slow
def test_trained_members_are_samples_with_the_score_of_the_ensemble(key):
    data = tree.concatenate([squares(6, side, n) for n, side in enumerate((2.2, 2.4))])
    data = add_noise(jax.random.key(1), data, energy=1e-3, forces=0.02)
    potential, noise = descriptor_mlp(data, cutoff=4.0, channels=1, hidden=(8,)), Noise(1e-3, 0.02)
    readout = ("kernel_1", "bias_1")
    target = shallow_ensemble(potential, data, scaled_normal(1.0), noise, readout=readout, heads=6)
    start = initial(jax.random.key(2), target, 1)
    forms = {"kernel_0": (1, 1, 7, 8), "bias_0": (1, 1, 1, 8), "kernel_1": (1, 6, 1, 8, 1), "bias_1": (1, 6, 1, 1, 1)}
    assert jax.tree.map(jnp.shape, start["potential"]) == forms
    fit = optimise(target, optax.adam(cosine(2e-2, 120)), average=0.0)
    trained = infer(key, fit, start, data, steps=120, batch_size=None, progress=False)
    samples = split_heads(trained)
    assert samples.chain.tolist() == list(range(6))
    inside = squares(6, 2.3, 10)
    found = predict(potential, samples, inside)

    # the score of the trained ensemble is that of the samples' mean, spread and noise
    error = {"energy": (found.energy - inside.energy) / 4, "forces": found.forces - inside.forces}
    spread = {"energy": found.energy_uncertainty / 4, "forces": found.forces_uncertainty}
    score = [stats.norm.logpdf(error[k], 0, np.hypot(spread[k], found.noise[k])).sum() for k in error]
    scores = jax.jit(target.metrics)
    metrics, before = (scores(take(params, 0), inside) for params in (trained.params, start))
    np.testing.assert_allclose(metrics["log_likelihood"], sum(score) / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["forces_rmse"], np.sqrt(np.mean(error["forces"] ** 2)), rtol=1e-6)

    # 38 against 6 per frame, with forces ten times better
    assert metrics["log_likelihood"] > 20 + before["log_likelihood"]


def test_several_backbones_and_draws_keep_their_heads():
    target = shallow_ensemble(POTENTIAL, frames([8]), flat(), readout="epsilon", heads=3)
    params = {
        "potential": {"sigma": jnp.array([1.0, 2.0]), "epsilon": jnp.arange(6.0).reshape(2, 3)},
        "noise": {"energy": jnp.array([-1.0, -2.0])},
    }
    whole = replace(as_samples(params["potential"], target.spec), params=params)
    for potential in (POTENTIAL, lennard_jones(2.0, 0.2, cutoff=4.0)):
        with pytest.raises(ValueError, match=r"must be apart from each other\. Use split_heads"):
            predict(potential, whole, frames([8]))
    samples = split_heads(whole)
    np.testing.assert_array_equal(samples.params["potential"]["epsilon"], np.arange(6.0))
    np.testing.assert_array_equal(samples.params["potential"]["sigma"], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(samples.params["noise"]["energy"], [-1, -1, -1, -2, -2, -2])
    assert samples.chain.tolist() == list(range(6))
    check_spec(samples, POTENTIAL.spec)
    predicted = predict(POTENTIAL, samples, frames([8]))
    np.testing.assert_allclose(predicted.noise["energy"] ** 2, (np.exp(-2) + np.exp(-4)) / 2)
    with pytest.raises(ValueError, match=r"must be those of a shallow_ensemble\. Got those of 'lennard_jones'"):
        split_heads(samples)


def test_heads_that_start_alike_and_stay_so_are_refused(key):
    target = shallow_ensemble(POTENTIAL, frames([8]), flat(), readout="epsilon", heads=3)
    params = initial(key, target, 2)  # a classical potential starts from its constants, whatever the key
    whole = replace(as_samples(params["potential"], target.spec), params=params)
    with pytest.raises(ValueError, match=r"Got some that are all alike.*other leaves than epsilon"):
        split_heads(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 1}, "Need heads ≥ 2"),
        ({"loss": "mse"}, "loss one of"),
        ({"noise": Noise(dof=4.0)}, "dof None"),
        ({"readout": "kernel_2"}, r"no leaf for \['kernel_2'\]. They are potential/epsilon, potential/sigma"),
        ({"noise": Noise(stress=0.1)}, "memory has no stress"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shallow_ensemble(POTENTIAL, frames([8], stress=False), flat(), **{"readout": "epsilon", **arguments})
