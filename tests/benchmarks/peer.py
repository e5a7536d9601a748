"""Training and dynamics beside apax, in alternation: ``python -m tests.benchmarks.peer --python ENV/bin/python``.

The other library lives in an environment of its own (``uv venv ENV && uv pip install --python ENV/bin/python
apax==0.14.*``). Both sides get the same frames of silicon, cutoff 5 Å, minibatches of 8 in float32. Compared are the
public ``infer`` with the peer's bare jitted training step, and the public ``simulate`` with its public ``run_md``.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import jax
import optax
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import bayespot as bp
from tests.benchmarks.common import fitted, frames, report, seconds, thermostat

TRAIN_STEPS, BATCH, ROUNDS = 600, 8, 3
MD_STEPS = {64: (2, 4000), 512: (4, 600)}  # cells along an edge, steps


def write_frames(data: bp.Dataset, folder: Path) -> None:
    """The training frames with their labels, and a structure to start from for each size."""
    out = []
    for n in range(len(data)):
        atoms = bp.to_ase(jax.tree.map(lambda x, n=n: x[n], data.system))
        atoms.calc = SinglePointCalculator(atoms, energy=float(data.energy[n]), forces=data.forces[n])
        out.append(atoms)
    write(folder / "frames.extxyz", out)
    for size, (cells, _) in MD_STEPS.items():
        atoms = bulk("Si", "diamond", a=5.431, cubic=True) * ((cells,) * 3)
        atoms.rattle(0.02, seed=0)
        write(folder / f"start_{size}.extxyz", atoms)


def ours(data: bp.Dataset) -> dict:
    """What is timed on this side, by the peer's request for the same: a function, and how many steps it makes."""
    potential, params = fitted(data)
    target = bp.force_matching(potential, data, bp.flat(), bp.Noise(0.001, 0.1, learn="fixed"))
    algorithm, key = bp.optimise(target, optax.adam(1e-3)), jax.random.key(0)
    one = bp.initial(key, target, 1)

    def train():
        found = bp.infer(key, algorithm, one, data, steps=TRAIN_STEPS, batch_size=BATCH, progress=False)
        return bp.healthy(found).params

    jobs = {"train": (train, TRAIN_STEPS)}
    ensemble = thermostat(300.0)
    for size, (cells, steps) in MD_STEPS.items():
        start = jax.tree.map(lambda x: x[0], frames(1, cells).system)

        def run(start=start, steps=steps):
            return bp.simulate(
                key, potential, params, start, ensemble, steps=steps, every=steps // 4, progress=False
            ).frames.energy

        jobs[f"md {size}"] = (run, steps)
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="the Python of an environment with apax")
    interpreter = parser.parse_args().python
    data = frames(32)
    jobs = ours(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_frames(data, folder)
        worker = Path(__file__).with_name("peer_worker.py")
        with subprocess.Popen(
            [interpreter, "-P", str(worker), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as peer:
            assert peer.stdin is not None
            assert peer.stdout is not None
            numbers = {}
            for request, (function, steps) in jobs.items():
                seconds(function)
                here, there = [], []
                for _ in range(ROUNDS):
                    here.append(seconds(function) / steps)
                    print(request, file=peer.stdin, flush=True)
                    there.append(json.loads(peer.stdout.readline())["seconds"])
                key = request.replace(" ", "_")
                numbers |= {f"{key}_ms": 1e3 * min(here), f"{key}_apax_ms": 1e3 * min(there)}
                numbers[f"{key}_apax_over_ours"] = min(there) / min(here)
            peer.stdin.close()
    report("peer", **numbers)


if __name__ == "__main__":
    main()
