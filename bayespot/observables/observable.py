r"""The contract of every observable, and ``observe``, which averages one over the runs of all posterior samples.

An observable is a function of one frame and a way to combine frames, by default the weighted average

.. math:: \langle a \rangle = \sum_t w_t\, a(x_t), \qquad \sum_t w_t = 1 .

With equal weights this is the time average; with other weights the same observable is reweighted to another potential.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import default_batch_size, over_batches, within_memory
from bayespot.errors import Status
from bayespot.records.interval import Observed
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float

Weights = Float[Array, "T"] | Float[np.ndarray, "T"]
"""Weights of the frames; they sum to 1."""


def average(values: Float[Array, "T *shape"], weights: Weights) -> Float[Array, "*shape"]:
    """Weighted average over the frames; the weights sum to 1."""
    return jnp.tensordot(jnp.asarray(weights, values.dtype), values, axes=1)


class Observable(NamedTuple):
    """An observable: functions and facts.

    Attributes:
        frame: one ``Frame`` → array; traceable, blind to padding.
        combine: ``(values (T, ...), weights (T,))`` → array. Observables that reweighting cannot treat refuse weights
            that are not equal.
        name: for tables and figures.
        unit: of the value.
        coordinate: abscissa of the last axis, ``(n,)``; ``(0,)`` for a scalar.
        axis: name and unit of the abscissa.
        prepare: ``Trajectory → Observable`` on the host, before tracing: checks that the trajectory has what is needed
            (a volume, the species, evenly spaced frames) and fixes sizes that depend on it (periodic images, number of
            neighbours). ``observe`` calls it; ``None`` where there is nothing to do. Without it the observable is
            right where its defaults suffice and NaN elsewhere, never silently wrong.
    """

    frame: Callable[[Frame], Array]
    combine: Callable[[Array, Array], Array]
    name: str
    unit: str
    coordinate: np.ndarray = np.zeros(0)
    axis: str = ""
    prepare: Callable[[Trajectory], Observable] | None = None


def observe(
    observable: Observable,
    trajectories: Trajectory,
    *,
    samples: PosteriorSamples | None = None,
    blocks: int = 4,
    discard: int = 0,
    batch_size: int | None = None,
) -> Observed:
    """Averages of an observable over every run.

    Args:
        observable: what to measure.
        trajectories: from ``propagate``, leading axes ``(S, R)``, or a single run, which is treated as S = R = 1.
        samples: the posterior samples that drove the runs; they supply the weights and the chains. Without them all
            weights are equal and every run counts as a chain of its own, as for a deep ensemble.
        blocks: each run is also averaged in so many consecutive parts, from which the sampling error is estimated.
            A block should be several correlation times long (``block_independence``).
        discard: frames left out at the start of every run, to equilibrate.
        batch_size: runs treated at once; default 1 on a CPU, as many as its memory holds on an accelerator.

    Raises:
        ValueError: for a trajectory that does not have what the observable needs, wrong axes, or too few frames.
    """
    trajectories = _with_axes(trajectories)
    s, r, t = trajectories.frames.energy.shape
    if not 0 <= discard < t or not 1 <= blocks <= t - discard:
        raise ValueError(
            f"A run must keep at least one frame per block after `discard`. Got {t} frames, discard={discard}, "
            f"blocks={blocks}. Discard less, use fewer blocks, or write more frames."
        )
    if samples is not None and samples.log_weight.shape != (s,):
        raise ValueError(
            f"`samples` must be those that drove the runs. Got {samples.log_weight.shape[0]} samples and runs of {s}."
        )
    trajectories = Trajectory(
        frames=jax.tree.map(lambda x: x[:, :, discard:], trajectories.frames),
        time=trajectories.time[..., discard:],
        status=trajectories.status,
        valid_until=trajectories.valid_until,
    )
    if observable.prepare is not None:
        observable = observable.prepare(trajectories)
    runs = jax.tree.map(lambda x: x.reshape(s * r, *x.shape[2:]), trajectories.frames)
    size = default_batch_size(s * r) if batch_size is None else batch_size
    parts = _parts(t - discard, blocks)
    averages = partial(_averages, runs, observable.frame, observable.combine, parts)
    value, block = within_memory(averages, size)
    coordinate = jnp.asarray(observable.coordinate, value.dtype)
    return Observed(
        value=value.reshape(s, r, *value.shape[1:]),
        blocks=block.reshape(s, r, *block.shape[1:]),
        coordinate=jnp.broadcast_to(coordinate, (s, *coordinate.shape)),
        status=trajectories.status,
        log_weight=jnp.zeros(s, value.dtype) if samples is None else samples.log_weight,
        chain=jnp.arange(s) if samples is None else samples.chain,
        name=observable.name,
        unit=observable.unit,
        axis=observable.axis,
    )


def sound(trajectories: Trajectory) -> np.ndarray:
    """Which runs ended well, ``(S, R)`` or a scalar; only these may decide sizes on the host."""
    return np.asarray(trajectories.status) == Status.OK


def _with_axes(trajectories: Trajectory) -> Trajectory:
    dimensions = trajectories.frames.energy.ndim
    if dimensions == 1:
        return jax.tree.map(lambda x: x[None, None], trajectories)
    if dimensions != 3:
        raise ValueError(
            "Frames need the axes (T,) of a single run or (S, R, T) of samples × replicas. "
            f"Got energies of shape {trajectories.frames.energy.shape}. Add the missing axis of length 1."
        )
    return trajectories


def _parts(frames: int, blocks: int) -> tuple[tuple[int, int], ...]:
    edges = np.linspace(0, frames, blocks + 1).round().astype(int)
    return tuple((int(a), int(b)) for a, b in pairwise(edges))


@partial(jax.jit, static_argnames=("frame", "combine", "parts", "batch_size"))
def _averages(runs: Frame, frame, combine, parts, batch_size):
    """Averages over whole runs ``(n, ...)`` and over their parts ``(n, B, ...)``; the frames of a run one by one."""

    def run(frames):
        values = jax.lax.map(frame, frames)

        def over(start, stop):
            return combine(values[start:stop], np.full(stop - start, 1.0 / (stop - start)))

        return over(0, parts[-1][1]), jnp.stack([over(*part) for part in parts])

    return over_batches(jax.vmap(run), runs, batch_size=batch_size)
