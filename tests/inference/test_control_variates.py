"""Control variates: unbiased everywhere, noiseless at their centre, and full-data sums that do not depend on parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayespot.inference.full_data as module
from bayespot.inference.control_variates import control_variates
from bayespot.inference.full_data import full_log_density, full_value, full_value_and_grad
from bayespot.tree import take
from tests.oracles.linear_model import SIGMA, WIDTH, make

DATA, TARGET, MEAN, COVARIANCE = make(rows=40)


def test_unbiased_and_noiseless_at_the_centre(key):
    quiet = control_variates(TARGET, DATA)
    centre = {"a": jnp.asarray(MEAN) + 0.1}
    state = quiet.init(key, centre)
    away = {"a": jnp.asarray(MEAN) - 0.2}
    exact_value, exact = TARGET.value_and_grad(jax.random.key(1), away, (), DATA)[:2]
    parts = [take(DATA, np.arange(40)[n::5]) for n in range(5)]
    found = [quiet.value_and_grad(jax.random.key(n), away, state, part) for n, part in enumerate(parts)]
    np.testing.assert_allclose(np.mean([f[1]["a"] for f in found], 0), exact["a"], rtol=1e-10)
    np.testing.assert_allclose(np.mean([f[0] for f in found]), exact_value, rtol=1e-10)
    there = TARGET.value_and_grad(jax.random.key(2), centre, (), DATA)[1]
    for n, part in enumerate(parts):
        got = quiet.value_and_grad(jax.random.key(10 + n), centre, state, part)
        np.testing.assert_allclose(got[1]["a"], there["a"], rtol=1e-10)
    assert np.ptp([TARGET.value_and_grad(jax.random.key(3), centre, (), p)[1]["a"][0] for p in parts]) > 0.01


@pytest.mark.parametrize("at_once", [7, 8, 100])
def test_all_data_part_by_part(key, monkeypatch, at_once):
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", at_once)
    params = {"a": jnp.asarray(MEAN) + 0.3}
    value, gradient, *_ = TARGET.value_and_grad(jax.random.key(4), params, (), DATA)
    got = full_value_and_grad(TARGET, DATA)(key, params, ())
    np.testing.assert_allclose(got[0], value, rtol=1e-12)
    np.testing.assert_allclose(got[1]["a"], gradient["a"], rtol=1e-12)
    np.testing.assert_allclose(full_value(TARGET, DATA)(jax.random.key(5), params, ()), value, rtol=1e-12)


def test_the_full_log_density_is_the_posteriors(key):
    density = full_log_density(TARGET, DATA, temperature=0.5)

    def exact(a):
        residual = DATA["y"] - DATA["x"] @ a
        return 2 * (-0.5 * (residual**2).sum() / SIGMA**2 - 0.5 * (a**2).sum() / WIDTH**2)

    a = jnp.asarray(MEAN) + 0.3
    np.testing.assert_allclose(density({"a": a}), exact(a), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(density)({"a": a})["a"], jax.grad(exact)(a), rtol=1e-9)
    with pytest.raises(ValueError, match="made for 40 frames"):
        full_log_density(TARGET, take(DATA, slice(0, 20)))
