"""The predicted widening by minibatch noise against what sampling shows, and the step size that follows from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

from bayespot.inference.control_variates import control_variates
from bayespot.inference.infer import infer
from bayespot.inference.noise_bias import GradientNoise, gradient_noise, largest_step, variance_inflation
from bayespot.inference.schedules import constant
from bayespot.inference.sghmc import sghmc
from bayespot.inference.sgld import sgld
from tests.oracles.linear_model import SIGMA, make

DATA, TARGET, MEAN, COVARIANCE = make(rows=64)
MODE = {"a": jnp.asarray(MEAN)}


def test_noise_and_curvature_are_those_of_the_linear_model(key):
    found = gradient_noise(key, TARGET, MODE, DATA, directions=3)
    x, y = (np.asarray(DATA[k]) for k in "xy")
    gradients = x * (y - x @ MEAN)[:, None] / SIGMA**2
    curvature, axes = np.linalg.eigh(np.linalg.inv(COVARIANCE) / 64)
    np.testing.assert_allclose(found.curvature, curvature, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.directions @ axes), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(found.variance, (gradients @ axes).var(0), rtol=1e-6)
    assert found.size == 64
    scaled = gradient_noise(jax.random.key(1), TARGET, MODE, DATA, diagonal={"a": jnp.full(3, 4.0)}, directions=3)
    np.testing.assert_allclose(scaled.variance, 4 * found.variance, rtol=1e-6)
    np.testing.assert_allclose(scaled.curvature, 4 * found.curvature, rtol=1e-9)
    with pytest.raises(ValueError, match="no noise"):
        gradient_noise(jax.random.key(2), control_variates(TARGET, DATA), MODE, DATA)


def test_the_stiffest_direction_is_found_though_it_has_no_noise(key):
    def value_and_grad(key, params, state, batch):
        value, gradient, state, info = TARGET.value_and_grad(key, params, state, batch)
        return value, {"a": gradient["a"] - 1000.0 * axis * (axis @ params["a"])}, state, info

    axis = jnp.array([0.6, 0.0, 0.8])
    stiff = TARGET._replace(value_and_grad=value_and_grad)
    found = gradient_noise(key, stiff, MODE, DATA, directions=1)
    assert len(found.curvature) == 2
    assert 1000.0 < found.curvature.max() < 1004.0
    assert largest_step(found, 8) < 2 / 1000.0


def test_the_prediction_in_many_dimensions_is_that_of_the_whole_problem(key):
    # 20 parameters, condition 100: independent minibatches by the Lyapunov equation of all of them, SciPy's
    data, target, mean, covariance = make(rows=60, dimension=20, condition=100.0)
    found = gradient_noise(key, target, {"a": jnp.asarray(mean)}, data, directions=20)
    hessian, step = np.linalg.inv(covariance) / 60, 0.3 / found.curvature.max()
    x, y = (np.asarray(data[k]) for k in "xy")
    gradients = x * (y - x @ mean)[:, None] / SIGMA**2
    noise = np.cov(gradients.T, ddof=0) / 6 * 54 / 59
    move = np.eye(20) - step * hessian
    whole = solve_discrete_lyapunov(move, 2 * step / 60 * np.eye(20) + step**2 * noise)
    exact = np.diag(found.directions @ whole @ found.directions.T) * found.curvature * 60
    epochs = variance_inflation(found, step, 6)
    independent = variance_inflation(found, step, 6, independent=True)
    np.testing.assert_allclose(independent, exact, rtol=1e-6)
    assert (epochs <= independent + 1e-12).all()


def widening(algorithm, data, target, covariance, mean, batch_size, steps):
    """Variance over the posterior's; 512 chains × 20 draws 37 steps apart, so that all places of an epoch occur."""
    start = {"a": jnp.tile(jnp.asarray(mean), (512, 1))}
    samples = infer(
        jax.random.key(5), algorithm, start, data, steps=steps, burn_in=steps - 740, thin=37, batch_size=batch_size,
        chains_at_once=512, progress=False,
    )  # fmt: skip
    return float(np.asarray(samples.params["a"]).var() / covariance[0, 0])


@pytest.mark.parametrize(("batch_size", "friction"), [(4, None), pytest.param(8, 0.5, marks=pytest.mark.slow)])
def test_predicted_widening_is_what_sampling_shows(key, batch_size, friction):
    # One dimension, so that the Gaussian calculation is exact but for the change of the noise over the posterior
    # (1/64). 10 240 nearly independent draws: error of the variance 1.4 %.
    data, target, mean, covariance = make(rows=64, dimension=1, condition=1.0)
    found = gradient_noise(key, target, {"a": jnp.asarray(mean)}, data)
    step = 0.3 / found.curvature[0] if friction is None else 0.5 / found.curvature[0] ** 0.5
    algorithm = (
        sgld(target, constant(step)) if friction is None else sghmc(target, constant(step), friction=friction / step)
    )
    predicted = variance_inflation(
        found, step, batch_size, friction=None if friction is None else friction / step
    )[0]  # fmt: skip
    measured = widening(algorithm, data, target, covariance, mean, batch_size, 1000)
    assert measured > 1.15
    np.testing.assert_allclose(measured - 1, predicted - 1, rtol=0.15)


def of(curvature, variance, size) -> GradientNoise:
    return GradientNoise(np.array(curvature), np.array(variance), np.eye(len(curvature)), size)


def test_limits_of_the_formula():
    # all data: no noise, 1/(1 − ελ/2) for SGLD and exactly 1 for the splitting; tiny epochs of many independent-like
    # batches: (1 + ε N V / 2T)/(1 − ελ/2) when the epoch is much longer than the memory 1/ελ
    noise = of([4.0], [9.0], 100_000)
    np.testing.assert_allclose(variance_inflation(noise, 0.1, 100_000), [1 / (1 - 0.2)], rtol=1e-10)
    np.testing.assert_allclose(variance_inflation(noise, 0.4, 100_000, friction=1.0), [1.0], rtol=1e-10)
    n = 100
    single = 9.0 / n * (100_000 - n) / 99_999
    expected = (1 + 0.1 * 100_000 * single / 2) / (1 - 0.2)
    np.testing.assert_allclose(variance_inflation(noise, 0.1, n), [expected], rtol=0.03)
    assert np.isinf(variance_inflation(noise, 0.6, n)).all()
    assert np.isnan(variance_inflation(noise._replace(curvature=np.array([-1.0])), 0.1, n)).all()


def test_the_largest_step_is_just_tolerable():
    noise = of([4.0, 0.5], [9.0, 0.2], 200)
    step = largest_step(noise, 8, tolerance=0.1)
    assert np.abs(variance_inflation(noise, step, 8) - 1).max() == pytest.approx(0.1, rel=1e-6)
    step = largest_step(noise, 8, tolerance=0.1, friction=lambda h: 0.3 / h)
    assert np.abs(variance_inflation(noise, step, 8, friction=0.3 / step) - 1).max() == pytest.approx(0.1, rel=1e-6)
    with pytest.raises(ValueError, match="no mode"):
        largest_step(noise._replace(curvature=np.array([-1.0, -2.0])), 8)
    with pytest.raises(ValueError, match="batch_size ≤ 200"):
        variance_inflation(noise, 0.1, 300)
