r"""Averages over frames that all posterior samples share, and their sampling errors, which the samples share too.

The frames of each reference are cut into consecutive blocks, :math:`K` in all. With block *k* left out, and the free
energies of the references determined anew, the average of sample *s* is :math:`y_{s(k)}`; the deviations

.. math:: d_{sk} = (K - 1)\,(y_s - y_{s(k)}), \qquad \sum_k d_{sk} = 0,

give the covariance of the sampling errors of two samples, :math:`\sum_k d_{sk} d_{tk} / K(K-1)`. For a plain
average with equal weights :math:`y_s + d_{sk}` is the average over block *k*.

Reference: Miller, *Biometrika* 61, 1 (1974).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import over_batches
from bayespot.observables.frame_weights import log_mixture, weigh
from bayespot.records.reweighted import Reweighted
from bayespot.records.trajectory import Frame
from bayespot.tree import replace, take
from bayespot.typing import Array, Float


def shared_averages(
    frame: Callable,
    combine: Callable,
    reweighted: Reweighted,
    params: tuple,
    blocks: int,
    discard: int,
    batch_size: int,
) -> tuple[Float[Array, "S *shape"], Float[Array, "S J B *shape"]]:
    """Reweighted averages, and the deviations of ``B`` blocks of each reference.

    Args:
        frame, combine: of the observable, ``frame(one, *params)``.
        reweighted: own runs in it are left aside.
        params: of all samples, ``(tree,)``, for an observable that asks for them; otherwise ``()``.
        blocks: parts of every run of a reference; the ``R`` runs of a reference make ``B = R * blocks``.
        discard: frames left out at the start of every run.
        batch_size: samples treated at once.
    """
    flat, origin, part = _flattened(reweighted, blocks, discard)
    frames, seen, logs, references = flat
    number = int(part.max()) + 1
    denominators = np.full((number + 1, len(part)), np.inf)  # a frame that is left out has the weight 0
    denominators[0], free = log_mixture(references, origin)
    for k in range(number):
        kept = part != k
        denominators[k + 1, kept], _ = log_mixture(references[:, kept], origin[kept], free)
    middle = np.median(denominators[0])  # float32 has its digits near zero
    seen["log_boltzmann"] = logs - np.median(logs, axis=1, keepdims=True)
    found = _averages(
        frames, seen | {"params": params}, denominators - middle, frame=frame, combine=combine, kind=reweighted.kind,
        depends=bool(params) or _depends_on_parameters(frame, frames), batch_size=batch_size,
    )  # fmt: skip
    value, without = found[:, 0], found[:, 1:]
    references = len(reweighted.reference.status)
    deviation = ((number - 1) * (value[:, None] - without)).reshape(len(value), references, -1, *value.shape[1:])
    # The numbers of frames of the references are fixed, so what their means differ by is no error.
    deviation -= deviation.mean(2, keepdims=True)
    return value, deviation * float(np.sqrt((number - 1) / (number - references)))


def _flattened(reweighted: Reweighted, blocks: int, discard: int) -> tuple:
    """Frames in one row, what samples see of them, logs; the reference and the block of each."""
    trajectory = reweighted.reference
    j, r, t = trajectory.frames.energy.shape
    edges = np.linspace(0, t - discard, blocks + 1).round().astype(int)
    part = np.repeat(np.arange(blocks), np.diff(edges))

    def row(x, axes: int):
        x = np.asarray(x)
        cut = x[(slice(None),) * (axes + 2) + (slice(discard, None),)]
        return cut.reshape(*x.shape[:axes], -1, *x.shape[axes + 3 :])

    frames = jax.tree.map(lambda x: row(x, 0), trajectory.frames)
    seen = {"energy": row(reweighted.energy, 1), "stress": row(reweighted.stress, 1)}
    rows = frames, seen, row(reweighted.log_boltzmann, 1), row(reweighted.reference_log_boltzmann, 1)
    run = np.repeat(np.arange(j * r), t - discard)
    return rows, run // r, run * blocks + np.tile(part, j * r)


def _depends_on_parameters(frame: Callable, frames: Frame) -> bool:
    """Whether the observable looks at energy or stress; what it does not look at need not be done for every sample."""
    one = jax.tree.map(jnp.asarray, take(frames, 0))
    try:  # this output axis is an error where the output depends on the argument
        jax.eval_shape(
            jax.vmap(lambda energy, stress: frame(replace(one, energy=energy, stress=stress)), out_axes=None),
            one.energy[None],
            one.stress[None],
        )
    except ValueError:
        return True
    return False


@partial(jax.jit, static_argnames=("frame", "combine", "kind", "depends", "batch_size"))
def _averages(frames: Frame, seen: dict, denominators, *, frame, combine, kind, depends, batch_size):
    """Averages of all samples with all frames and with each block left out, ``(S, 1 + K, ...)``."""
    values = jnp.zeros(len(frames.energy)) if depends else over_batches(jax.vmap(frame), frames, batch_size=batch_size)

    def sample(seen, frames, values, denominators):
        if depends:
            own = replace(frames, energy=seen["energy"], stress=seen["stress"])
            values = jax.lax.map(lambda one: frame(one, *seen["params"]), own)
        return jax.vmap(lambda low: combine(values, weigh(seen["log_boltzmann"] - low, kind)))(denominators)

    batched = jax.vmap(sample, in_axes=(0, None, None, None))
    return over_batches(batched, seen, frames, values, denominators, batch_size=batch_size)
