r"""Is the predicted uncertainty honest? Errors on held-out labels, in units of their predicted standard deviation.

.. math:: z = \frac{y_\mathrm{label} - \bar y}{\sqrt{\sigma^2_\mathrm{epistemic}(1 + 1/S) + \sigma^2_\mathrm{noise}}}

With honest uncertainties :math:`\langle z^2 \rangle = 1` (for few samples :math:`\nu/(\nu-2)` of Student's t), and a
central interval of probability p contains a share p of the labels.

Reference: Pernot, *J. Chem. Phys.* 156, 114109 (2022).
"""

import jax.numpy as jnp
import numpy as np
from scipy import stats

from bayespot.records.dataset import Dataset
from bayespot.tree import record
from bayespot.typing import Array, Float
from bayespot.uq.predict import Prediction, residuals

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
        ValueError: for an unknown quantity, no labels, a predicted standard deviation of zero, or noise that neither
            the samples carry nor the argument tells.
    """
    found = residuals(prediction, data)
    if quantity not in found or not found[quantity][1].any():
        raise ValueError(f"Need a quantity with labels in {data.source}, one of {sorted(found)}. Got {quantity!r}.")
    difference, mask = found[quantity]
    epistemic = np.asarray(getattr(prediction, f"{quantity}_uncertainty"), np.float64)
    if quantity == "energy":
        epistemic = epistemic / np.maximum(data.atom_counts, 1)
    samples = _number(prediction)
    if noise is None and quantity not in prediction.noise:
        raise ValueError(
            f"The samples do not carry the noise of {quantity} labels (it was fixed, or they come from elsewhere). "
            "Pass its standard deviation as noise=…, or noise=0.0 for exact labels."
        )
    known = float(prediction.noise[quantity] if noise is None else noise) ** 2
    spread = epistemic[mask] ** 2 * (1.0 + 1.0 / samples)
    variance = spread + known
    if not (variance > 0).all():
        raise ValueError(f"Every predicted standard deviation of {quantity} must be positive. Got zeros or NaN.")
    freedom = (samples - 1.0) * (variance / np.maximum(spread, 1e-12 * variance)) ** 2
    return -difference[mask] / np.sqrt(variance), freedom, np.nonzero(mask)[0]


def _number(prediction: Prediction) -> float:
    """Effective number of samples by their weights."""
    weight = np.exp(np.asarray(prediction.log_weight, np.float64) - np.max(prediction.log_weight))
    return float(weight.sum() ** 2 / (weight**2).sum())


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
    frames, place = np.unique(frame, return_inverse=True)
    sums = np.zeros((len(frames), len(levels)))
    np.add.at(sums, place, inside - observed)
    m = len(frames)
    error = np.sqrt((sums**2).sum(0) * m / max(m - 1, 1)) / len(z) if m > 1 else np.full(len(levels), np.nan)
    return Reliability(
        level=jnp.asarray(levels),
        observed=jnp.asarray(observed),
        error=jnp.asarray(error),
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
