"""SGLD against the exact posterior of Bayesian linear regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.inference.infer import infer
from bayespot.inference.preconditioner import fixed, rms
from bayespot.inference.schedules import constant
from bayespot.inference.sgld import sgld
from bayespot.inference.target import initial
from tests.oracles.linear_model import make


def draws(algorithm, data, target, key, *, chains=64, steps=40_000, batch_size=None, burn_in=4_000, thin=100):
    params = initial(key, target, chains)
    samples = infer(
        jax.random.fold_in(key, 1), algorithm, params, data, steps=steps, burn_in=burn_in, thin=thin,
        batch_size=batch_size, chains_at_once=chains, progress=False,
    )  # fmt: skip
    return np.asarray(samples.params["a"])


@pytest.mark.parametrize("temperature", [1.0, pytest.param(0.25, marks=pytest.mark.slow)])
def test_sgld_samples_the_exact_posterior(temperature):
    # Step ε λ_max = 0.02, discretisation bias of the variance at most 1 %. Slowest direction ε λ = 0.005: correlation
    # time 2/0.005 = 400 steps, so 64 chains × 36 000 steps hold 5 760 effective draws: relative error of a variance
    # √(2/5760) = 1.9 %, and 5 % are 2.2 standard errors beyond the bias, in 3 coordinates with a fixed seed.
    data, target, mean, covariance = make()
    highest = np.linalg.eigvalsh(np.linalg.inv(covariance)).max() / target.size
    x = draws(sgld(target, constant(0.02 / highest), temperature=temperature), data, target, jax.random.key(1))
    exact = temperature * covariance
    standard_error = np.sqrt(np.diag(exact) / 5760)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * standard_error)
    np.testing.assert_allclose(x.var(0), np.diag(exact), rtol=0.05)
    correlation = np.corrcoef(x.T) - exact / np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs(correlation).max() < 4 / np.sqrt(5760)


@pytest.mark.slow
def test_preconditioned_by_posterior_variances_mixes_a_stiff_problem():
    # Condition number 1000; with G = Σ_ii·N every direction has a rate of order ε; ε = 0.02 gives 64 × 36 000 × ε/2
    # ≥ 10⁴ effective draws where G is exact; correlated directions are slower, hence 6 %.
    data, target, mean, covariance = make(condition=1000.0)
    rotation = np.linalg.eigh(covariance)[1]
    data = {"x": data["x"] @ rotation, "y": data["y"]}
    exact = rotation.T @ covariance @ rotation
    diagonal = {"a": jnp.asarray(np.diag(exact) * target.size)}
    x = draws(sgld(target, constant(0.02), preconditioner=fixed(diagonal)), data, target, jax.random.key(2))
    np.testing.assert_allclose(x.var(0), np.diag(exact), rtol=0.06)
    np.testing.assert_array_less(np.abs(x.mean(0) - rotation.T @ mean), 5 * np.sqrt(np.diag(exact) / 1e4))


@pytest.mark.slow
def test_frozen_rms_preconditioner_keeps_the_posterior():
    # Frozen after 2 000 steps, G is a constant and the posterior exact up to discretisation. The damped G differs by at
    # most a factor 3 between coordinates here; tolerance as above.
    data, target, _, covariance = make()
    algorithm = sgld(target, constant(2e-3), preconditioner=rms(decay=0.999, damping=1.0, freeze_after=2_000))
    x = draws(algorithm, data, target, jax.random.key(3), batch_size=8, steps=2_500, burn_in=2_400, thin=100)
    assert np.isfinite(x).all()  # seeded from minibatch gradients: it does not explode at the mode
    algorithm = sgld(target, constant(1e-2), preconditioner=rms(decay=0.99, damping=1.0, freeze_after=200))
    x = draws(algorithm, data, target, jax.random.key(4))
    np.testing.assert_allclose(x.var(0), np.diag(covariance), rtol=0.1)
