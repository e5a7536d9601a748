"""Training, dynamics and an ensemble with S chains or samples together under ``vmap``, on whatever device JAX finds.

``training``: structures per second through ``infer``, and time over that of the same gradients in a bare jitted scan
under the same ``vmap``. ``dynamics``: steps per second through ``propagate``, time over single runs, and the largest
memory of the device in a process that makes nothing but those runs. ``ensemble``: eight members over one, end to end.
``precision``: errors of predictions in float32.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np

import bayespot as bp
from bayespot.batching import precise
from bayespot.potentials.potential import energy_forces_stress
from bayespot.units import GPa
from tests.benchmarks.common import alternate, crystal, fitted, frames, report, seconds, thermostat
from tests.benchmarks.ensemble import trainings
from tests.benchmarks.propagation import alike
from tests.benchmarks.training import BATCH, gradients, material, runner

CACHE = tempfile.TemporaryDirectory()  # compiled programs for the processes that measure memory
jax.config.update("jax_compilation_cache_dir", os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share the device
ENSEMBLE = thermostat()  # one object, so that a second run with it does not compile again


def timed(functions: dict) -> tuple[dict, dict]:
    """Time of the first call of each function, with compilation, and best time afterwards."""
    return {name: seconds(f) for name, f in functions.items()}, alternate(functions)


def training(samples: list[int], steps: int) -> None:
    (data, target, algorithms), key = material(), jax.random.key(0)
    bare = jax.jit(precise(jax.vmap(gradients(target, key), (0, None, 0))))
    for count in samples:
        start = bp.initial(key, target, count)
        order = jax.random.randint(key, (count, steps, BATCH), 0, len(data))
        run = runner(key, data, steps=steps, chains_at_once=count)
        functions = {"bare": lambda start=start, order=order: bare(start, data, order)}
        functions |= {name: run(algorithm, start) for name, algorithm in algorithms.items()}
        first, times = timed(functions)
        report(
            "accelerator_training", chains=count, steps=steps,
            **{f"{k}_structures_per_s": count * steps * BATCH / t for k, t in times.items()},
            **{f"{k}_over_bare": times[k] / times["bare"] for k in algorithms},
            **{f"{k}_first_call_s": t for k, t in first.items()},
        )  # fmt: skip


def dynamics(samples: list[int], cells: list[int], steps: int) -> None:
    with jax.default_device(jax.devices("cpu")[0]):
        potential, params = fitted(frames(32))
    params = jax.tree.map(np.asarray, params)
    cases = sorted(((8 * c**3 * s, c, s) for c in cells for s in samples), key=lambda case: case[0])
    functions = {(c, s): lambda c=c, s=s: _runs(potential, alike(potential, params, s), c, steps) for _, c, s in cases}
    first, times = timed(functions)
    peak = _peaks(alike(potential, params, 1), functions, steps)
    for c, s in functions:
        report(
            "accelerator_dynamics", atoms=8 * c**3, samples=s, steps=steps, steps_per_s=steps / times[c, s],
            steps_of_all_per_s=s * steps / times[c, s], over_single_runs=times[c, s] / (s * times[c, 1]),
            first_call_s=first[c, s], peak_MB=peak[c, s],
        )  # fmt: skip


def _runs(potential, samples, cells: int, steps: int):
    return bp.propagate(
        jax.random.key(0), potential, samples, crystal(cells), ENSEMBLE, steps=steps, every=steps // 4,
        batch_size=len(samples), progress=False,
    ).frames.energy  # fmt: skip


def _peaks(one, cases, steps: int) -> dict:
    """Largest memory of the device [MB] in new processes, which load their programs and make one ``propagate`` each."""
    if not jax.devices()[0].memory_stats():
        return dict.fromkeys(cases)
    with tempfile.TemporaryDirectory() as folder:
        bp.save(one, file := os.path.join(folder, "sample"))
        command = [sys.executable, "-m", "tests.benchmarks.accelerator", "--steps", str(steps), "--peak", file]
        started = {c: subprocess.Popen([*command, *map(str, c)], stdout=subprocess.PIPE, text=True) for c in cases}
        return {c: float(process.communicate()[0].split()[-1]) for c, process in started.items()}


def _peak(file: str, cells: str, samples: str, steps: int) -> None:
    one = bp.load(file)
    potential, params = bp.build(one.spec), jax.tree.map(lambda x: x[0], one.params["potential"])
    _runs(potential, alike(potential, params, int(samples)), int(cells), steps)
    print(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6)


def ensemble(members: int, steps: int) -> None:
    algorithm, trained = trainings(steps)
    fit = algorithm()
    functions = {n: lambda n=n: trained(0, n, fit, chains_at_once=n) for n in (1, members)}
    first, times = timed(functions)
    report(
        "accelerator_ensemble", members=members, steps=steps, over_one=times[members] / times[1],
        over_one_with_compilation=first[members] / first[1], one_s=times[1], one_first_call_s=first[1],
        members_s=times[members], members_first_call_s=first[members],
    )  # fmt: skip


def precision() -> None:
    """Errors of energy, forces and stress against float64 on the CPU, with and without the library's precision."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        potential, params = fitted(frames(32))
    system, evaluate = crystal(), energy_forces_stress(potential)
    arguments = jax.tree.map(np.asarray, (params, system, bp.neighbors(system, 5.0)))
    with jax.default_device(cpu), jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, arguments)
        exact = jax.device_get(jax.jit(evaluate)(*wide))
    for name, function in (("library", precise(evaluate)), ("default", evaluate)):
        e, f, s = (np.asarray(x) - y for x, y in zip(jax.jit(function)(*arguments), exact, strict=True))
        report(
            "accelerator_precision", of=name, energy_meV_per_atom=1e3 * abs(float(e)) / len(system.species),
            forces_relative_rms=float(np.sqrt((f**2).mean() / (exact[1] ** 2).mean())),
            stress_GPa=float(np.abs(s).max() / GPa),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help="training, dynamics, ensemble, precision; default all")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8, 32], help="dynamics needs 1 among them")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        _peak(*chosen.peak, chosen.steps)
        return
    normal = (chosen.samples, chosen.steps, [2, 4], 8)
    samples, steps, cells, members = ([1, 2], 40, [2], 2) if chosen.quick else normal
    arguments = {training: (samples, steps), dynamics: (samples, cells, steps), ensemble: (members, steps)}
    for part in (training, dynamics, ensemble, precision):
        if part.__name__ in chosen.parts or not chosen.parts:
            part(*arguments.get(part, ()))


if __name__ == "__main__":
    main()
