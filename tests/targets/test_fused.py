"""Joint densities: values and gradients are weighted sums, and several state points (here temperatures) are targets."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import flat, normal
from bayespot.inference.subset import subset
from bayespot.inference.target import initial
from bayespot.potentials.teacher import label
from bayespot.records.system import system
from bayespot.targets.difftre import Measurement, difftre
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.targets.fused import _joined, fused
from bayespot.targets.numpyro import numpyro_potential, numpyro_target
from tests.targets.springs import SPRING, SQUARE, spring_run


@pytest.fixture(scope="module")
def parts():
    rng, params = np.random.default_rng(0), SPRING.init(jax.random.key(0))
    frames = [system(rng.normal(size=(1, 3)), [1], np.zeros((3, 3))) for _ in range(6)]
    data = label(SPRING, params, frames, 1.0)
    matching = force_matching(SPRING, data, normal(1.0), Noise(energy=0.01, forces=0.1))
    states = [
        difftre(SPRING, spring_run(steps=60, replicas=2, kT=kT), {"x²": Measurement(SQUARE, value, 0.1)})
        for kT, value in ((0.7, 0.4), (1.1, 0.5))
    ]
    return data, matching, states


def test_the_joint_density_is_the_sum_of_all(key, parts):
    data, matching, states = parts
    target = fused(matching, *states)
    params = jax.tree.map(lambda x: x[0], initial(key, target, chains=1))
    assert set(params["noise"]) == {"energy", "forces"}
    ours = target.init(jax.random.clone(key), params)
    value, gradient, _, info = jax.jit(target.value_and_grad)(jax.random.key(7), params, ours, data)
    keys = jax.random.split(jax.random.key(7), 3)
    alone = [
        jax.jit(t.value_and_grad)(k, params, s, data) for t, k, s in zip((matching, *states), keys, ours, strict=True)
    ]
    shares = (1.0, 1 / 6, 1 / 6)
    np.testing.assert_allclose(value, sum(w * a[0] for w, a in zip(shares, alone, strict=True)), rtol=1e-9)
    wanted = jax.tree.map(lambda *g: sum(w * x for w, x in zip(shares, g, strict=True)), *[a[1] for a in alone])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    assert info["1/simulated"] == 1
    np.testing.assert_allclose(info["2/log_density"], alone[2][0], rtol=1e-9)


@pytest.mark.slow
def test_frames_are_minibatched_beside_an_experiment(key, parts):
    data, matching, states = parts
    target = fused(matching, states[0])
    one, two = jax.random.split(key)
    samples = infer(
        one, optimise(target, optax.adam(1e-3)), initial(two, target, chains=1), data,
        steps=3, batch_size=2, progress=False,
    )  # fmt: skip
    assert samples.status[0] == 0
    assert np.isfinite(samples.log_density[0])
    assert (
        target.metrics(jax.tree.map(lambda x: x[0], samples.params), data).keys()
        == matching.metrics(jax.tree.map(lambda x: x[0], samples.params), data).keys()
    )


def test_validation_frames_are_those_of_the_calculations(key, parts):
    data, matching, states = parts
    optimise(fused(matching, states[0]), optax.sgd(1e-3), validation=data[:2])


def test_errors(parts):
    data, matching, states = parts
    with pytest.raises(ValueError, match="at least one target"):
        fused()
    other = SPRING._replace(spec={"name": "another"})
    with pytest.raises(ValueError, match="share a potential"):
        fused(matching, force_matching(other, data, flat(), Noise()))
    with pytest.raises(ValueError, match=r"\[4, 6\] frames"):
        fused(matching, force_matching(SPRING, data[:4], flat(), Noise()))
    with pytest.raises(ValueError, match="made for 6 frames"):
        infer(
            jax.random.key(0), optimise(fused(matching, states[0]), optax.sgd(1e-3)), {"a": np.zeros(1)}, data[:4],
            steps=1, batch_size=2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="data=None"):
        infer(jax.random.key(0), optimise(matching, optax.sgd(1e-3)), {"a": np.zeros(1)}, None, steps=1)


def test_a_scale_that_one_target_learns_stays_fixed_in_another(key, parts):
    data, matching, _ = parts
    fixed = force_matching(SPRING, data, flat(), Noise(energy=0.02, forces=0.2, learn="fixed"))
    target = fused(fixed, matching)
    params = jax.tree.map(lambda x: x[0], initial(key, target, chains=1))
    assert set(params["noise"]) == {"energy", "forces"}
    value, gradient, *_ = jax.jit(target.value_and_grad)(jax.random.key(1), params, ((), ()), data)
    one = jax.jit(fixed.value_and_grad)(jax.random.key(2), {**params, "noise": {}}, (), data)
    other = jax.jit(matching.value_and_grad)(jax.random.key(3), params, (), data)
    np.testing.assert_allclose(value, one[0] + other[0], rtol=1e-12)
    np.testing.assert_allclose(gradient["noise"]["forces"], other[1]["noise"]["forces"], rtol=1e-12)
    np.testing.assert_allclose(
        gradient["potential"]["k"], one[1]["potential"]["k"] + other[1]["potential"]["k"], rtol=1e-12
    )


def test_scales_of_one_label_must_be_alike(parts):
    data, matching, _ = parts
    of_species = force_matching(SPRING, data, flat(), Noise(energy=0.01, forces={1: 0.1}))
    with pytest.raises(ValueError, match="σ of forces share it"):
        initial(jax.random.key(0), fused(matching, of_species), chains=1)
    kept = force_matching(SPRING, data, flat(), Noise(energy=0.01, forces={1: 0.1}, learn="fixed"))
    assert set(initial(jax.random.key(0), fused(matching, kept), chains=1)["noise"]) == {"energy", "forces"}


def test_sites_of_a_model_are_parameters_beside_an_experiment(key, parts):
    data, _, states = parts

    def model(batch):
        params = numpyro_potential(SPRING, normal(1.0))
        scale = numpyro.sample("scale", dist.HalfNormal(0.1))
        energy = jax.vmap(SPRING.energy, (None, 0, 0))(params, batch.system, batch.neighbors)
        numpyro.sample("energy", dist.Normal(energy, scale), obs=batch.energy)

    of_model = numpyro_target(model, data)
    target = fused(of_model, states[0])
    params = jax.tree.map(lambda x: x[0], initial(key, target, chains=1))
    assert set(params) == {"potential", "scale", "noise"}
    ours = target.init(jax.random.clone(key), params)
    value, gradient, *_ = jax.jit(target.value_and_grad)(jax.random.key(7), params, ours, data)
    keys = jax.random.split(jax.random.key(7), 2)
    one = jax.jit(of_model.value_and_grad)(keys[0], params, (), data)
    other = jax.jit(states[0].value_and_grad)(keys[1], params, ours[1], data)
    np.testing.assert_allclose(value, one[0] + other[0] / 6, rtol=1e-9)
    np.testing.assert_allclose(gradient["scale"], one[1]["scale"], rtol=1e-9)


def test_subsets_are_taken_of_the_joint_target(key, parts):
    _, matching, states = parts
    params = jax.tree.map(lambda x: x[0], initial(jax.random.clone(key), matching, chains=1))
    part = subset(matching, params, ("potential",))
    target = fused(part.target, states[0])
    start = jax.tree.map(lambda x: x[0], initial(key, target, chains=1))
    state = target.init(jax.random.key(1), start)
    with pytest.raises(ValueError, match=r"subset\(fused\(…\), …\)"):
        jax.eval_shape(target.value_and_grad, jax.random.key(2), start, state, parts[0])


def test_starts_are_joined_level_by_level():
    one = {"potential": {"k": 1.0}, "hyper": {"a": 2.0, "deep": {"x": 3.0}}, "noise": {"energy": 4.0}}
    other = {"potential": {"k": 5.0}, "hyper": {"b": 6.0, "a": 7.0, "deep": {"y": 8.0}}, "noise": {"forces": 9.0}}
    assert _joined([one, other]) == {
        "potential": {"k": 1.0},
        "hyper": {"a": 2.0, "b": 6.0, "deep": {"x": 3.0, "y": 8.0}},
        "noise": {"energy": 4.0, "forces": 9.0},
    }
    assert _joined([{"potential": {"k": 1.0}}]) == {"potential": {"k": 1.0}}
    assert _joined([{"noise": {"energy": x}} for x in (1.0, 2.0)]) == {"noise": {"energy": 1.0}}  # by the first


def test_targets_of_different_labels_have_their_scales_side_by_side(key, parts):
    data = parts[0]
    energies = force_matching(SPRING, data, normal(1.0), Noise(energy=0.01, forces=None))
    forces = force_matching(SPRING, data, flat(), Noise(energy=None, forces=0.1))
    both = force_matching(SPRING, data, normal(1.0), Noise(energy=0.01, forces=0.1))
    params = jax.tree.map(lambda x: x[0], initial(key, both, chains=1))
    joined, *_ = fused(energies, forces).value_and_grad(jax.random.key(1), params, ((), ()), data)
    whole, *_ = both.value_and_grad(jax.random.key(2), params, (), data)
    np.testing.assert_allclose(joined, whole, rtol=1e-10)
