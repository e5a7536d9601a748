"""Disjoint parts of a data set: at random, in proportion within every group, or by leaving groups out."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import jax
import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.typing import Key


def split(key: Key, data: Dataset, fractions: Sequence[float] = (0.9, 0.1)) -> tuple[Dataset, ...]:
    """Random disjoint parts, e.g. for training and validation; the same key gives the same parts.

    Args:
        key: random key.
        data: ``M`` frames.
        fractions: size of each part; together they take every frame if they sum to 1. Frames keep their order.

    Raises:
        ValueError: for fractions that are not positive or sum to more than 1, or a part without frames.
    """
    _check(fractions)
    order = np.asarray(jax.random.permutation(key, len(data)))
    ends = np.rint(np.cumsum([0.0, *fractions]) * len(data)).astype(int)
    return _parts(data, [order[a:b] for a, b in pairwise(ends)], fractions)


def split_by_group(key: Key, data: Dataset, fractions: Sequence[float] = (0.9, 0.1)) -> tuple[Dataset, ...]:
    """Random disjoint parts to which every group contributes in proportion, up to a frame.

    Arguments and errors as for ``split``. Frames are dealt out group by group, each to the part that lacks most, so
    that small groups neither all round up nor all round down; the dealing starts at a random frame, so that all frames
    are as likely.
    """
    _check(fractions)
    order_key, start_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(data)))
    order = order[np.argsort(np.asarray(data.group)[order], kind="stable")]
    order = np.roll(order, int(jax.random.randint(start_key, (), 0, len(data))))
    shares = np.array([*fractions, max(0.0, 1.0 - sum(fractions))])  # the last are the frames that no part gets
    dealt = np.zeros(len(shares), int)
    owner = np.zeros(len(data), int)
    for k, frame in enumerate(order):
        part = int(np.argmax(shares * (k + 1) - dealt))
        dealt[part] += 1
        owner[frame] = part
    return _parts(data, [np.flatnonzero(owner == p) for p in range(len(fractions))], fractions)


def leave_group_out(data: Dataset, names: str | Iterable[str]) -> tuple[Dataset, Dataset]:
    """The frames of all other groups, and the frames of the named ones, e.g. to test on unseen kinds of structures.

    Raises:
        ValueError: for a name that is not a group, or a part without frames.
    """
    names = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(names - set(data.group_names)):
        raise ValueError(f"names must be among the groups {list(data.group_names)}. Got {unknown}.")
    codes = [k for k, name in enumerate(data.group_names) if name in names]
    out = np.isin(np.asarray(data.group), codes)
    if out.all() or not out.any():
        raise ValueError(
            f"Both parts need at least one frame. Got {int((~out).sum())} kept and {int(out.sum())} left out "
            f"with names {sorted(names)}. The groups are {list(data.group_names)}."
        )
    return data[np.flatnonzero(~out)], data[np.flatnonzero(out)]


def _check(fractions: Sequence[float]) -> None:
    if not len(fractions) or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1. Got {tuple(fractions)}.")


def _parts(data: Dataset, chosen: list[np.ndarray], fractions: Sequence[float]) -> tuple[Dataset, ...]:
    sizes = [len(c) for c in chosen]
    if 0 in sizes:
        raise ValueError(
            f"Every part needs at least one frame. Got {sizes} of {len(data)} frames with fractions "
            f"{tuple(fractions)}. Raise the small fractions."
        )
    return tuple(data[np.sort(c)] for c in chosen)
