r"""Recalibration: one factor on the distance of every draw from the posterior mean, found on held-out labels.

.. math:: E_s \to \bar E + \alpha\,(E_s - \bar E), \qquad \bar E = \sum_t w_t E_t

Forces and stresses follow by differentiation, so each recalibrated draw is a potential of its own and simulations with
it carry the calibrated spread. The posterior mean stays what it was.
"""

import json
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from bayespot.errors import FailedSamples, Status, listed
from bayespot.potentials.combination import combination
from bayespot.potentials.potential import Potential
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples, check_spec, weights
from bayespot.tree import replace
from bayespot.typing import Key
from bayespot.uq.calibration import Comparison, compare, student
from bayespot.uq.predict import Prediction
from bayespot.uq.proper_scores import log_density
from bayespot.uq.resampling import estimate, frame_sums, frame_weights, seed

RESAMPLES = 400
STEP = 0.25 * np.log(2)
LOG_ALPHA = STEP * np.arange(-20, 21)
"""Where curves over ln α are computed: α from 1/32 to 32."""


class Recalibration(NamedTuple):
    """A factor for the distance of the draws from their mean.

    Attributes:
        alpha: the factor; above 1 for uncertainties that are too small.
        lower, upper: 95 % bootstrap interval over frames.
        clipped: whether ``alpha`` lies at the end of what is allowed: 0 where the label noise alone explains more than
            the errors, or for ``"moments"`` the error of the mean does; 1/32 or 32.
        kind: how it was found.
        quantity: whose labels were used.
        count, frames: number of labels, and of the frames that they come from.
    """

    alpha: float
    lower: float
    upper: float
    clipped: bool
    kind: str
    quantity: str
    count: int
    frames: int


def recalibration_factor(
    key: Key,
    prediction: Prediction,
    held_out: Dataset,
    quantity: str,
    noise: float | None = None,
    kind: str = "likelihood",
    level: float = 0.95,
) -> Recalibration:
    r"""The factor α that makes the uncertainties fit held-out labels (host).

    The predictive distribution of a label is Student's t of ``z_scores`` with the spread of the draws scaled,
    :math:`s^2 = \alpha^2\sigma^2_\mathrm{epistemic}(1 + 1/S) + \sigma^2_\mathrm{noise}`. Only the spread is scaled, not
    the noise: where the noise prevails, α is poorly known, and its interval says so. There are three ways:

    - ``"likelihood"`` maximises the sum of the log densities of the labels; that labels of one frame are dependent does
      not bias it.
    - ``"coverage"`` makes the central intervals of probability ``level`` hold that share of the labels, robust against
      a few large errors.
    - ``"moments"``: :math:`\alpha^2 = -\frac1S + \frac{S-3}{S-1}\langle(e^2 - \sigma^2_\mathrm{noise})/
      \sigma^2_\mathrm{epistemic}\rangle` with the errors *e*, the closed form of Imbalzano et al. with the noise taken
      out. Its expectation is 1 where labels and draws are exchangeable. It counts most where the spread is smallest
      beside the noise. It takes the error of the mean, σ²/S, as unscaled, so it differs from the others by a share 1/S
      of α² − 1, and comes out negative where their α² is below 1/(S + 1).

    Args:
        key: random key of the bootstrap.
        prediction: for the frames of ``held_out``.
        held_out: labels used neither for training nor, later, for judging the result.
        quantity: ``"energy"`` (per atom), ``"forces"`` or ``"stress"``. All move with the same α; for simulations
            forces matter.
        noise: standard deviation of the label noise, as in ``z_scores``.
        kind: ``"likelihood"``, ``"coverage"`` or ``"moments"``.
        level: for ``"coverage"``.

    Raises:
        ValueError: as ``z_scores``, for unknown arguments, or with ``"moments"`` for three or fewer effective samples
            or draws that do not differ.

    Warns:
        RuntimeWarning: when the factor is clipped.

    Reference: Imbalzano, Zhuang, Kapil, Rossi, Engel, Grasselli and Ceriotti, *J. Chem. Phys.* 154, 074102 (2021).
    """
    if kind not in _KINDS or not 0 < level < 1:
        raise ValueError(f"Need kind from {sorted(_KINDS)} and 0 < level < 1. Got {kind!r}, {level}.")
    compared = compare(prediction, held_out, quantity, noise)
    frames, place = np.unique(compared.frame, return_inverse=True)
    draws = frame_weights(np.random.default_rng(seed(key)), len(frames), RESAMPLES)
    alpha, clipped = _KINDS[kind](compared, place, draws, level)
    found = estimate(alpha)
    if clipped:
        warnings.warn(
            f"The recalibration factor was clipped to {found.value:.3g}: {clipped}.", RuntimeWarning, stacklevel=2
        )
    return Recalibration(*found, bool(clipped), kind, quantity, len(compared.error), len(frames))


def _curve(compared: Comparison, place: np.ndarray, draws: np.ndarray, of_label) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ``of_label(z, scale, ν)`` under every row of weights, ``(R, 41)`` over ln α, and for α = 0 ``(R,)``.

    Without noise nothing is left at α = 0, and the second is NaN.
    """

    def at(alpha: float) -> np.ndarray:
        scale, freedom = student(compared, alpha)
        return of_label(compared.error / scale, scale, freedom)

    columns = np.stack([at(a) for a in np.exp(LOG_ALPHA)], 1)
    nothing = at(0.0) if (compared.noise > 0).all() else np.full(len(place), np.nan)
    sums = frame_sums(np.column_stack([columns, nothing]), place, draws.shape[1])
    totals = draws @ sums
    return totals[:, :-1], totals[:, -1]


NOISE, BEYOND = "the noise alone explains more than the errors", "the best lies beyond"
"""Why a factor is clipped."""


def _likelihood(compared: Comparison, place: np.ndarray, draws: np.ndarray, level: float) -> tuple[np.ndarray, str]:
    """α of largest likelihood: a parabola through the best three points, shifted to the true optimum of all labels."""

    def loss(z, scale, freedom):
        return np.log(scale) - log_density(z, freedom)

    def total(x: float) -> float:
        scale, freedom = student(compared, np.exp(x))
        return loss(compared.error / scale, scale, freedom).sum()

    curve, nothing = _curve(compared, place, draws, loss)
    best = curve.argmin(1)
    inner = np.clip(best, 1, len(LOG_ALPHA) - 2)
    left, middle, right = (np.take_along_axis(curve, (inner + k)[:, None], 1)[:, 0] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend > 0)
    x = np.where(best == inner, LOG_ALPHA[inner] + STEP * np.clip(offset, -1, 1), LOG_ALPHA[best])
    if best[0] == inner[0]:
        ends = LOG_ALPHA[inner[0] - 1], LOG_ALPHA[inner[0] + 1]
        x += optimize.fminbound(total, *ends, xtol=1e-7) - x[0]
    zero = nothing <= curve.min(1)
    return np.where(zero, 0.0, np.exp(x)), NOISE if zero[0] else BEYOND if best[0] != inner[0] else ""


def _coverage(compared: Comparison, place: np.ndarray, draws: np.ndarray, level: float) -> tuple[np.ndarray, str]:
    """α at which the share of labels inside, which grows with it, crosses the level."""

    def inside(z, scale, freedom):
        return (2 * stats.t.cdf(np.abs(z), freedom) - 1 <= level).astype(float)

    def excess(x: float) -> float:
        scale, freedom = student(compared, np.exp(x))
        return inside(compared.error / scale, scale, freedom).mean() - level

    curve, nothing = _curve(compared, place, draws, inside)
    number = draws @ np.bincount(place, minlength=draws.shape[1])
    x = np.array([np.interp(level, row, LOG_ALPHA) for row in curve / number[:, None]])
    beyond = not curve[0, 0] < level * number[0] <= curve[0, -1]
    if not beyond:
        low, high = LOG_ALPHA[0], LOG_ALPHA[-1]
        for _ in range(30):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if excess(middle) >= 0 else (middle, high)
        x += high - x[0]
    zero = nothing >= level * number
    return np.where(zero, 0.0, np.exp(x)), NOISE if zero[0] else BEYOND if beyond else ""


def _moments(compared: Comparison, place: np.ndarray, draws: np.ndarray, level: float) -> tuple[np.ndarray, str]:
    """The closed form of Imbalzano et al., not below zero."""
    s = compared.samples
    spread = compared.spread / (1 + 1 / s)
    if s <= 3 or not (spread > 0).all():
        raise ValueError(
            f"kind='moments' needs more than three effective samples that differ for every label. Got {s:.3g}, and "
            f"{int((spread == 0).sum())} labels without spread. Use kind='likelihood'."
        )
    ratio = (compared.error**2 - compared.noise) / spread
    sums = frame_sums(np.stack([ratio, np.ones(len(ratio))], 1), place, draws.shape[1])
    total, number = (draws @ sums).T
    square = -1 / s + (s - 3) / (s - 1) * total / number
    found = np.sqrt(np.maximum(square, 0.0))
    if square[0] >= 0:
        return found, ""
    mean = f"the spread over {s:.3g}, taken for the error of their mean, exceeds the errors; use kind='likelihood'"
    return found, NOISE if total[0] <= 0 else mean


_KINDS = {"likelihood": _likelihood, "coverage": _coverage, "moments": _moments}


def recalibrate(potential: Potential, samples: PosteriorSamples, alpha: float) -> tuple[Potential, PosteriorSamples]:
    r"""Posterior samples whose distance from the posterior mean is scaled, and the potential that they belong to.

    The energy of the new sample *s* is :math:`\bar E + \alpha(E_s - \bar E) = \sum_t c_{st} E_t` with
    :math:`c_{st} = (1-\alpha)\,w_t + \alpha\,\delta_{st}`, a ``combination`` of all old ones; forces and stresses are
    its derivatives. Means stay, spreads are multiplied by α; weights, noise scales and all records of the sampling stay
    too.

    **Cost.** Every evaluation of one sample is an evaluation of all S: a time step costs up to S times one of the old
    samples (less where a part that does not depend on the parameters, such as a descriptor, prevails), a simulation
    with all samples up to S² times one with a single old one. A sample must hold the parameters of all, because
    parameters are arguments of compiled code. In the memory of the host all are held once (arrays of stride zero), in a
    file that ``save`` writes, and on the device in ``propagate`` and ``calculator``, S times, which makes S² models. So
    thin a long chain before, and keep the old samples and α rather than the new ones.

    To change the factor, start from the old samples again rather than from recalibrated ones, which would work but cost
    S² models per evaluation.

    Args:
        potential: of the samples.
        samples: at least two, all sound (``healthy``).
        alpha: factor, e.g. ``recalibration_factor(…).alpha``; 0 gives every sample the posterior mean.

    Returns:
        The new potential and samples, for ``predict``, ``propagate``, ``save`` and the rest.

    Raises:
        FailedSamples: when a sample's status is not OK: all would share its failure.
        ValueError: for fewer than two samples, samples of another potential, or a factor that is negative or not
            finite.
    """
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be 0 or positive, and finite. Got {alpha}.")
    check_spec(samples, potential.spec)
    if bad := tuple(np.flatnonzero(np.asarray(samples.status) != Status.OK).tolist()):
        raise FailedSamples(
            f"{len(bad)} of {len(samples)} samples failed ({listed(bad)}), and every recalibrated one would contain "
            "them. Recalibrate healthy(samples).",
            bad,
        )
    number = len(samples)
    if number < 2:
        raise ValueError(f"A spread needs at least two posterior samples. Got {number}.")
    weight = np.asarray(weights(samples))
    coefficient = (1 - alpha) * weight.astype(float) + alpha * np.eye(number)
    own = samples.params["potential"]
    shared = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (number, *x.shape)), own)
    new = combination(potential, number)
    params = {"members": shared, "coefficient": jnp.asarray(coefficient, weight.dtype)}
    return new, replace(samples, params={**samples.params, "potential": params}, spec=json.dumps(new.spec))


def recalibrate_prediction(prediction: Prediction, alpha: float) -> Prediction:
    """What ``predict`` would give for the recalibrated samples, without evaluating them.

    Args:
        prediction: of the old samples.
        alpha: factor on the distance of every sample's prediction from the mean; the noise stays.

    Raises:
        ValueError: for a factor that is negative or not finite.
    """
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be 0 or positive, and finite. Got {alpha}.")
    names = ("energy", "forces", "stress")
    scaled = {f"{n}_uncertainty": alpha * getattr(prediction, f"{n}_uncertainty") for n in names}
    means = {n: getattr(prediction, n) for n in names}
    members = {n: means[n] + alpha * (x - means[n]) for n, x in prediction.members.items()}
    return replace(prediction, members=members, **scaled)
