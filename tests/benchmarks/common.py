"""What the benchmarks share: silicon, a fitted potential, timing in alternation, one JSON line."""

import json
import os
import platform
import time

import jax
import numpy as np
import optax
from ase.build import bulk

import bayespot as bp
from bayespot import units

jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def crystal(cells: int = 2, seed: int = 0) -> bp.System:
    """Rattled silicon of 8·cells³ atoms."""
    atoms = bulk("Si", "diamond", a=5.431, cubic=True) * (cells, cells, cells)
    atoms.rattle(0.12, seed=seed)
    return bp.from_ase(atoms)


def frames(number: int, cells: int = 2, cutoff: float = 5.0) -> bp.Dataset:
    """Rattled silicon of 8·cells³ atoms, labelled by Stillinger–Weber."""
    teacher, systems = bp.stillinger_weber(14), [crystal(cells, seed) for seed in range(number)]
    return bp.label(teacher, teacher.init(jax.random.key(0)), systems, cutoff)


def fitted(data: bp.Dataset, steps: int = 400):
    """A descriptor_mlp after a short training, good enough to hold a crystal together, and its parameters."""
    potential = bp.add(bp.repulsion(cutoff=5.0), bp.descriptor_mlp(data, cutoff=5.0))
    target = bp.force_matching(potential, data, bp.flat(), bp.Noise(0.001, 0.1, learn="fixed"))
    algorithm = bp.optimise(target, optax.adam(bp.cosine(3e-3, steps)))
    key = jax.random.key(1)
    samples = bp.infer(key, algorithm, bp.initial(key, target, 1), data, steps=steps, progress=False)
    return potential, jax.tree.map(lambda x: x[0], samples.params["potential"])


def seconds(function) -> float:
    """Wall time of a call whose result is waited for."""
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def alternate(functions: dict, repeats: int = 3) -> dict[str, float]:
    """Best wall time of each function, called in turn after one call each to compile: machines are noisy."""
    for function in functions.values():
        seconds(function)
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return {name: min(t) for name, t in times.items()}


def report(name: str, **numbers) -> None:
    """Print one JSON line."""
    load = os.getloadavg()[0]
    facts = {"cores": len(os.sched_getaffinity(0)), "device": jax.devices()[0].device_kind, "load": round(load, 1)}
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float | np.floating) else v for k, v in numbers.items()}
    print(
        json.dumps({"benchmark": name, **rounded, **facts, "python": platform.python_version(), "jax": jax.__version__})
    )


def thermostat(kelvin: float = 600.0) -> bp.Ensemble:
    """Langevin dynamics with a step of 2 fs."""
    return bp.nvt_langevin(kT=kelvin * units.kB, dt=2.0 * units.fs)
