"""Simulations with one set of parameters, or with every sample of a posterior: one loop for both."""

from pathlib import Path
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.errors import FailedSamples, Status, listed
from bayespot.potentials.potential import Potential
from bayespot.records.posterior import PosteriorSamples, check_spec
from bayespot.records.reweighted import Reweighted
from bayespot.records.system import System
from bayespot.records.trajectory import Trajectory
from bayespot.simulation import loop
from bayespot.simulation.ensemble import Ensemble
from bayespot.simulation.reweight import refuse_failed, unserved, with_runs
from bayespot.tree import take
from bayespot.typing import Key, Params
from bayespot.units import ps


def simulate(
    key: Key,
    potential: Potential,
    params: Params,
    start: System,
    ensemble: Ensemble,
    *,
    steps: int,
    every: int = 100,
    equilibration: int = 0,
    chunk: int = 1000,
    skin: float = 0.4,
    max_kT: float | None = None,
    checkpoint: str | Path | None = None,
    throw: bool = True,
    progress: bool = True,
) -> Trajectory:
    """One molecular dynamics simulation.

    Args:
        key: random key of initial velocities and thermostat noise.
        potential: that gives the forces.
        params: its parameters.
        start: initial configuration; padding is removed.
        ensemble: e.g. ``nvt_langevin(kT=300 * units.kB, dt=1.0 * units.fs)``.
        steps: recorded steps.
        every: steps between frames; must divide ``steps``.
        equilibration: steps before them, which are not recorded.
        chunk: steps per call of compiled code; progress, checkpoints and list repairs happen between chunks.
        skin: of the neighbour lists [Å]; it affects speed, not results, except that an atom which moves
            farther than half of it in one step counts as unstable.
        max_kT: kinetic temperature [eV] beyond which a run counts as unstable; default ten times the ensemble's, or
            1 eV where it has none.
        checkpoint: folder for states and frames; a second call with the same arguments resumes from it.
        throw: raise when the run becomes unstable; otherwise its ``status`` says so.
        progress: show a progress bar.

    Returns:
        A ``Trajectory`` with the axis ``T = steps / every``, as numpy arrays in the memory of the host.

    Raises:
        ValueError: for arguments that do not fit each other.
        FailedSamples: for an unstable run, if ``throw``; its ``trajectories`` hold what there is.
    """
    plan = loop.plan(steps, every, equilibration, 1, chunk, skin, max_kT, 1, ensemble, 1)
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], params)
    runs = loop.run(key, potential, stacked, start, ensemble, plan, checkpoint, progress)
    one = take(runs, (0, 0))
    if throw and one.status != Status.OK:
        raise _failure(
            f"The simulation became unstable at t = {one.valid_until / ps:.4g} ps; "
            "use throw=False to get the status and the frames before.",
            (0,),
            one,
        )
    return one


@overload
def propagate(
    key: Key, potential: Potential, samples: PosteriorSamples, start: System, ensemble: Ensemble, *,
    steps: int, every: int = 100, replicas: int = 1, equilibration: int = 0, reuse: None = None,
    batch_size: int | None = None, chunk: int = 1000, skin: float = 0.4, max_kT: float | None = None,
    checkpoint: str | Path | None = None, throw: bool = True, progress: bool = True,
) -> Trajectory: ...  # fmt: skip


@overload
def propagate(
    key: Key, potential: Potential, samples: PosteriorSamples, start: System, ensemble: Ensemble, *,
    steps: int, every: int = 100, replicas: int = 1, equilibration: int = 0, reuse: Reweighted,
    batch_size: int | None = None, chunk: int = 1000, skin: float = 0.4, max_kT: float | None = None,
    checkpoint: str | Path | None = None, throw: bool = True, progress: bool = True,
) -> Reweighted: ...  # fmt: skip


def propagate(
    key: Key,
    potential: Potential,
    samples: PosteriorSamples,
    start: System,
    ensemble: Ensemble,
    *,
    steps: int,
    every: int = 100,
    replicas: int = 1,
    equilibration: int = 0,
    reuse: Reweighted | None = None,
    batch_size: int | None = None,
    chunk: int = 1000,
    skin: float = 0.4,
    max_kT: float | None = None,
    checkpoint: str | Path | None = None,
    throw: bool = True,
    progress: bool = True,
) -> Trajectory | Reweighted:
    """Molecular dynamics with every sample of a posterior, ``replicas`` times each.

    Every run has its own key, made from the numbers of its sample and replica: its result does not depend on the other
    runs nor (up to rounding) on how runs are batched. An unstable run does not disturb the others.

    Args:
        samples: posterior samples of the potential, all of status OK (leave failed ones out with ``healthy``).
        replicas: independent runs per sample; they tell the sampling error from the spread between samples.
        reuse: from ``reweight`` with these samples; then only those that it calls ``LOW_ESS`` are run, and counted for
            their keys. Use another key than for the references.
        batch_size: runs that are advanced together; default 1 on a CPU, as many as its memory holds on an accelerator.
        key, potential, start, ensemble, steps, every, equilibration, chunk, skin, max_kT, checkpoint, progress: as in
            ``simulate``.
        throw: raise when a run becomes unstable; otherwise ``status`` and ``valid_until`` tell.

    Returns:
        A ``Trajectory`` with the axes ``(S, R, T)``, as numpy arrays in the memory of the host; with ``reuse`` a
        ``Reweighted``, which ``observe`` takes as well.

    Raises:
        ValueError: for arguments that do not fit each other, or samples of another potential.
        FailedSamples: for failed samples, before anything is run; and, if ``throw``, for unstable runs, with the
            finished runs as attribute ``trajectories``.
    """
    check_spec(samples, potential.spec)
    refuse_failed(samples, "propagated")
    chosen = np.arange(len(samples)) if reuse is None else unserved(reuse, samples, start, ensemble.kT)
    plan = loop.plan(steps, every, equilibration, replicas, chunk, skin, max_kT, batch_size, ensemble, len(chosen))
    if not len(chosen) and reuse is not None:  # nothing to run, or all that there was is in it already
        return reuse if reuse.runs is not None else with_runs(reuse, chosen, None, plan)
    params = take(samples.params["potential"], chosen)
    runs = loop.run(key, potential, params, start, ensemble, plan, checkpoint, progress)
    if throw:
        _refuse_unstable(runs, chosen, len(samples))
    return runs if reuse is None else with_runs(reuse, chosen, runs, plan)


def _refuse_unstable(runs: Trajectory, chosen: np.ndarray, number: int) -> None:
    if (bad := chosen[(np.asarray(runs.status) != Status.OK).any(1)]).size:
        first = np.asarray(runs.valid_until).min() / ps
        raise _failure(
            f"{bad.size} of {number} samples ({listed(bad)}) became unstable; first at t = {first:.4g} ps. "
            "Use throw=False to get the status; the finished runs are in this error's `trajectories`.",
            tuple(bad.tolist()),
            runs,
        )


def _failure(message: str, samples: tuple[int, ...], trajectories: Trajectory) -> FailedSamples:
    error = FailedSamples(message, samples)
    error.trajectories = trajectories
    return error
