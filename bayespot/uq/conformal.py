r"""Split conformal prediction: intervals whose coverage is guaranteed for exchangeable frames, whatever the posterior.

The score of a label is its error in units of a predicted scale, :math:`|y - \bar y|/s` with
:math:`s^2 = \sigma^2_\mathrm{epistemic} + \sigma^2_\mathrm{noise}` (of ``z_scores``). Among the
scores of *n* frames that were not trained on, and that of a further frame, every order is as likely; so a quantile of
the former bounds the latter with known probability, and :math:`\bar y \pm q s` is an interval of that probability. That
:math:`s` is honest is not needed; the better it ranks the errors, the shorter the intervals are.

**Labels of one frame are dependent**, so their number does not count, the number of frames does. What is guaranteed is
either of

- ``"label"``: a label drawn at random from a new frame lies in its interval with at least the promised probability;
- ``"frame"``: *all* labels of a new frame lie in their intervals at once with that probability.

Both are averages over calibration sets and new frames of the same kind as those of the calibration. Nothing is
guaranteed for another temperature or phase, nor for each frame or species by itself; nor for the frames of a later run
when those of the calibration follow each other in one: they resemble each other more than the new ones.

References: Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World* (2005); Lei, G'Sell, Rinaldo,
Tibshirani and Wasserman, *J. Am. Stat. Assoc.* 113, 1094 (2018); for labels in groups, Lee, Barber and Willett,
arXiv:2306.06342.
"""

from typing import NamedTuple

import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.typing import Float
from bayespot.uq.calibration import compare, variances
from bayespot.uq.predict import QUANTITIES, Prediction, check_frames


class Conformal(NamedTuple):
    """A factor on predicted scales, and what the resulting intervals promise.

    Attributes:
        factor: half width of the intervals in units of the scale.
        level: promised probability.
        cover: of what: ``"label"`` or ``"frame"``.
        quantity: whose labels.
        noise: standard deviation of the label noise that the scales contain; ``None`` for what the samples inferred.
        frames: number of frames of the calibration set.
    """

    factor: float
    level: float
    cover: str
    quantity: str
    noise: float | None
    frames: int


def conformal_factor(
    prediction: Prediction,
    data: Dataset,
    quantity: str,
    level: float = 0.95,
    cover: str = "label",
    noise: float | None = None,
) -> Conformal:
    r"""Half width of intervals with guaranteed coverage, in units of the predicted scale (host).

    For ``cover="frame"`` it is the :math:`\lceil(n+1)\,\mathrm{level}\rceil`-th smallest of the *n* frames' largest
    scores. For ``cover="label"`` every frame has the weight :math:`1/(n+1)`, divided equally among its labels, and the
    factor is the smallest score up to which the weights sum to the level; with one label per frame both are the same.

    Args:
        prediction: for the frames of ``data``.
        data: calibration set, used neither for training nor for recalibration.
        quantity: ``"energy"`` (per atom), ``"forces"`` (components) or ``"stress"``.
        level: promised probability.
        cover: ``"label"`` or ``"frame"``, see above.
        noise: standard deviation of the label noise, as in ``z_scores``.

    Raises:
        ValueError: as ``z_scores``; for unknown arguments; for fewer frames than level/(1 − level) (19 for 95 %), of
            which no finite factor could promise that level.
    """
    if not 0 < level < 1 or cover not in ("label", "frame"):
        raise ValueError(f"Need 0 < level < 1 and cover 'label' or 'frame'. Got {level}, {cover!r}.")
    compared = compare(prediction, data, quantity, noise)
    score = np.abs(compared.error) / np.sqrt(compared.spread / (1 + 1 / compared.samples) + compared.noise)
    _, place, count = np.unique(compared.frame, return_inverse=True, return_counts=True)
    n = len(count)
    least = int(np.ceil(level / (1 - level) - 1e-9))
    if n < least:
        raise ValueError(
            f"A level of {level:.3g} needs a calibration set of at least {least} frames with {quantity}. Got {n}. "
            f"Add frames, or ask for {n / (n + 1):.3g} at most."
        )
    if cover == "frame":
        largest = np.zeros(n)
        np.maximum.at(largest, place, score)
        factor = np.sort(largest)[int(np.ceil((n + 1) * level - 1e-9)) - 1]
    else:
        order = np.argsort(score)
        reached = np.cumsum((1 / count[place])[order]) / (n + 1)
        factor = score[order][min(np.searchsorted(reached, level - 1e-9), len(score) - 1)]
    return Conformal(float(factor), float(level), cover, quantity, noise, n)


def conformal_interval(
    prediction: Prediction, data: Dataset, conformal: Conformal
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    r"""Ends of the intervals :math:`\bar y \pm q s` for new frames (host).

    Args:
        prediction: for the frames of ``data``, by the samples that the factor was made for.
        data: new frames; labels are not used.
        conformal: from ``conformal_factor``.

    Returns:
        Lower and upper ends: energies per atom ``(M,)`` [eV/atom], forces ``(M, N, 3)`` [eV/Å] or stresses
        ``(M, 3, 3)`` [eV/Å³]. Entries of padding mean nothing.

    Raises:
        ValueError: for an unknown quantity, other frames, or noise that is not known.
    """
    quantity = conformal.quantity
    if quantity not in QUANTITIES:
        raise ValueError(f"Need a quantity from {sorted(QUANTITIES)}. Got {quantity!r}.")
    check_frames(prediction, data)
    spread, known, _ = variances(prediction, data, quantity, conformal.noise)
    mean = np.asarray(getattr(prediction, quantity), np.float64)
    if quantity == "energy":
        mean = mean / np.maximum(data.atom_counts, 1)
    half = conformal.factor * np.sqrt(spread + known)
    return mean - half, mean + half
