"""Coordinates in which a posterior of measured averages is round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bayespot.inference.infer import infer
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import Linearised, Target
from bayespot.inference.whitened import whitened

SLOPES = np.array([[300.0, 20.0, -1.0, 0.0], [0.0, 3.0, 1.0, 0.5]])  # of two averages, by four parameters
MEASURED, PRECISION = np.array([5.0, -1.0]), np.array([1.0, 4.0, 1.0, 25.0])
HERE = {"potential": {"a": jnp.asarray([0.01, -0.2]), "b": jnp.asarray([[0.3], [0.1]])}, "noise": {}}
PRIOR_MEAN = np.array([0.1, 0.0, -0.1, 0.2])


def _linear(precision=PRECISION, failing=False):
    """Averages that are linear in the parameters, and a normal prior: a posterior that is known."""
    slopes, back = jnp.asarray(SLOPES), ravel_pytree(HERE)[1]

    def log_density(params):
        v = ravel_pytree(params)[0]
        away = v - PRIOR_MEAN
        return -0.5 * ((slopes @ v - MEASURED) ** 2).sum() - 0.5 * (away * jnp.asarray(precision) * away).sum()

    def value_and_grad(key, params, state, batch):
        value, gradient = jax.value_and_grad(log_density)(params)
        return value, gradient, state + 1, {"seen": value}

    def linearise(key, params, state):
        v = ravel_pytree(params)[0]
        noisy = slopes * jnp.where(failing, jnp.nan, 1.0)
        return Linearised(slopes @ v - MEASURED, jax.vmap(back)(noisy), back(jnp.asarray(precision)), state)

    def share(params, state):
        return params["potential"]["a"][0]

    return Target(
        lambda key: jax.tree.map(lambda x: x + 1, HERE), lambda key, params: jnp.zeros(()), value_and_grad,
        lambda params, batch: {"log_likelihood": log_density(params)}, 1, {"name": "linear"},
        frames=False, share=share, linearise=linearise,
    )  # fmt: skip


def _posterior():
    covariance = np.linalg.inv(np.diag(PRECISION) + SLOPES.T @ SLOPES)
    return covariance @ (PRECISION * PRIOR_MEAN + SLOPES.T @ MEASURED), covariance


def test_the_curvature_is_the_unit_matrix_and_the_way_back_exact(key):
    target = _linear()
    w = whitened(key, target, HERE, runs=2, progress=False)
    flat = ravel_pytree(w.params)[0]
    assert not flat.any()
    np.testing.assert_allclose(w.strengths, np.linalg.svd(SLOPES / np.sqrt(PRECISION))[1])

    def value(v):
        return w.target.value_and_grad(key, ravel_pytree(w.params)[1](v), jnp.zeros(()), None)[0]

    there = jnp.asarray([0.4, -1.0, 2.0, 0.3])
    np.testing.assert_allclose(-jax.hessian(value)(there), np.eye(4), atol=1e-9)
    _, gradient, state, info = w.target.value_and_grad(key, ravel_pytree(w.params)[1](there), jnp.zeros(()), None)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], jax.grad(value)(there), rtol=1e-9)
    assert (state, set(info)) == (1, {"seen"})
    other = jax.tree.map(lambda x: 2 * x + 0.1, HERE)
    np.testing.assert_allclose(w.target.share(w.coordinates(other), None), other["potential"]["a"][0], rtol=1e-9)
    log_density = w.target.metrics(w.coordinates(other), None)["log_likelihood"]
    np.testing.assert_allclose(log_density, target.metrics(other, None)["log_likelihood"], rtol=1e-9)
    np.testing.assert_allclose(
        ravel_pytree(w.target.initial(key))[0], ravel_pytree(w.coordinates(target.initial(key)))[0]
    )


def test_chains_know_the_posterior_after_few_steps(key):
    """Curvatures from 5 to 90 000, and a hundred steps of size 0.1, each of which forgets a tenth of the start.

    It widens the variance by 1 / (1 − 0.1 / 2). Of 200 chains the last state is taken: the relative standard error of
    a variance is √(2 / 199) = 0.1, that of a mean 1 / √200 = 0.07 standard deviations.
    """
    w = whitened(key, _linear(), HERE, runs=1, progress=False)
    start = jax.tree.map(lambda x: jnp.ones((200, *x.shape)), w.params)
    drawn = infer(key, sgld(w.target, 0.1), start, None, steps=100, burn_in=99, progress=False)
    samples = w.complete(drawn)
    assert samples.spec == drawn.spec
    values = np.concatenate([np.asarray(x).reshape(200, -1) for x in jax.tree.leaves(samples.params)], 1)
    mean, covariance = _posterior()
    standard = np.linalg.solve(np.linalg.cholesky(covariance), (values - mean).T)
    np.testing.assert_allclose(standard.mean(1), 0.0, atol=4 * 0.07)
    np.testing.assert_allclose(np.cov(standard), np.eye(4) / 0.95, atol=4 * 0.1)


def test_a_part_of_the_parameters_can_be_whitened_too(key):
    part = subset(_linear(), HERE, "a")
    w = whitened(key, part.target, part.params, runs=1, progress=False)
    np.testing.assert_allclose(w.strengths, np.linalg.svd((SLOPES / np.sqrt(PRECISION))[:, :2])[1])


@pytest.mark.parametrize(
    ("target", "params", "runs", "message"),
    [
        (_linear()._replace(linearise=None), HERE, 1, "likelihood of measured averages.*difftre"),
        (_linear(), HERE, 0, "runs must be at least 1"),
        (_linear(), jax.tree.map(lambda x: x[None], HERE), 1, "one set of parameters"),
        (_linear(precision=np.array([1.0, 0.0, 1.0, 1.0])), HERE, 1, "proper in every parameter.*1 of 4"),
        (_linear(failing=True), HERE, 1, "must be stable. Got NaN"),
    ],
)
def test_what_cannot_be_whitened_is_refused(key, target, params, runs, message):
    with pytest.raises(ValueError, match=message):
        whitened(key, target, params, runs=runs, progress=False)
