"""SWAG's moments against loops in numpy over the same descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot.errors import FailedSamples
from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.swag import _gaussian, swag
from tests.oracles.linear_model import SIGMA, WIDTH, make

DATA, TARGET, _, _ = make()
START = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
RATE, RANK = 0.05, 4


@pytest.fixture(scope="module")
def iterates():
    descent = optimise(TARGET, optax.sgd(RATE), average=0.0)
    options = {"steps": 60, "burn_in": 20, "thin": 5, "batch_size": None, "progress": False}
    return infer(jax.random.key(1), descent, {"a": jnp.asarray(START)}, DATA, **options)


def descended(start):
    """Iterates 25, 30, … 60 of gradient descent on the mean squared error with weight decay, written out."""
    x, y, a, kept = np.asarray(DATA["x"]), np.asarray(DATA["y"]), start, []
    for step in range(1, 61):
        a = a - RATE * (x.T @ (x @ a - y) / SIGMA**2 + a / WIDTH**2) / 64
        if step > 20 and step % 5 == 0:
            kept.append(a)
    return np.stack(kept)


def by_hand(path):
    """Running first and second moments, deviations from the running mean, and the covariance made of them."""
    first, second, deviations = np.zeros(3), np.zeros(3), []
    for n, a in enumerate(path):
        first = (n * first + a) / (n + 1)
        second = (n * second + a**2) / (n + 1)
        deviations = [*deviations, a - first][-RANK:]
    low_rank = sum(np.outer(d, d) for d in deviations) / (RANK - 1)
    return first, 0.5 * (np.diag(second - first**2) + low_rank)


def test_moments_are_those_of_the_iterates(iterates):
    for chain in (0, 1):
        path = descended(START[chain])
        np.testing.assert_allclose(iterates.params["a"][8 * chain : 8 * chain + 8], path, rtol=1e-10)
        mean, covariance = by_hand(path)
        found = _gaussian(path, np.zeros((1, 3 + RANK)), RANK)[0]
        root = _gaussian(path, np.eye(3 + RANK), RANK) - found  # draws are linear in their noise
        np.testing.assert_allclose(found, mean, rtol=1e-12)
        np.testing.assert_allclose(root.T @ root, covariance, rtol=1e-9, atol=1e-15)


def test_draws_have_these_moments(iterates, key):
    # 20 000 draws of 3 coordinates in each of 2 chains, whitened: standard errors 1/√20 000 of means and covariances,
    # √2 times that of variances; none of 18 numbers beyond 5 of them: probability 1 − 1e-5
    samples = swag(key, iterates, draws=20_000, rank=RANK)
    assert samples.chain.tolist() == [0] * 20_000 + [1] * 20_000
    assert samples.draw[19_999:20_001].tolist() == [19_999, 0]
    assert samples.params["a"].dtype == iterates.params["a"].dtype
    assert samples.spec == iterates.spec
    for chain in (0, 1):
        mean, covariance = by_hand(descended(START[chain]))
        x = np.asarray(samples.params["a"])[np.asarray(samples.chain) == chain]
        white = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        assert np.abs(white.mean(1)).max() < 5 / 20_000**0.5
        assert np.abs(white @ white.T / 20_000 - np.eye(3)).max() < 5 * (2 / 20_000) ** 0.5


def test_a_diverged_chain_is_left_out(iterates, key):
    status = jnp.asarray([0] * 8 + [2] * 8)
    lost = type(iterates)(**{**vars(iterates), "status": status})
    samples = swag(key, lost, draws=3, rank=2)
    assert samples.chain.tolist() == [0, 0, 0]
    alone = swag(jax.random.clone(key), iterates[:8], draws=3, rank=2)
    np.testing.assert_array_equal(samples.params["a"], alone.params["a"])
    with pytest.raises(FailedSamples, match="No sample is sound"):
        swag(key, lost[8:])


@pytest.mark.parametrize("arguments", [{"rank": 9}, {"rank": 1}, {"rank": 2, "draws": 0}])
def test_what_cannot_be_is_refused(iterates, key, arguments):
    with pytest.raises(ValueError, match="rank between 2 and the number of iterates per chain, 8"):
        swag(key, iterates, **arguments)
