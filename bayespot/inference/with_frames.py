"""A target that brings its own frames, so that it can stand beside one that scores others."""

import jax
import jax.numpy as jnp

from bayespot.inference.target import Batch, Target, require_training_data
from bayespot.tree import length, take
from bayespot.typing import Key, Params


def with_frames(target: Target, data: Batch, batch_size: int | None = None) -> Target:
    """The target with its frames inside: of the frames that ``infer`` hands out it takes none, and may get ``None``.

    So ``fused`` joins several sets of frames, e.g. those of two temperatures. Minibatches are drawn anew at every step,
    without repetition, and independently of one another; ``rows`` (``bootstrap``) do not choose among these frames.

    Args:
        target: that scores frames, e.g. ``force_matching(…)`` or ``relative_entropy(…)``.
        data: the frames that it was made for.
        batch_size: frames at each step; default all of them, at once also where others are evaluated part by part
            (``full_log_density``).

    Returns:
        The target, of the same size. With minibatches its value is an estimate, also where all data are asked for:
        algorithms that compare values refuse it (``sggmc``, ``amagold``, ``replica_exchange``, ``full_log_density``).
        ``anchored`` and ``control_variates`` have to come before.

    Raises:
        ValueError: for a target that scores no frames, other data than it was made for, or a minibatch larger than
            these.

    Example::

        cold = bp.relative_entropy(at_280, run_at_280, frames_at_280, prior)
        warm = bp.with_frames(bp.relative_entropy(at_340, run_at_340, frames_at_340), frames_at_340, batch_size=25)
        target = bp.fused(cold, warm)
    """
    if not target.frames:
        raise ValueError("with_frames is for targets that score frames. This one scores none: take it as it is.")
    require_training_data(target, data)
    frames = length(data)
    size = frames if batch_size is None else batch_size
    if not 1 <= size <= frames:
        raise ValueError(f"batch_size must lie between 1 and the number of frames, {frames}. Got {batch_size}.")
    data = jax.tree.map(jnp.asarray, data)

    def value_and_grad(key: Key, params: Params, state, batch: Batch):
        if size == frames:
            return target.value_and_grad(key, params, state, data)
        drawing, scoring = jax.random.split(key)
        rows = jax.random.choice(drawing, frames, (size,), replace=False)
        return target.value_and_grad(scoring, params, state, take(data, rows))

    exact = target.exact and size == frames
    return target._replace(value_and_grad=value_and_grad, frames=False, exact=exact, least_squares=None)
