r"""Errors against predicted standard deviations in bins, and the error of calibration that does not depend on the bins.

Labels are sorted by their predicted standard deviation *s*, the scale of ``z_scores``, into *K* bins of equal number.
With the root mean squares of *s* and of the errors in each bin,

.. math:: \mathrm{ENCE}_K = \frac1K \sum_{b=1}^K \frac{|\mathrm{RMSE}_b - \mathrm{RMV}_b|}{\mathrm{RMV}_b}
          \approx \mathrm{ENCE}_0 + c\,\sqrt K .

The second term is statistical noise, which honest uncertainties have too (:math:`c = 1/\sqrt{\pi n}` for *n*
Gaussian labels); the intercept of a straight line through several *K* is free of it, and zero for honest
uncertainties, with three exceptions, all positive:

- *s* differs much within a bin: simulated with a standard deviation of ln *s* of 0.6, the mean is 0.0018 (scatter
  0.0120) for 2400 labels, 0.048 ± 0.001 (0.128) for 60;
- errors are common to the labels of a frame, so that there are fewer than they seem: 0.075 ± 0.009 for 40 frames of 60
  labels with one error in common (in units of *s*), 0.039 ± 0.005 for 100 of 24, 0.015 ± 0.003 for 300 of 8;
- few samples and little noise: *s* scatters itself, by :math:`1/\sqrt{2(S-1)}`, and the largest are those estimated too
  large. Below about 30 samples ENCE cannot be interpreted: eight honest ones give 0.17 to 0.24, 32 give 0.04 to 0.10
  (the true standard deviations differing much, or not at all).

References: Levi, Gispan, Giladi and Fetaya, *Sensors* 22, 5540 (2022); Pernot, arXiv:2305.11905 (2023).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.uq.calibration import compare, standard_error, student
from bayespot.uq.predict import Prediction

BINS = ((480, (6, 8, 12, 16, 24, 48)), (240, (4, 6, 8, 12, 24)), (120, (3, 4, 6, 12)), (60, (2, 3, 6)))
"""From so many labels on, these numbers of bins; each bin holds at least ten labels."""


def bin_numbers(labels: int) -> tuple[int, ...]:
    """Numbers of bins to extrapolate from; none for fewer than 60 labels."""
    return next((bins for least, bins in BINS if labels >= least), ())


def ence(
    error: np.ndarray, std: np.ndarray, place: np.ndarray, weights: np.ndarray, bins: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Expected normalised calibration error, extrapolated to zero bins ``(R,)``, and as it is ``(R, len(bins))``.

    Args:
        error: ``(n,)``.
        std: predicted standard deviations, ``(n,)``.
        place: number of each label's frame, ``(n,)``.
        weights: of the frames, ``(R, m)``.
        bins: numbers of bins; default by the number of labels. Two at least, or the result is NaN.
    """
    n, m = len(error), weights.shape[1]
    bins = bin_numbers(n) if bins is None else tuple(bins)
    rank = np.empty(n, int)
    rank[np.argsort(std, kind="stable")] = np.arange(n)
    plain = np.empty((len(weights), len(bins)))
    for column, number in enumerate(bins):
        cell = place * number + rank * number // n
        squares = [np.bincount(cell, x**2, m * number).reshape(m, number) for x in (error, std)]
        above, below = (weights @ x for x in squares)
        filled = below != 0  # not so where none of the frames of a bin were drawn
        ratio = np.sqrt(np.divide(above, below, out=np.ones_like(below), where=filled))
        plain[:, column] = np.abs(ratio - 1).sum(1) / filled.sum(1)
    if len(bins) < 2:
        return np.full(len(weights), np.nan), plain
    root = np.sqrt(bins)
    slope = (root - root.mean()) / ((root - root.mean()) ** 2).sum()
    return plain @ (1 / len(bins) - root.mean() * slope), plain


class BinnedErrors(NamedTuple):
    """Errors in bins of equal number, by predicted standard deviation, in the unit of the quantity.

    Attributes:
        std: root mean square of the predicted standard deviations, ``(K,)``.
        rmse: root mean square of the errors, ``(K,)``.
        error: standard error of ``rmse`` from the differences between frames, ``(K,)``.
        count: labels in each bin, ``(K,)``.
    """

    std: np.ndarray
    rmse: np.ndarray
    error: np.ndarray
    count: np.ndarray


def binned_errors(
    prediction: Prediction, data: Dataset, quantity: str, noise: float | None = None, bins: int = 12
) -> BinnedErrors:
    """Root-mean-square error against predicted standard deviation: equal in every bin for honest uncertainties (host).

    Args:
        prediction: for the frames of ``data``.
        data: with labels that were not used for training.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``.
        noise: as in ``z_scores``.
        bins: number of bins.

    Raises:
        ValueError: as ``z_scores``; for fewer labels than bins.
    """
    compared = compare(prediction, data, quantity, noise)
    n = len(compared.error)
    if not 1 <= bins <= n:
        raise ValueError(f"bins must lie between 1 and the number of labels, {n}. Got {bins}.")
    std = student(compared)[0]
    order = np.argsort(std, kind="stable")
    inside = np.arange(n)[:, None] * bins // n == np.arange(bins)
    count = inside.sum(0)
    squares = compared.error[order, None] ** 2 * inside
    mean = squares.sum(0) / count
    spread = standard_error(squares - mean * inside, compared.frame[order], count)
    rmse = np.sqrt(mean)
    return BinnedErrors(np.sqrt((std[order, None] ** 2 * inside).sum(0) / count), rmse, spread / (2 * rmse), count)
