r"""What limits an interval: the data that the posterior has seen, or the length of the simulations.

The error of a posterior mean as a statement on the true material has the parts

.. math:: \sigma^2 = \sigma_\mathrm{model}^2 + \sigma_\mathrm{sampling}^2 ,

of which more data shrink the first and longer runs the second, which falls as one over the square root of their length.
Neither holds what all samples have in common, such as a wrong functional or a missing interaction.
"""

from typing import NamedTuple

import numpy as np

from bayespot.records.interval import Interval


class ErrorBudget(NamedTuple):
    """The parts of an interval's error, each in the shape ``(...)`` of its mean and in its unit.

    Attributes:
        name, unit: of the observable.
        coordinate: abscissa of the last axis, or ``(0,)``.
        parametric: standard deviation between posterior samples.
        sampling: standard error from the finite length of the simulations.
        total: of both.
        resolved: whether the parametric part is told apart from sampling noise.
        longer: factor by which the runs must be longer for the sampling part to be a third of the parametric one (it
            then makes 5 % of the total); 1 where it is, inf where the parametric part is zero.
    """

    name: str
    unit: str
    coordinate: np.ndarray
    parametric: np.ndarray
    sampling: np.ndarray
    total: np.ndarray
    resolved: np.ndarray
    longer: np.ndarray

    def __str__(self) -> str:
        return budget_table([self])


def error_budget(interval: Interval) -> ErrorBudget:
    """How much of an interval's error is parametric and how much sampling, and what would shrink it.

    ``print`` shows a table; of a curve every so-manieth point.
    """
    model, sampling = (np.asarray(x, np.float64) for x in (interval.std_model, interval.std_sampling))
    ratio = np.divide(3 * sampling, model, out=np.full(model.shape, np.inf), where=model > 0)
    ratio = np.where((model == 0) & (sampling == 0), 1.0, ratio)  # a constant
    return ErrorBudget(
        name=interval.name,
        unit=interval.unit,
        coordinate=np.asarray(interval.coordinate),
        parametric=model,
        sampling=sampling,
        total=np.hypot(model, sampling),
        resolved=np.asarray(interval.resolved),
        longer=np.maximum(ratio**2, 1.0),
    )


def budget_table(budgets: list[ErrorBudget], limit: int = 12) -> str:
    """Budgets as an aligned text table; of a curve every so-manieth of its points, ``limit`` at most."""
    head = f"{'observable':<26}{'total':>12}{'parametric':>12}{'sampling':>12}{'of variance':>13}  smaller by"
    lines = [head, "-" * (len(head) + 14)]
    for budget in budgets:
        columns = [
            np.ravel(x) for x in (budget.total, budget.parametric, budget.sampling, budget.resolved, budget.longer)
        ]
        stride = max(1, -(-len(columns[0]) // limit))
        for k in range(stride // 2, len(columns[0]), stride):
            total, model, sampling, resolved, longer = (c[k] for c in columns)
            place = f"({budget.coordinate[k]:.4g})" if len(budget.coordinate) else f"[{k}]"
            label = budget.name + (place if len(columns[0]) > 1 else "") + (f" [{budget.unit}]" if budget.unit else "")
            share = sampling**2 / total**2 if total > 0 else 0.0
            advice = _advice(total, share, bool(resolved), longer)
            lines.append(f"{label:<26}{total:>12.3g}{model:>12.3g}{sampling:>12.3g}{share:>13.0%}  {advice}")
    return "\n".join(lines)


def _advice(total: float, share: float, resolved: bool, longer: float) -> str:
    if total == 0:
        return "(constant)"
    if not resolved:
        return "longer runs: the parametric part is hidden"
    if longer <= 1:
        return "more data"
    return f"{'longer runs' if share > 0.5 else 'more data, or longer runs'} ({longer:.2g} times)"
