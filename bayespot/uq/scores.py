r"""How good predictions and their uncertainties are on held-out labels: every score of common use, with its own error.

The predictive distribution of a label is Student's t about the posterior mean with the scale and the degrees of freedom
of ``z_scores``, the same that ``coverage`` and ``pit`` use: NLL, CRPS, interval score and coverage judge it, not a
Gaussian, which a small ensemble would fail even when it is honest. Its scale :math:`s` is what "predicted standard
deviation" means below: if labels and draws are exchangeable, :math:`\langle e^2\rangle = \langle s^2\rangle` for any
number of samples. (The standard deviation of Student's t, larger by :math:`\sqrt{\nu/(\nu-2)}`, would count twice that
*s* is uncertain.)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from bayespot.records.dataset import Dataset
from bayespot.tree import replace
from bayespot.typing import Key
from bayespot.uq.calibration import Comparison, compare, student
from bayespot.uq.ence import ence
from bayespot.uq.predict import QUANTITIES, Prediction
from bayespot.uq.proper_scores import crps, interval_score, log_density
from bayespot.uq.resampling import Estimate, estimate, frame_sums, frame_weights, median, rank_correlation, seed

LEVELS = (0.5, 0.8, 0.95)
"""Of the coverages."""

SORTED = 4_000_000
"""Labels × replicates at most for the median, each of whose replicates is a pass over the labels; but at least 50."""


class Calibration(NamedTuple):
    """Scores of one quantity in one group of frames, each an ``Estimate``: value and 95 % bootstrap interval.

    Attributes:
        group: name of the group, or ``"all"``.
        quantity: ``"energy"`` (per atom), ``"forces"`` (components) or ``"stress"`` (six components).
        species: atomic number whose forces these are; 0 for all.
        count: number of labels.
        frames: number of frames that they come from.
        unit: of ``rmse``, ``sharpness``, ``median_std``, ``crps`` and ``interval_score``.
        rmse: root-mean-square error of the posterior mean.
        sharpness: root mean square of the predicted standard deviations s; equal to ``rmse`` for honest uncertainties.
        median_std: median of s.
        nll: mean negative log density of the labels, lower is better; its zero depends on the unit.
        crps: mean continuous ranked probability score, lower is better; for a point prediction the mean absolute error.
        interval_score: mean score of the 95 % intervals, their width plus 40 times what labels lie outside.
        coverage_50, coverage_80, coverage_95: share of labels inside the central intervals of these probabilities.
        zms: mean of the squared ``z_scores``, as in ``Reliability``; larger than ``zms_honest`` for too small
            uncertainties.
        zms_honest: what it is for honest ones, the mean of ν/(ν − 2): 1 for many samples, 1.4 for eight without noise.
        ence: expected normalised calibration error, extrapolated to zero bins, so that honest uncertainties give 0 up
            to noise of both signs; NaN for fewer than 60 labels. Not to be interpreted below about 30 samples without
            noise, nor beyond what errors in common within frames cause, see ``uq/ence.py``.
        spearman: rank correlation of |error| and s, over labels; NaN where s is constant.
        spearman_vector: the same over atoms, of the length of the error vector of the force and the root of the sum
            of its three s²; NaN for other quantities.
    """

    group: str
    quantity: str
    species: int
    count: int
    frames: int
    unit: str
    rmse: Estimate
    sharpness: Estimate
    median_std: Estimate
    nll: Estimate
    crps: Estimate
    interval_score: Estimate
    coverage_50: Estimate
    coverage_80: Estimate
    coverage_95: Estimate
    zms: Estimate
    zms_honest: float
    ence: Estimate
    spearman: Estimate
    spearman_vector: Estimate


def calibration(
    key: Key,
    prediction: Prediction,
    data: Dataset,
    noise: Mapping[str, float] | None = None,
    quantities: Sequence[str] | None = None,
    resamples: int = 400,
) -> list[Calibration]:
    """Scores of predictions and of their uncertainties on held-out labels (host).

    One row for every quantity with labels, over all frames and for each group of them; forces also by species. The
    intervals come from drawing frames with replacement (percentiles), because labels of one frame are not independent;
    with fewer than about 20 frames they are too narrow. Those of the rank correlations are a first-order expansion
    about all labels (``rank_correlation``). ``zms_honest`` is NaN where some ν is 2 or less.

    Args:
        key: random key of the bootstrap.
        prediction: for the frames of ``data``.
        data: with labels that were not used for training.
        noise: standard deviation of the label noise by quantity, in its unit; default what the samples inferred.
        quantities: which of ``"energy"``, ``"forces"``, ``"stress"``; default all that have labels.
        resamples: replicates of the bootstrap.

    Raises:
        ValueError: as ``z_scores``; for ``resamples`` that are not positive.

    References: Gneiting and Raftery, *J. Am. Stat. Assoc.* 102, 359 (2007); Pernot, *J. Chem. Phys.* 156, 114109
    (2022).
    """
    if resamples < 1:
        raise ValueError(f"resamples must be positive. Got {resamples}. Use some hundreds.")
    if quantities is None:
        quantities = [q for q in QUANTITIES if np.asarray(getattr(data, f"has_{q}")).any()]
        unknown = [q for q in quantities if q not in (noise or {}) and q not in prediction.noise]
        if unknown:
            raise ValueError(
                f"The samples do not carry the noise of the labels {unknown}. Pass its standard deviation in noise="
                "{…: …}, 0.0 for exact labels, or leave the labels out with quantities=(…)."
            )
    numbers = seed(key)
    groups = [("all", np.ones(len(data), bool))]
    if len(data.group_names) > 1:
        groups += [(name, np.asarray(data.group) == g) for g, name in enumerate(data.group_names)]
    rows = []
    for quantity in quantities:
        compared = compare(prediction, data, quantity, (noise or {}).get(quantity))
        columns, scale = _columns(compared), student(compared)[0]
        element = _elements(data, quantity, compared)
        for name, frames in groups:
            chosen = frames[compared.frame]
            kinds = np.unique(element[chosen])
            for species in (0, *(kinds if len(kinds) > 1 else [])):
                part = chosen & (element == species) if species else chosen
                if part.any():
                    rng = np.random.default_rng([*numbers, len(rows)])
                    facts = name, quantity, int(species), int(part.sum())
                    rows.append(_row(rng, facts, compared, columns, scale, part, resamples))
    return rows


def _elements(data: Dataset, quantity: str, compared: Comparison) -> np.ndarray:
    """Atomic number of each label; zeros for what does not belong to one atom."""
    if quantity != "forces":
        return np.zeros(len(compared.error), int)
    species = np.broadcast_to(np.asarray(data.system.species)[..., None], compared.mask.shape)
    return species[compared.mask]


def _columns(compared: Comparison) -> np.ndarray:
    """What is averaged over labels, ``(n, 9)``."""
    scale, freedom = student(compared)
    z = compared.error / scale
    promised = 2.0 * stats.t.cdf(np.abs(z), freedom) - 1.0
    finite = np.where(freedom > 2, freedom, np.nan)
    columns = [compared.error**2, scale**2, np.log(scale) - log_density(z, freedom), scale * crps(z, freedom)]
    columns += [scale * interval_score(z, freedom, 0.95), *(promised <= level for level in LEVELS)]
    return np.stack([*columns, z**2, finite / (finite - 2)], 1).astype(float)


def _row(rng, facts, compared: Comparison, columns, scale, part: np.ndarray, resamples: int) -> Calibration:
    """Scores of the labels in ``part``."""
    group, quantity, species, count = facts
    frames, place = np.unique(compared.frame[part], return_inverse=True)
    weights = frame_weights(rng, len(frames), resamples)
    sums = frame_sums(np.concatenate([columns[part], np.ones((count, 1))], 1), place, len(frames))
    totals = weights @ sums
    square, variance, *scores, zms, honest = (totals[:, :-1] / totals[:, -1:]).T
    names = ("nll", "crps", "interval_score", "coverage_50", "coverage_80", "coverage_95")
    error, std = compared.error[part], scale[part]
    few = weights[: 1 + max(50, SORTED // count)]
    magnitude = np.full(1, np.nan)
    if quantity == "forces":
        length, of_atom = (np.sqrt((x.reshape(-1, 3) ** 2).sum(1)) for x in (error, std))
        magnitude = rank_correlation(length, of_atom, place[::3], weights)
    return Calibration(
        group=group,
        quantity=quantity,
        species=species,
        count=count,
        frames=len(frames),
        unit=QUANTITIES[quantity],
        rmse=estimate(np.sqrt(square)),
        sharpness=estimate(np.sqrt(variance)),
        median_std=estimate(median(std, place, few)),
        **{name: estimate(values) for name, values in zip(names, scores, strict=True)},
        zms=estimate(zms),
        zms_honest=float(honest[0]),
        ence=estimate(ence(error, std, place, weights)[0]),
        spearman=estimate(rank_correlation(np.abs(error), std, place, weights)),
        spearman_vector=estimate(magnitude),
    )


def compare_calibration(
    key: Key,
    sets: Mapping[str, tuple[Prediction, Dataset]],
    noise: Mapping[str, float] | None = None,
    quantities: Sequence[str] | None = None,
    resamples: int = 400,
) -> list[Calibration]:
    """Scores of several test sets, to be put side by side by ``calibration_report``: do uncertainties hold elsewhere?

    Calibration is a property of a posterior *and* of a test set. Uncertainties that are honest where the training data
    lie may be too small where they do not; a rank correlation that stays high says that they still point there.

    Args:
        key: random key of the bootstrap.
        sets: prediction and data by name, e.g. ``{"300 K": (…, …), "1200 K": (…, …)}``; the name becomes the group of
            the rows, groups inside the sets are ignored.
        noise, quantities, resamples: as in ``calibration``.

    Raises:
        ValueError: as ``calibration``.
    """
    rows = []
    for number, (name, (prediction, data)) in enumerate(sets.items()):
        whole = replace(data, group=np.zeros(len(data), np.int32), group_names=("all",))
        found = calibration(jax.random.fold_in(key, number), prediction, whole, noise, quantities, resamples)
        rows += [row._replace(group=name) for row in found]
    return rows


_LINES = {
    "rmse": "RMSE",
    "sharpness": "sharpness (RMS std)",
    "median_std": "median std",
    "nll": "NLL",
    "crps": "CRPS",
    "interval_score": "interval score 95 %",
    "coverage_50": "coverage of 50 %",
    "coverage_80": "coverage of 80 %",
    "coverage_95": "coverage of 95 %",
    "zms": "ZMS, ⟨z²⟩",
    "zms_honest": "  if honest",
    "ence": "ENCE",
    "spearman": "Spearman |error|, std",
    "spearman_vector": "  of force vectors",
}


def calibration_report(rows: list[Calibration], columns: int = 3) -> str:
    """Scores as text: a block for each quantity and species, groups side by side, ``columns`` of them at most.

    Every value has its 95 % bootstrap interval in brackets. Honest uncertainties have RMSE = sharpness, coverages as
    promised, ZMS as the line below it says, ENCE = 0 and a positive rank correlation.
    """
    blocks: dict[tuple[str, int], list[Calibration]] = {}
    for row in rows:
        blocks.setdefault((row.quantity, row.species), []).append(row)
    lines = []
    for members in blocks.values():
        for first in range(0, len(members), columns):
            lines += [*_block(members[first : first + columns]), ""]
    return "\n".join(lines[:-1])


def _block(rows: list[Calibration]) -> list[str]:
    name = rows[0].quantity
    if rows[0].species:
        from ase.data import chemical_symbols

        name += f" on {chemical_symbols[rows[0].species]}"
    lines = [f"{f'{name} [{rows[0].unit}]':<24}" + "".join(f"{row.group[:27]:>28}" for row in rows)]
    lines += [f"{'labels / frames':<24}" + "".join(f"{f'{row.count} / {row.frames}':>28}" for row in rows)]
    lines.append("-" * len(lines[0]))
    for field, label in _LINES.items():
        values = [getattr(row, field) for row in rows]
        if not all(np.isnan(v.value if isinstance(v, Estimate) else v) for v in values):
            lines.append(f"{label:<24}" + "".join(f"{_cell(v):>28}" for v in values))
    return lines


def _cell(value: Estimate | float) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.3g} [{value.lower:.3g}, {value.upper:.3g}]"
    return f"{value:.3g}"
