"""``propagate`` over 8 posterior samples against eight single simulations: time and memory.

Both sides have one device: with one per core, ``propagate`` would also win by using them all. Memory is told twice: the
largest resident memory of a process that makes the runs, and the arrays of the compiled program alone: what it works
with, and that together with what goes in and comes out, the parameters, states and frames of all samples.
"""

import argparse
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import bayespot as bp
from bayespot.potentials.neighbor_list import neighbor_list
from bayespot.simulation.chunk import Run, chunk, starter
from tests.benchmarks.common import alternate, fitted, frames, report, thermostat

SAMPLES, STEPS = 8, 1000
jax.config.update("jax_num_cpu_devices", 1)


def memory(potential, params, start, ensemble, samples: int) -> np.ndarray:
    """Memory [bytes] of a compiled chunk for so many samples: what it works with, and with arguments and results."""
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (samples, *x.shape)), params)
    neighbors = neighbor_list(start, potential.cutoff, 0.4)
    number = jnp.arange(samples, dtype=jnp.int32)
    runs = Run(number, jnp.zeros_like(number), {}, jnp.full(samples, -1, jnp.int32))
    runs = starter(ensemble, 1)(jax.random.key(0), runs, start)
    program = chunk(potential, ensemble, neighbors, skin=0.4, max_kT=1.0, frames=10, batch_size=1)
    numbers = [np.int32(0), np.int32(10), np.int32(100), np.float32(1)]
    used = jax.jit(program).lower(runs, many, start, *numbers).compile().memory_analysis()
    work = used.temp_size_in_bytes
    return np.array([work, work + used.argument_size_in_bytes + used.output_size_in_bytes])


def resident(samples: int) -> float:
    """Largest resident memory [MB] of a new process that makes the runs of so many samples."""
    command = [sys.executable, "-m", "tests.benchmarks.propagation", "--only", str(samples)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def prepared() -> tuple:
    """Potential, parameters, start and ensemble."""
    data = frames(32)
    potential, params = fitted(data)
    return potential, params, jax.tree.map(lambda x: x[0], data.system), thermostat()


def alike(potential, params, samples: int) -> bp.PosteriorSamples:
    """So many samples with the same parameters."""
    return bp.as_samples(jax.tree.map(lambda x: jnp.broadcast_to(x, (samples, *x.shape)), params), potential.spec)


def only(samples: int) -> None:
    """One ``propagate``, and the resident memory [MB] that it took."""
    potential, params, start, ensemble = prepared()
    many = alike(potential, params, samples)
    bp.propagate(jax.random.key(0), potential, many, start, ensemble, steps=STEPS, every=250, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=int, help="make the runs of so many samples and print the resident memory")
    if samples := parser.parse_args().only:
        only(samples)
        return
    potential, params, start, ensemble = prepared()
    many = alike(potential, params, SAMPLES)
    options = {"steps": STEPS, "every": 250, "progress": False}
    key = jax.random.key(0)
    times = alternate(
        {
            "single": lambda: [
                bp.simulate(key, potential, params, start, ensemble, **options).frames.energy for _ in range(SAMPLES)
            ],
            "propagate": lambda: bp.propagate(key, potential, many, start, ensemble, **options).frames.energy,
        }
    )
    programs = {}
    for atoms, system in ((64, start), (512, jax.tree.map(lambda x: x[0], frames(1, cells=4).system))):
        one = memory(potential, params, system, ensemble, 1)
        work, whole = memory(potential, params, system, ensemble, SAMPLES) / one
        programs |= {f"program_{atoms}_one_run_MB": one[1] / 1e6}
        programs |= {f"program_{atoms}_work_over_one_run": work, f"program_{atoms}_over_one_run": whole}
    single = resident(1)
    report(
        "propagation",
        devices=jax.device_count(),
        propagate_over_single_runs=times["propagate"] / times["single"],
        resident_memory_over_one_run=resident(SAMPLES) / single,
        resident_memory_one_run_MB=single,
        **programs,
    )


if __name__ == "__main__":
    main()
