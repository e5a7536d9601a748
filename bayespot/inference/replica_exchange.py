r"""Replica exchange: copies of a chain at several temperatures, of which neighbours swap their parameters.

The hot copies cross barriers, the cold one samples the posterior. For copies *i*, *j* at :math:`T_i < T_j`, a swap is
accepted with probability min(1, a),

.. math:: \log a = N \Delta\, (\hat\ell_j - \hat\ell_i) - \tfrac12 N^2 \Delta^2 s^2, \qquad
          \Delta = \frac1{T_i} - \frac1{T_j},

with the minibatch estimate :math:`\hat\ell` of the log density per datum. The second term is the penalty for the
variance :math:`s^2` of the estimated difference; for Gaussian noise of known variance it restores detailed balance
exactly. :math:`s^2` is a running mean of what the two halves of each minibatch say. The minibatch is that of the move
before, so that a bias of the size of plain SGLD's remains.

Reference:
    Deng, Feng, Gao, Liang and Lin, ICML (2020), arXiv:2008.05367; the penalty: Ceperley and Dewing, J. Chem. Phys.
    110, 9812 (1999), eq. 12.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.dynamics import at_times
from bayespot.inference.target import Batch, Target, frames_scored, require_training_data
from bayespot.tree import all_finite, length, take
from bayespot.typing import Array, Float, Key, Params


class ReplicaState(NamedTuple):
    """States of all copies (leading axis K), running variance of the differences (K − 1,), swaps tried and made."""

    copies: Any
    variance: Float[Array, "k"]
    tried: Float[Array, "k"]
    made: Float[Array, "k"]
    step: Array


def replica_exchange(
    make: Callable[[Any], Algorithm],
    target: Target,
    temperatures: Sequence[float],
    every: int = 10,
) -> Algorithm:
    """Copies of a sampler at rising temperatures; the draws are those of the first, coldest one.

    Args:
        make: ``temperature → Algorithm``, e.g. ``lambda t: sgld(target, schedule, temperature=t)``. Its state must
            have the fields ``params`` and ``target``, and nothing else that belongs to a place in parameter space (no
            Metropolis test).
        target: that the sampler moves on.
        temperatures: rising, the first is that of the posterior (1 for Bayes'). Neighbours swap often enough where the
            ratio is about 1 + 1/√d for d well-determined parameters.
        every: steps between attempts; even and odd pairs take turns.

    Raises:
        ValueError: for fewer than two temperatures, ones that do not rise, ``every`` below 1, or a target that
            simulates or draws minibatches itself. A minibatch must have an even number of frames, or be all data.
    """
    ladder = tuple(float(t) for t in temperatures)
    if len(ladder) < 2 or not ladder[0] > 0 or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"temperatures must be at least two positive, rising numbers. Got {ladder}.")
    if every < 1:
        raise ValueError(f"every must be at least 1. Got {every}.")
    if target.share is not None or not target.exact:
        raise ValueError(
            "Copies are compared on the same frames, but this target simulates, or draws minibatches of its own: its "
            "noise is not that of the frames. Use another sampler, or with_frames without batch_size."
        )
    count = len(ladder)
    cold = make(ladder[0])

    def init(key: Key, params: Params) -> ReplicaState:
        copies = _mapped(lambda k, t: make(t).init(k, params), jax.random.split(key, count), jnp.asarray(ladder))
        zero = jnp.zeros(count - 1)
        return ReplicaState(copies, zero, zero, zero, jnp.zeros((), jnp.int32))

    def step(key: Key, state: ReplicaState, batch: Batch):
        one, two = jax.random.split(key)
        keys = jax.random.split(one, count)
        copies, infos = _mapped(
            lambda k, t, copy: make(t).step(k, copy, batch), keys, jnp.asarray(ladder), state.copies
        )
        sound = all_finite(copies.params) & all_finite(infos["log_density"])
        moved = state._replace(copies=copies, step=state.step + 1)
        swap = partial(_swapped, target=target, ladder=ladder, every=every, batch=batch)
        new = at_times(moved.step % every == 0, swap, two, moved)
        rate = (new.made / jnp.maximum(new.tried, 1)).mean()
        info = take(infos, 0)  # a lost hot copy makes the chain a plain one: the chain is lost, too
        return new, {**info, "log_density": jnp.where(sound, info["log_density"], jnp.nan), "swap_acceptance": rate}

    check = partial(require_training_data, target)
    return Algorithm(init, step, lambda state: cold.params(take(state.copies, 0)), target.spec, check)


def _swapped(key: Key, state: ReplicaState, *, target: Target, ladder, every: int, batch: Batch) -> ReplicaState:
    """One attempt: even pairs of neighbours, or odd ones, exchange their parameters where the test says so."""
    one, two = jax.random.split(key)
    halves = _density_of_halves(one, target, state.copies, batch)
    difference = jnp.diff(halves, axis=0)  # (K − 1, 2); the same frames in both copies
    unseen = 1.0 - frames_scored(target, batch) / target.size  # frames are drawn without replacement
    noise = 0.25 * unseen * (difference[:, 0] - difference[:, 1]) ** 2
    attempt = state.step // every
    rate = 1.0 / jnp.minimum(attempt.astype(noise.dtype), 100.0)
    variance = state.variance + jnp.where(jnp.isfinite(noise), rate * (noise - state.variance), 0.0)
    scale = target.size * jnp.asarray([1 / a - 1 / b for a, b in pairwise(ladder)])
    log_ratio = scale * difference.mean(1) - 0.5 * scale**2 * variance
    turn = jnp.arange(len(ladder) - 1) % 2 == attempt % 2
    accept = turn & (jnp.log(jax.random.uniform(two, log_ratio.shape, log_ratio.dtype)) < log_ratio)
    place = jnp.arange(len(ladder)) + jnp.append(accept, False) - jnp.insert(accept, 0, False)
    copies = state.copies._replace(params=take(state.copies.params, place))
    return ReplicaState(copies, variance, state.tried + turn, state.made + accept, state.step)


def _density_of_halves(key: Key, target: Target, copies: Any, batch: Batch) -> Float[Array, "k 2"]:
    """Log density per datum of every copy, from each half of a minibatch; the gradients are not computed.

    Where the minibatch is all data both halves are the whole.
    """
    frames, whole = frames_scored(target, batch), jnp.arange(length(batch))
    if frames % 2 and frames < target.size:
        raise ValueError(
            f"replica_exchange compares the halves of a minibatch. Got batch_size = {frames}. Use an even number."
        )
    rows = jnp.stack([whole, whole]) if frames == target.size else whole.reshape(2, -1)
    number = length(copies)

    def one(k, copy, half):
        return target.value_and_grad(k, copy.params, copy.target, take(batch, half))[0]

    copy, half = jnp.repeat(jnp.arange(number), 2), jnp.tile(jnp.arange(2), number)
    return _mapped(one, jax.random.split(key, 2 * number), take(copies, copy), rows[half]).reshape(number, 2)


def _mapped(function: Callable, keys, *trees):
    """``function(key, ...)`` over the leading axis, one after another and compiled once."""
    kind = jax.random.key_impl(keys)
    return jax.lax.map(
        lambda x: function(jax.random.wrap_key_data(x[0], impl=kind), *x[1:]), (jax.random.key_data(keys), *trees)
    )
