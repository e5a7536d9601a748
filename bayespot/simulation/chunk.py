"""The compiled part of a simulation: many steps of many runs, with the neighbour lists kept up to date.

Inside a batch the loop over steps is outside and the runs are inside, with one scalar condition for the rebuild of all
lists. With the loops the other way round a condition per run becomes a selection, and all lists are made at every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayespot.batching import each, over_batches
from bayespot.potentials.neighbor_list import NeighborList
from bayespot.potentials.potential import Potential, energy_forces_stress, forces
from bayespot.records.system import System
from bayespot.simulation.ensemble import Ensemble, kinetic_temperature
from bayespot.tree import record, replace, take
from bayespot.typing import Array, Float, Int, Key, PyTree


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
        late: whether a list was used although an atom had left its skin, ``(n,)``.
    """

    needed: Int[Array, "n 2"]
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
    lists, the positions at which they were made, and the two entries of ``Check``.

    A list must be renewed *before* an atom leaves half the skin, but the positions of the next step are not known yet:
    they are foreseen as the distance at the present velocity and a fiftieth of the skin, times ``lookahead``. Whether
    that was enough is measured (``late``).
    """
    force, half = forces(potential), 0.5 * skin

    def functions(params: PyTree, system: System, lookahead: Array):
        degrees = ensemble.degrees(system.position.shape[0])

        def update(position):
            return neighbors.update(replace(system, position=position))

        def build(runs: Run, needed: Array):
            listed, found = each(update, batch_size)(runs.state.position)
            found = jnp.where((runs.failed < 0)[:, None], found, 0).max(0)
            return listed, runs.state.position, jnp.maximum(needed, found)

        def open_(runs: Run):
            listed, reference, needed = build(runs, jnp.zeros(2, jnp.int32))
            return {
                "runs": runs, "listed": listed, "reference": reference, "needed": needed, "late": jnp.array(False)
            }  # fmt: skip

        def advance(p, state, listed):
            def at(position, **_):
                return force(p, replace(system, position=position), listed)

            new = ensemble.step(at, state)
            return new, kinetic_temperature(new, degrees), _length(new.position - state.position).max(initial=0)

        def step(number: Array, carry: dict) -> dict:
            runs = carry["runs"]
            state, kT, moved = each(advance, batch_size)(params, runs.state, carry["listed"])
            sound = (runs.failed < 0) & (kT <= max_kT) & (moved <= half)  # False for NaN
            runs = replace(runs, state=state, failed=jnp.where((runs.failed < 0) & ~sound, number, runs.failed))
            away = _length(state.position - carry["reference"])
            ahead = lookahead * (ensemble.dt * _length(state.velocity) + 0.02 * skin)
            late = carry["late"] | (sound[:, None] & (away > half)).any()
            stale = (sound[:, None] & (away + ahead > half)).any()
            listed, reference, needed = jax.lax.cond(
                stale,
                lambda: build(runs, carry["needed"]),
                lambda: (carry["listed"], carry["reference"], carry["needed"]),
            )
            return {"runs": runs, "listed": listed, "reference": reference, "needed": needed, "late": late}

        return open_, step

    return functions


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
    """A chunk of all runs: ``(runs, params, system, first, count, every, lookahead) → runs, recorded, check``.

    Traceable. ``count ≤ frames`` frames are recorded, each after ``every`` steps; both are ordinary arrays, so that one
    compilation serves equilibration and every chunk. ``first`` is the number of steps made before; at 0 the states do
    not know their forces yet, and get them. ``recorded`` is a dictionary of position, velocity, energy and stress,
    ``(n, frames, ...)``.
    """
    functions = stepper(potential, ensemble, neighbors, skin, max_kT, batch_size)
    evaluate = energy_forces_stress(potential)

    def batch(runs: Run, params, system: System, first, count, every, lookahead):
        params = take(params, runs.sample)
        open_, step = functions(params, system, lookahead)

        def look(p, state, listed) -> tuple[dict, Array]:
            energy, force, stress = evaluate(p, replace(system, position=state.position), listed)
            seen = {"position": state.position, "velocity": state.velocity, "energy": energy, "stress": stress}
            return seen, force

        def frame(number, carry_and_recorded):
            carry, recorded = carry_and_recorded
            end = first + number * every
            carry = jax.lax.fori_loop(jnp.maximum(end - every, first) + 1, end + 1, step, carry)
            runs = carry["runs"]
            seen, force = each(look, batch_size)(params, runs.state, carry["listed"])
            state = replace(runs.state, force=jnp.where(end == 0, force, runs.state.force))
            lost = (runs.failed < 0) & ~jnp.isfinite(seen["energy"])
            carry["runs"] = replace(runs, state=state, failed=jnp.where(lost, end, runs.failed))
            slot = jnp.where(number == 0, frames, number - 1)  # out of bounds, not recorded
            return carry, jax.tree.map(lambda all_, one: all_.at[slot].set(one, mode="drop"), recorded, seen)

        # A new run is looked at before its first step, too, and gets its forces there. To compute them elsewhere would
        # mean to compile them once more, which takes longer than many a run.
        carry = open_(runs)
        shapes, _ = jax.eval_shape(each(look, batch_size), params, runs.state, carry["listed"])
        empty = jax.tree.map(lambda s: jnp.full((frames, *s.shape), jnp.nan, s.dtype), shapes)
        carry, recorded = jax.lax.fori_loop(jnp.minimum(first, 1), count + 1, frame, (carry, empty))
        check = Check(jnp.tile(carry["needed"], (batch_size, 1)), jnp.tile(carry["late"], batch_size))
        return carry["runs"], jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), recorded), check

    return lambda runs, *shared: over_batches(batch, runs, *shared, batch_size=batch_size)


def _length(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    return jnp.sqrt((vectors**2).sum(-1))
