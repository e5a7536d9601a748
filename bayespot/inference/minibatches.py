"""Which frames each chain sees at each step: a function of the key, so that a resumed run sees the same ones."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from bayespot.typing import Key


def bootstrap(key: Key, frames: int, chains: int) -> jax.Array:
    """Resampled frame numbers, with replacement, ``(C, M)``: the ``rows`` argument of ``infer`` for a bagged ensemble.

    Members that share all data also share the errors of its labels, so that their spread knows nothing of those. With a
    bootstrap sample for each member the spread includes them.

    Reference: Efron, Annals of Statistics 7, 1 (1979); Breiman, Machine Learning 24, 123 (1996).
    """
    return jax.random.randint(key, (chains, frames), 0, frames)


BATCHES = ("epochs", "independent")


def in_advance(order: Callable, segments: list[tuple]) -> Generator:
    """``order(*segment)`` of one segment after the other, each found while the one before is being used.

    In a thread of its own: to start a loop of unknown length on an accelerator keeps the thread that does it.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(order, *segment) for segment in segments[:1]]
        for following in (*segments[1:], None):
            found = coming.pop().result()
            coming = [thread.submit(order, *following)] if following else []
            yield found


def minibatches(key: Key, rows: np.ndarray, batch_size: int, batches: str = "epochs") -> Callable:
    """Frame numbers of the minibatches: ``order(first, end, length) → (C, length, B)`` for steps ``first … end − 1``.

    ``rows`` ``(C, M)`` are the frames that each chain may see. Every epoch of every chain is a new permutation of them;
    the few that do not fill a minibatch wait for the next epoch. Steps from ``end`` on are zeros. ``"independent"``
    minibatches are epochs of one minibatch. All on the host.

    Raises:
        ValueError: for another kind of ``batches``.
    """
    if batches not in BATCHES:
        raise ValueError(f"batches must be one of {BATCHES}. Got {batches!r}.")
    chains, frames = rows.shape
    per_epoch = frames // batch_size if batches == "epochs" else 1
    # fold_in with a tag of its own: the chains' step keys are never used for anything but steps
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 0x6D62))).astype(np.uint32).tolist()

    def epoch(chain: int, number: int) -> np.ndarray:
        shuffled = np.random.default_rng([*seed, chain, number]).permutation(frames)
        return rows[chain][shuffled[: per_epoch * batch_size]].reshape(per_epoch, batch_size)

    def order(first: int, end: int, length: int) -> np.ndarray:
        epochs = range(first // per_epoch, (end - 1) // per_epoch + 1)
        begin = first - epochs[0] * per_epoch
        out = np.zeros((chains, length, batch_size), np.int32)
        for c in range(chains):
            out[c, : end - first] = np.concatenate([epoch(c, e) for e in epochs])[begin : begin + end - first]
        return out

    return order
