"""Dynamics: functions of the time between two frames of the same run, which weights of frames cannot treat.

Mean-square displacement, diffusion, velocity autocorrelation, vibrational density of states.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bayespot import units
from bayespot.observables.observable import Observable, Weights, sound
from bayespot.observables.pairs import require_species, selected, symbols
from bayespot.records.system import System, masses
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
        share = selected(system.species, species).astype(system.position.dtype)
        return jnp.concatenate([_about_centre(system, system.position), share[:, None]], axis=-1)

    def combine(values: Float[Array, "T N 4"], weights: Weights) -> Float[Array, "lags"]:
        return _over_origins(values, weights, np.arange(lags + 1), lambda a, b: (a - b) ** 2, name)

    return _of_runs(frame, combine, name, "Å²", every, species, np.arange(lags + 1) * every / units.ps, "lag time [ps]")


def diffusion(start: float, stop: float, every: float, species: int | None = None) -> Observable:
    r"""Self-diffusion coefficient [Å²/ps], the slope of the mean-square displacement in a window of lag times,

    .. math:: D = \frac16 \frac{d}{d\tau} \mathrm{MSD}(\tau), \qquad \tau_1 \le \tau \le \tau_2,

    by a least-squares line, all lags weighted alike. The window begins where the motion has become diffusive, past the
    ballistic part and the rattling in the cage: look at ``msd`` first. 1 Å²/ps = 10⁻⁴ cm²/s.

    The value is that of this periodic box and this thermostat. Hydrodynamic interaction with the images slows the
    atoms of a liquid: in a cube of edge L, :math:`D_\infty = D + 2.837297\, kT/(6 \pi \eta L)` with the
    viscosity :math:`\eta` (Yeh and Hummer), often 10 % and more; the correction is left to the user. A Langevin
    thermostat slows them further: use NVE, Nosé–Hoover, or a friction far below that of the liquid.

    ====================  ===========
    symbol                argument
    ====================  ===========
    :math:`\tau_1`        ``start``
    :math:`\tau_2`        ``stop``
    ====================  ===========

    Args:
        start: shortest lag time of the fit [internal time unit, e.g. ``2 * units.ps``].
        stop: longest lag time of the fit [internal time unit].
        every: time between frames [internal time unit]; compared with the trajectory by ``observe``.
        species: atomic number of the atoms to follow; default all.

    Raises:
        ValueError: for a window of fewer than two lags; otherwise as ``msd``.

    Reference: Yeh and Hummer, *J. Phys. Chem. B* 108, 15873 (2004).
    """
    if every <= 0 or start < 0 or round(stop / every) <= round(start / every):
        raise ValueError(
            "diffusion needs every > 0 and a window 0 ≤ start < stop of at least two lags. "
            f"Got start={start}, stop={stop}, every={every}."
        )
    lags = np.arange(round(start / every), round(stop / every) + 1)
    centred = (lags - lags.mean()) * every / units.ps
    slope = centred / (centred @ centred)
    name = "D" + symbols(None if species is None else (species,))

    def combine(values: Float[Array, "T N 4"], weights: Weights) -> Float[Array, ""]:
        squared = _over_origins(values, weights, lags, lambda a, b: (a - b) ** 2, name)
        return jnp.asarray(slope, squared.dtype) @ squared / 6.0

    return _of_runs(msd(stop, every, species).frame, combine, name, "Å²/ps", every, species)


def vacf(duration: float, every: float, species: int | None = None) -> Observable:
    r"""Velocity autocorrelation function, normalised and mass-weighted, against the lag time,

    .. math:: C(\tau) = \frac{\langle \sum_i m_i\, v_i(t) \cdot v_i(t+\tau) \rangle_t}
              {\langle \sum_i m_i\, v_i(t)^2 \rangle_t}, \qquad C(0) = 1 .

    The weight :math:`m_i` gives every vibration the same share (equipartition) and drops out where all atoms have one
    mass; then Green–Kubo is :math:`D = (kT/m) \int_0^\infty C\,d\tau`. The velocity of the centre of mass of all atoms
    is taken out of every frame. The thermostat acts on the motion, as for ``msd``.

    Args:
        duration: longest lag time [internal time unit, e.g. ``2 * units.ps``].
        every: time between frames [internal time unit]; compared with the trajectory by ``observe``.
        species: atomic number of the atoms to follow; default all.

    Raises:
        ValueError: as ``msd``. Atoms that do not move give NaN, which ``interval`` refuses.

    Reference: Allen and Tildesley, *Computer Simulation of Liquids*, 2nd ed. (2017), section 2.7.
    """
    if every <= 0 or duration < every:
        raise ValueError(f"vacf needs 0 < every ≤ duration. Got every={every}, duration={duration}.")
    lags = np.arange(round(duration / every) + 1)
    name = "VACF" + symbols(None if species is None else (species,))

    def frame(frame: Frame) -> Float[Array, "N 4"]:
        system = frame.system
        weight = selected(system.species, species) * masses(system).astype(frame.velocity.dtype)
        return jnp.concatenate([_about_centre(system, frame.velocity), weight[:, None]], axis=-1)

    def combine(values: Float[Array, "T N 4"], weights: Weights) -> Float[Array, "lags"]:
        products = _over_origins(values, weights, lags, lambda a, b: a * b, name)
        return products / products[0]

    return _of_runs(frame, combine, name, "", every, species, lags * every / units.ps, "lag time [ps]")


def vibrational_density_of_states(duration: float, every: float, species: int | None = None) -> Observable:
    r"""Vibrational density of states [1/THz], the cosine transform of the velocity autocorrelation function,

    .. math:: g(\nu) = 4 \int_0^{\tau_m} C(\tau)\, \cos^2\!\frac{\pi\tau}{2\tau_m}\, \cos(2\pi\nu\tau)\, d\tau,
              \qquad \int_0^\infty g(\nu)\, d\nu = 1,

    with Hann's window, which keeps the cut at :math:`\tau_m` from making ripples: a sharp line gets the full width
    :math:`1/\tau_m` at half height. Exact for harmonic vibrations in equilibrium; diffusion shows as
    :math:`g(0) > 0`. Frequencies beyond half the frame rate appear folded back below it: write frames at least
    twice per shortest period. A thermostat's friction broadens the lines.

    Args:
        duration: :math:`\tau_m`, longest lag time [internal time unit, e.g. ``2 * units.ps``].
        every: time between frames [internal time unit]; compared with the trajectory by ``observe``.
        species: atomic number of the atoms whose share is wanted, itself normalised to 1; default all.

    Raises:
        ValueError: as ``vacf``.

    Reference: Dickey and Paskin, *Phys. Rev.* 188, 1407 (1969).
    """
    correlation = vacf(duration, every, species)
    lags = len(correlation.coordinate) - 1
    step = every / units.ps
    window = np.cos(0.5 * np.pi * np.arange(lags + 1) / lags) ** 2
    name = "VDOS" + symbols(None if species is None else (species,))

    def combine(values: Float[Array, "T N 4"], weights: Weights) -> Float[Array, "frequencies"]:
        damped = correlation.combine(values, weights)
        damped = damped * jnp.asarray(window, damped.dtype)
        # The even continuation makes the transform a trapezoidal sum, and the sum over all frequencies exactly 1.
        return 2.0 * step * jnp.fft.rfft(jnp.concatenate([damped, damped[-2:0:-1]])).real

    frequencies = np.arange(lags + 1) / (2 * lags * step)
    return _of_runs(correlation.frame, combine, name, "1/THz", every, species, frequencies, "frequency [THz]")


def _of_runs(frame, combine, name, unit, every, species, coordinate=None, axis="") -> Observable:
    """An observable of evenly spaced frames, which ``prepare`` checks."""

    def prepare(trajectories: Trajectory) -> Observable:
        require_species(trajectories, () if species is None else (species,), name)
        _require_spacing(trajectories, every, name)
        return observable._replace(prepare=None)

    coordinate = np.zeros(0) if coordinate is None else coordinate
    observable = Observable(frame, combine, name, unit, coordinate, axis, prepare, linked=True)
    return observable


def _about_centre(system: System, vectors: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
    """Positions or velocities less those of the centre of mass; zero for padding."""
    real = (system.species > 0)[:, None]
    mass = jnp.where(real, masses(system)[:, None], 0.0).astype(vectors.dtype)
    centre = (mass * jnp.where(real, vectors, 0.0)).sum(0) / mass.sum()
    return jnp.where(real, vectors - centre, 0.0)


def _over_origins(values: Float[Array, "T N 4"], weights: Weights, lags: np.ndarray, function: Callable, name: str):
    """Mean over time origins and, by the weights in the last column, atoms of a function of two instants.

    All origins where all frames have weights. Otherwise those of a block: each lag has origins of its own, T − lag,
    and the block has the same part of them as of the frames.
    """
    begin, end = (jnp.asarray(x) for x in _origins(weights, lags, name))
    x, share = values[..., :3], values[0, :, 3] / values[0, :, 3].sum()
    number = jnp.arange(values.shape[0])

    def at(lag, begin, end):
        products = function(jnp.roll(x, -lag, axis=0), x).sum(-1) @ share
        return jnp.where((begin <= number) & (number < end), products, 0.0).sum() / (end - begin)

    return jax.lax.map(lambda one: at(*one), (jnp.asarray(lags), begin, end))


def _origins(weights: Weights, lags: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The first time origin of every lag, and the one after the last."""
    if isinstance(weights, Tracer) or not _equal_in_a_row(weights := np.asarray(weights)):
        raise ValueError(
            f"{name} is a property of the dynamics, which reweighting of frames cannot treat: the weights must be "
            "equal and known before tracing. Simulate with the potential in question instead."
        )
    used = np.flatnonzero(weights)
    if len(used) <= (longest := int(lags[-1])):
        raise ValueError(
            f"{name} up to {longest} frames needs runs and blocks of more than {longest} frames. Got {len(used)}. "
            "Shorten the longest lag time, use fewer `blocks`, or run longer."
        )
    origins = len(weights) - lags.astype(np.int64)
    return -(-used[0] * origins // len(weights)), -(-(used[-1] + 1) * origins // len(weights))


def _equal_in_a_row(weights: np.ndarray) -> bool:
    used = np.flatnonzero(weights)  # NaN counts as used, and is equal to nothing
    row = weights[used[0] : used[-1] + 1] if len(used) else weights
    return np.allclose(row, row.mean(), rtol=1e-6, atol=0)


def _require_spacing(trajectories: Trajectory, every: float, name: str) -> None:
    time, good = np.asarray(trajectories.time, np.float64), sound(trajectories)
    steps = np.diff(time[good] if good.any() else time, axis=-1)
    # Times come in the simulation's precision: a float32 clock resolves 1e-7 of the elapsed time.
    tolerance = 1e-3 * every + 4e-7 * np.abs(time).max(initial=0.0)
    if steps.size and not np.abs(steps - every).max() <= tolerance:  # NaN, too
        raise ValueError(
            f"{name} needs frames that are `every` = {every:.6g} apart. "
            f"Got spacings from {steps.min():.6g} to {steps.max():.6g} [internal time unit]. "
            "Pass the spacing of the frames; those of a data set have no times."
        )
