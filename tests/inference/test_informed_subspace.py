"""The directions that measured averages inform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bayespot.inference.infer import infer
from bayespot.inference.informed_subspace import informed_subspace
from bayespot.inference.priors import normal
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import Linearised, Target
from bayespot.records.posterior import as_samples
from bayespot.targets.difftre import Measurement, difftre
from bayespot.tree import replace
from tests.targets.springs import KT, SPRING, SQUARE, spring_run

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
        error = jnp.where(failing, jnp.nan, jnp.where(state % 2 == 0, 0.5, -0.5))  # none on average over pairs of runs
        return Linearised(
            slopes @ v - MEASURED, jax.vmap(back)(slopes + error), back(jnp.asarray(precision)), state + 1
        )

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
    few = informed_subspace(key, target, HERE, runs=2, progress=False)
    np.testing.assert_array_equal(few.params["coordinates"], np.zeros(2))
    np.testing.assert_allclose(few.strengths, np.linalg.svd(SLOPES / np.sqrt(PRECISION))[1])

    @jax.jit
    def value(z):
        return few.target.value_and_grad(key, {"coordinates": z}, jnp.zeros(()), None)[0]

    z = jnp.asarray([0.4, -1.0])
    np.testing.assert_allclose(-jax.jit(jax.hessian(value))(z), np.eye(2), atol=1e-9)
    _, gradient, state, info = jax.jit(few.target.value_and_grad)(key, {"coordinates": z}, jnp.zeros(()), None)
    np.testing.assert_allclose(gradient["coordinates"], jax.grad(value)(z), rtol=1e-9)
    assert (state, set(info)) == (1, {"seen"})
    drawn = replace(as_samples({"z": z[None]}, {}), params={"coordinates": z[None]})
    there = jax.tree.map(lambda x: x[0], few.complete(drawn).params)
    np.testing.assert_allclose(value(z), target.metrics(there, None)["log_likelihood"], rtol=1e-12)
    np.testing.assert_allclose(few.target.metrics({"coordinates": z}, None)["log_likelihood"], value(z), rtol=1e-12)
    np.testing.assert_allclose(few.target.share({"coordinates": z}, None), there["potential"]["a"][0], rtol=1e-12)
    # What moves is what is informed: in units of the prior's widths, no part of the move is across the slopes
    move = (ravel_pytree(there)[0] - ravel_pytree(HERE)[0]) * np.sqrt(PRECISION)
    across = np.linalg.svd(SLOPES / np.sqrt(PRECISION))[2][2:]
    np.testing.assert_allclose(across @ move, 0.0, atol=1e-12)


def test_averages_have_their_posterior_after_few_steps(key):
    """Curvatures from 4 to 90 000, and a hundred steps of size 0.1, each of which forgets a tenth of the start.

    A step of 0.1 widens the variance by 1 / (1 − 0.1 / 2). Of 200 chains the last state is taken: the relative standard
    error of a variance is √(2 / 199) = 0.1, that of a mean 1 / √200 = 0.07 standard deviations. Both averages
    together are determined by the informed directions alone.
    """
    few = informed_subspace(key, _linear(), HERE, runs=2, progress=False)
    start = jax.tree.map(lambda x: jnp.ones((200, *x.shape)), few.params)
    drawn = infer(key, sgld(few.target, 0.1), start, None, steps=100, burn_in=99, progress=False)
    samples = few.complete(drawn)
    assert samples.spec == drawn.spec
    values = np.concatenate([np.asarray(x).reshape(200, -1) for x in jax.tree.leaves(samples.params)], 1)
    mean, covariance = _posterior()
    across = np.linalg.svd(SLOPES / np.sqrt(PRECISION))[2][2:] * np.sqrt(PRECISION)
    held = np.tile(across @ ravel_pytree(HERE)[0], (200, 1))
    np.testing.assert_allclose(values @ across.T, held, atol=1e-9)
    root = np.linalg.cholesky(SLOPES @ covariance @ SLOPES.T)
    standard = np.linalg.solve(root, SLOPES @ (values - mean).T)
    np.testing.assert_allclose(standard.mean(1), 0.0, atol=4 * 0.07)
    np.testing.assert_allclose(np.cov(standard), np.eye(2) / 0.95, atol=4 * 0.1)


def test_weak_directions_are_held(key):
    few = informed_subspace(key, _linear(), HERE, runs=2, min_strength=10.0, progress=False)
    assert few.params["coordinates"].shape == few.target.initial(jax.random.key(1))["coordinates"].shape == (1,)


def test_of_a_part_of_the_parameters(key):
    part = subset(_linear(), HERE, "a")
    few = informed_subspace(key, part.target, part.params, runs=2, progress=False)
    np.testing.assert_allclose(few.strengths, np.linalg.svd((SLOPES / np.sqrt(PRECISION))[:, :2])[1])


@pytest.mark.slow
def test_a_spring_that_is_known(key):
    """⟨x²⟩ = kT/k + c². Over 12 seeds, 100 runs had relative standard deviations of 0.02 and 0.03."""
    k, c = 2.0, 0.3
    run = spring_run(replicas=1, equilibration=20)
    target = difftre(SPRING, run, {"x²": Measurement(SQUARE, 0.4, 0.01)}, normal(0.5, skip=()))
    here = {"potential": {"k": jnp.asarray(k), "c": jnp.asarray(c)}, "noise": {}}
    few = informed_subspace(key, target, here, runs=100, progress=False)
    slopes = np.array([2 * c, -KT / k**2])  # of c and k
    assert few.strengths == pytest.approx([0.5 * np.hypot(*slopes) / 0.01], rel=4 * 0.02)
    part = subset(target, here, "k")
    own = informed_subspace(jax.random.key(1), part.target, part.params, runs=100, progress=False)
    assert own.strengths == pytest.approx([0.5 * KT / k**2 / 0.01], rel=4 * 0.03)
    samples = replace(as_samples({"k": jnp.zeros(1)}, {}), params={"coordinates": jnp.ones((1, 1))})
    there = part.complete(own.complete(samples)).params["potential"]
    assert there["c"] == pytest.approx(c)
    assert abs(there["k"][0] - k) == pytest.approx(0.5 / np.sqrt(1 + own.strengths[0] ** 2), rel=1e-9)


@pytest.mark.parametrize(
    ("target", "params", "runs", "message"),
    [
        (_linear()._replace(linearise=None), HERE, 1, "likelihoods of measured averages.*fused.*difftre"),
        (_linear(), HERE, 0, "runs must be at least 1"),
        (_linear(), jax.tree.map(lambda x: x[None], HERE), 1, "one set of parameters"),
        (_linear(precision=np.array([1.0, 0.0, 1.0, 1.0])), HERE, 1, "curved downwards in every parameter.*1 of 4"),
        (_linear(failing=True), HERE, 1, "must be sound. Got NaN.*capacity"),
        (_linear(precision=1e8 * PRECISION), HERE, 1, "must inform some direction with a strength of 0.5. Got 0.03"),
    ],
)
def test_what_cannot_be_done_is_refused(key, target, params, runs, message):
    with pytest.raises(ValueError, match=message):
        informed_subspace(key, target, params, runs=runs, progress=False)


def test_what_does_not_fit_into_memory_is_refused(key, monkeypatch):
    monkeypatch.setattr("bayespot.inference.informed_subspace._MOST_NUMBERS", 15)  # two averages by four parameters
    with pytest.raises(ValueError, match=r"at most 15\. Got 16.*with subset"):
        informed_subspace(key, _linear(), HERE, runs=2, progress=False)
