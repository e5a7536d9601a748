r"""Posterior predictive checks: do the labels look like labels that the posterior would have made?

For every sample, labels are drawn anew, as many as there are. True and replicated labels are compared by the same
numbers of their standardised errors :math:`z = (y - m)/s`:

- ``mean``, :math:`|\langle z \rangle|`: predictions off to one side;
- ``slope``, :math:`|\langle z\,u \rangle|` with the predictions *u*, centred and of unit variance: predictions whose
  differences are too small or too large, as of a potential that is too soft (forces can hardly be off to one side,
  since those of a frame add up to zero);
- ``square``, :math:`\langle z^2 \rangle`, chi-square per label: errors larger or smaller than expected;
- ``largest``, :math:`\max |z|`: single labels that are wrong;
- ``kurtosis``, :math:`\langle z^4 \rangle / \langle z^2 \rangle^2`: tails of the noise, or a noise that differs from
  frame to frame.

Reference: Gelman, Meng and Stern, *Stat. Sinica* 6, 733 (1996).
"""

from collections.abc import Callable, Sequence

import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples, weights
from bayespot.tree import record
from bayespot.typing import Array, Float, Key
from bayespot.uq.posterior_predictive import Scales, check_dof, check_positive, expected, standard
from bayespot.uq.predict import Prediction
from bayespot.uq.resampling import seed

REPLICATES = 1000
"""Replicated data sets, at least, evenly from all samples."""

AT_ONCE = 1_000_000
"""Replicated labels in memory at once."""

STRIKING = 0.025
"""Shares at most so large are pointed out."""

MEANINGS = {
    "mean": ("predictions are off to one side", ""),
    "slope": ("differences between predictions are too small or too large", ""),
    "square": ("errors larger than expected", "errors smaller than expected"),
    "largest": ("single labels far off", "tails lighter than assumed"),
    "kurtosis": ("tails heavier than assumed, or noise that differs", "tails lighter than assumed"),
}
"""Discrepancies, and what it means when the labels have much more, or much less, of them than replicates."""


@record(static=("quantity", "name", "count"))
class Discrepancy:
    """One number of the true labels against the same number of replicated ones, ``K`` comparisons.

    Attributes:
        observed: of the true labels; it depends on the sample that they are compared with, ``(K,)``. Here and below
            every sample counts alike; weights count in the p-values.
        replicated: of the labels that the sample makes, ``(K,)``.
        above: posterior predictive p-value, the share of comparisons with replicated ≥ observed. Small: the labels have
            more of it than the posterior can explain.
        below: share with replicated ≤ observed. Small: the labels have less.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``.
        name: ``"mean"``, ``"slope"``, ``"square"``, ``"largest"`` or ``"kurtosis"``.
        count: number of labels.
    """

    observed: Float[Array, "K"]
    replicated: Float[Array, "K"]
    above: Float[Array, ""]
    below: Float[Array, ""]
    quantity: str
    name: str
    count: int

    @property
    def remark(self) -> str:
        """What is wrong, in words; empty where nothing is striking."""
        more, less = MEANINGS[self.name]
        return more if self.above <= STRIKING else less if self.below <= STRIKING else ""


@record(static=("kind", "resolution"))
class PredictiveCheck:
    """All discrepancies of all quantities; prints as a table.

    Attributes:
        rows: by quantity, five of each.
        kind: ``"training"`` or ``"held-out"``.
        resolution: smallest share that can occur, 0 in training checks.
    """

    rows: tuple[Discrepancy, ...]
    kind: str
    resolution: float

    def __str__(self) -> str:
        head = f"{'quantity':<10}{'labels':>8}  {'of errors':<10}{'observed':>10}{'replicated, 95 %':>22}"
        head += f"{'p above':>9}{'p below':>9}"
        lines = [f"predictive check, {self.kind} labels", head, "-" * len(head)]
        for r in self.rows:
            ends = "{:.3g} … {:.3g}".format(*np.quantile(r.replicated, [0.025, 0.975]))
            line = f"{r.quantity:<10}{r.count:>8}  {r.name:<10}{np.median(r.observed):>10.3g}{ends:>22}"
            lines.append(f"{line}{float(r.above):>9.3f}{float(r.below):>9.3f}  {r.remark}".rstrip())
        if self.resolution > STRIKING:
            lines.append(
                f"So few chains give no p-value below {self.resolution:.2g}: compare observed and replicated values."
            )
        return "\n".join(lines)


def predictive_check(
    key: Key,
    samples: PosteriorSamples,
    prediction: Prediction,
    data: Dataset,
    noise: Scales | None = None,
    dof: float | None = None,
    quantities: Sequence[str] | None = None,
) -> PredictiveCheck:
    """Does the posterior explain the labels it was trained on? (host)

    Errors are standardised by the noise of each sample, and each sample's own replicates compared with the true labels
    about its prediction. A small p-value says that, whichever sample is right, its noise would hardly make such labels:
    the potential cannot describe them (systematic error), or the noise model is wrong. The labels are used twice, for
    the fit and for the check, so that p-values of a right model lie closer to 1/2 than uniform ones: a small one means
    the more, an unremarkable one little. In particular ``mean``, ``slope`` and, where the noise was learned, ``square``
    are fitted; only tails and outliers are left to find.

    Only for draws from a posterior (SG-MCMC, NUTS, Laplace): each must explain the labels by its noise alone. Members
    of an ensemble are optima, whose errors on the training labels are smaller; heads of a shallow ensemble and
    recalibrated samples carry the errors in their spread. For these use ``held_out_check``.

    Args:
        key: random key of the replicates.
        samples, prediction, noise, dof, quantities: as for ``posterior_predictive``.
        data: labels that were used for training; for others see ``held_out_check``.

    Raises:
        ValueError: as ``posterior_predictive``.

    Example:
        ``print(predictive_check(key, samples, predict(potential, samples, train), train))``

    Reference: Gelman, Meng and Stern, *Stat. Sinica* 6, 733 (1996), section 2.3; for p-values nearer to 1/2, Meng,
    *Ann. Stat.* 22, 1142 (1994).
    """
    check_dof(dof)
    found, weight = expected(samples, prediction, data, noise, quantities), np.asarray(weights(samples), np.float64)
    used, rng, rows = weight > 0, np.random.default_rng(seed(key)), []
    for quantity, of_quantity in found.items():
        check_positive(of_quantity.scale, quantity)
        predicted, scale, label = _labelled(*of_quantity, used)
        about = predicted, np.broadcast_to(scale, predicted.shape)
        observed, replicated = _compare(rng, predicted, scale, label, about, dof)
        rows += _rows(quantity, label.size, observed, replicated, lambda share: float(weight[used] @ share))
    return PredictiveCheck(tuple(rows), "training", 0.0)


def held_out_check(
    key: Key,
    samples: PosteriorSamples,
    prediction: Prediction,
    data: Dataset,
    noise: Scales | None = None,
    dof: float | None = None,
    quantities: Sequence[str] | None = None,
) -> PredictiveCheck:
    r"""Do new labels look like draws from the posterior predictive distribution? (host)

    For each chain in turn, the true labels and those that the chain's samples make are both standardised by the mean
    and the total standard deviation (spread of the predictions and noise) of *the other chains*. If the posterior is
    right, the truth is like one more chain, and either of the two is equally likely to lie further out. A small p-value
    says that it lies further out than chains do from each other: a systematic error that the spread does not cover, a
    spread that is too small, or a wrong noise model. The p-value is

    .. math:: p = \frac{1 + C\,\langle [T^\mathrm{rep}_c \ge T_c] \rangle}{1 + C}

    for *C* chains (with weights, their effective number), which cannot be below 1/(C + 1): eight members of an
    ensemble prove nothing at 5 %. From one replicate per chain it would be below *α* with a probability of at most
    2 *α*, whatever the statistic; averaged over replicates, of about *α* or less in simulations. Labels of a replicated
    frame come from one sample and keep what their errors have in common. With few chains the standard deviation
    is widened, as for Student's t: compare observed and replicated values, not either with 1.

    Args:
        key: random key of the replicates.
        samples, prediction, dof, quantities: as for ``posterior_predictive``.
        data: labels that were not used for training.
        noise: as for ``posterior_predictive``; ``{"forces": 0.0}`` for exact labels.

    Raises:
        ValueError: as ``posterior_predictive``; for fewer than three chains, because draws of one are no independent
            witnesses; where predictions do not differ and there is no noise.

    Reference: the bound is that of the jackknife+, Barber, Candès, Ramdas and Tibshirani, *Ann. Stat.* 49, 486 (2021),
    theorem 1.
    """
    check_dof(dof)
    found, weight = expected(samples, prediction, data, noise, quantities), np.asarray(weights(samples), np.float64)
    chain, used = np.asarray(samples.chain), weight > 0
    group = np.unique(chain[used], return_inverse=True)[1]
    share = np.bincount(group, weight[used])
    if len(share) < 3:
        raise ValueError(f"held_out_check needs at least three chains. Got {len(share)}. Run more.")
    number = float(1.0 / (share**2).sum())

    def p_value(share: np.ndarray) -> float:
        return (1.0 + number * float(weight[used] @ share)) / (1.0 + number)

    rng, rows = np.random.default_rng(seed(key)), []
    for quantity, of_quantity in found.items():
        predicted, scale, label = _labelled(*of_quantity, used)
        mean, std = _without(predicted, scale, weight[used], group)
        if not (std > 0).all():
            raise ValueError(f"Every predicted standard deviation of {quantity} must be positive. Got zeros or NaN.")
        observed, replicated = _compare(rng, predicted, scale, label, (mean[group], std[group]), dof)
        rows += _rows(quantity, label.size, observed, replicated, p_value)
    return PredictiveCheck(tuple(rows), "held-out", 1.0 / (1.0 + number))


def _labelled(predicted: np.ndarray, scale: np.ndarray, label: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, ...]:
    """What belongs to the ``n`` labels that exist, of the samples in use: ``(S, n)``, ``(S, n or 1)`` and ``(n,)``."""
    mask = np.isfinite(label)
    scale = (
        scale.reshape(-1, 1) if scale[0].size == 1 else np.broadcast_to(scale, scale.shape[:1] + mask.shape)[:, mask]
    )
    return predicted[used][:, mask], np.broadcast_to(scale, (len(used), scale.shape[1]))[used], label[mask]


def _without(
    predicted: np.ndarray, scale: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and total standard deviation of the predictive distribution of all chains but one, both ``(C, n)``."""
    member = weight * (group == np.arange(group.max() + 1)[:, None])
    rest = (1.0 - member.sum(1))[:, None]
    centre = weight @ predicted
    difference = predicted - centre

    def others(values):
        sums = member @ values
        return (sums.sum(0) - sums) / rest

    mean, left = others(difference), len(member) - 1
    spread = np.maximum(others(difference**2) - mean**2, 0.0) * left / (left - 1)
    return centre + mean, np.sqrt(spread * (1.0 + 1.0 / left) + others(scale**2))


def _compare(
    rng: np.random.Generator, predicted: np.ndarray, scale: np.ndarray, label: np.ndarray, about, dof: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Discrepancies of the labels ``(S, 1, 5)``, and of ``R`` replicates by each sample ``(S, R, 5)``.

    Args:
        rng: of the noise.
        predicted, scale, label: as from ``_labelled``.
        about: what labels are standardised by for each sample: mean and standard deviation, both ``(S, n)``.
        dof: of Student-t noise.
    """
    (s, n), (centre, std) = predicted.shape, about
    block, number = max(1, AT_ONCE // n), -(-REPLICATES // s)

    def blocks(index, labels: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        parts = [index[first : first + block] for first in range(0, len(index), block)]
        return np.concatenate([_discrepancies((labels(k) - centre[k]) / std[k], centre[k]) for k in parts])

    every = np.arange(s)
    observed = blocks(every, lambda k: label)
    replicated = blocks(np.repeat(every, number), lambda k: predicted[k] + scale[k] * standard(rng, (len(k), n), dof))
    return observed[:, None], replicated.reshape(s, number, len(MEANINGS))


def _discrepancies(z: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The five numbers, as in ``MEANINGS``, ``(R, 5)``, of standardised errors about predictions ``(R, n)``."""
    direction = centre - centre.mean(1, keepdims=True)
    spread = np.sqrt((direction**2).mean(1))
    square = z**2
    mean = square.mean(1)
    slope = np.abs((z * direction).mean(1)) / np.where(spread > 0, spread, 1.0)
    kurtosis = (square**2).mean(1) / np.maximum(mean**2, np.finfo(float).tiny)
    return np.stack([np.abs(z.mean(1)), slope, mean, np.sqrt(square.max(1)), kurtosis], 1)


def _rows(
    quantity: str, count: int, observed: np.ndarray, replicated: np.ndarray, p_value: Callable[[np.ndarray], float]
) -> list[Discrepancy]:
    """Discrepancies with their p-values, which ``p_value`` makes of the shares by sample ``(S,)``."""
    observed = np.broadcast_to(observed, replicated.shape)
    above, below = (replicated >= observed).mean(1), (replicated <= observed).mean(1)
    return [
        Discrepancy(
            observed=observed[..., k].ravel(),
            replicated=replicated[..., k].ravel(),
            above=np.asarray(p_value(above[:, k])),
            below=np.asarray(p_value(below[:, k])),
            quantity=quantity,
            name=name,
            count=count,
        )
        for k, name in enumerate(MEANINGS)
    ]
