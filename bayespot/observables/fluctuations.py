r"""Response functions from fluctuations: heat capacity, compressibility, thermal expansion.

Variances are divided by :math:`1 - \sum_t w_t^2`, which is the usual :math:`1 - 1/T` for equal weights; what remains is
a bias of minus the share of the correlation time in the run. A drift counts as a fluctuation: equilibrate.

Reference: Allen and Tildesley, *Computer Simulation of Liquids*, 2nd ed. (2017), section 2.5.
"""

import jax.numpy as jnp
import numpy as np

from bayespot import units
from bayespot.observables.observable import Observable, Weights
from bayespot.observables.pairs import require_volume
from bayespot.observables.thermodynamics import number_of_atoms
from bayespot.records.system import volume
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float


def _covariance(a: Float[Array, "T"], b: Float[Array, "T"], weights: Weights) -> Float[Array, ""]:
    share = jnp.asarray(weights, a.dtype)
    # About the means, not as a difference of products: U² in float32 would leave no digit of a small variance.
    return share @ ((a - share @ a) * (b - share @ b)) / (1.0 - share @ share)


def _volumes_vary(trajectories: Trajectory) -> bool:
    boxes = np.asarray(trajectories.frames.system.box)
    return bool((boxes != boxes[..., :1, :, :]).any())


def heat_capacity(kT: float, constraints: int = 0) -> Observable:
    r"""Heat capacity at constant volume [k_B/atom] of classical atoms, from the fluctuations of the potential energy,

    .. math:: \frac{C_V}{N k_\mathrm{B}} = \frac{n_f}{2N} + \frac{\langle U^2 \rangle - \langle U \rangle^2}{N (kT)^2},
              \qquad n_f = 3N - n_c .

    The runs must sample the canonical ensemble (a thermostat, a constant box, equilibrated): a drift of the energy
    counts as heat capacity. Frames reweighted to another potential must carry the energies of that potential.

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
        ValueError: for kT that is not positive or a negative number of constraints; in ``observe``, for a box that
            changes. A single frame gives NaN, which ``interval`` refuses.
    """
    if kT <= 0 or constraints < 0:
        raise ValueError(
            f"heat_capacity needs kT > 0 [eV] and constraints ≥ 0. Got kT={kT}, constraints={constraints}."
        )

    def frame(frame: Frame) -> Float[Array, "2"]:
        return jnp.stack([frame.energy, number_of_atoms(frame)])

    def combine(values: Float[Array, "T 2"], weights: Weights) -> Float[Array, ""]:
        energy, atoms = values[:, 0], values[0, 1]
        return 0.5 * (3.0 - constraints / atoms) + _covariance(energy, energy, weights) / (atoms * kT**2)

    def prepare(trajectories: Trajectory) -> Observable:
        if _volumes_vary(trajectories):
            raise ValueError("heat_capacity is that of a constant volume. Got runs whose box changes. Run them in NVT.")
        atoms = (np.asarray(trajectories.frames.system.species) > 0).sum(-1)
        if (atoms != atoms[..., :1]).any():
            raise ValueError("heat_capacity is that of one system. Got frames of different numbers of atoms.")
        return observable._replace(prepare=None)

    observable = Observable(frame, combine, "heat capacity", "k_B/atom", prepare=prepare)
    return observable


def compressibility(kT: float) -> Observable:
    r"""Isothermal compressibility [1/GPa], from the fluctuations of the volume at constant pressure,

    .. math:: \kappa_T = -\frac1V \frac{\partial V}{\partial p}
              = \frac{\langle V^2 \rangle - \langle V \rangle^2}{kT\, \langle V \rangle} .

    The volume must have moved through its fluctuations many times: a run should last hundreds of periods of the box.

    Args:
        kT: temperature of the runs [eV].

    Raises:
        ValueError: for kT that is not positive; in ``observe``, for runs at constant volume or without one.
    """
    _require_positive(kT, "compressibility")

    def combine(values: Float[Array, "T 2"], weights: Weights) -> Float[Array, ""]:
        v = values[:, 0]
        return _covariance(v, v, weights) / (kT * (jnp.asarray(weights, v.dtype) @ v)) * units.GPa

    return _at_constant_pressure(combine, "compressibility", "1/GPa")


def thermal_expansion(kT: float, pressure: float = 0.0) -> Observable:
    r"""Volumetric thermal expansion [1/K], from the fluctuations of volume and enthalpy at constant pressure,

    .. math:: \alpha_p = \frac1V \frac{\partial V}{\partial T}
              = \frac{\mathrm{cov}(V,\, U + pV)}{k_\mathrm{B} T^2\, \langle V \rangle} ,

    three times the linear expansion of a cubic crystal. The kinetic energy does not covary with the volume.

    Args:
        kT: temperature of the runs [eV].
        pressure: of the runs [eV/Å³].

    Raises:
        ValueError: for kT that is not positive; in ``observe``, for runs at constant volume or without one.
    """
    _require_positive(kT, "thermal_expansion")

    def combine(values: Float[Array, "T 2"], weights: Weights) -> Float[Array, ""]:
        v, energy = values.T
        covariance = _covariance(v, energy, weights) + pressure * _covariance(v, v, weights)
        return units.kB * covariance / (kT**2 * (jnp.asarray(weights, v.dtype) @ v))

    return _at_constant_pressure(combine, "thermal expansion", "1/K")


def _require_positive(kT: float, name: str) -> None:
    if not kT > 0:
        raise ValueError(f"{name} needs kT > 0 [eV]. Got {kT}.")


def _at_constant_pressure(combine, name: str, unit: str) -> Observable:
    """An observable of the volume [Å³] and the potential energy [eV] of the frames of runs whose box moves."""

    def frame(frame: Frame) -> Float[Array, "2"]:
        return jnp.stack([volume(frame.system.box).astype(frame.energy.dtype), frame.energy])

    def prepare(trajectories: Trajectory) -> Observable:
        require_volume(trajectories, name)
        if not _volumes_vary(trajectories):
            raise ValueError(
                f"The {name} is read from the fluctuations of the volume. Got runs whose box is constant. "
                "Simulate at constant pressure (npt_nose_hoover, npt_langevin)."
            )
        return observable._replace(prepare=None)

    observable = Observable(frame, combine, name, unit, prepare=prepare)
    return observable
