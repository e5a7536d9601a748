"""Statistics of labels under weights of their frames, and bootstrap intervals from drawing frames with replacement.

Labels of one frame are not independent, frames are: a replicate of the bootstrap gives every frame the number of times
that it was drawn, and every statistic here is a function of such weights ``(R, m)``, of which the first row is all ones
and gives the estimate itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.typing import Key

LEVEL = 0.95
"""Probability content of all bootstrap intervals."""


class Estimate(NamedTuple):
    """A statistic with its 95 % bootstrap interval over frames.

    Attributes:
        value: from all labels.
        lower, upper: percentiles of the replicates; NaN for a single frame.
    """

    value: float
    lower: float
    upper: float


def seed(key: Key) -> list[int]:
    """Numbers from a random key, to seed numpy's generators (host)."""
    return np.asarray(jax.random.bits(key, (4,), jnp.uint32)).tolist()


def frame_weights(rng: np.random.Generator, frames: int, resamples: int) -> np.ndarray:
    """Ones, then how often each of ``frames`` frames was drawn in every replicate, ``(1 + resamples, frames)``.

    A single frame has no replicates, because they would all be alike.
    """
    resamples = resamples if frames > 1 else 0
    drawn = rng.multinomial(frames, np.full(frames, 1 / frames), size=resamples)
    return np.concatenate([np.ones((1, frames)), drawn])


def estimate(values: np.ndarray) -> Estimate:
    """Value and percentile interval of replicates ``(R,)``, the first of which is the estimate itself."""
    replicates = values[1:]
    if not len(replicates) or not np.isfinite(replicates).all():
        return Estimate(float(values[0]), np.nan, np.nan)
    lower, upper = np.quantile(replicates, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(float(values[0]), float(lower), float(upper))


def frame_sums(values: np.ndarray, place: np.ndarray, frames: int) -> np.ndarray:
    """Sums ``(m, k)`` over the labels of every frame of ``(n, k)`` values."""
    return np.stack([np.bincount(place, column, frames) for column in values.T], 1)


def rank_correlation(x: np.ndarray, y: np.ndarray, place: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Spearman's rank correlation of labels ``(n,)`` under every row of the frames' weights, ``(R,)``.

    With the centred ranks :math:`a_j = \sum_i w_i\,s(x_j - x_i)`, :math:`s(t) = \tfrac12\mathrm{sign}(t)`, and *b*
    alike, it is :math:`\rho = S_{ab}/\sqrt{S_{aa}S_{bb}}`, :math:`S_{ab} = \sum_j w_j a_j b_j`. The first row, of ones,
    is exact; the others are expanded to first order about it, through the ranks too,

    .. math:: \frac{\partial S_{ab}}{\partial w_i} = a_i b_i + \sum_j s(x_j - x_i)\,b_j + \sum_j s(y_j - y_i)\,a_j ,

    so that a replicate costs no sorting. NaN where all ranks are equal.

    Reference: the infinitesimal jackknife, Efron, *The Jackknife, the Bootstrap and Other
    Resampling Plans*, SIAM (1982).
    """
    above = [_summed_above(x), _summed_above(y)]
    a, b = (-f(np.ones(len(x))) for f in above)
    squares, product = [a @ a, b @ b], a @ b
    if min(squares) == 0:
        return np.full(len(weights), np.nan)
    norm = np.sqrt(squares[0] * squares[1])
    change = (a * b + above[0](b) + above[1](a)) / norm
    for ranks, square, f in zip((a, b), squares, above, strict=True):
        change -= 0.5 * product / norm * (ranks**2 + 2 * f(ranks)) / square
    frames = np.bincount(place, change, weights.shape[1])
    return np.clip(product / norm + (weights - 1) @ frames, -1, 1)


def _summed_above(x: np.ndarray) -> Callable:
    r"""The function :math:`v \to \sum_j s(x_j - x_i)\,v_j`: half of the sum over larger *x* less that over smaller."""
    order = np.argsort(x, kind="stable")
    new = np.concatenate([[True], np.diff(x[order]) != 0])
    borders = np.concatenate([np.flatnonzero(new), [len(x)]])
    group = np.empty(len(x), int)
    group[order] = np.cumsum(new) - 1
    first, last = borders[group], borders[group + 1]

    def function(values: np.ndarray) -> np.ndarray:
        reached = np.concatenate([[0.0], np.cumsum(values[order])])
        return 0.5 * (reached[-1] - reached[first] - reached[last])

    return function


def median(x: np.ndarray, place: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of labels ``(n,)`` under every row of the frames' weights, ``(R,)``."""
    order = np.argsort(x)
    x, place = x[order], place[order]
    out = np.empty(len(weights))
    for k, row in enumerate(weights):
        reached = np.cumsum(row[place])
        middle = [np.searchsorted(reached, 0.5 * reached[-1], side) for side in ("left", "right")]
        out[k] = x[middle].mean()
    return out
