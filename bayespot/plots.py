"""Figures, one call each; every function draws on the given Axes (or a new one) and returns it.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from bayespot.records.interval import Interval
from bayespot.records.posterior import PosteriorSamples
from bayespot.typing import Array, Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bayespot.records.dataset import Dataset
    from bayespot.uq.calibration import Reliability
    from bayespot.uq.predict import Prediction
    from bayespot.uq.predictive_check import PredictiveCheck

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


def _axes(ax):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5.2, 3.6), layout="constrained")[1]


def _label(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def plot_interval(interval: Interval, truth=None, ax: Axes | None = None, centred: bool = False) -> Axes:
    """Credible band and mean of a curve, or error bar of a scalar, with the part that is sampling noise, and the truth.

    Args:
        interval: of a scalar or of a curve.
        truth: known values of the same shape, drawn in black.
        ax: where to draw; default a new figure.
        centred: draw differences from the posterior mean; a band that is narrow beside its curve is seen only so.

    Raises:
        ValueError: for an observable with more than one axis.
    """
    ax = _axes(ax)
    mean, lower, upper, noise = (
        np.asarray(x) for x in (interval.mean, interval.lower, interval.upper, interval.std_sampling)
    )
    if mean.ndim > 1:
        raise ValueError(f"plot_interval draws scalars and curves. Got the shape {mean.shape}; plot one component.")
    origin = mean if centred else 0.0
    mean, lower, upper = mean - origin, lower - origin, upper - origin
    truth = None if truth is None else np.asarray(truth) - origin
    name = f"{interval.name} − mean" if centred else interval.name
    band = f"{interval.level:.0%} credible interval"
    if mean.ndim == 0:
        ends = np.array([[max(mean - lower, 0.0)], [max(upper - mean, 0.0)]])
        ax.errorbar([0], [mean], ends, fmt="o", color=BLUE, capsize=6, lw=1.6, label=band)
        ax.errorbar([0], [mean], [noise], fmt="none", ecolor=ORANGE, elinewidth=5, alpha=0.7, label="± std_sampling")
        if truth is not None:
            ax.axhline(float(truth), color="black", ls="--", lw=1.2, label="truth")
        ax.set(xticks=[], xlim=(-1, 1), ylabel=_label(name, interval.unit))
    else:
        x = np.asarray(interval.coordinate) if interval.coordinate.size else np.arange(len(mean))
        ax.fill_between(x, lower, upper, color=SKY, alpha=0.55, lw=0, label=band)
        ax.fill_between(x, mean - noise, mean + noise, color=ORANGE, alpha=0.7, lw=0, label="± std_sampling")
        ax.plot(x, mean, color=BLUE, lw=1.4, label="posterior mean")
        if truth is not None:
            ax.plot(x, truth, color="black", ls="--", lw=1.2, label="truth")
        ax.set(xlabel=interval.axis, ylabel=_label(name, interval.unit), xlim=(x[0], x[-1]))
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_reliability(curves: Reliability | list[Reliability], ax: Axes | None = None) -> Axes:
    """Observed against promised coverage; below the diagonal the uncertainties are too small (over-confident)."""
    ax = _axes(ax)
    for color, curve in zip(cycle(COLORS), curves if isinstance(curves, list) else [curves], strict=False):
        level, observed, error = (np.asarray(x) for x in (curve.level, curve.observed, curve.error))
        label = f"{curve.quantity}, ⟨z²⟩ = {float(curve.zms):.2f}"
        ax.errorbar(level, observed, np.nan_to_num(error), fmt="o-", color=color, ms=4, lw=1.4, capsize=2, label=label)
    ax.plot([0, 1], [0, 1], color="black", ls="--", lw=1, label="honest")
    ax.annotate("over-confident", (0.97, 0.05), ha="right", color="0.45", fontsize="small")
    ax.set(xlabel="promised probability", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_pit(
    prediction: Prediction,
    data: Dataset,
    quantity: str = "forces",
    noise: float | None = None,
    bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Histogram of the predictive distribution function at the labels (``pit``); flat for honest uncertainties.

    Error bars are one standard error from the differences between frames.

    Args:
        prediction: for the frames of ``data``.
        data: labelled frames that were not used for training.
        quantity: ``"forces"``, ``"energy"`` (per atom) or ``"stress"``.
        noise: standard deviation of the label noise; default what the samples inferred.
        bins: number of bins between 0 and 1.
        ax: where to draw; default a new figure.

    Raises:
        ValueError: as ``pit``, or for fewer than two bins.
    """
    from bayespot.uq.calibration import pit, standard_error

    if bins < 2:
        raise ValueError(f"A histogram needs at least two bins. Got {bins}.")
    value, frame = pit(prediction, data, quantity, noise)
    inside = np.minimum((value * bins).astype(int), bins - 1)[:, None] == np.arange(bins)
    share = inside.mean(0)
    error = bins * standard_error(inside - share, frame, len(value))
    ax = _axes(ax)
    middle = (np.arange(bins) + 0.5) / bins
    bars = {"width": 1 / bins, "color": SKY, "edgecolor": "white", "label": f"{quantity}, {len(value)} labels"}
    ax.bar(middle, bins * share, **bars)
    ax.errorbar(middle, bins * share, np.nan_to_num(error), fmt="none", ecolor=BLUE, capsize=2, lw=1.2)
    ax.axhline(1.0, color="black", ls="--", lw=1, label="honest")
    top = 1.25 * max(1.0, bins * share.max())
    ax.set(xlabel="predictive distribution function at the label", ylabel="density", xlim=(0, 1), ylim=(0, top))
    ax.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)
    return ax


def plot_binned_errors(
    prediction: Prediction,
    data: Dataset,
    quantity: str = "forces",
    noise: float | None = None,
    bins: int = 12,
    ax: Axes | None = None,
) -> Axes:
    """Root-mean-square error against predicted standard deviation, in bins of equal number: what ENCE sums up.

    On the diagonal uncertainties are honest, above it too small. Error bars are one standard error from the differences
    between frames. With few samples and little noise the curve is flatter than the diagonal even for an honest
    posterior, because the largest of the predicted standard deviations are those estimated too large.

    Args:
        prediction, data, quantity, noise, ax: as for ``plot_pit``.
        bins: number of bins.

    Raises:
        ValueError: as ``binned_errors``.
    """
    from bayespot.uq.ence import binned_errors
    from bayespot.uq.predict import QUANTITIES

    found = binned_errors(prediction, data, quantity, noise, bins)
    ax = _axes(ax)
    label = f"{quantity}, {found.count.sum()} labels in {bins} bins"
    style = {"fmt": "o-", "color": BLUE, "ms": 4, "lw": 1.4, "capsize": 2, "label": label}
    ax.errorbar(found.std, found.rmse, np.nan_to_num(found.error), **style)
    ends = np.array([min(found.std.min(), found.rmse.min()), max(found.std.max(), found.rmse.max())])
    ax.plot(ends, ends, color="black", ls="--", lw=1, label="honest")
    ax.annotate("over-confident", (0.03, 0.72), xycoords="axes fraction", color="0.45", fontsize="small")
    unit = QUANTITIES[quantity]
    ax.set(xlabel=f"predicted standard deviation [{unit}]", ylabel=f"root-mean-square error [{unit}]")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def plot_learning(samples: PosteriorSamples, ax: Axes | None = None) -> Axes:
    """Log density of the data in use, and of validation data if there were any, against progress, for every chain.

    The axis shows the last three quarters; the steep beginning leaves it.

    Raises:
        ValueError: when the history of the samples holds neither curve.
    """
    _, first = np.unique(np.asarray(samples.chain), return_index=True)
    curves = {n: np.asarray(samples.history[n])[first] for n in ("log_density", "validation") if n in samples.history}
    if not curves:
        raise ValueError(
            "plot_learning needs samples whose history holds log_density or validation; infer records them. "
            f"Got {sorted(samples.history) or 'no history'}."
        )
    ax = _axes(ax)
    late = []
    for color, (name, chosen) in zip(cycle(COLORS), curves.items(), strict=False):
        progress = np.linspace(0, 100, chosen.shape[1] + 1)[1:]
        for n, curve in enumerate(chosen):
            ax.plot(progress, curve, color=color, lw=1, alpha=0.7, label=name if n == 0 else None)
        late.append(chosen[:, chosen.shape[1] // 4 :].ravel())
    if len(late := [x for x in np.concatenate(late) if np.isfinite(x)]):
        margin = 0.05 * (max(late) - min(late)) or 1.0
        ax.set_ylim(min(late) - margin, max(late) + margin)
    ax.set(xlabel="progress [%]", ylabel="log density per frame", xlim=(0, 100))
    ax.legend(frameon=False, fontsize="small", title=f"{len(first)} chains", title_fontsize="small")
    return ax


def plot_rank(
    samples: PosteriorSamples,
    values: Float[Array, "S *shape"],
    name: str = "",
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Do the chains draw from one distribution? Their ranks among all draws, as differences that are 0 on average.

    A chain above 0 at the left has more low values than the others, one below 0 at the right more high ones; both
    together: it spreads wider. If all chains agree, all curves stay inside the band with the probability ``level``. The
    band counts as many draws as are independent *within* a chain; of very few it is wide and proves nothing. Of more
    than six chains only those that leave the band are named.

    Args:
        samples: of at least two chains, with at least eight draws each, equally many.
        values: one per sample, any shape: predictions ``prediction.members["energy"]``, observables
            ``observed.value.mean(1)``. Of several components the one with the largest R-hat is drawn.
        name: of the quantity, for the title.
        level: probability that the band holds.
        ax: where to draw; default a new figure.

    Raises:
        ValueError: for too few chains or draws, values that are not finite or the same for all samples.

    Reference: Säilynoja, Bürkner and Vehtari, *Stat. Comput.* 32, 32 (2022); band: ``inference/ranks.py``.
    """
    from bayespot.inference.diagnostics import rhat
    from bayespot.inference.ranks import rank_difference

    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    moving = np.flatnonzero(np.ptp(flat, axis=0) > 0)  # padding does not move, and has no R-hat
    if not np.isfinite(flat).all() or not len(moving):
        raise ValueError(f"plot_rank needs finite values that vary between samples. Got {name or values}.")
    spread = np.nan_to_num(np.asarray(rhat(samples, flat[:, moving])), nan=np.inf)  # chains that stand still
    worst = int(moving[np.argmax(spread)])
    found = rank_difference(samples, flat[:, worst], level)
    chains = np.unique(np.asarray(samples.chain))
    ax = _axes(ax)
    at, width = np.r_[0, found.at, 1], np.r_[0, found.half_width, 0]
    ax.fill_between(at, -width, width, color="0.87", lw=0, label=f"{level:.0%} band")
    ax.axhline(0, color="black", ls="--", lw=1)
    for chain, color, curve in zip(chains, cycle(COLORS), found.difference, strict=False):
        named = len(chains) <= len(COLORS) or (np.abs(curve) > found.half_width).any()
        ax.plot(at, np.r_[0, curve, 0], color=color, lw=1.4, label=f"chain {chain}" if named else None)
    ax.set(xlabel="fraction of all draws", ylabel="share of a chain's draws − fraction", xlim=(0, 1))
    most = max(found.half_width.max(), np.abs(found.difference).max())
    ax.set_ylim(-1.1 * most, 1.7 * most)  # room for the legend
    place = list(map(int, np.unravel_index(worst, np.shape(values)[1:])))
    draws = f"{found.effective:.0f} of {len(samples) // len(chains)} draws of a chain independent"
    ax.set_title(f"{name}{place or ''}: R-hat {spread.max():.3g}, {draws}".removeprefix(": "), fontsize="small")
    ax.legend(frameon=False, fontsize="small", loc="upper center", ncols=3)
    return ax


def plot_parity(prediction: Prediction, data: Dataset, quantity: str = "forces", ax: Axes | None = None) -> Axes:
    """Predicted against labelled values, with the epistemic uncertainty as colour, and the RMSE.

    Args:
        prediction: for the frames of ``data``.
        data: labelled frames.
        quantity: ``"forces"``, ``"energy"`` (per atom) or ``"stress"``.
        ax: where to draw; default a new figure.

    Raises:
        ValueError: for an unknown quantity, or one without labels.
    """
    from bayespot.uq.predict import QUANTITIES, residuals

    found = residuals(prediction, data)
    if quantity not in found or not found[quantity][1].any():
        raise ValueError(f"Need a quantity with labels, one of {sorted(found)}. Got {quantity!r}.")
    ax = _axes(ax)
    difference, mask = found[quantity]
    label = np.asarray(getattr(data, quantity), np.float64)
    spread = np.asarray(getattr(prediction, f"{quantity}_uncertainty"), np.float64)
    if quantity == "energy":
        label, spread = label / data.atom_counts, spread / data.atom_counts
    true, error, spread = label[mask], difference[mask], spread[mask]
    order = np.argsort(spread)
    unit = QUANTITIES[quantity]
    shown = {"c": spread[order], "cmap": "viridis", "s": 9, "lw": 0, "rasterized": len(order) > 2000}
    points = ax.scatter(true[order], (true + error)[order], **shown)
    ax.figure.colorbar(points, ax=ax, label=f"epistemic std [{unit}]")
    ends = np.array([min(true.min(), (true + error).min()), max(true.max(), (true + error).max())])
    ax.plot(ends, ends, color="black", ls="--", lw=1)
    ax.set(xlabel=f"label: {quantity} [{unit}]", ylabel=f"prediction: {quantity} [{unit}]")
    ax.set_title(f"RMSE {np.sqrt((error**2).mean()):.3g} {unit}, {error.size} labels", fontsize="small")
    return ax


def plot_check(
    check: PredictiveCheck, quantity: str = "forces", discrepancy: str = "square", ax: Axes | None = None
) -> Axes:
    """Distribution of a discrepancy over replicated labels, and its values for the true labels as a line and a band.

    The band holds 95 % of the values; it is narrow where they hardly depend on the sample. It lies within the
    histogram if the posterior explains the labels. The legend gives the smaller of the two p-values.

    Args:
        check: from ``predictive_check`` or ``held_out_check``.
        quantity: ``"forces"``, ``"energy"`` (per atom) or ``"stress"``.
        discrepancy: ``"mean"``, ``"slope"``, ``"square"``, ``"largest"`` or ``"kurtosis"`` of the standardised errors.
        ax: where to draw; default a new figure.

    Raises:
        ValueError: when the check has no such row.
    """
    rows = {(r.quantity, r.name): r for r in check.rows}
    if (quantity, discrepancy) not in rows:
        raise ValueError(f"Need a quantity and a discrepancy of {list(rows)}. Got {(quantity, discrepancy)}.")
    row = rows[quantity, discrepancy]
    replicated, observed = np.asarray(row.replicated), np.asarray(row.observed)
    ax = _axes(ax)
    ax.hist(replicated, bins=30, density=True, color=SKY, edgecolor="white", label="replicated labels")
    low, middle, high = np.quantile(observed, [0.025, 0.5, 0.975])
    ax.axvspan(low, high, color=ORANGE, alpha=0.4, lw=0)
    side, p = min(("above", float(row.above)), ("below", float(row.below)), key=lambda x: x[1])
    ax.axvline(middle, color=VERMILION, lw=1.6, label=f"{check.kind} labels, p {side} = {p:.3f}")
    ax.set(xlabel=f"{discrepancy} of standardised errors: {quantity}", ylabel="density")
    ax.legend(frameon=False, fontsize="small")
    return ax
