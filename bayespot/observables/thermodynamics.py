"""Thermodynamics: temperature, energies, pressure, density, heat capacity."""

import jax.numpy as jnp

from bayespot import units
from bayespot.observables.observable import Observable, Weights, average
from bayespot.observables.pairs import require_volume
from bayespot.records.system import masses, volume
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float


def _kinetic(frame: Frame) -> Float[Array, ""]:
    """Kinetic energy of the real atoms [eV]."""
    real = frame.system.species > 0
    squared = jnp.where(real[:, None], frame.velocity, 0.0) ** 2
    return 0.5 * (masses(frame.system).astype(squared.dtype)[:, None] * squared).sum()


def _atoms(frame: Frame) -> Float[Array, ""]:
    return (frame.system.species > 0).sum().astype(frame.energy.dtype)


def kinetic_energy() -> Observable:
    r"""Kinetic energy of all atoms [eV], :math:`K = \frac12 \sum_i m_i v_i^2`."""
    return Observable(_kinetic, average, "kinetic energy", "eV")


def energy_per_atom() -> Observable:
    """Potential energy per atom [eV/atom]."""
    return Observable(lambda frame: frame.energy / _atoms(frame), average, "energy", "eV/atom")


def temperature(constraints: int = 0) -> Observable:
    r"""Kinetic temperature [K], :math:`T = 2K / (n_f k_\mathrm{B})` with :math:`n_f = 3N - n_c` degrees of freedom.

    Args:
        constraints: :math:`n_c`. 0 for Langevin dynamics, whose noise also moves the centre of mass; 3 where the total
            momentum stays zero (NVE and Nosé–Hoover from velocities without drift; 1.6 % for 64 atoms).
    """

    def frame(frame: Frame) -> Float[Array, ""]:
        return 2.0 * _kinetic(frame) / ((3.0 * _atoms(frame) - constraints) * units.kB)

    return Observable(frame, average, "temperature", "K")


def pressure() -> Observable:
    r"""Pressure [GPa] from the momentum of the atoms and the potential part of the stress,

    .. math:: p = \frac{2K}{3V} - \frac13\,\mathrm{tr}\,\sigma .

    Positive when the system wants to expand; the stress :math:`\sigma` is positive under tension (ASE's sign).

    Raises:
        ValueError: in ``observe``, for a box that is open in some direction.
    """

    def frame(frame: Frame) -> Float[Array, ""]:
        kinetic = 2.0 * _kinetic(frame) / (3.0 * volume(frame.system.box))
        return (kinetic - jnp.trace(frame.stress) / 3.0) / units.GPa

    def prepare(trajectories: Trajectory) -> Observable:
        require_volume(trajectories, "pressure")
        return observable._replace(prepare=None)

    observable = Observable(frame, average, "pressure", "GPa", prepare=prepare)
    return observable


def density() -> Observable:
    r"""Mass density [g/cm³], :math:`\rho = \langle \sum_i m_i / V \rangle`; constant where the box is.

    Raises:
        ValueError: in ``observe``, for a box that is open in some direction.
    """

    def frame(frame: Frame) -> Float[Array, ""]:
        system = frame.system
        mass = jnp.where(system.species > 0, masses(system), 0.0).astype(system.position.dtype).sum()
        return mass / volume(system.box) / units.g_per_cm3

    def prepare(trajectories: Trajectory) -> Observable:
        require_volume(trajectories, "density")
        return observable._replace(prepare=None)

    observable = Observable(frame, average, "density", "g/cm³", prepare=prepare)
    return observable


def heat_capacity(kT: float, constraints: int = 0) -> Observable:
    r"""Heat capacity at constant volume [k_B/atom] of classical atoms, from the fluctuations of the potential energy,

    .. math:: \frac{C_V}{N k_\mathrm{B}} = \frac{n_f}{2N} + \frac{\langle U^2 \rangle - \langle U \rangle^2}{N (kT)^2},
              \qquad n_f = 3N - n_c .

    The runs must sample the canonical ensemble (a thermostat, a constant box, equilibrated): a drift of the energy
    counts as heat capacity. The variance is divided by :math:`1 - \sum_t w_t^2`, which is the usual :math:`1 - 1/T` for
    equal weights; what remains is a bias of minus the share of the correlation time in the run. Frames
    reweighted to another potential must carry the energies of that potential.

    ====================  ===============
    symbol                argument
    ====================  ===============
    :math:`kT`            ``kT`` [eV]
    :math:`n_c`           ``constraints``
    ====================  ===============

    Args:
        kT: temperature of the thermostat, e.g. ``300 * units.kB``.
        constraints: degrees of freedom that carry no kinetic energy, as in ``temperature``.

    Raises:
        ValueError: for kT that is not positive or a negative number of constraints. A single frame gives NaN, which
            ``interval`` refuses.

    Reference: Allen and Tildesley, *Computer Simulation of Liquids*, 2nd ed. (2017), section 2.5.
    """
    if kT <= 0 or constraints < 0:
        raise ValueError(
            f"heat_capacity needs kT > 0 [eV] and constraints ≥ 0. Got kT={kT}, constraints={constraints}."
        )

    def frame(frame: Frame) -> Float[Array, "2"]:
        return jnp.stack([frame.energy, _atoms(frame)])

    def combine(values: Float[Array, "T 2"], weights: Weights) -> Float[Array, ""]:
        energy, atoms = values[:, 0], values[0, 1]
        share = jnp.asarray(weights, values.dtype)
        # About the mean, not as a difference of squares: U² in float32 would leave no digit of a small variance.
        variance = share @ (energy - share @ energy) ** 2 / (1.0 - share @ share)
        return 0.5 * (3.0 - constraints / atoms) + variance / (atoms * kT**2)

    return Observable(frame, combine, "heat capacity", "k_B/atom")
