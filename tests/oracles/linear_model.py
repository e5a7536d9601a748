"""Bayesian linear regression: a posterior whose mean and covariance are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.inference.target import LeastSquares, Target

SIGMA, WIDTH = 0.5, 2.0


def make(rows: int = 64, condition: float = 4.0, dimension: int = 3, seed: int = 0):
    """Data ``{"x", "y"}``, target, exact mean and covariance of the posterior, whose precision has this condition."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, dimension)))[0]
    right = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    x = left * np.geomspace(1.0, condition**-0.5, dimension) @ right.T * rows**0.5
    y = x @ rng.normal(size=dimension) + SIGMA * rng.normal(size=rows)
    precision = x.T @ x / SIGMA**2 + np.eye(dimension) / WIDTH**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ x.T @ y / SIGMA**2
    data = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    return data, target(rows, dimension), mean, covariance


def target(rows: int, dimension: int) -> Target:
    def log_likelihood(a, batch):
        return -0.5 * ((batch["y"] - batch["x"] @ a) ** 2).mean() / SIGMA**2

    def value_and_grad(key, params, state, batch):
        def value(p):
            return log_likelihood(p["a"], batch) - 0.5 * (p["a"] ** 2).sum() / WIDTH**2 / rows

        return *jax.value_and_grad(value)(params), state, {}

    return Target(
        initial=lambda key: {"a": jax.random.normal(key, (dimension,))},
        init=lambda key, params: (),
        value_and_grad=value_and_grad,
        metrics=lambda params, batch: {"log_likelihood": log_likelihood(params["a"], batch)},
        size=rows,
        spec={"name": "linear"},
        least_squares=LeastSquares(
            residuals=lambda params, batch: (batch["x"] @ params["a"] - batch["y"]) / SIGMA,
            log_prior=lambda params: -0.5 * (params["a"] ** 2).sum() / WIDTH**2,
        ),
    )


def in_two_leaves(target: Target) -> Target:
    """The same target with its first parameter in an array of its own, because sums over arrays can be wrong."""

    def joined(params):
        return {"a": jnp.concatenate([params["first"], params["rest"]])}

    def split(params):
        return {"first": params["a"][:1], "rest": params["a"][1:]}

    def value_and_grad(key, params, state, batch):
        value, gradient, state, info = target.value_and_grad(key, joined(params), state, batch)
        return value, split(gradient), state, info

    return target._replace(
        initial=lambda key: split(target.initial(key)),
        value_and_grad=value_and_grad,
        metrics=lambda params, batch: target.metrics(joined(params), batch),
    )
