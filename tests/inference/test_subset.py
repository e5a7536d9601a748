"""A target over a part of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.inference.infer import infer
from bayespot.inference.schedules import constant
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import LeastSquares, Target

A, B, NOISE = jnp.asarray(0.3), jnp.asarray(0.02), {"energy": jnp.asarray(-2.0), "forces": jnp.asarray(-1.0)}
PARAMS = {"potential": {"a": A, "b": B}, "noise": NOISE, "nothing": {}}


def log_density(p, batch):
    """Whatever couples all parameters."""
    a, b, n = p["potential"]["a"], p["potential"]["b"], p["noise"]
    return -((a - jnp.exp(b) * n["energy"]) ** 2) - (a * b + n["forces"] ** 2 * batch.mean()) ** 2


def value_and_grad(key, p, state, batch):
    value, gradient = jax.value_and_grad(log_density)(p, batch)
    return value, gradient, state, {"seen": batch.sum()}


LEAST = LeastSquares(lambda p, batch: p["potential"]["a"] * batch, lambda p: -(p["potential"]["b"] ** 2), ("noise",))
TARGET = Target(
    initial=lambda key: jax.tree.map(lambda x: 2 * x, PARAMS),
    init=lambda key, params: params["noise"]["energy"],
    value_and_grad=value_and_grad,
    metrics=lambda params, batch: {"log_likelihood": log_density(params, batch)},
    size=3,
    spec={"name": "whole"},
    least_squares=LEAST,
)
DATA = jnp.array([1.0, 2.0, 4.0])


def test_everything_is_that_of_the_whole(key):
    part = subset(TARGET, PARAMS, lambda path: path in ("potential/b", "noise/forces"))
    assert part.params == {"potential": {"b": B}, "noise": {"forces": NOISE["forces"]}}
    there = {"potential": {"b": jnp.asarray(0.1)}, "noise": {"forces": jnp.asarray(-1.5)}}
    value, gradient, state, info = jax.jit(part.target.value_and_grad)(key, there, A, DATA)

    def expected(b, forces):
        return log_density({"potential": {"a": 0.3, "b": b}, "noise": {"energy": -2.0, "forces": forces}}, DATA)

    np.testing.assert_allclose(value, expected(0.1, -1.5), rtol=1e-12)
    slopes = (expected(0.1 + 1e-6, -1.5) - value) / 1e-6, (expected(0.1, -1.5 + 1e-6) - value) / 1e-6
    assert jax.tree.structure(gradient) == jax.tree.structure(part.params)
    np.testing.assert_allclose([gradient["potential"]["b"], gradient["noise"]["forces"]], slopes, rtol=1e-4)
    assert (state, info["seen"]) == (A, 7.0)
    assert part.target.init(key, there) == -2.0
    np.testing.assert_allclose(part.target.metrics(there, DATA)["log_likelihood"], value, rtol=1e-12)
    start = {"potential": {"b": 2 * B}, "noise": {"forces": 2 * NOISE["forces"]}}
    assert part.target.initial(jax.random.key(1)) == start
    np.testing.assert_allclose(part.target.least_squares.residuals(there, DATA), 0.3 * DATA)
    np.testing.assert_allclose(part.target.least_squares.log_prior(there), -0.01)
    assert part.target.least_squares.scales == ("noise",)
    assert (part.target.size, part.target.spec) == (3, {"name": "whole"})
    assert subset(TARGET._replace(least_squares=None), PARAMS, "b").target.least_squares is None


def test_samples_of_a_part_are_completed(key):
    part = subset(TARGET, PARAMS, "b")
    start, options = jax.tree.map(lambda x: jnp.stack([x, x]), part.params), {"batch_size": None, "progress": False}
    found = infer(key, sgld(part.target, constant(0.1)), start, DATA, steps=4, thin=2, burn_in=0, **options)
    assert list(found.params) == ["potential"]
    samples = part.complete(found)
    assert jax.tree.map(jnp.shape, samples.params) == jax.tree.map(lambda x: (4,), PARAMS)
    assert samples.params["nothing"] == {}  # as a sum of potentials has it for a part with nothing to learn
    np.testing.assert_array_equal(samples.params["potential"]["b"], found.params["potential"]["b"])
    np.testing.assert_array_equal(samples.params["potential"]["a"], 0.3)
    np.testing.assert_array_equal(samples.params["noise"]["energy"], -2.0)
    assert len(np.unique(samples.params["potential"]["b"])) == 4


def test_names_are_parts_of_paths_or_whole_paths():
    assert subset(TARGET, PARAMS, "noise").params == {"noise": NOISE}
    found = subset(TARGET, PARAMS, ["noise/energy", "a"]).params
    assert found == {"noise": {"energy": NOISE["energy"]}, "potential": {"a": A}}


def test_what_cannot_be_chosen_is_refused():
    leaves = "noise/energy, noise/forces, potential/a, potential/b"
    with pytest.raises(ValueError, match=f"Got none. They are {leaves}"):
        subset(TARGET, PARAMS, lambda path: "kernel" in path)
    with pytest.raises(ValueError, match=rf"Got no leaf for \['kernel_2'\]. They are {leaves}"):
        subset(TARGET, PARAMS, ("kernel_2", "a"))
    several = {**PARAMS, "potential": {"a": jnp.zeros(3), "b": B}}
    with pytest.raises(ValueError, match=r"one set of parameters, with potential/a of the shape \(\). Got \(3,\)"):
        subset(TARGET, several, "b")
