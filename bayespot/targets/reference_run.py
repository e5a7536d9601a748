"""How the simulations inside a target are made: their settings, checked.

What becomes of them is ``reference_frames``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.system import System, without_padding
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.simulation.ensemble import Ensemble
from bayespot.tree import replace


class ReferenceRun(NamedTuple):
    """How reference frames are made; ``reference_run`` checks and explains the fields.

    ``frames``, ``equilibration`` and ``first_equilibration`` are numbers of frames, ``every`` steps apart.
    """

    start: System
    ensemble: Ensemble
    every: int
    frames: int
    equilibration: int
    first_equilibration: int
    replicas: int
    reseed: bool
    min_share: float
    max_age: int
    skin: float
    capacity: float
    max_kT: float


def reference_run(
    start: System,
    ensemble: Ensemble,
    *,
    steps: int,
    every: int,
    equilibration: int | None = None,
    first_equilibration: int | None = None,
    replicas: int = 1,
    reseed: bool = False,
    min_share: float = 0.9,
    max_age: int = 20,
    skin: float = 0.4,
    capacity: float = 1.5,
    max_kT: float | None = None,
) -> ReferenceRun:
    """How a target that simulates makes its reference frames.

    Args:
        start: first configuration of all chains and replicas, best an equilibrated one: its neighbours decide how many
            the lists have room for. Padding is removed.
        ensemble: with a thermostat, in a constant box.
        steps: of the frames, for each replica.
        every: steps between frames; must divide the other numbers of steps.
        equilibration: steps that follow a change of the parameters before the first frame; default a tenth of
            ``steps``.
        first_equilibration: the same for the first simulation, which comes from ``start``; default ``steps``.
        replicas: independent simulations.
        reseed: start later simulations from frames drawn from those of all replicas, with common weights at the present
            parameters, so that replicas that were caught where the system no longer dwells are given up. Replicas are
            less independent then: make ``equilibration`` long enough for those from one frame to part.
        min_share: new frames are simulated when the effective share of the old ones falls below this.
        max_age: and after so many evaluations in any case; 1 simulates in every step. Old frames have the same
            sampling error in every step: what learns from them for long learns that error, too.
        skin: of the neighbour lists [Å].
        capacity: room of the longest neighbour lists, in units of what simulations begin with, a fifth above what
            ``start`` needs. A chain that needs more becomes unstable.
        max_kT: kinetic temperature [eV] beyond which a simulation counts as unstable; default ten times the
            ensemble's. A few atoms exceed that by chance now and then.

    Raises:
        ValueError: for numbers that are not positive or not multiples of ``every``, a capacity below 1, or an ensemble
            without thermostat or with a box that moves.
    """
    _require_thermostat(ensemble)
    max_kT = 10 * ensemble.kT if max_kT is None else max_kT
    positive = {"steps": steps, "every": every, "replicas": replicas, "min_share": min_share}
    _check_positive(**positive, max_age=max_age, skin=skin, max_kT=max_kT)
    if capacity < 1:
        raise ValueError(
            f"capacity must be at least 1, the room of the lists that simulations begin with. Got {capacity}."
        )
    equilibration = -(-steps // 10 // every) * every if equilibration is None else equilibration
    first_equilibration = steps if first_equilibration is None else first_equilibration
    _check_multiples(every, steps=steps, equilibration=equilibration, first_equilibration=first_equilibration)
    start = jax.tree.map(jnp.asarray, without_padding(start))  # frames of a trajectory are arrays of NumPy
    return ReferenceRun(
        start, ensemble, every, steps // every, equilibration // every, first_equilibration // every,
        replicas, reseed, min_share, max_age, skin, capacity, max_kT,
    )  # fmt: skip


def _require_thermostat(ensemble: Ensemble) -> None:
    if ensemble.box is not None or not ensemble.kT > 0 or ensemble.spec.get("name") == "nve":
        raise ValueError(
            "Frames can be reweighted at a constant temperature and in a constant box. "
            f"Got the ensemble {ensemble.spec.get('name')!r}. Use nvt_langevin or nvt_nose_hoover."
        )


def _check_positive(**numbers) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive. Got {value}.")


def _check_multiples(every: int, **steps) -> None:
    for name, value in steps.items():
        if value < 0 or value % every:
            raise ValueError(f"every = {every} must divide {name}. Got {value}. Use {max(1, value // every) * every}.")


def like_start(run: ReferenceRun) -> Trajectory:
    """The start and copies of it with displaced atoms (0.25 Å) as a trajectory, for ``Observable.prepare`` (host).

    Hot atoms have more neighbours now and then than those of a perfect crystal.
    """
    system, copies = jax.tree.map(np.asarray, run.start), 9
    away = 0.25 * np.random.default_rng(0).normal(size=(copies, *system.position.shape))
    away[0] = 0.0
    position = (system.position + away).astype(system.position.dtype)[None, None]
    shape = position.shape[:3]
    everywhere = jax.tree.map(lambda x: np.broadcast_to(x, (*shape, *x.shape)), system)
    nothing = np.zeros_like(position), np.zeros(shape), np.zeros((*shape, 3, 3))
    frames = Frame(replace(everywhere, position=position), *nothing)
    return Trajectory(frames, np.zeros(shape), np.zeros((1, 1), np.int32), np.zeros((1, 1)))
