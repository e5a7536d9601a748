"""The peer's half of ``tests.benchmarks.peer``: apax, run by the Python of its own environment.

It reads requests from standard input, one word per line, and answers each with one JSON line:
``train``, seconds of one jitted training step; ``md 64`` or ``md 512``, seconds of one step of its public ``run_md``.
"""

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import jax
import yaml
from apax.config import parse_config
from apax.md import simulate
from apax.train import run as training
from apax.train.checkpoints import create_params, create_train_state
from apax.train.trainer import make_step_fns

REPEATS = 20
MD_STEPS = {64: (500, 2000), 512: (100, 1500)}  # compiled steps, steps; progress is told every 500


def train_config(folder: Path, data: Path) -> dict:
    """The model that apax proposes, with the cutoff, the minibatch and the labels of the comparison."""
    return {
        "n_epochs": 30,
        "model": {"name": "gmnn", "basis": {"name": "bessel", "n_basis": 16, "r_max": 5.0}},
        "data": {
            "directory": str(folder), "experiment": "model", "train_data_path": str(data), "val_data_path": str(data),
            "batch_size": 8, "valid_batch_size": 8,
        },
        "metrics": [{"name": "energy", "reductions": ["mae"]}],
        "loss": [{"name": "energy"}, {"name": "forces", "weight": 4.0}],
        "progress_bar": {"disable_epoch_pbar": True},
    }  # fmt: skip


def train_step(config: dict):
    """A function that makes one jitted training step, built from the parts that apax's ``run`` puts together."""
    parsed = parse_config(config)
    data, _, statistics = training.initialize_datasets(parsed)
    sample, box = data.init_input()
    builder = parsed.model.get_builder()(parsed.model.model_dump())
    model = builder.build_energy_derivative_model(
        scale=statistics.elemental_scale, shift=statistics.elemental_shift, apply_mask=True, init_box=box
    )
    params, _ = create_params(model, jax.random.PRNGKey(1), sample, 1)
    epochs = parsed.n_epochs
    optimiser = training.get_opt(params, epochs, data.steps_per_epoch(), **parsed.optimizer.model_dump())
    batched = jax.vmap(model.apply, in_axes=(None, 0, 0, 0, 0, 0))
    metrics = training.initialize_metrics(parsed.metrics)
    step, _ = make_step_fns(training.initialize_loss_fn(parsed.loss), metrics, model=batched, is_ensemble=False)
    carry = (create_train_state(batched, params, optimiser), metrics.empty())
    batch = next(data.shuffle_and_batch(None))
    jax.block_until_ready(step(carry, batch))

    def timed() -> float:
        begin, after = time.perf_counter(), carry
        for _ in range(REPEATS):
            after, _ = step(after, batch)
        jax.block_until_ready(after)
        return (time.perf_counter() - begin) / REPEATS

    return timed


class Progress:
    """Stands in for the progress bar of apax's simulation and keeps the time of every report."""

    reports: list[tuple[float, int]]

    def __init__(self, *_, **__):
        type(self).reports = []
        self.n = 0

    def update(self, steps: int) -> None:
        self.n += steps
        if steps:
            type(self).reports.append((time.perf_counter(), steps))

    def set_postfix(self, **_) -> None: ...

    def close(self) -> None: ...


def md_step(config: dict, start: Path, folder: Path, atoms: int) -> float:
    """Seconds per step of ``run_md``, the best stretch between two of its progress reports after the first."""
    inner, steps = MD_STEPS[atoms]
    with tempfile.TemporaryDirectory(dir=folder) as here:
        simulate.run_md(
            config,
            {
                "ensemble": {"name": "nvt", "dt": 0.5, "temperature_schedule": {"name": "constant", "T0": 300.0}},
                "duration": steps * 0.5, "n_inner": inner, "sampling_rate": 500, "initial_structure": str(start),
                "sim_dir": here,
            },
        )  # fmt: skip
    times = Progress.reports
    return min((b - a) / steps for (a, _), (b, steps) in pairwise(times))


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the peer prints must not look like an answer
    folder = Path(sys.argv[1])
    config = train_config(folder, folder / "frames.extxyz")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    training.run(config)
    timed = train_step(config)
    simulate.trange = Progress
    for line in sys.stdin:
        kind, *size = line.split()
        atoms = int(size[0]) if size else 0
        value = timed() if kind == "train" else md_step(config, folder / f"start_{atoms}.extxyz", folder, atoms)
        print(json.dumps({"seconds": value}), file=answers, flush=True)


if __name__ == "__main__":
    main()
