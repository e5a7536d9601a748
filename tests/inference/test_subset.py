"""A target over a part of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.inference.infer import infer
from bayespot.inference.priors import normal
from bayespot.inference.schedules import constant
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import Target
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.uq.predict import predict
from tests.uq.test_predict import frames, linear


@pytest.fixture(scope="module")
def target():
    return force_matching(linear(), frames(), normal(0.5, skip=()), Noise(0.1, 0.3, 0.01))


@pytest.fixture(scope="module")
def params():
    noise = {"energy": jnp.asarray(-2.0), "forces": jnp.asarray(-1.0), "stress": jnp.asarray(-4.0)}
    return {"potential": {"a": jnp.asarray(0.3), "b": jnp.asarray(0.02)}, "noise": noise}


def test_value_and_gradient_are_those_of_the_whole(target, params, key):
    part = subset(target, params, lambda path: path in ("potential/b", "noise/forces"))
    assert part.params == {"potential": {"b": 0.02}, "noise": {"forces": -1.0}}
    elsewhere = {"potential": {"b": jnp.asarray(0.1)}, "noise": {"forces": jnp.asarray(-1.5)}}
    whole = {
        "potential": {"a": params["potential"]["a"], "b": jnp.asarray(0.1)},
        "noise": {**params["noise"], "forces": jnp.asarray(-1.5)},
    }
    data = frames()
    value, gradient, _, _ = jax.jit(part.target.value_and_grad)(key, elsewhere, (), data)
    expected, everything, _, _ = jax.jit(target.value_and_grad)(key, whole, (), data)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert jax.tree.structure(gradient) == jax.tree.structure(part.params)
    np.testing.assert_allclose(gradient["potential"]["b"], everything["potential"]["b"], rtol=1e-12)
    np.testing.assert_allclose(gradient["noise"]["forces"], everything["noise"]["forces"], rtol=1e-12)
    scores = part.target.metrics(elsewhere, data), target.metrics(whole, data)
    np.testing.assert_allclose(scores[0]["log_likelihood"], scores[1]["log_likelihood"], rtol=1e-12)


def test_samples_of_a_part_are_completed(target, params, key):
    part = subset(target, params, "b")
    data = frames()
    start = jax.tree.map(lambda x: jnp.stack([x, x]), part.params)
    found = infer(
        key, sgld(part.target, constant(1e-9)), start, data, steps=4, thin=2, burn_in=0, progress=False, batch_size=2
    )
    assert list(found.params) == ["potential"]
    samples = part.complete(found)
    assert jax.tree.map(jnp.shape, samples.params) == jax.tree.map(lambda x: (4,), params)
    np.testing.assert_array_equal(samples.params["potential"]["b"], found.params["potential"]["b"])
    np.testing.assert_array_equal(samples.params["potential"]["a"], 0.3)
    np.testing.assert_array_equal(samples.params["noise"]["stress"], -4.0)
    assert len(np.unique(samples.params["potential"]["b"])) == 4
    assert predict(linear(), samples, data).forces.shape == data.forces.shape


def test_names_are_parts_of_paths_or_whole_paths(target, params):
    assert jax.tree.leaves(subset(target, params, "noise").params) == [-2.0, -1.0, -4.0]
    assert subset(target, params, ["noise/energy", "a"]).params == {"noise": {"energy": -2.0}, "potential": {"a": 0.3}}
    start = subset(target, params, "noise").target.initial(jax.random.key(3))
    np.testing.assert_allclose(start["noise"]["stress"], np.log(0.01))
    assert "potential" not in start


def test_parts_without_parameters_survive(key):
    # a sum of potentials has an empty dictionary for each part with nothing to learn
    inner = {"0": {}, "1": {"k": jnp.asarray(2.0), "m": jnp.asarray(3.0)}}

    def value_and_grad(key, p, state, batch):
        value, gradient = jax.value_and_grad(lambda p: p["1"]["k"] * p["1"]["m"] + len(p["0"]))(p)
        return value, gradient, state, {}

    whole = Target(lambda key: inner, lambda key, p: (), value_and_grad, lambda p, b: {}, 1, {})
    part = subset(whole, inner, "k")
    value, gradient, _, _ = part.target.value_and_grad(key, part.params, (), None)
    assert (float(value), gradient) == (6.0, {"1": {"k": 3.0}})
    assert part.target.least_squares is None


def test_what_cannot_be_chosen_is_refused(target, params):
    leaves = "noise/energy, noise/forces, noise/stress, potential/a, potential/b"
    with pytest.raises(ValueError, match=f"Got none. They are {leaves}"):
        subset(target, params, lambda path: "kernel" in path)
    with pytest.raises(ValueError, match=rf"Got no leaf for \['kernel_2'\]. They are {leaves}"):
        subset(target, params, ("kernel_2", "a"))
    several = replace_leaf(params, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"one set of parameters, with potential/a of the shape \(\). Got \(3,\)"):
        subset(target, several, "b")


def replace_leaf(params, value):
    return {**params, "potential": {**params["potential"], "a": value}}
