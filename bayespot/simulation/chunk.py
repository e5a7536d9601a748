"""The compiled part of a simulation: many steps of many runs, with the neighbour lists kept up to date.

Inside a batch the loop over steps is outside and the runs are inside, with one scalar condition for the rebuild of all
lists. With the loops the other way round a condition per run becomes a selection, and all lists are made at every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayespot.batching import any_together, each, over_batches
from bayespot.potentials.neighbor_list import NeighborList, heights_of, inverse_of
from bayespot.potentials.potential import Potential, energy_forces_stress, forces
from bayespot.records.system import System
from bayespot.simulation.ensemble import Ensemble, kinetic_temperature
from bayespot.tree import record, replace, take
from bayespot.typing import Array, Float, Int, Key, PyTree

COLLAPSE = 0.5
"""A run whose box becomes thinner than this part of its first thickness is unstable."""


@record
class Run:
    """One simulation under way; many of them are stacked along a leading axis ``n`` (samples × replicas).

    Attributes:
        sample: number of its posterior sample, ``(n,)``.
        replica: number among the runs of that sample, ``(n,)``.
        state: of the ensemble.
        failed: step at which the run became unstable, −1 for a sound run, ``(n,)``.
    """

    sample: Int[Array, "*n"]
    replica: Int[Array, "*n"]
    state: PyTree
    failed: Int[Array, "*n"]


@record
class Check:
    """What the host must know of a chunk before it accepts it; one number per run.

    Attributes:
        needed: capacities that the neighbour lists asked for, ``(n, 2)``.
        thinnest: smallest distances between faces of the boxes [Å] that the lists did not allow for, ``(n, 3)``;
            infinite where they did.
        late: whether a list was used although an atom had left its skin, ``(n,)``.
    """

    needed: Int[Array, "n 2"]
    thinnest: Float[Array, "n 3"]
    late: Array


def starter(ensemble: Ensemble, batch_size: int) -> Callable:
    """``(key, runs, system) → runs`` with initial states, each from its own key; traceable."""

    def batch(runs: Run, system: System, key: Key) -> Run:
        def begin(run: Run):
            own = jax.random.fold_in(jax.random.fold_in(key, run.sample), run.replica)
            return replace(run, state=ensemble.init(own, system))

        return each(begin, batch_size)(runs)

    return lambda key, runs, system: over_batches(batch, runs, system, key, batch_size=batch_size)


def stepper(
    potential: Potential, ensemble: Ensemble, neighbors: NeighborList, skin: float, max_kT: float, batch_size: int
) -> Callable:
    """Steps of one batch: ``(params, system, lookahead) → open, step``, two traceable functions.

    ``open(runs)`` builds the lists, ``step(number, carry)`` makes one step. The carry is a dictionary of the runs, the
    lists, the configurations for which they were made, and the entries of ``Check``.

    A list must be renewed *before* an atom leaves half the skin, but the positions of the next step are not known yet:
    they are foreseen as the distance at the present velocity and a fiftieth of the skin, times ``lookahead``. Whether
    that was enough is measured (``late``).
    """
    half = 0.5 * skin

    def functions(params: PyTree, system: System, lookahead: Array):
        degrees = ensemble.degrees(system.position.shape[0])
        acts, configuration = acting(potential, ensemble), configurations(ensemble, system)
        away_from = departure(ensemble, neighbors.cutoff)

        def build(runs: Run, needed: Array, thinnest: Array):
            now, sound = configuration(runs.state), runs.failed < 0
            listed, found = each(lambda one: neighbors.update(replace(system, **one)), batch_size)(now)
            if ensemble.box is not None:
                height = heights_of(now["box"])
                wrong = sound[:, None] & (height < jnp.asarray(neighbors.thinnest, height.dtype))
                thinnest = jnp.minimum(thinnest, jnp.where(wrong, height, jnp.inf).min(0))
            needed = jnp.maximum(needed, jnp.where(sound[:, None], found, 0).max(0))
            return {"listed": listed, "reference": now, "needed": needed, "thinnest": thinnest}

        def open_(runs: Run):
            limits = jnp.zeros(2, jnp.int32), jnp.full(3, jnp.inf, runs.state.position.dtype)
            return {"runs": runs, "late": jnp.array(False), **build(runs, *limits)}

        def advance(p, state, listed):
            new = ensemble.step(acts(p, system, listed), state)
            return new, kinetic_temperature(new, degrees)

        def step(number: Array, carry: dict) -> dict:
            runs = carry["runs"]
            before = configuration(runs.state)
            state, kT = each(advance, batch_size)(params, runs.state, carry["listed"])
            now = configuration(state)
            moved = away_from(now, before).max(1, initial=0)
            sound = (runs.failed < 0) & (kT <= max_kT) & (moved <= half)  # False for NaN
            if ensemble.box is not None:
                sound &= (heights_of(now["box"]) > COLLAPSE * heights_of(system.box)).all(1)
            runs = replace(runs, state=state, failed=jnp.where((runs.failed < 0) & ~sound, number, runs.failed))
            away = away_from(now, carry["reference"])
            ahead = lookahead * (ensemble.dt * _length(state.velocity) + 0.02 * skin)
            late = carry["late"] | (sound[:, None] & (away > half)).any()
            stale = any_together((sound[:, None] & (away + ahead > half)).any())
            old = {name: carry[name] for name in ("listed", "reference", "needed", "thinnest")}
            lists = jax.lax.cond(stale, lambda: build(runs, carry["needed"], carry["thinnest"]), lambda: old)
            return {"runs": runs, "late": late, **lists}

        return open_, step

    return functions


def configurations(ensemble: Ensemble, system: System) -> Callable[[PyTree], dict]:
    """``states → {"position", "box"}``, the box only where it moves."""
    box = ensemble.box
    if box is None:
        return lambda states: {"position": states.position}
    return lambda states: {"position": states.position, "box": jax.vmap(box)(states)}


def acting(potential: Potential, ensemble: Ensemble) -> Callable:
    """``(params, system, neighbors) →`` what the ensemble's step asks: forces, or the energy where the box moves."""
    force = forces(potential)
    if ensemble.box is None:
        return lambda p, system, listed: lambda position, **_: force(p, replace(system, position=position), listed)
    return lambda p, system, listed: (
        lambda position, box: potential.energy(p, replace(system, position=position, box=box), listed)
    )


def departure(ensemble: Ensemble, reach: float) -> Callable[[dict, dict], Float[Array, "n N"]]:
    r"""``(now, reference) →`` distances [Å] that must stay below half the skin for a list to hold all pairs.

    Where the box rests, how far each atom has gone. Where it moves, let :math:`M = h_0^{-1} h`. Two atoms that were
    farther apart than the reach :math:`R` are now at least :math:`(1 - \|M - 1\|) R` apart, less what both have moved
    relative to the deformed configuration :math:`x_0 M`: so half of :math:`\|M - 1\| R` counts as gone, too.
    """
    if ensemble.box is None:
        return lambda now, reference: _length(now["position"] - reference["position"])

    def one(now, reference):
        change = inverse_of(reference["box"]) @ now["box"] - jnp.eye(3, dtype=now["box"].dtype)
        relative = now["position"] - reference["position"] - reference["position"] @ change
        return _length(relative) + 0.5 * reach * jnp.linalg.norm(change)

    return jax.vmap(one)


def chunk(
    potential: Potential,
    ensemble: Ensemble,
    neighbors: NeighborList,
    *,
    skin: float,
    max_kT: float,
    frames: int,
    batch_size: int,
) -> Callable:
    """A chunk of all runs: ``(runs, params, system, first, count, every, lookahead, skip=0) → runs, recorded, check``.

    Traceable. Of ``count`` frames, each after ``every`` steps, those after the first ``skip`` are recorded, ``frames``
    at most; all three are ordinary arrays, so that one compilation serves equilibration and every chunk. ``first`` is
    the number of steps made before; at 0 the states do not know their forces yet, and get them. ``recorded`` is a
    dictionary of position, velocity, energy, stress and, if it moves, box, ``(n, frames, ...)``.
    """
    options = {"skin": skin, "max_kT": max_kT, "frames": frames, "batch_size": batch_size}
    batch = batch_chunk(potential, ensemble, neighbors, **options)
    return lambda runs, *shared: over_batches(batch, runs, *shared, batch_size=batch_size)


def batch_chunk(
    potential: Potential,
    ensemble: Ensemble,
    neighbors: NeighborList,
    *,
    skin: float,
    max_kT: float,
    frames: int,
    batch_size: int,
) -> Callable:
    """The same for ``batch_size`` runs, which are advanced together."""
    functions = stepper(potential, ensemble, neighbors, skin, max_kT, batch_size)
    evaluate = energy_forces_stress(potential)

    def batch(runs: Run, params, system: System, first, count, every, lookahead, skip=0):
        params = take(params, runs.sample)
        open_, step = functions(params, system, lookahead)
        configuration = configurations(ensemble, system)

        def look(p, state, now, listed) -> tuple[dict, Array]:
            energy, force, stress = evaluate(p, replace(system, **now), listed)
            return now | {"velocity": state.velocity, "energy": energy, "stress": stress}, force

        def frame(number, carry_and_recorded):
            carry, recorded = carry_and_recorded
            end = first + number * every
            carry = jax.lax.fori_loop(jnp.maximum(end - every, first) + 1, end + 1, step, carry)
            runs = carry["runs"]
            seen, force = each(look, batch_size)(params, runs.state, configuration(runs.state), carry["listed"])
            state = replace(runs.state, force=jnp.where(end == 0, force, runs.state.force))
            lost = (runs.failed < 0) & ~jnp.isfinite(seen["energy"])
            carry["runs"] = replace(runs, state=state, failed=jnp.where(lost, end, runs.failed))
            slot = jnp.where(number <= skip, frames, number - 1 - skip)  # out of bounds, not recorded
            return carry, jax.tree.map(lambda all_, one: all_.at[slot].set(one, mode="drop"), recorded, seen)

        # A new run is looked at before its first step, too, and gets its forces there. To compute them elsewhere would
        # mean to compile them once more, which takes longer than many a run.
        carry = open_(runs)
        shapes, _ = jax.eval_shape(
            each(look, batch_size), params, runs.state, configuration(runs.state), carry["listed"]
        )
        empty = jax.tree.map(lambda s: jnp.full((frames, *s.shape), jnp.nan, s.dtype), shapes)
        carry, recorded = jax.lax.fori_loop(jnp.minimum(first, 1), count + 1, frame, (carry, empty))
        check = Check(*(jnp.stack([carry[name]] * batch_size) for name in ("needed", "thinnest", "late")))
        return carry["runs"], jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), recorded), check

    return batch


def _length(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    return jnp.sqrt((vectors**2).sum(-1))
