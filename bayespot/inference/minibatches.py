"""Which frames each chain sees at each step: a function of the key, so that a resumed run sees the same ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.typing import Key


def minibatches(key: Key, chains: int, frames: int, batch_size: int | None) -> Callable:
    """Frame numbers of the minibatches: ``order(first, end, length) → (C, length, B)`` for steps ``first … end − 1``.

    Every epoch of every chain is a new permutation of the frames; the few that do not fill a minibatch wait for the
    next epoch. Steps from ``end`` on are zeros. Without a batch size the result is ``None`` (all data).
    """
    if batch_size is None:
        return lambda first, end, length: None
    per_epoch = frames // batch_size
    # fold_in with a tag of its own: the chains' step keys are never used for anything but steps
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 0x6D62))).astype(np.uint32).tolist()

    def epoch(chain: int, number: int) -> np.ndarray:
        shuffled = np.random.default_rng([*seed, chain, number]).permutation(frames)
        return shuffled[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    def order(first: int, end: int, length: int) -> jax.Array:
        epochs = range(first // per_epoch, (end - 1) // per_epoch + 1)
        begin = first - epochs[0] * per_epoch
        out = np.zeros((chains, length, batch_size), np.int32)
        for c in range(chains):
            out[c, : end - first] = np.concatenate([epoch(c, e) for e in epochs])[begin : begin + end - first]
        return jnp.asarray(out)

    return order
