r"""The contract of every observable, and ``observe``, which averages one over the runs of all posterior samples.

An observable is a function of one frame and a way to combine frames, by default the weighted average

.. math:: \langle a \rangle = \sum_t w_t\, a(x_t), \qquad \sum_t w_t = 1 .

With equal weights this is the time average; with other weights the same observable is reweighted to another potential.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import default_batch_size, over_batches, within_memory
from bayespot.errors import Status
from bayespot.observables.shared_frames import shared_averages
from bayespot.records.dataset import Dataset
from bayespot.records.interval import Observed
from bayespot.records.posterior import PosteriorSamples, check_spec
from bayespot.records.reweighted import Reweighted
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace, take
from bayespot.typing import Array, Float, Params, Spec

Weights = Float[Array, "T"] | Float[np.ndarray, "T"]
"""Weights of the frames; they sum to 1."""


def average(values: Float[Array, "T *shape"], weights: Weights) -> Float[Array, "*shape"]:
    """Weighted average over the frames; the weights sum to 1."""
    return jnp.tensordot(jnp.asarray(weights, values.dtype), values, axes=1)


class Observable(NamedTuple):
    """An observable: functions and facts.

    Attributes:
        frame: one ``Frame`` → array; traceable, blind to padding.
        combine: ``(values (T, ...), weights (T,))`` → array. Observables that reweighting cannot treat refuse all
            weights but those of a run or a block: equal for consecutive frames, zero for others.
        name: for tables and figures.
        unit: of the value.
        coordinate: abscissa of the last axis, ``(n,)``; ``(0,)`` for a scalar.
        axis: name and unit of the abscissa.
        prepare: ``Trajectory → Observable`` on the host, before tracing: checks that the trajectory has what is needed
            (a volume, the species, evenly spaced frames) and fixes sizes that depend on it (periodic images, number of
            neighbours). ``observe`` calls it; ``None`` where there is nothing to do. Without it the observable is
            right where its defaults suffice and NaN elsewhere, never silently wrong.
        parametric: ``(Frame, parameters)`` → array, in place of ``frame`` where the potential itself must be asked and
            each run has other parameters; ``observe`` takes them from ``samples``.
        spec: of that potential, to be compared with that of the samples.
        linked: whether frames count together with later ones (time correlations). ``combine`` then gets all frames of
            a run for each block, so that no pair of frames is lost where a block ends.
    """

    frame: Callable[[Frame], Array]
    combine: Callable[[Array, Array], Array]
    name: str
    unit: str
    coordinate: np.ndarray = np.zeros(0)
    axis: str = ""
    prepare: Callable[[Trajectory], Observable] | None = None
    parametric: Callable[[Frame, Params], Array] | None = None
    spec: Spec = MappingProxyType({})
    linked: bool = False


def observe(
    observable: Observable,
    trajectories: Trajectory | Reweighted | Dataset,
    *,
    samples: PosteriorSamples | None = None,
    blocks: int | None = None,
    discard: int = 0,
    batch_size: int | None = None,
) -> Observed:
    """Averages of an observable over every run, over the frames that samples share, or over the frames of a data set.

    Args:
        observable: what to measure.
        trajectories: from ``propagate``, leading axes ``(S, R)``, or a single run, which is treated as S = R = 1; from
            ``reweight``; or a data set, whose frames are taken for a single run without velocities and times. What
            needs these, or labels that are missing, is refused; what asks for fluctuations needs frames of one
            ensemble. Failed runs keep their status, which ``interval`` refuses.
        samples: that drove the runs; they supply the weights, the chains and the parameters for observables that ask
            the potential. Without them all weights are equal and every run is a chain of its own, as in an ensemble.
        blocks: each run is also averaged in so many consecutive parts, from which the sampling error is estimated;
            default 4. Of shared frames the few runs must tell that of all samples: default at least 16 in all.
            A block should be several correlation times long (``block_independence``). With lags of half a block and
            more, take three blocks at least, or replicas: pairs of frames may end in the next block.
        discard: frames left out at the start of every run, to equilibrate.
        batch_size: runs treated at once; default 1 on a CPU, as many as its memory holds on an accelerator.

    Raises:
        ValueError: where the observable lacks something (volume, species, parameters), wrong axes, or too few frames.
    """
    if labels := isinstance(trajectories, Dataset):
        trajectories = _run_of(trajectories)
    if not isinstance(trajectories, Reweighted):
        trajectories = _with_axes(trajectories)
    s = len(trajectories.status)
    if samples is not None and samples.log_weight.shape != (s,):
        raise ValueError(
            f"`samples` must be those that drove the runs. Got {samples.log_weight.shape[0]} samples and runs of {s}."
        )
    params = _parameters(observable, samples)
    if isinstance(trajectories, Reweighted):
        _refuse_fixed_parameters(observable)
        value, block, status, shared = _reused_averages(observable, trajectories, params, blocks, discard, batch_size)
    else:
        value, block, status = _run_averages(observable, trajectories, params, blocks, discard, batch_size)
        shared = None
        if labels:
            _require_finite(observable, value)
    coordinate = np.asarray(observable.coordinate, value.dtype)
    return Observed(
        value=value,
        blocks=block,
        coordinate=jax.device_put(np.broadcast_to(coordinate, (s, *coordinate.shape))),
        status=status,
        log_weight=jax.device_put(np.zeros(s, value.dtype)) if samples is None else samples.log_weight,
        chain=jax.device_put(np.arange(s)) if samples is None else samples.chain,
        name=observable.name,
        unit=observable.unit,
        axis=observable.axis,
        shared=shared,
    )


def _run_averages(observable: Observable, runs: Trajectory, params: tuple, blocks, discard: int, batch_size):
    """Values ``(S, R, ...)``, blocks ``(S, R, B, ...)`` and status ``(S, R)`` of runs."""
    s, r, t = runs.frames.energy.shape
    blocks = 4 if blocks is None else blocks
    _check_blocks(t, blocks, discard)
    kept = replace(runs, frames=jax.tree.map(lambda x: x[:, :, discard:], runs.frames), time=runs.time[..., discard:])
    frame, combine = _prepared(observable, kept)
    size = default_batch_size(s * r) if batch_size is None else batch_size
    parts = _parts(t - discard, blocks)
    averages = partial(_averages, kept.frames, params, frame, combine, parts, observable.linked)
    value, block = within_memory(averages, size)
    return value, block, runs.status


def _prepared(observable: Observable, runs: Trajectory) -> tuple[Callable, Callable]:
    """``(frame, *parameters) → array`` and ``combine``, for these runs."""
    ready = observable if observable.prepare is None else observable.prepare(runs)
    return ready.parametric or ready.frame, ready.combine


def _reused_averages(observable: Observable, reweighted: Reweighted, params: tuple, blocks, discard: int, batch_size):
    """As ``_run_averages``, and the deviations ``(S, J, B, ...)`` of the blocks of shared frames.

    All samples are averaged over the shared frames; those with runs of their own then get the averages of these.
    """
    j, r, t = reweighted.reference.frames.energy.shape
    parts = max(4, -(-16 // (j * r))) if blocks is None else blocks
    _check_blocks(t, parts, discard)
    if r * parts < 2:
        raise ValueError(f"The error of shared frames needs two blocks of each reference. Got {r} runs of {parts}.")
    size = default_batch_size(len(reweighted.status)) if batch_size is None else batch_size
    functions = _prepared(observable, reweighted.reference)
    averages = partial(shared_averages, *functions, reweighted, params, parts, discard)
    value, deviation = (np.array(x) for x in within_memory(averages, size))
    found, own = None, np.flatnonzero(reweighted.own >= 0)
    if reweighted.runs is not None:
        own = own[np.argsort(reweighted.own[own])]
        found = _run_averages(observable, reweighted.runs, take(params, own), blocks, discard, batch_size)
    r, b = found[1].shape[1:3] if found else (1, 2)
    runs, status = np.repeat(value[:, None], r, 1), np.repeat(reweighted.status[:, None], r, 1)
    every = np.repeat(runs[:, :, None], b, 2)
    if found:
        runs[own], every[own], status[own] = (np.asarray(x) for x in found)
        deviation[own] = 0.0
    return *(jax.device_put(x) for x in (runs, every, status)), jax.device_put(deviation)


def _refuse_fixed_parameters(observable: Observable) -> None:
    if observable.spec and observable.parametric is None:
        raise ValueError(
            f"{observable.name} has parameters of its own, but the samples of reweighted frames have others. Make it "
            "without `params`, and pass the `samples`."
        )


def _check_blocks(frames: int, blocks: int, discard: int) -> None:
    if not 0 <= discard < frames or not 1 <= blocks <= frames - discard:
        raise ValueError(
            f"A run must keep at least one frame per block after `discard`. Got {frames} frames, discard={discard}, "
            f"blocks={blocks}. Discard less, use fewer blocks, or write more frames."
        )


def sound(trajectories: Trajectory) -> np.ndarray:
    """Which runs ended well, ``(S, R)`` or a scalar; only these may decide sizes on the host."""
    return np.asarray(trajectories.status) == Status.OK


def _run_of(data: Dataset) -> Trajectory:
    data = data[:]  # on the host
    energy = np.where(data.has_energy, data.energy, np.nan)
    stress = np.where(data.has_stress[:, None, None], data.stress, np.nan)
    frames = Frame(data.system, np.full_like(data.forces, np.nan), energy, stress)
    return Trajectory(frames, np.full_like(energy, np.nan), np.zeros((), np.int32), np.zeros((), energy.dtype))


def _require_finite(observable: Observable, value: Array) -> None:
    if not np.isfinite(value).all():
        raise ValueError(
            f"{observable.name} of these frames is not a number. Frames of a data set have no velocities, their labels "
            "may be missing, and what is asked may not occur in them. Take frames that have what is needed."
        )


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


def _parameters(observable: Observable, samples: PosteriorSamples | None) -> tuple:
    """The parameters of all samples, if the observable asks for them."""
    if observable.parametric is None:
        return ()
    if samples is None:
        raise ValueError(
            f"{observable.name} asks the potential again: pass the `samples` that drove the runs (of a single run, "
            "as_samples of its parameters), or give the observable its `params`."
        )
    check_spec(samples, observable.spec)
    return (samples.params["potential"],)


def _parts(frames: int, blocks: int) -> tuple[tuple[int, int], ...]:
    edges = np.linspace(0, frames, blocks + 1).round().astype(int)
    return tuple((int(a), int(b)) for a, b in pairwise(edges))


@partial(jax.jit, static_argnames=("frame", "combine", "parts", "linked", "batch_size"))
def _averages(runs: Frame, params: tuple, frame, combine, parts, linked, batch_size):
    """Averages over whole runs ``(S, R, ...)`` and over their parts ``(S, R, B, ...)``; frames of a run one by one."""
    s, r = runs.energy.shape[:2]

    def run(frames, number, params):
        own = take(params, number)
        values = jax.lax.map(lambda one: frame(one, *own), frames)

        def over(start, stop):
            if linked:
                weights = np.zeros(len(values))
                weights[start:stop] = 1.0 / (stop - start)
                return combine(values, weights)
            return combine(values[start:stop], np.full(stop - start, 1.0 / (stop - start)))

        return over(0, parts[-1][1]), jnp.stack([over(*part) for part in parts])

    each: Callable = jax.vmap(run, in_axes=(0, 0, None))
    flat = jax.tree.map(lambda x: x.reshape(s * r, *x.shape[2:]), (runs, jnp.repeat(jnp.arange(s), r)))
    found = over_batches(lambda runs, params: each(*runs, params), flat, params, batch_size=batch_size)
    return jax.tree.map(lambda x: x.reshape(s, r, *x.shape[1:]), found)
