r"""Statistical ensembles: how a configuration moves. Thin skins on the integrators of jax-md.

Positions are Cartesian and never wrapped. The forces come in with every step, so that an ensemble knows nothing of
potentials, parameters or neighbour lists.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.records.system import System, masses
from bayespot.typing import Array, Float, Key, PyTree, Scalar

Forces = Callable[..., Float[Array, "N 3"]]
"""``position (N, 3) → forces (N, 3)`` [eV/Å]."""


class Ensemble(NamedTuple):
    """A statistical ensemble.

    Attributes:
        init: ``(key, system) → state`` with new velocities and zero forces, which the simulation fills in; traceable.
        step: ``(forces, state) → state``, one time step; traceable. A state is a dataclass with at least ``position``,
            ``momentum``, ``velocity``, ``force`` ``(N, 3)`` and ``mass (N, 1)``.
        degrees: of freedom that share the thermal energy, as a function of the number of atoms.
        dt: time step [internal time unit, see ``units.fs``].
        kT: thermal energy [eV]; 0 where the ensemble has none.
        spec: name and arguments, writable as JSON.
    """

    init: Callable[[Key, System], PyTree]
    step: Callable[[Forces, PyTree], PyTree]
    degrees: Callable[[int], int]
    dt: float
    kT: float
    spec: Mapping[str, Any]


def momenta(key: Key, mass: Float[Array, "N 1"], kT: float) -> Float[Array, "N 3"]:
    r"""Maxwell–Boltzmann momenta, :math:`p_i \sim \mathcal N(0, m_i kT)`, with the centre of mass at rest.

    One atom alone stays at rest.
    """
    p = jnp.sqrt(mass * kT) * jax.random.normal(key, (mass.shape[0], 3), mass.dtype)
    return p - mass * (p.sum(0) / mass.sum())


def kinetic_temperature(state: PyTree, degrees: int) -> Scalar:
    r"""Thermal energy of the motion [eV], :math:`\sum_i p_i^2/m_i / n_\text{degrees}`."""
    return (state.momentum**2 / state.mass).sum() / degrees


def nve(dt: float, kT: float = 0.0) -> Ensemble:
    r"""Constant energy: Newton's equations by velocity Verlet; the energy error is bounded and of order ``dt²``.

    Args:
        dt: time step [internal time unit], e.g. ``1.0 * units.fs``.
        kT: of the initial velocities [eV]; by default the atoms start at rest.

    Raises:
        ValueError: if ``dt`` is not positive or ``kT`` is negative.
    """
    _check(dt=dt)
    if not kT >= 0:
        raise ValueError(f"kT of the initial velocities must be 0 or positive [eV]. Got {kT}.")

    def integrator(forces):
        return _integrators().nve(forces, _shift, dt)

    def init(key, system):
        mass, p = _start(key, system, kT)
        return integrator(_unknown)[0](key, system.position, kT, mass=mass, momenta=p)

    return Ensemble(init, _stepper(integrator), _without_translation, dt, kT, {"name": "nve", "dt": dt, "kT": kT})


def nvt_langevin(kT: float, dt: float, gamma: float = 0.1) -> Ensemble:
    r"""Constant temperature by friction and noise, Langevin dynamics in the BAOAB splitting,

    .. math:: \dot p = F - \gamma p + \sqrt{2 \gamma m kT}\,\eta(t).

    All 3N degrees of freedom are thermal, the centre of mass diffuses.

    Args:
        kT: thermal energy [eV], e.g. ``300 * units.kB``.
        dt: time step [internal time unit], e.g. ``1.0 * units.fs``.
        gamma: friction γ [1 / internal time unit]; the default is 0.1, about 1/(100 fs).

    Raises:
        ValueError: if an argument is not positive.

    Reference:
        B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34 (2013).
    """
    _check(kT=kT, dt=dt, gamma=gamma)

    def integrator(forces):
        return _integrators().nvt_langevin(forces, _shift, dt, kT, gamma)

    def init(key, system):
        velocities, noise = jax.random.split(key)
        mass, p = _start(velocities, system, kT)
        return integrator(_unknown)[0](noise, system.position, mass=mass, momenta=p)

    spec = {"name": "nvt_langevin", "kT": kT, "dt": dt, "gamma": gamma}
    return Ensemble(init, _stepper(integrator), lambda n: 3 * n, dt, kT, spec)


def nvt_nose_hoover(kT: float, dt: float, tau: float | None = None, chain_length: int = 3) -> Ensemble:
    r"""Constant temperature by a Nosé–Hoover chain: deterministic, so that dynamics stay close to Newton's.

    The total momentum is conserved (zero), hence the chain couples to 3N − 3 degrees of freedom. Harmonic systems of
    few atoms are not ergodic under it; use ``nvt_langevin`` there.

    Args:
        kT: thermal energy [eV].
        dt: time step [internal time unit].
        tau: period of the thermostat [internal time unit]; default 100 ``dt``.
        chain_length: number of thermostats in the chain, at least 2.

    Raises:
        ValueError: if an argument is not positive, or the chain too short.

    Reference:
        G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992).
    """
    tau = 100 * dt if tau is None else tau
    _check(kT=kT, dt=dt, tau=tau)
    if chain_length < 2:
        raise ValueError(f"chain_length must be at least 2. Got {chain_length}.")

    def integrator(forces):
        return _integrators().nvt_nose_hoover(forces, _shift, dt, kT, chain_length=chain_length, tau=tau)

    def init(key, system):
        mass, p = _start(key, system, kT)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            state = integrator(_unknown)[0](key, system.position, mass=mass, momenta=p)
        degrees = _without_translation(system.position.shape[0])
        return state.set(chain=state.chain.set(degrees_of_freedom=degrees))

    spec = {"name": "nvt_nose_hoover", "kT": kT, "dt": dt, "tau": tau, "chain_length": chain_length}
    return Ensemble(init, _stepper(integrator), _without_translation, dt, kT, spec)


@cache
def _integrators() -> ModuleType:
    """The module ``jax_md.simulate`` without its package.

    The package imports networks, symbolic algebra and rigid bodies, which takes seconds, longer than many a simulation.
    An empty package of the same place stands for it while the module is loaded, and is removed afterwards, so
    that ``import jax_md`` elsewhere gives the whole. The classes of that are others than those of our states, which
    cannot be pickled for it; and a thread that imports jax-md at this very moment would get the empty package.
    """
    if "jax_md" in sys.modules:
        return importlib.import_module("jax_md.simulate")
    found = importlib.util.find_spec("jax_md")
    if found is None:
        raise ModuleNotFoundError("Simulations need jax-md, which is not installed.", name="jax_md")
    sys.modules["jax_md"] = importlib.util.module_from_spec(found)
    try:
        return importlib.import_module("jax_md.simulate")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "jax_md"]:
            del sys.modules[name]


def _stepper(integrator: Callable) -> Callable[[Forces, PyTree], PyTree]:
    """``Ensemble.step`` of a jax-md integrator, keeping the types of the state, as a scan demands."""

    def step(forces, state):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")  # jax-md asks for float64 sums in vain
            after = integrator(forces)[1](state)
        return jax.tree.map(lambda new, old: new.astype(old.dtype) if new.dtype != old.dtype else new, after, state)

    return step


def _start(key: Key, system: System, kT: float) -> tuple[Array, Array]:
    """Masses ``(N, 1)`` and Maxwell–Boltzmann momenta in the precision of the positions."""
    mass = masses(system.species)[:, None].astype(system.position.dtype)
    return mass, momenta(key, mass, kT)


def _unknown(position: jax.Array, **_) -> jax.Array:
    """No forces yet."""
    return jnp.zeros_like(position)


def _shift(position: jax.Array, change: jax.Array, **_) -> jax.Array:
    """Free space: positions are not wrapped."""
    return position + change


def _without_translation(n: int) -> int:
    return max(3 * n - 3, 1)


def _check(**positive: float) -> None:
    if wrong := {name: value for name, value in positive.items() if not value > 0}:
        raise ValueError(f"{', '.join(wrong)} must be positive. Got {wrong}.")
