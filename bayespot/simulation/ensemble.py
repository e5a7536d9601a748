r"""Statistical ensembles: how a configuration moves. Thin skins on the integrators of jax-md.

Positions are Cartesian and never wrapped. The forces come in with every step, so that an ensemble knows nothing of
potentials, parameters or neighbour lists. Where the box moves, positions follow it about the origin.
"""

import importlib
import importlib.util
import math
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

Energy = Callable[..., Scalar]
"""``position (N, 3), box (3, 3) → energy`` [eV]."""


class Ensemble(NamedTuple):
    """A statistical ensemble.

    Attributes:
        init: ``(key, system) → state`` with new velocities and zero forces, which the simulation fills in; traceable.
        step: ``(forces, state) → state``, one time step; traceable; ``(energy, state) → state`` where the box moves. A
            state is a dataclass with at least ``position``, ``momentum``, ``velocity``, ``force`` ``(N, 3)`` and
            ``mass (N, 1)``.
        degrees: of freedom that share the thermal energy, as a function of the number of atoms.
        dt: time step [internal time unit, see ``units.fs``].
        kT: thermal energy [eV]; 0 where the ensemble has none.
        spec: name and arguments, writable as JSON.
        box: ``state → box (3, 3)`` [Å]; ``None`` where it does not move.
    """

    init: Callable[[Key, System], PyTree]
    step: Callable[[Forces | Energy, PyTree], PyTree]
    degrees: Callable[[int], int]
    dt: float
    kT: float
    spec: Mapping[str, Any]
    box: Callable[[PyTree], Float[Array, "3 3"]] | None = None


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
    require_positive(dt=dt)
    if not kT >= 0:
        raise ValueError(f"kT of the initial velocities must be 0 or positive [eV]. Got {kT}.")

    def integrator(forces):
        return _integrators().nve(forces, _shift, dt)

    def init(key, system):
        mass, p = thermal_start(key, system, kT)
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
    require_positive(kT=kT, dt=dt, gamma=gamma)

    def integrator(forces):
        return _integrators().nvt_langevin(forces, _shift, dt, kT, gamma)

    def init(key, system):
        velocities, noise = jax.random.split(key)
        mass, p = thermal_start(velocities, system, kT)
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
    require_positive(kT=kT, dt=dt, tau=tau)
    if chain_length < 2:
        raise ValueError(f"chain_length must be at least 2. Got {chain_length}.")

    def integrator(forces):
        return _integrators().nvt_nose_hoover(forces, _shift, dt, kT, chain_length=chain_length, tau=tau)

    def init(key, system):
        mass, p = thermal_start(key, system, kT)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            state = integrator(_unknown)[0](key, system.position, mass=mass, momenta=p)
        degrees = _without_translation(system.position.shape[0])
        return state.set(chain=state.chain.set(degrees_of_freedom=degrees))

    spec = {"name": "nvt_nose_hoover", "kT": kT, "dt": dt, "tau": tau, "chain_length": chain_length}
    return Ensemble(init, _stepper(integrator), _without_translation, dt, kT, spec)


def npt_nose_hoover(
    kT: float, pressure: float, dt: float, tau: float | None = None, tau_box: float | None = None
) -> Ensemble:
    r"""Constant temperature and pressure: the box breathes without changing its shape, under Nosé–Hoover chains.

    Every configuration and volume has the weight

    .. math:: p(x, V) \propto V^{-1}\, e^{-[U(x, V) + pV]/kT}\, dx\, dV ,

    that of N atoms whose centre of mass rests: the mean of the observable ``pressure()`` is exactly p, and an ideal gas
    has :math:`\langle V \rangle = N kT/p` (with a free centre of mass (N + 1) kT/p). Positions are scaled with the box
    about the origin, which counts in a mean-square displacement. A step evaluates the forces twice. A run whose box
    becomes half as thick as at its start, or changes in one step by more than the skin allows, is unstable.

    Args:
        kT: thermal energy [eV].
        pressure: of the surroundings [eV/Å³], e.g. ``1.0 * units.bar``; may be negative for a solid.
        dt: time step [internal time unit].
        tau: period of the thermostat [internal time unit]; default 100 ``dt``.
        tau_box: period of the box and of its thermostat [internal time unit]; default 1000 ``dt``.

    Raises:
        ValueError: if a time or kT is not positive or the pressure not finite; in a simulation, for a box that is open
            in some direction or left-handed.

    Reference:
        M. E. Tuckerman, J. Alejandre, R. López-Rendón, A. L. Jochim, G. J. Martyna, J. Phys. A 39, 5629 (2006).
    """
    tau, tau_box = 100 * dt if tau is None else tau, 1000 * dt if tau_box is None else tau_box
    require_positive(kT=kT, dt=dt, tau=tau, tau_box=tau_box)
    if not math.isfinite(pressure):
        raise ValueError(f"pressure must be a finite number [eV/Å³]. Got {pressure}.")

    def integrator(energy):
        def scaled(position, box, perturbation=1.0, **_):
            # jax-md samples V^(N − 1 − 1/N) dV when the momentum is zero; the missing power of 1/N is a potential.
            h, n = box * perturbation, position.shape[0]
            return energy(position * perturbation, h) - kT / n * jnp.log(jnp.linalg.det(h))

        periods = ({"tau": tau_box}, {"tau": tau})
        return _integrators().npt_nose_hoover(scaled, _shift, dt, pressure, kT, *periods)

    def init(key, system):
        mass, p = thermal_start(key, system, kT)
        begin = integrator(lambda position, box: 0.0 * position.sum())[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            state = begin(key, system.position, system.box, mass=mass, momenta=p)
        degrees = _without_translation(len(mass))
        state = state.set(thermostat=state.thermostat.set(degrees_of_freedom=degrees))
        return jax.tree.map(lambda x: jnp.asarray(x, system.position.dtype), state)

    def box(state):
        return state.reference_box * jnp.exp(state.box_position)

    spec = {"name": "npt_nose_hoover", "kT": kT, "pressure": pressure, "dt": dt, "tau": tau, "tau_box": tau_box}
    return Ensemble(init, _stepper(integrator), _without_translation, dt, kT, spec, box)


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


def thermal_start(key: Key, system: System, kT: float) -> tuple[Array, Array]:
    """Masses ``(N, 1)`` and Maxwell–Boltzmann momenta in the precision of the positions."""
    mass = masses(system)[:, None].astype(system.position.dtype)
    return mass, momenta(key, mass, kT)


def _unknown(position: jax.Array, **_) -> jax.Array:
    """No forces yet."""
    return jnp.zeros_like(position)


def _shift(position: jax.Array, change: jax.Array, **_) -> jax.Array:
    """Free space: positions are not wrapped."""
    return position + change


def _without_translation(n: int) -> int:
    return max(3 * n - 3, 1)


def require_positive(**positive: float) -> None:
    """Raise ``ValueError`` where one of the named numbers is not positive."""
    if wrong := {name: value for name, value in positive.items() if not value > 0}:
        raise ValueError(f"{', '.join(wrong)} must be positive. Got {wrong}.")
