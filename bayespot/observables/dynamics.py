"""Dynamics: functions of the time between two frames of the same run, which weights of frames cannot treat."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bayespot import units
from bayespot.observables.observable import Observable, Weights, sound
from bayespot.observables.pairs import require_species, selected, symbols
from bayespot.records.system import masses
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float


def msd(duration: float, every: float, species: int | None = None) -> Observable:
    r"""Mean-square displacement [Å²] against the lag time, over all time origins and atoms.

    .. math:: \mathrm{MSD}(\tau) = \langle |x_i(t + \tau) - x_i(t)|^2 \rangle_{i,\,t}

    Positions must be unwrapped, as ``simulate`` and ``propagate`` leave them. The centre of mass of all atoms is
    taken out of every frame, so that its drift does not count as diffusion. The thermostat acts on the motion:
    diffusion needs a weak one or none.

    Args:
        duration: longest lag time [internal time unit, e.g. ``2 * units.ps``].
        every: time between frames [internal time unit]; compared with the trajectory by ``observe``.
        species: atomic number of the atoms to follow; default all.

    Raises:
        ValueError: for times that are not positive; in ``observe`` for another spacing of the frames, an absent
            species, or blocks not longer than ``duration``; on weights that are not equal.
    """
    if every <= 0 or duration < every:
        raise ValueError(f"msd needs 0 < every ≤ duration. Got every={every}, duration={duration}.")
    lags = round(duration / every)
    name = "MSD" + symbols(None if species is None else (species,))

    def frame(frame: Frame) -> Float[Array, "N 4"]:
        system = frame.system
        real = (system.species > 0)[:, None]
        mass = jnp.where(real, masses(system.species)[:, None], 0.0).astype(system.position.dtype)
        centre = (mass * jnp.where(real, system.position, 0.0)).sum(0) / mass.sum()
        share = selected(system.species, species).astype(system.position.dtype)
        return jnp.concatenate([jnp.where(real, system.position - centre, 0.0), share[:, None]], axis=-1)

    def combine(values: Float[Array, "T N 4"], weights: Weights) -> Float[Array, "lags"]:
        _require_equal(weights, name)
        frames = values.shape[0]
        if frames <= lags:
            raise ValueError(
                f"{name} up to {lags} frames needs runs and blocks of more than {lags} frames. Got {frames}. "
                "Shorten `duration`, use fewer `blocks`, or run longer."
            )
        x, share = values[..., :3], values[0, :, 3] / values[0, :, 3].sum()

        def at(lag):
            squared = ((jnp.roll(x, -lag, axis=0) - x) ** 2).sum(-1) @ share
            origins = jnp.arange(frames) < frames - lag
            return jnp.where(origins, squared, 0.0).sum() / (frames - lag)

        return jax.lax.map(at, jnp.arange(lags + 1))

    def prepare(trajectories: Trajectory) -> Observable:
        require_species(trajectories, () if species is None else (species,), name)
        _require_spacing(trajectories, every, name)
        return observable._replace(prepare=None)

    times = np.arange(lags + 1) * every / units.ps
    observable = Observable(frame, combine, name, "Å²", times, "lag time [ps]", prepare)
    return observable


def _require_equal(weights, name: str) -> None:
    if isinstance(weights, Tracer) or not np.allclose(weights, np.mean(weights), rtol=1e-6, atol=0):
        raise ValueError(
            f"{name} is a property of the dynamics, which reweighting of frames cannot treat: the weights must be "
            "equal and known before tracing. Simulate with the potential in question instead."
        )


def _require_spacing(trajectories: Trajectory, every: float, name: str) -> None:
    time, good = np.asarray(trajectories.time, np.float64), sound(trajectories)
    steps = np.diff(time[good] if good.any() else time, axis=-1)
    # Times come in the simulation's precision: a float32 clock resolves 1e-7 of the elapsed time.
    tolerance = 1e-3 * every + 4e-7 * np.abs(time).max(initial=0.0)
    if steps.size and np.abs(steps - every).max() > tolerance:
        raise ValueError(
            f"{name} needs frames that are `every` = {every:.6g} apart. "
            f"Got spacings from {steps.min():.6g} to {steps.max():.6g} [internal time unit]. "
            "Pass the spacing of the frames."
        )
