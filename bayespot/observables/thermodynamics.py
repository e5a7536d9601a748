"""Thermodynamics: temperature, energies, pressure, stress, density."""

import jax.numpy as jnp
import numpy as np

from bayespot import units
from bayespot.observables.observable import Observable, average
from bayespot.observables.pairs import require_volume
from bayespot.records.system import masses, volume
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float


def _kinetic(frame: Frame) -> Float[Array, ""]:
    """Kinetic energy of the real atoms [eV]."""
    real = frame.system.species > 0
    squared = jnp.where(real[:, None], frame.velocity, 0.0) ** 2
    return 0.5 * (masses(frame.system).astype(squared.dtype)[:, None] * squared).sum()


def number_of_atoms(frame: Frame) -> Float[Array, ""]:
    """Real atoms, in the type of the energy."""
    return (frame.system.species > 0).sum().astype(frame.energy.dtype)


def kinetic_energy() -> Observable:
    r"""Kinetic energy of all atoms [eV], :math:`K = \frac12 \sum_i m_i v_i^2`."""
    return Observable(_kinetic, average, "kinetic energy", "eV")


def energy_per_atom() -> Observable:
    """Potential energy per atom [eV/atom]."""
    return Observable(lambda frame: frame.energy / number_of_atoms(frame), average, "energy", "eV/atom")


def temperature(constraints: int = 0) -> Observable:
    r"""Kinetic temperature [K], :math:`T = 2K / (n_f k_\mathrm{B})` with :math:`n_f = 3N - n_c` degrees of freedom.

    Args:
        constraints: :math:`n_c`. 0 for Langevin dynamics, whose noise also moves the centre of mass; 3 where the total
            momentum stays zero (NVE and Nosé–Hoover from velocities without drift; 1.6 % for 64 atoms).
    """

    def frame(frame: Frame) -> Float[Array, ""]:
        return 2.0 * _kinetic(frame) / ((3.0 * number_of_atoms(frame) - constraints) * units.kB)

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


def stress_tensor() -> Observable:
    r"""Stress [GPa] with the momentum of the atoms, its six components in the order xx, yy, zz, yz, xz, xy (Voigt's),

    .. math:: \sigma_{ij} = \sigma_{ij}^\mathrm{pot} - \frac1V \sum_a m_a v_{a,i} v_{a,j} .

    Positive under tension, as in ASE; minus a third of the trace is the ``pressure``.

    Raises:
        ValueError: in ``observe``, for a box that is open in some direction.
    """
    row, column = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])

    def frame(frame: Frame) -> Float[Array, "6"]:
        v, mass = frame.velocity, jnp.where(frame.system.species > 0, masses(frame.system), 0.0)
        flow = jnp.einsum("n,ni,nj->ij", mass.astype(v.dtype), v, v, precision="highest") / volume(frame.system.box)
        return (frame.stress - flow)[row, column] / units.GPa

    def prepare(trajectories: Trajectory) -> Observable:
        require_volume(trajectories, "stress_tensor")
        return observable._replace(prepare=None)

    voigt = np.array([11.0, 22.0, 33.0, 23.0, 13.0, 12.0])
    observable = Observable(frame, average, "stress", "GPa", voigt, "components", prepare=prepare)
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
