"""A target on all of its data, a few frames at a time, so that memory stays that of a minibatch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayespot.inference.target import Batch, Target, TargetState, require_training_data
from bayespot.tree import length, take
from bayespot.typing import Key, Params, Scalar

FRAMES_AT_ONCE = 32


def full_value_and_grad(target: Target, data: Batch) -> Callable[[Key, Params, TargetState], tuple[Scalar, Params]]:
    """``(key, params, state) → value, gradient`` per datum, over all data.

    Args:
        target: whose state is not changed here.
        data: the training data.

    Raises:
        ValueError: for data that the target was not made for.
    """
    over = _over_parts(target, data)

    def function(key: Key, params: Params, state: TargetState) -> tuple[Scalar, Params]:
        return over(lambda k, batch: target.value_and_grad(k, params, state, batch)[:2], key)

    return function


def full_value(target: Target, data: Batch) -> Callable[[Key, Params, TargetState], Scalar]:
    """The value alone, ``(key, params, state) → value`` per datum; the compiler drops the gradient's computation."""
    over = _over_parts(target, data)

    def function(key: Key, params: Params, state: TargetState) -> Scalar:
        return over(lambda k, batch: target.value_and_grad(k, params, state, batch)[0], key)

    return function


def full_log_density(target: Target, data: Batch, temperature: float = 1.0) -> Callable[[Params], Scalar]:
    r"""``parameters → log p(θ | D) / T``, of all data and not per datum: what full-batch samplers take.

    Its derivative is the target's own gradient. For targets without a random or changing state.

    Raises:
        ValueError: for data that the target was not made for, or a target that simulates or draws minibatches itself.
    """
    whole, scale = full_value_and_grad(target, data), target.size / temperature

    def scaled(params: Params) -> tuple[Scalar, Params]:
        value, gradient = whole(jax.random.key(0), params, target.init(jax.random.key(1), params))
        return scale * value, jax.tree.map(lambda g: scale * g, gradient)

    @jax.custom_vjp
    def log_density(params: Params) -> Scalar:
        return scaled(params)[0]

    log_density.defvjp(scaled, lambda gradient, cotangent: (jax.tree.map(lambda g: cotangent * g, gradient),))
    return log_density


def _over_parts(target: Target, data: Batch) -> Callable:
    """Mean of ``evaluate(key, batch)`` over all frames, part by part of equal size, and the rest."""
    if target.share is not None or not target.exact:
        raise ValueError(
            "A target that simulates, or draws minibatches of its own, has no density that could be had again. "
            "Use an algorithm that steps."
        )
    require_training_data(target, data)
    data = jax.tree.map(jnp.asarray, jnp.zeros((1, 0)) if data is None else data)
    frames = length(data)
    parts = -(-frames // FRAMES_AT_ONCE)
    size = frames // parts
    rest = frames - parts * size
    rows = jnp.arange(parts * size).reshape(parts, size)

    def over(evaluate: Callable, key: Key):
        keys = jax.random.split(key, parts + 1)
        found = jax.lax.map(lambda x: evaluate(x[0], take(data, x[1])), (keys[:-1], rows))
        mean = jax.tree.map(lambda x: x.mean(0), found)
        if not rest:
            return mean
        last = evaluate(keys[-1], take(data, slice(parts * size, frames)))
        share = rest / frames
        return jax.tree.map(lambda a, b: (1 - share) * a + share * b, mean, last)

    return over
