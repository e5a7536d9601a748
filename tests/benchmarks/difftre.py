"""An update of DiffTRe over the simulation that it rests on: with new frames, and with reweighted old ones; memory.

108 Lennard-Jones atoms (argon, 100 K), 2000 steps, 60 frames of their RDF. The simulation alone is the same chunk,
once with the short neighbour lists that both the target and ``simulate`` begin with, and once with the target's longer
ones, in which frames are reweighted.

All on one core: with more, identical programs differ from process to process.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

import bayespot as bp
from bayespot import units
from bayespot.potentials.neighbor_list import neighbor_list
from bayespot.simulation.chunk import Run, chunk, starter
from bayespot.tree import replace
from tests.benchmarks.common import alternate, report

STEPS, EVERY = 2040, 34
jax.config.update("jax_num_cpu_devices", 1)


def liquid() -> bp.System:
    """A rattled crystal at the density of the liquid; it melts in the equilibration."""
    from ase.build import bulk

    atoms = bulk("Ar", "fcc", a=5.72, cubic=True) * (3, 3, 3)
    atoms.rattle(0.2, seed=0)
    return bp.from_ase(atoms)


def target_of(potential, start, min_share: float, frames: int) -> bp.Target:
    ensemble = bp.nvt_langevin(kT=100 * units.kB, dt=5 * units.fs, gamma=0.05)
    run = bp.reference_run(start, ensemble, steps=frames * EVERY, every=EVERY, equilibration=0, min_share=min_share)
    rdf = bp.rdf(r_max=8.0, bins=80)
    return bp.difftre(potential, run, {"rdf": bp.Measurement(rdf, np.ones(80), 0.1)})


def simulation(potential, start, now, frames: int, share: float):
    """The compiled chunk alone, from ``now``; lists with room for ``share`` times what ``start`` needs."""
    ensemble = bp.nvt_langevin(kT=100 * units.kB, dt=5 * units.fs, gamma=0.05)
    room = neighbor_list(start, potential.cutoff, 0.4).capacity
    if share > 1.0:
        room = int(share * room[0]) + 2, int(share * room[1])
    neighbors = neighbor_list(start, potential.cutoff, 0.4, room)
    zero = jnp.zeros(1, jnp.int32)
    runs = starter(ensemble._replace(spec=()), 1)(jax.random.key(0), Run(zero, zero, {}, zero - 1), now)
    program = jax.jit(chunk(potential, ensemble, neighbors, skin=0.4, max_kT=1.0, frames=frames, batch_size=1))
    params = jax.tree.map(lambda x: jnp.asarray(x)[None], potential.init(jax.random.key(0)))
    numbers = [np.int32(0), np.int32(frames), np.int32(EVERY), np.float32(1)]
    return lambda: program(runs, params, now, *numbers)[1]["energy"]


def work(potential, start, frames: int) -> int:
    """Memory [bytes] that a compiled update works with, beyond its arguments and results."""
    target = target_of(potential, start, 2.0, frames)
    key = jax.random.key(0)
    params = {"potential": potential.init(key), "noise": {}}
    state = jax.eval_shape(target.init, key, params)
    program = jax.jit(lambda k, p, s: target.value_and_grad(k, p, s, None)).lower(key, params, state).compile()
    return program.memory_analysis().temp_size_in_bytes


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX makes its threads
    start, frames = liquid(), STEPS // EVERY
    potential = bp.lennard_jones(3.4, 0.0104, cutoff=8.0)
    key = jax.random.key(0)
    params = {"potential": potential.init(key), "noise": {}}
    updates = {}
    for name, min_share in (("simulating", 2.0), ("reweighting", 1e-9)):
        target = target_of(potential, start, min_share, frames)
        update = jax.jit(lambda k, p, s, target=target: target.value_and_grad(k, p, s, None)[1:3])
        state = update(key, params, target.init(key, params))[1]  # frames of a liquid
        updates[name] = lambda update=update, state=state: update(key, params, state)[0]
    now = state_of(state, start)
    alone = {"simulation": simulation(potential, start, now, frames, 1.5)}
    alone["simulate"] = simulation(potential, start, now, frames, 1.0)
    times = alternate({**alone, **updates}, repeats=15)
    report(
        "difftre",
        simulation_seconds=times["simulation"],
        simulating_over_simulation=times["simulating"] / times["simulation"],
        reweighting_over_simulation=times["reweighting"] / times["simulation"],
        simulating_over_simulate=times["simulating"] / times["simulate"],
        reweighting_over_simulate=times["reweighting"] / times["simulate"],
        work_mb=work(potential, start, frames) / 1e6,
        work_mb_four_times_as_long=work(potential, start, 4 * frames) / 1e6,
    )


def state_of(state, start: bp.System) -> bp.System:
    """The last configuration of the reference run."""
    return replace(start, position=state.position[-1])


if __name__ == "__main__":
    main()
