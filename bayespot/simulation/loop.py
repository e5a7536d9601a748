"""The host loop of simulations: chunks, repair of neighbour lists, checkpoints, progress."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import default_batch_size, within_memory
from bayespot.checkpoint import checkpoint as open_checkpoint
from bayespot.checkpoint import fingerprint
from bayespot.errors import Status
from bayespot.potentials.neighbor_list import larger, neighbor_list
from bayespot.potentials.potential import Potential, require_whole_molecules
from bayespot.records.system import System, heights, without_padding
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.simulation.chunk import Run, chunk, starter
from bayespot.simulation.ensemble import Ensemble
from bayespot.typing import Key, Params, PyTree

ROOM = 0.9
"""How far a box that moves may become thinner until the neighbour lists, which allow for that, must be made anew."""


class Plan(NamedTuple):
    """How a simulation is to be run; the public functions explain the fields.

    Attributes:
        max_kT: resolved, [eV].
        batch_size: resolved.
    """

    steps: int
    every: int
    equilibration: int
    replicas: int
    chunk: int
    skin: float
    max_kT: float
    batch_size: int
    samples: int


def plan(
    steps: int,
    every: int,
    equilibration: int,
    replicas: int,
    chunk: int,
    skin: float,
    max_kT: float | None,
    batch_size: int | None,
    ensemble: Ensemble,
    samples: int,
) -> Plan:
    """Checked arguments with their defaults filled in.

    Raises:
        ValueError: for arguments that do not fit each other.
    """
    positive = {"steps": steps, "every": every, "replicas": replicas, "chunk": chunk, "skin": skin}
    for name, value in (positive | {"max_kT": max_kT, "batch_size": batch_size}).items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive. Got {value}.")
    if equilibration < 0:
        raise ValueError(f"equilibration must be 0 or positive. Got {equilibration}.")
    if steps % every:
        near = max(d for d in range(1, min(every, steps) + 1) if steps % d == 0)
        raise ValueError(f"every must divide steps = {steps}. Got {every}. Use {near}.")
    if steps + equilibration >= 2**31:
        raise ValueError(f"At most 2³¹ − 1 steps can be counted. Got {steps + equilibration}. Divide the run.")
    if max_kT is None:
        max_kT = 10 * ensemble.kT if ensemble.kT > 0 else 1.0
    runs = samples * replicas
    batch_size = min(default_batch_size(runs) if batch_size is None else batch_size, runs)
    return Plan(
        steps, every, equilibration, replicas, max(chunk, every), float(skin), float(max_kT), batch_size, samples
    )


def run(
    key: Key,
    potential: Potential,
    params: Params,
    start: System,
    ensemble: Ensemble,
    plan: Plan,
    checkpoint: str | Path | None,
    progress: bool,
) -> Trajectory:
    """All runs of stacked parameters, ``(S, R, T)``, in batches that the device's memory holds.

    Raises:
        ValueError: for a start that the potential cannot treat, or a checkpoint of another run.
    """
    start, store = _checked(start, potential, ensemble), None
    if checkpoint is not None:
        facts = [potential.spec, ensemble.spec, plan._replace(batch_size=0)._asdict()]  # any batches, the same results
        store = open_checkpoint(checkpoint, fingerprint(key, (params, start), facts))
    neighbors = neighbor_list(start, potential.cutoff, plan.skin)
    limits = {"capacity": np.asarray(neighbors.capacity), "lookahead": np.float64(1.0)}
    if ensemble.box is not None:
        limits["thinnest"] = ROOM * heights(np.asarray(start.box))

    def in_batches(size: int) -> tuple[list[dict], np.ndarray]:
        at_once = plan._replace(batch_size=size)
        compiled = partial(_compiled, potential, start, ensemble, at_once)
        return _driven(_begin(key, start, ensemble, at_once), (params, start), limits, compiled, plan, store, progress)

    recorded, failed = within_memory(in_batches, plan.batch_size)
    return _trajectory(recorded, failed, start, ensemble, plan, plan.samples)


def _driven(runs: Run, shared: tuple, limits: dict, compiled, plan: Plan, store, progress: bool):
    """The recorded parts of all chunks that are still to be done or kept in the checkpoint, and what failed."""
    from tqdm import tqdm

    done, runs, limits = _resumed(store, runs, limits)
    recorded, pieces, advance = [], _pieces(plan), compiled(limits)
    with tqdm(
        total=plan.equilibration + plan.steps, desc="simulate", unit="step", unit_scale=True, disable=not progress
    ) as bar:
        for number, piece in enumerate(pieces):
            first, count, every = piece
            if store and number < done:
                part = _load(store.folder, number)
            else:
                arguments = (runs, *shared, *(np.int32(x) for x in piece))
                runs, part, limits, advance = _repaired(advance, arguments, limits, compiled)
                part = {name: np.asarray(x[:, :count]) for name, x in part.items()}
                if store:
                    _save(store.folder, number, part)
                    save = store.save if number + 1 == len(pieces) else store.save_when_due
                    save(number + 1, runs, limits)
            recorded += [part] if first >= plan.equilibration else []
            bar.update(count * every)
            if unstable := int((np.asarray(runs.failed) >= 0).sum()):
                bar.set_postfix_str(f"{unstable} of {len(runs.failed)} runs unstable")
    return recorded, np.asarray(runs.failed)


def _checked(start: System, potential: Potential, ensemble: Ensemble) -> System:
    """The start without padding."""
    if start.position.ndim != 2:
        raise ValueError(f"start must be a single system with positions (N, 3). Got {start.position.shape}.")
    start = without_padding(start)
    if not start.species.size:
        raise ValueError("start must contain at least one atom. Got none.")
    if potential.species and (unknown := sorted(set(np.asarray(start.species).tolist()) - set(potential.species))):
        raise ValueError(f"The potential knows the species {potential.species}. Got also {unknown} in start.")
    require_whole_molecules(potential, np.array([len(start.species)]), "start")
    if ensemble.box is not None and not np.linalg.det(np.asarray(start.box, np.float64)) > 0:
        raise ValueError(
            "A box that moves must be periodic in all three directions and right-handed. "
            f"Got {np.asarray(start.box).tolist()}. Reversing one vector of a left-handed box leaves the same lattice."
        )
    return start


def _begin(key: Key, start: System, ensemble: Ensemble, plan: Plan) -> Run:
    sample, replica = np.divmod(np.arange(plan.samples * plan.replicas, dtype=np.int32), np.int32(plan.replicas))
    runs = Run(jnp.asarray(sample), jnp.asarray(replica), {}, jax.device_put(np.full(len(sample), -1, np.int32)))
    return _starter(ensemble._replace(spec=()), plan.batch_size)(key, runs, start)


def _compiled(potential: Potential, start: System, ensemble: Ensemble, plan: Plan, limits: dict) -> Callable:
    """The jitted chunk for these capacities."""
    capacity = (int(limits["capacity"][0]), int(limits["capacity"][1]))
    box = tuple(map(tuple, np.asarray(start.box).tolist()))
    thinnest = None
    if "thinnest" in limits:  # rounded to what the list allows for anyway: fewer programs
        thinnest = neighbor_list(start, potential.cutoff, plan.skin, capacity, tuple(limits["thinnest"])).thinnest
    list_ = (len(start.species), box, plan.skin, capacity, thinnest)
    frames = min(plan.chunk, plan.steps) // plan.every
    facts = potential.atom_energies, potential.cutoff, ensemble._replace(spec=()), list_
    return _program(*facts, max_kT=plan.max_kT, frames=frames, batch_size=plan.batch_size)


@lru_cache(maxsize=8)
def _starter(ensemble: Ensemble, batch_size: int) -> Callable:
    """The compiled ``starter``: the same for the same ensemble."""
    return jax.jit(starter(ensemble, batch_size))


@lru_cache(maxsize=8)
def _program(atom_energies, cutoff, ensemble, list_, *, max_kT, frames, batch_size) -> Callable:
    """The same program for the same facts, so that a second call with this potential does not compile again."""
    atoms, box, skin, capacity, thinnest = list_
    shape = System(np.zeros((atoms, 3)), np.ones(atoms, np.int32), np.asarray(box))
    potential = Potential(lambda key: {}, atom_energies, cutoff, (), {})
    neighbors = neighbor_list(shape, cutoff, skin, capacity, thinnest)
    return jax.jit(
        chunk(potential, ensemble, neighbors, skin=skin, max_kT=max_kT, frames=frames, batch_size=batch_size)
    )


def _pieces(plan: Plan) -> list[tuple[int, int, int]]:
    """First step, number of frames and steps per frame of every chunk; equilibration counts as frames too."""
    whole = min(plan.chunk, plan.steps) // plan.every * plan.every
    out = [(s, 1, min(whole, plan.equilibration - s)) for s in range(0, plan.equilibration, whole)]
    for s in range(0, plan.steps, whole):
        out.append((plan.equilibration + s, min(whole, plan.steps - s) // plan.every, plan.every))
    return out


def _repaired(advance, arguments: tuple, limits: dict, compiled):
    """One chunk, repeated from the same state until the lists held all neighbours at every step.

    It ends: capacities only grow, up to all pairs, the lists' room for thin boxes up to where a run counts as unstable,
    and with the lookahead grown to 25 every step renews the list.
    """
    runs, *rest = arguments
    while True:
        new, part, check = advance(_repeatable(runs), *rest, np.float32(limits["lookahead"]))
        needed, thinnest = np.asarray(check.needed).max(0), np.asarray(check.thinnest, np.float64).min(0)
        if np.isfinite(thinnest).any():
            # The lists for too thin a box lacked pairs: what they say of capacities is not to be trusted.
            limits = limits | {"thinnest": np.minimum(limits["thinnest"], ROOM * thinnest)}
            advance = compiled(limits)
        elif (needed > limits["capacity"]).any():
            limits = limits | {"capacity": np.asarray(larger(tuple(limits["capacity"].tolist()), needed))}
            advance = compiled(limits)
        elif np.asarray(check.late).any():
            limits = limits | {"lookahead": 2 * limits["lookahead"]}
        else:
            return new, part, limits, advance


def _repeatable(runs: Run) -> Run:
    """The same state, with a declaration to ``jax_debug_key_reuse`` that its keys serve again in a repeated chunk."""
    return jax.tree.map(lambda x: jax.random.clone(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, runs)


def _trajectory(parts: list[dict], failed: np.ndarray, start, ensemble, plan: Plan, samples: int) -> Trajectory:
    shape = (samples, plan.replicas)
    count = plan.steps // plan.every
    seen = {k: np.concatenate([p[k] for p in parts], 1) for k in parts[0]}
    seen = {k: x.reshape(*shape, *x.shape[1:]) for k, x in seen.items()}

    def everywhere(x) -> np.ndarray:
        x = np.asarray(x)
        return np.broadcast_to(x, (*shape, count, *x.shape))

    box = seen["box"] if "box" in seen else everywhere(start.box)
    mass = None if start.mass is None else everywhere(start.mass)
    system = System(seen["position"], everywhere(start.species), box, mass)
    time = ensemble.dt * plan.every * np.arange(1, count + 1)
    valid = np.where(failed >= 0, np.maximum(failed - 1 - plan.equilibration, 0), plan.steps) * ensemble.dt
    return Trajectory(
        frames=Frame(system, seen["velocity"], seen["energy"], seen["stress"]),
        time=np.broadcast_to(time, (*shape, count)),
        status=np.where(failed >= 0, Status.UNSTABLE, Status.OK).astype(np.int32).reshape(shape),
        valid_until=valid.reshape(shape),
    )


def _resumed(store, runs: Run, limits: dict) -> tuple[int, Run, dict]:
    found = store.latest(runs) if store else None
    if found is None:
        return 0, runs, limits
    done, runs, limits = found
    return done, runs, {name: np.asarray(x) for name, x in limits.items()}


def _save(folder: str | Path, number: int, part: PyTree) -> None:
    """Frames of one chunk, written completely or not at all; before the state that follows them."""
    file = Path(folder) / f"frames_{number:06d}.npz"
    np.savez(temporary := file.with_suffix(".tmp.npz"), **part)
    temporary.replace(file)


def _load(folder: str | Path, number: int) -> dict:
    with np.load(Path(folder) / f"frames_{number:06d}.npz", allow_pickle=False) as file:
        return dict(file)
