"""A credible interval, and the observed values that it is made from."""

from collections.abc import Mapping

import numpy as np

from bayespot.tree import record
from bayespot.typing import Array, Bool, Float, Int


@record(static=("name", "unit", "axis"))
class Observed:
    """Values of one observable for every posterior sample.

    Attributes:
        value: averages over each run, ``(S, R, ...)``.
        blocks: averages over ``B`` consecutive parts of each run, of time origins where frames are correlated,
            ``(S, R, B, ...)``; their spread tells the sampling error, also of a single replica.
        coordinate: abscissa of the last axis, e.g. the distances of an RDF ``(S, n)``, or ``(S, 0)`` for a scalar.
        status: of the runs, ``(S, R)``.
        log_weight: of the posterior samples, ``(S,)``.
        chain: that each sample comes from, ``(S,)``.
        name, unit: of the observable.
        axis: name and unit of the abscissa.
        shared: of samples that were reweighted, how far the blocks of the frames that they share deviate, ``L`` blocks
            of each of ``J`` references, ``(S, J, L, ...)``; the covariance of the sampling errors of two samples is the
            sum over the :math:`K = JL` blocks of the products, over :math:`K(K-1)`. ``value`` and ``blocks`` then are
            alike in all runs. Zero for a sample with runs of its own; ``None`` where no sample shares frames.
    """

    value: Float[Array, "S R *shape"]
    blocks: Float[Array, "S R B *shape"]
    coordinate: Float[Array, "S n"]
    status: Int[Array, "S R"]
    log_weight: Float[Array, "S"]
    chain: Int[Array, "S"]
    name: str
    unit: str
    axis: str
    shared: Float[Array, "S J L *shape"] | None = None


@record(static=("level", "kind", "samples", "sampling", "dropped", "name", "unit", "axis"))
class Interval:
    """Credible interval of an observable's true ensemble average.

    Attributes:
        mean: posterior mean, any shape ``(...)``.
        lower, upper: ends of the interval, ``(...)``.
        std_model: parametric standard deviation between posterior samples, sampling variance subtracted, ``(...)``.
        std_sampling: standard error of ``mean`` from the finite length of the simulations, ``(...)``.
        resolved: where the samples differ by significantly more (F-test, 5 %) than sampling noise makes them differ;
            elsewhere ``std_model`` is not known and longer runs are needed, ``(...)``.
        coordinate: abscissa ``(n,)`` of the last axis, or ``(0,)``.
        level: probability content, e.g. 0.95.
        kind: how ``lower`` and ``upper`` were formed: ``"equal_tailed"``, ``"highest_density"`` or ``"student_t"``.
        samples: number of posterior samples used.
        sampling: where the sampling error was taken from: ``"replicas"``, ``"blocks"``, ``"replicas and blocks"``,
            ``"shared frames"``, or the last with one of the others.
        dropped: numbers of the failed samples that were left out on request.
        name, unit, axis: of the observable.
    """

    mean: Float[Array, "*shape"]
    lower: Float[Array, "*shape"]
    upper: Float[Array, "*shape"]
    std_model: Float[Array, "*shape"]
    std_sampling: Float[Array, "*shape"]
    resolved: Bool[Array, "*shape"]
    coordinate: Float[Array, "n"]
    level: float
    kind: str
    samples: int
    sampling: str
    dropped: tuple[int, ...]
    name: str
    unit: str
    axis: str

    def __str__(self) -> str:
        return table([self])

    @property
    def surviving(self) -> float:
        """Share of the samples that did not fail; when the others did is in ``Trajectory.valid_until``."""
        return self.samples / (self.samples + len(self.dropped))

    def covers(self, truth) -> np.ndarray:
        """Whether the interval contains ``truth``, elementwise."""
        truth = np.asarray(truth)
        return np.asarray((np.asarray(self.lower) <= truth) & (truth <= np.asarray(self.upper)))


def table(intervals: list[Interval], limit: int = 12, truth: Mapping[str, Array] | None = None) -> str:
    """Intervals as an aligned text table; of a curve every so-manieth of its points, ``limit`` at most.

    A star marks a ``std_model`` that is not resolved from the sampling noise. ``truth`` holds known values by the name
    of the interval, shaped like its mean; they make a last column.
    """
    head = f"{'observable':<26}{'mean':>12}{'lower':>12}{'upper':>12}{'std_model':>12} {'std_sampling':>13}"
    head += f"{'truth':>12}" if truth else ""
    lines = [head, "-" * len(head)]
    starred = False
    for it in intervals:
        fields = (it.mean, it.lower, it.upper, it.std_model, it.std_sampling, it.resolved)
        columns = [np.ravel(np.asarray(x)) for x in fields]
        where = np.ravel(np.asarray(it.coordinate))
        stride = max(1, -(-len(columns[0]) // limit))
        known = np.ravel(np.asarray(truth[it.name])) if truth and it.name in truth else None
        for k in range(stride // 2, len(columns[0]), stride):
            place = f"({where[k]:.4g})" if len(where) else f"[{k}]"
            label = it.name if len(columns[0]) == 1 else it.name + place
            unit = f" [{it.unit}]" if it.unit else ""
            mean, lower, upper, model, sampling, resolved = (c[k] for c in columns)
            star = " " if resolved else "*"
            starred |= not resolved
            ends = f"{mean:>12.5g}{lower:>12.5g}{upper:>12.5g}"
            true = "" if known is None else f"{known[k]:>12.5g}"
            lines.append(f"{label + unit:<26}{ends}{model:>12.3g}{star}{sampling:>13.3g}{true}")
    notes = dict.fromkeys((i.level, i.kind, i.samples, i.sampling) for i in intervals)
    lines += [
        f"{p:.0%} credible, {kind}, {n} posterior samples, sampling from {source}" for p, kind, n, source in notes
    ]
    if dropped := sorted({d for it in intervals for d in it.dropped}):
        lines.append(f"dropped as failed: samples {', '.join(map(str, dropped))}")
    if starred:
        lines.append("* not resolved from sampling noise: longer runs or more replicas are needed")
    return "\n".join(lines)
