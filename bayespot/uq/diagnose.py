r"""Have the chains told all they could? Convergence of predictions and observables, with a verdict in plain language.

For every quantity: rank-normalised split R-hat, bulk and tail effective sample size, the Monte Carlo error of the
mean over the posterior's standard deviation, :math:`1/\sqrt{\mathrm{ESS}}` with the bulk's, and the
variance between chains over that within them,

.. math:: \frac{B}{W} = \frac{\operatorname{Var}_c(\bar y_c)}{\langle \operatorname{Var}_d(y_{cd}) \rangle_c} .

Independent draws give about 1/D of it (D draws per chain); chains that stay in modes of their own give more than 1,
and then only the number of chains counts.

Reference:
    Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16, 667 (2021).
"""

from collections.abc import Mapping

import numpy as np

from bayespot.inference.diagnostics import by_chain, ess, ess_tail, rhat
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import record
from bayespot.typing import Array, Float
from bayespot.uq.predict import Prediction

COMPONENTS = 1000
"""At most so many components of a quantity are looked at, evenly spread; force components are many and alike."""

TOLERATED = 1.2
"""Sampled variance over the posterior's, 10 % of the standard deviation, up to which nobody is told to act."""


@record(static=("quantity", "rhat", "ess_bulk", "ess_tail", "mcse", "between", "components"))
class Row:
    """Convergence of one quantity; worst values over its components.

    Attributes:
        quantity: its name.
        rhat: largest R-hat.
        ess_bulk, ess_tail: smallest effective sample sizes.
        mcse: largest Monte Carlo standard error of a mean, in posterior standard deviations.
        between: median over the components of the variance between chain means over that within chains.
        components: number of components looked at.
    """

    quantity: str
    rhat: float
    ess_bulk: float
    ess_tail: float
    mcse: float
    between: float
    components: int


@record(static=("rows", "chains", "draws", "verdict"))
class Diagnosis:
    """Rows by quantity, numbers of chains and of draws of each, and a verdict; prints as a table."""

    rows: tuple[Row, ...]
    chains: int
    draws: int
    verdict: str

    def __str__(self) -> str:
        head = f"{'quantity':<18}{'R-hat':>8}{'ESS bulk':>10}{'ESS tail':>10}{'MCSE/std':>10}{'between/within':>16}"
        lines = [f"{self.chains} chains of {self.draws} draws", head, "-" * len(head)]
        lines += [
            f"{r.quantity:<18}{r.rhat:>8.3f}{r.ess_bulk:>10.0f}{r.ess_tail:>10.0f}{r.mcse:>10.2f}{r.between:>16.2f}"
            for r in self.rows
        ]
        return "\n".join([*lines, self.verdict])


def diagnose(
    samples: PosteriorSamples,
    values: Prediction | Mapping[str, Float[Array, "S ..."]],
    level: float = 0.95,
    inflation: Float[np.ndarray, "k"] | None = None,
) -> Diagnosis:
    """Judge whether chains have converged, by what they predict.

    Args:
        samples: sound ones (``healthy``) of at least two chains, with equally many draws.
        values: a ``Prediction`` by these samples, or arrays with the leading axis of the samples by name, e.g.
            observables ``{"pressure": observed.value.mean(1)}``.
        level: of the interval that is meant to be read off; its ends need an effective sample size of 2/(1 − level).
        inflation: from ``variance_inflation`` for the sampler's step and minibatch. Chains that agree may all be too
            wide by the noise of minibatches, which no comparison of chains shows; the verdict then says by how much.

    Raises:
        ValueError: for fewer than two chains, fewer than eight draws of each, no values, or values that are not
            finite. A deep ensemble has one draw per chain: it has no convergence of this kind, see ``calibration``.

    Example:
        ``print(diagnose(samples, predict(potential, samples, held_out)))``
    """
    arrays = _arrays(values)
    rows = tuple(_row(name, samples, array) for name, array in arrays.items())
    if not rows:
        raise ValueError("diagnose needs at least one quantity that varies. Got none.")
    table = by_chain(samples, np.zeros(len(samples)))
    verdict = _verdict(rows, table.shape[0], level)
    if inflation is not None:
        verdict += " " + _bias(np.asarray(inflation))
    return Diagnosis(rows, table.shape[0], table.shape[1], verdict)


def _bias(inflation: np.ndarray) -> str:
    """A sentence on the worst direction; those without a spread to compare with are NaN."""
    if np.isnan(inflation).all():
        return "How much minibatches widen the posterior is not known: the point it was measured at is no mode."
    worst = float(np.nanmax(inflation))
    if worst <= TOLERATED:
        return f"Minibatches and step size make variances {worst:.2f} times the posterior's at most."
    return (
        f"But minibatches and step size make the variance along the worst direction {worst:.3g} times the posterior's. "
        "Take smaller steps (largest_step), larger minibatches, or control_variates."
    )


def _arrays(values: Prediction | Mapping) -> dict[str, np.ndarray]:
    if isinstance(values, Mapping):
        return {name: np.asarray(x, np.float64) for name, x in values.items()}
    members = {name: np.asarray(x, np.float64) for name, x in values.members.items()}
    if not np.isfinite(members["stress"]).all():  # frames with an open box have none
        members["stress"] = members["stress"][:, np.isfinite(members["stress"]).all((0, 2, 3))]
    return {name: x for name, x in members.items() if x.size}


def _row(name: str, samples: PosteriorSamples, array: np.ndarray) -> Row:
    flat = array.reshape(len(array), -1)
    if not np.isfinite(flat).all():
        raise ValueError(
            f"Values of {name} must be finite for every sample. Leave failed ones out with healthy(samples)."
        )
    moving = np.flatnonzero(np.ptp(flat, axis=0) > 0)  # padding does not move
    if not len(moving):
        raise ValueError(f"{name} has the same value for all samples: nothing to diagnose.")
    chosen = moving[np.unique(np.linspace(0, len(moving) - 1, COMPONENTS).astype(int))]
    flat = flat[:, chosen]
    bulk, tail, spread = (np.asarray(f(samples, flat)) for f in (ess, ess_tail, rhat))
    table = np.asarray(by_chain(samples, flat))
    within, apart = table.var(1, ddof=1).mean(0), table.mean(1).var(0, ddof=1)
    stuck = within <= 1e-12 * apart  # every chain at a value of its own: R-hat and ESS are not defined
    bulk, spread = np.where(stuck, table.shape[0], bulk), np.where(stuck, np.inf, spread)
    continuous = np.array([len(np.unique(column)) > 0.1 * len(column) for column in flat.T])
    tail = np.where(continuous & ~stuck, tail, bulk)  # a value that most draws share has no tail
    return Row(
        quantity=name,
        rhat=float(spread.max()),
        ess_bulk=float(bulk.min()),
        ess_tail=float(tail.min()),
        mcse=float(max(bulk.min(), 1.0) ** -0.5),
        between=float(np.median(np.divide(apart, within, out=np.full_like(within, np.inf), where=~stuck))),
        components=len(chosen),
    )


def _verdict(rows: tuple[Row, ...], chains: int, level: float) -> str:
    worst, least = max(rows, key=lambda r: r.rhat), min(rows, key=lambda r: min(r.ess_bulk, r.ess_tail))
    count, needed = min(least.ess_bulk, least.ess_tail), 2.0 / (1.0 - level)
    value = f"R-hat {worst.rhat:.3g} of {worst.quantity}"
    if np.isinf(worst.rhat):
        return (
            f"Chains do not move at all ({worst.quantity} is constant in each). Look at the acceptance of the sampler, "
            "and take smaller steps."
        )
    if worst.rhat > 1.1 and max(r.between for r in rows) > 1.0:
        return (
            f"The chains stay apart ({value}): each explores a place of its own; only the spread between them counts, "
            f"of {chains} independent pieces of information. Use more chains, or treat them as an ensemble."
        )
    if worst.rhat > 1.1:
        return (
            f"Do not use these draws yet: the chains disagree ({value}). "
            "Run longer, lengthen the burn-in, or take larger steps."
        )
    if count < needed:
        return (
            f"The chains agree, but {count:.0f} effective draws of {least.quantity} are too few for the ends of a "
            f"{level:.4g} interval (about {needed:.0f}). Run longer, or read off a lower level."
        )
    if worst.rhat > 1.01:
        return f"Usable with care ({value}, above 1.01): means are known better than the ends of intervals."
    return f"No sign of trouble: the chains agree, and every quantity has at least {count:.0f} effective draws."
