r"""Do intervals of observables contain the truth as often as they promise? A study with many data sets of a teacher.

A single interval either contains the teacher's value or not. Over independent data sets, each with a posterior and
simulations of its own, the share that does should be the promised probability, at every level. That speaks for the
whole road, from noisy labels over the sampler to the simulations and what the interval makes of their noise.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bayespot.observables.observable import Observable, observe
from bayespot.potentials.potential import Potential
from bayespot.records.interval import Observed
from bayespot.records.posterior import PosteriorSamples, concatenate
from bayespot.records.system import System
from bayespot.simulation.ensemble import Ensemble
from bayespot.simulation.simulate import propagate
from bayespot.tree import take
from bayespot.typing import Array, Float, Key
from bayespot.uq.calibration import Reliability
from bayespot.uq.intervals import interval

LEVELS = (0.5, 0.8, 0.9, 0.95)


class CoverageStudy(NamedTuple):
    """How often intervals contained the truth; ``print`` shows a table, ``plot_reliability(study.curves)`` the curves.

    Attributes:
        curves: promised against observed probability, one for each observable, over all data sets and points.
        inside: by observable, whether the truth lies inside, ``(D, L, n)`` for ``n`` points that count.
        parametric: by observable, the parametric share of the variance of an interval, the median of all points.
        resolved: by observable, the share of the points whose parametric spread stands out of the sampling noise.
        dropped: number of the samples whose simulation failed, of all data sets.
    """

    curves: list[Reliability]
    inside: dict[str, np.ndarray]
    parametric: dict[str, float]
    resolved: dict[str, float]
    dropped: int

    def __str__(self) -> str:
        levels = np.asarray(self.curves[0].level)
        head = f"{'observable':<22}{'points':>7}" + "".join(f"{f'{100 * p:.0f} %':>13}" for p in levels)
        rows = [head + f"{'<z²>':>8}{'parametric':>12}{'resolved':>10}"]
        for c in self.curves:
            shares = "".join(
                f"{f'{100 * o:.1f} ± {100 * e:.1f}':>13}"
                for o, e in zip(np.asarray(c.observed), np.asarray(c.error), strict=True)
            )
            told = f"{float(c.zms):>8.2f}{100 * self.parametric[c.quantity]:>10.0f} %"
            rows.append(f"{c.quantity:<22}{c.count:>7}{shares}{told}{100 * self.resolved[c.quantity]:>8.0f} %")
        sets = len(next(iter(self.inside.values())))
        lost = f"; {self.dropped} samples whose simulation failed were left out" if self.dropped else ""
        return "\n".join([*rows, f"{sets} data sets; errors from the differences between these{lost}"])


def coverage_study(
    key: Key,
    potential: Potential,
    posteriors: Sequence[PosteriorSamples],
    start: System,
    ensemble: Ensemble,
    observables: Mapping[str, Observable],
    truth: Mapping[str, Float[Array, "*shape"]],
    *,
    steps: int,
    every: int = 100,
    replicas: int = 1,
    equilibration: int = 0,
    levels: Sequence[float] = LEVELS,
    batch_size: int | None = None,
    checkpoint: str | None = None,
    progress: bool = True,
) -> CoverageStudy:
    """Simulate with the posteriors of independent data sets, and count how often intervals contain the truth.

    All samples of all posteriors are simulated in one ``propagate``. Each posterior then gets intervals of its own, at
    every level. Samples whose simulation fails are left out of them and counted.

    Args:
        posteriors: one for each of ``D`` data sets, all for ``potential``, with sound samples. The data sets must be
            independent and differ in nothing but chance.
        observables: by name.
        truth: value of each observable, from runs of the teacher at the same conditions that are so long that their
            own error does not matter; NaN marks points that shall not count, e.g. empty bins of an RDF.
        levels: probability contents of the intervals.
        key, potential, start, ensemble, steps, every, replicas, equilibration, batch_size, checkpoint, progress: as in
            ``propagate``.

    Raises:
        ValueError: for fewer than two posteriors, or names or shapes of ``truth`` that are not those of the
            observables.
    """
    if len(posteriors) < 2 or set(truth) != set(observables):
        raise ValueError(
            "Need posteriors of at least two data sets, and a true value of every observable. "
            f"Got {len(posteriors)}, {sorted(observables)} and {sorted(truth)}."
        )
    samples = concatenate(list(posteriors))
    runs = propagate(
        key, potential, samples, start, ensemble, steps=steps, every=every, replicas=replicas,
        equilibration=equilibration, batch_size=batch_size, checkpoint=checkpoint, throw=False, progress=progress,
    )  # fmt: skip
    found = {
        n: _counted(n, _by_set(observe(o, runs, samples=samples), posteriors), truth[n], tuple(levels))
        for n, o in observables.items()
    }
    curves, inside, parametric, resolved = (dict(zip(found, x, strict=True)) for x in zip(*found.values(), strict=True))
    failed = int((np.asarray(runs.status) != 0).any(1).sum())
    return CoverageStudy(list(curves.values()), inside, parametric, resolved, failed)


def _least_error(share: np.ndarray) -> np.ndarray:
    """Standard error of the share of data sets that are covered, which is not zero where all of ``D`` are."""
    number = len(share)
    rate = (share.sum(0) + 1) / (number + 2)
    return np.where((share == share[0]).all(0), np.sqrt(rate * (1 - rate) / number), 0.0)


def _by_set(observed: Observed, posteriors: Sequence[PosteriorSamples]) -> list[Observed]:
    """The values of each posterior's samples."""
    ends = np.cumsum([0, *(len(p) for p in posteriors)])
    return [take(observed, np.arange(a, b)) for a, b in pairwise(ends)]


def _counted(
    name: str, observed: list[Observed], truth: Array, levels: tuple[float, ...]
) -> tuple[Reliability, np.ndarray, float, float]:
    """Curve, what lay inside, and the parametric share and resolved share of one observable."""
    true = np.asarray(truth, np.float64)
    if (shape := observed[0].value.shape[2:]) != true.shape:
        raise ValueError(f"The true {name} must have the shape {shape}. Got {true.shape}.")
    if not (counts := np.isfinite(true)).any():
        raise ValueError(f"At least one point of the true {name} must be finite. Got none.")
    kinds = [interval(o, max(levels), failed="drop").kind for o in observed]  # one kind along a curve
    intervals = [
        [interval(o, level, kind, failed="drop") for level in levels] for o, kind in zip(observed, kinds, strict=True)
    ]
    inside = np.array([[np.asarray(i.covers(true))[counts] for i in row] for row in intervals])
    one = [row[0] for row in intervals]
    mean, model, sampling = (
        np.stack([np.asarray(getattr(i, field), np.float64)[counts] for i in one])
        for field in ("mean", "std_model", "std_sampling")
    )
    z2 = (true[counts] - mean) ** 2 / np.maximum(model**2 + sampling**2, np.finfo(float).tiny)
    share = inside.mean(2)  # of each data set, (D, L)
    curve = Reliability(
        level=np.asarray(levels),
        observed=share.mean(0),
        error=np.maximum(share.std(0, ddof=1) / np.sqrt(len(share)), _least_error(share)),
        zms=np.asarray(z2.mean()),
        quantity=name,
        count=inside[:, 0].size,
    )
    parametric = float(np.median(model**2 / np.maximum(model**2 + sampling**2, np.finfo(float).tiny)))
    return curve, inside, parametric, float(np.mean([np.asarray(i.resolved)[counts].mean() for i in one]))
