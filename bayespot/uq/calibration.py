r"""Is the predicted uncertainty honest? Errors on held-out labels, in units of their predicted standard deviation.

.. math:: z = \frac{y_\mathrm{label} - \bar y}{\sqrt{\sigma^2_\mathrm{epistemic}(1 + 1/S) + \sigma^2_\mathrm{noise}}}

With honest uncertainties :math:`\langle z^2 \rangle = 1` (for few samples :math:`\nu/(\nu-2)` of Student's t), and a
central interval of probability p contains a share p of the labels. S is the effective number of samples: draws of one
chain resemble each other, so the epistemic variance compares different chains, see ``uq/variance.py``.

Reference: Pernot, *J. Chem. Phys.* 156, 114109 (2022).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from bayespot.records.dataset import Dataset
from bayespot.tree import record
from bayespot.typing import Array, Float, Int
from bayespot.uq.predict import Prediction, check_frames, residuals
from bayespot.uq.variance import chain_spread

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@record(static=("quantity", "count"))
class Reliability:
    """Promised against observed probability.

    Attributes:
        level: promised probability of the central interval, ``(L,)``.
        observed: share of labels inside it, ``(L,)``.
        error: standard error of ``observed`` from the differences between frames (labels of one frame are not
            independent), ``(L,)``.
        zms: mean of z²; 1 for honest uncertainties, larger for too small ones.
        quantity: ``"energy"``, ``"forces"`` or ``"stress"``.
        count: number of labels.
    """

    level: Float[Array, "L"]
    observed: Float[Array, "L"]
    error: Float[Array, "L"]
    zms: Float[Array, ""]
    quantity: str
    count: int


class Comparison(NamedTuple):
    """Held-out labels of one quantity against their predictive distributions (host, float64), ``n`` labels.

    Attributes:
        error: label minus posterior mean, ``(n,)``.
        spread: epistemic variance of a further draw, 1 + 1/S times that of the samples, ``(n,)``.
        noise: variance of the label noise, ``(n,)``.
        samples: effective number S of independent samples.
        frame: number of the frame, ``(n,)``.
        mask: which entries of the data set's array have a label.
    """

    error: np.ndarray
    spread: np.ndarray
    noise: np.ndarray
    samples: float
    frame: np.ndarray
    mask: np.ndarray


def compare(prediction: Prediction, data: Dataset, quantity: str, noise: float | None = None) -> Comparison:
    """Labels against predictions; arguments and errors as for ``z_scores``."""
    check_frames(prediction, data)
    found = residuals(prediction, data)
    if quantity not in found or not found[quantity][1].any():
        raise ValueError(f"Need a quantity with labels in {data.source}, one of {sorted(found)}. Got {quantity!r}.")
    difference, mask = found[quantity]
    epistemic, known, samples = variances(prediction, data, quantity, noise)
    spread, known = epistemic[mask] * (1.0 + 1.0 / samples), np.broadcast_to(known, mask.shape)[mask]
    if not (spread + known > 0).all():
        raise ValueError(f"Every predicted standard deviation of {quantity} must be positive. Got zeros or NaN.")
    return Comparison(-difference[mask], spread, known, samples, np.nonzero(mask)[0], mask)


def variances(
    prediction: Prediction, data: Dataset, quantity: str, noise: float | None = None
) -> tuple[np.ndarray, np.ndarray | float, float]:
    """Epistemic variance, shaped as the quantity (energies per atom), that of the label noise, and effective S (host).

    The variance of the noise is one number, or ``(M, N, 1)`` of forces whose noise differs between species.

    Raises:
        ValueError: for noise that neither the samples carry nor the argument tells; for chains of several draws
            without the members of the prediction.
    """
    if noise is None and quantity not in prediction.noise:
        raise ValueError(
            f"The samples do not carry the noise of {quantity} labels (it was fixed, they come from elsewhere, or the "
            "noise of other species was learned). "
            "Pass its standard deviation as noise=…, or noise=0.0 for exact labels."
        )
    known = np.asarray(prediction.noise[quantity] if noise is None else noise, np.float64) ** 2
    variance, samples = _epistemic(prediction, quantity)
    if quantity == "energy":
        variance = variance / np.maximum(data.atom_counts, 1) ** 2
    return variance, known, samples


def _epistemic(prediction: Prediction, quantity: str) -> tuple[np.ndarray, float]:
    """Variance between independent samples and their effective number, as in ``chain_spread``.

    It is that of the prediction's own uncertainty, times what comparing different chains instead of all draws makes of
    the members' variance: an uncertainty that was changed by hand counts.
    """
    variance = np.asarray(getattr(prediction, f"{quantity}_uncertainty"), np.float64) ** 2
    number, chains = len(prediction.log_weight), len(np.unique(prediction.chain))
    if chains in (1, number):  # nothing is known to be correlated
        weight = np.exp(np.asarray(prediction.log_weight, np.float64) - np.max(prediction.log_weight))
        return variance, float(weight.sum() ** 2 / (weight**2).sum())
    if quantity not in prediction.members:
        raise ValueError(
            f"{chains} chains of {number} draws need the members of the prediction, by which chains are compared. "
            f"Got members of {sorted(prediction.members)}. Use predict(…)."
        )
    members = np.asarray(prediction.members[quantity], np.float64)
    found = chain_spread(members, prediction.log_weight, prediction.chain)
    plain = chain_spread(members, prediction.log_weight, np.arange(number)).variance
    return variance * np.divide(found.variance, plain, out=np.ones_like(plain), where=plain > 0), found.number


def student(compared: Comparison, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    r"""Scale and degrees of freedom of the predictive Student distributions, both ``(n,)``.

    :math:`s^2 = \alpha^2\sigma^2_\mathrm{epistemic}(1 + 1/S) + \sigma^2_\mathrm{noise}` for draws whose distance
    from the mean is scaled by ``alpha``; of its two parts only the first is an estimate, from S − 1 degrees of freedom
    (Welch and Satterthwaite), so :math:`\nu = (S-1)\,s^4/(\alpha^2\sigma^2_\mathrm{epistemic}(1 + 1/S))^2`.
    """
    spread = alpha**2 * compared.spread
    variance = spread + compared.noise
    freedom = (compared.samples - 1.0) * (variance / np.maximum(spread, 1e-12 * variance)) ** 2
    return np.sqrt(variance), freedom


def z_scores(
    prediction: Prediction, data: Dataset, quantity: str, noise: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors over predicted standard deviations, their degrees of freedom, and the frame of each (host).

    Args:
        prediction: for the frames of ``data``.
        data: with labels that were not used for training.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``.
        noise: standard deviation of the label noise, in the unit of the quantity; default what the samples inferred.

    Returns:
        ``z``, degrees of freedom of Student's t (S − 1 where the spread of the samples prevails, growing without limit
        where known noise does; Welch and Satterthwaite), and number of the frame, all ``(n,)``.

    Raises:
        ValueError: for an unknown quantity, no labels, a predicted standard deviation of zero, noise that neither the
            samples carry nor the argument tells, or chains of several draws without the members of the prediction.
    """
    compared = compare(prediction, data, quantity, noise)
    scale, freedom = student(compared)
    return compared.error / scale, freedom, compared.frame


def pit(
    prediction: Prediction, data: Dataset, quantity: str, noise: float | None = None
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    r"""Probability integral transform: the predictive distribution function at every held-out label (host).

    :math:`u = F_\nu(z)` with Student's distribution function F and z and ν of ``z_scores``. With honest uncertainties u
    is uniform between 0 and 1; a histogram shaped like U says that they are too small, one shaped like a hill that they
    are too large, a slope that the mean is off to one side (``plot_pit``).

    Args:
        prediction: for the frames of ``data``.
        data: with labels that were not used for training.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``.
        noise: as in ``z_scores``.

    Returns:
        ``u`` and the number of the frame, both ``(n,)``.

    Raises:
        ValueError: as ``z_scores``.

    Reference: Gneiting, Balabdaoui and Raftery, *J. R. Stat. Soc. B* 69, 243 (2007).
    """
    z, freedom, frame = z_scores(prediction, data, quantity, noise)
    return stats.t.cdf(z, freedom), frame


def standard_error(centred: np.ndarray, frame: np.ndarray, count) -> np.ndarray:
    """Standard error of means over ``count`` labels, from the sums over each frame of ``centred`` values ``(n, k)``.

    Frames are independent, labels of one frame need not be. NaN for a single frame.
    """
    frames, place = np.unique(frame, return_inverse=True)
    m = len(frames)
    if m < 2:
        return np.full(centred.shape[1], np.nan)
    sums = np.zeros((m, centred.shape[1]))
    np.add.at(sums, place, centred)
    return np.sqrt((sums**2).sum(0) * m / (m - 1)) / count


def coverage(
    prediction: Prediction, data: Dataset, quantity: str, levels=LEVELS, noise: float | None = None
) -> Reliability:
    """Share of held-out labels inside their predictive intervals, by promised probability.

    Args:
        prediction: for the frames of ``data``.
        data: with labels that were not used for training.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``.
        levels: promised probabilities.
        noise: as in ``z_scores``.

    Raises:
        ValueError: as ``z_scores``, or for levels outside (0, 1).
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"levels must be probabilities between 0 and 1. Got {levels}.")
    z, freedom, frame = z_scores(prediction, data, quantity, noise)
    promised = 2.0 * stats.t.cdf(np.abs(z), freedom) - 1.0
    inside = promised[:, None] <= levels
    observed = inside.mean(0)
    return Reliability(
        level=jnp.asarray(levels),
        observed=jnp.asarray(observed),
        error=jnp.asarray(standard_error(inside - observed, frame, len(z))),
        zms=jnp.asarray((z**2).mean()),
        quantity=quantity,
        count=len(z),
    )


def calibration_table(curves: list[Reliability], levels=(0.5, 0.9, 0.95)) -> str:
    """Calibration as an aligned text table: mean squared z-score and observed coverage at some levels."""
    wanted = [float(x) for x in levels]
    head = f"{'quantity':<10}{'labels':>9}{'<z²>':>9}" + "".join(f"{f'in {x:.0%}':>10}" for x in wanted)
    lines = [head, "-" * len(head)]
    for c in curves:
        shares = np.interp(wanted, np.asarray(c.level), np.asarray(c.observed))
        lines.append(f"{c.quantity:<10}{c.count:>9}{float(c.zms):>9.3g}" + "".join(f"{x:>10.1%}" for x in shares))
    return "\n".join(lines)
