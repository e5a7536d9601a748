r"""Constant temperature and pressure with a box that changes its size, its edges, or its whole shape: all by Langevin.

With the box :math:`h` (rows), the volume :math:`V = \det h` and free momenta, configurations have the weight

.. math:: p(x, h) \propto V^{-2}\, e^{-[U(x, h) + pV]/kT}\, dx\, dh .

The box follows a Langevin equation without inertia. A strain :math:`d\epsilon` takes it to
:math:`h\,e^{d\epsilon}`, and the positions with it,

.. math:: d\epsilon = \frac{1}{3 B \tau} \Big( \frac{N kT}{V} - \sigma - p \Big)\, dt
          + \sqrt{\frac{2 kT}{3 B \tau V}}\; dW,

where :math:`V\sigma = \partial U/\partial\epsilon`, and *W* is symmetric with unit variance along each of its six
directions. No step turns the box; many steps do, a little, in the second order of the strains: over long runs take
strains from :math:`h h^T`, which does not see that. Strains of the diagonal, or of the volume alone, are the
projections of this. Because the group of the matrices :math:`h` is unimodular, the process is reversible for the weight
above; that its noise depends on the volume takes just one :math:`kT/V` from the drift, which the measure :math:`dh` had
brought in.

Reference:
    Bernetti and Bussi, *J. Chem. Phys.* 153, 114107 (2020); Del Tatto, Raiteri and Bussi, *Appl. Sci.* 12, 1139 (2022).
    The equation here is theirs in the limit of small steps, derived for the momenta that a Langevin thermostat holds.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayespot import units
from bayespot.records.system import System
from bayespot.simulation.ensemble import Ensemble, require_positive, thermal_start
from bayespot.tree import record, replace
from bayespot.typing import Array, Float, Key

BOXES = ("isotropic", "orthorhombic", "flexible")


@record
class BoxState:
    """Atoms, their box, and what drives both; of one run, or of ``n``.

    Attributes:
        position: ``(N, 3)`` [Å].
        momentum: ``(N, 3)`` [amu Å / internal time unit].
        force: ``(N, 3)`` [eV/Å], at the end of the last step.
        mass: ``(N, 1)`` [amu].
        box: rows are the lattice vectors ``(3, 3)`` [Å].
        excess: internal pressure tensor without the kinetic part, −σ ``(3, 3)`` [eV/Å³], at the end of the last step.
        key: of the noise to come.
    """

    position: Float[Array, "*n N 3"]
    momentum: Float[Array, "*n N 3"]
    force: Float[Array, "*n N 3"]
    mass: Float[Array, "*n N 1"]
    box: Float[Array, "*n 3 3"]
    excess: Float[Array, "*n 3 3"]
    key: Array

    @property
    def velocity(self) -> Array:
        """[Å / internal time unit], also of stacked states."""
        return self.momentum / self.mass


def npt_langevin(
    kT: float,
    pressure: float,
    dt: float,
    gamma: float = 0.1,
    *,
    box: str = "isotropic",
    tau_box: float | None = None,
    modulus: float = 10.0 * units.GPa,
) -> Ensemble:
    r"""Constant temperature and pressure by friction and noise, of the atoms and of the box.

    All 3N degrees of freedom are thermal. The mean of the observable ``pressure()`` is exactly p, and an ideal gas has
    :math:`\langle V \rangle = (N + 1) kT/p`. Positions are scaled with the box about the origin, which counts in a
    mean-square displacement. A run whose box becomes half as thick as at its start, or changes in one step by more
    than the skin allows, is unstable; so, by and by, is a liquid in a box whose shape may change, which nothing holds.

    Args:
        kT: thermal energy [eV].
        pressure: of the surroundings [eV/Å³], e.g. ``1.0 * units.bar``; may be negative for a solid.
        dt: time step [internal time unit].
        gamma: friction of the atoms [1 / internal time unit].
        box: ``"isotropic"`` (keeps its shape), ``"orthorhombic"`` (the three Cartesian directions stretch on their
            own) or ``"flexible"`` (all six strains; for crystals).
        tau_box: time in which the volume forgets, if the bulk modulus is ``modulus`` [internal time unit]; default
            500 ``dt``. The error of a step is of the order of ``dt/tau_box``.
        modulus: roughly the bulk modulus B [eV/Å³]; if it is wrong, the time is ``tau_box`` × modulus/B.

    Raises:
        ValueError: if a time, kT or modulus is not positive, the pressure not finite, for an unknown kind of box; in a
            simulation, for a box that is open in some direction or left-handed.

    Reference:
        Bernetti and Bussi (2020); Del Tatto, Raiteri and Bussi (2022); see the module.
    """
    tau_box = 500 * dt if tau_box is None else tau_box
    require_positive(kT=kT, dt=dt, gamma=gamma, tau_box=tau_box, modulus=modulus)
    if not math.isfinite(pressure):
        raise ValueError(f"pressure must be a finite number [eV/Å³]. Got {pressure}.")
    if box not in BOXES:
        raise ValueError(f"box must be one of {', '.join(BOXES)}. Got {box!r}.")
    kT, pressure, dt, gamma = float(kT), float(pressure), float(dt), float(gamma)  # NumPy's would widen the state
    piston, keep = _Piston(box, kT, pressure, 1 / float(3 * modulus * tau_box)), math.exp(-gamma * dt)

    def step(energy, state: BoxState) -> BoxState:
        key, of_atoms, of_box = jax.random.split(state.key, 3)
        p = state.momentum + 0.5 * dt * state.force
        x = state.position + 0.5 * dt * p / state.mass
        e = _strain(of_box, state, dt, piston)
        stretch = jnp.eye(3, dtype=e.dtype) + e + 0.5 * jnp.matmul(e, e, precision="highest")
        x, h = (jnp.matmul(a, stretch, precision="highest") for a in (x, state.box))
        noise = jax.random.normal(of_atoms, p.shape, p.dtype)
        p = keep * p + jnp.sqrt((1 - keep**2) * kT * state.mass) * noise
        x = x + 0.5 * dt * p / state.mass
        force, excess = _driving(energy, x, h)
        return replace(state, position=x, momentum=p + 0.5 * dt * force, force=force, box=h, excess=excess, key=key)

    spec = {"name": "npt_langevin", "kT": kT, "pressure": pressure, "dt": dt, "gamma": gamma, "box": box}
    spec |= {"tau_box": float(tau_box), "modulus": float(modulus)}
    return Ensemble(partial(_first, piston), step, lambda n: 3 * n, dt, kT, spec, lambda state: state.box)


class _Piston(NamedTuple):
    """What the box feels: its kind, kT [eV], the pressure [eV/Å³], and its mobility 1/(3Bτ)."""

    box: str
    kT: float
    pressure: float
    mobility: float


def _first(piston: _Piston, key: Key, system: System) -> BoxState:
    """A new state. Until the first forces are known the box only trembles, as if its pressure were the right one."""
    momenta, noise = jax.random.split(key)
    mass, p = thermal_start(momenta, system, piston.kT)
    h, one = system.box.astype(p.dtype), jnp.eye(3, dtype=p.dtype)
    excess = (piston.pressure - len(mass) * piston.kT / jnp.linalg.det(h)) * one
    return BoxState(system.position, p, jnp.zeros_like(p), mass, h, excess, noise)


def _strain(key: Key, state: BoxState, dt: float, piston: _Piston) -> Float[Array, "3 3"]:
    """Of one step."""
    v, one = jnp.linalg.det(state.box), jnp.eye(3, dtype=state.box.dtype)
    drift = state.excess + (len(state.mass) * piston.kT / v - piston.pressure) * one
    w = jax.random.normal(key, (3, 3), state.box.dtype)
    # Each of the six directions of the symmetric part of w has unit variance.
    noise = jnp.sqrt(2 * piston.kT * piston.mobility * dt / v) * 0.5 * (w + w.T)
    return _projected(piston.mobility * dt * drift + noise, piston.box)


def _projected(strain: Float[Array, "3 3"], box: str) -> Float[Array, "3 3"]:
    """The part of a symmetric strain that this kind of box can follow."""
    if box == "flexible":
        return strain
    diagonal = jnp.diagonal(strain)
    return jnp.diag(diagonal if box == "orthorhombic" else jnp.full_like(diagonal, diagonal.mean()))


def _driving(energy, position, box) -> tuple[Float[Array, "N 3"], Float[Array, "3 3"]]:
    """Forces, and the pressure tensor without its kinetic part, from one gradient."""

    def at(x, e):
        x, h = (a + jnp.matmul(a, 0.5 * (e + e.T), precision="highest") for a in (x, box))
        return energy(x, h)

    slope, virial = jax.grad(at, (0, 1))(position, jnp.zeros_like(box))
    return -slope, (-virial / jnp.linalg.det(box)).astype(box.dtype)
