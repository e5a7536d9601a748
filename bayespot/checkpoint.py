"""Saving and resuming long work with orbax; a folder belongs to one run, told by its fingerprint."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from bayespot.typing import Key, PyTree


class Checkpoint(NamedTuple):
    """Functions on a folder of checkpoints, of which the two newest are kept.

    Attributes:
        save: ``(step, states, host) → None``; ``states`` may hold any record, ``host`` only dictionaries, lists and
            arrays.
        save_when_due: the same, but at most every ``seconds_between``.
        folder: that holds them.
        latest: ``like → (step, states, host) or None``; ``like`` has the structure and shapes of ``states``.
    """

    save: Callable[[int, PyTree, PyTree], None]
    save_when_due: Callable[[int, PyTree, PyTree], None]
    latest: Callable[[PyTree], tuple[int, PyTree, PyTree] | None]
    folder: Path


def fingerprint(key: Key, arrays: PyTree, facts) -> str:
    """A short text that differs between runs whose results differ: key, arrays, and JSON-writable facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(np.asarray(jax.random.key_data(key)).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def checkpoint(folder: str | Path, mark: str, seconds_between: float = 30.0) -> Checkpoint:
    """Open a folder of checkpoints for the run with this fingerprint; make it if need be.

    Raises:
        ValueError: if the folder holds checkpoints of another run.
    """
    import orbax.checkpoint as ocp

    path = Path(folder).absolute()
    stamp = path / "run.json"
    if stamp.exists() and (found := json.loads(stamp.read_text())["fingerprint"]) != mark:
        raise ValueError(
            f"A checkpoint folder belongs to one run. {path} holds a run with other arguments ({found}, not {mark}). "
            "Choose another folder, or remove it."
        )
    path.mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        fresh = path / "run.json.new"
        fresh.write_text(json.dumps({"fingerprint": mark}))
        fresh.replace(stamp)  # whole or absent, whenever the process is killed
    manager = ocp.CheckpointManager(
        path / "states", options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    )
    last = [time.monotonic()]

    def save(step: int, states: PyTree, host: PyTree) -> None:
        arguments = ocp.args.Composite(states=ocp.args.StandardSave(states), host=ocp.args.StandardSave(host))
        manager.save(step, args=arguments)
        last[0] = time.monotonic()

    def save_when_due(step: int, states: PyTree, host: PyTree) -> None:
        if time.monotonic() - last[0] >= seconds_between:
            save(step, states, host)

    def latest(like: PyTree) -> tuple[int, PyTree, PyTree] | None:
        step = manager.latest_step()
        if step is None:
            return None
        arguments = ocp.args.Composite(states=ocp.args.StandardRestore(like), host=ocp.args.StandardRestore())
        found = manager.restore(step, args=arguments)
        return step, found["states"], found["host"]

    return Checkpoint(save, save_when_due, latest, path)
