r"""Weights of simulated frames for other potentials than the one that drove them, and whether they carry an average.

Frames :math:`x_n` of :math:`J` references, :math:`T_j` of each, are a sample of the mixture of their Boltzmann
distributions; for the potential :math:`U_s`, at the same temperature and in the same box,

.. math:: w_{sn} \propto \frac{e^{-U_s(x_n)/kT}}{\sum_j T_j\, e^{(F_j - U_j(x_n))/kT}}, \qquad \sum_n w_{sn} = 1 .

With one reference that is :math:`e^{-(U_s - U_1)/kT}`. Momenta have the same distribution for all and drop out.
Everything here runs on the host in float64; all energies may be shifted by any function of the frame.

References:
    Shirts and Chodera, *J. Chem. Phys.* 129, 124105 (2008), eqs. 9 and 11.
    Vehtari, Simpson, Gelman, Yao and Gabry, *J. Mach. Learn. Res.* 25, 72 (2024), for Pareto's k.
"""

import numpy as np
from scipy import optimize, special

from bayespot.typing import Array, Float

KINDS = ("full", "first_order")


def mbar(energies: Float[Array, "J n"], counts, kT: float) -> Float[np.ndarray, "J"]:
    r"""Free energies of several potentials from frames of all of them [eV], relative to the first.

    .. math:: e^{-F_i/kT} = \sum_n \frac{e^{-U_i(x_n)/kT}}{\sum_j T_j\, e^{(F_j - U_j(x_n))/kT}}

    For two potentials this is ``bar``. The equations are the gradient of a convex function, which is minimised.

    ====================  ===============================
    symbol                argument
    ====================  ===============================
    :math:`U_i(x_n)`      ``energies[i, n]`` [eV]
    :math:`T_j`           ``counts[j]``
    :math:`kT`            ``kT`` [eV]
    ====================  ===============================

    Args:
        energies: of every frame in every potential; whose frame it is does not matter.
        counts: number of frames of each potential; zero for one that was not simulated.
        kT: temperature of all [eV].

    Raises:
        ValueError: for shapes that do not fit, energies that are not finite, or kT that is not positive.

    Reference: Shirts and Chodera, *J. Chem. Phys.* 129, 124105 (2008), eq. 11.
    """
    u, counts = np.asarray(energies, np.float64), np.asarray(counts)
    if not kT > 0 or u.ndim != 2 or counts.shape != u.shape[:1] or counts.sum() != u.shape[1]:
        raise ValueError(
            "mbar needs kT > 0, energies (J, n) and J numbers of frames that add up to n. "
            f"Got kT={kT}, energies {u.shape}, counts {counts.tolist()}."
        )
    if not np.isfinite(u).all():
        raise ValueError(
            f"Energies must be finite. Got {(~np.isfinite(u)).sum()} that are not. Leave these frames out."
        )
    return kT * _reduced_free_energies(-u / kT, counts)


def _reduced_free_energies(log_boltzmann: np.ndarray, counts: np.ndarray, start=None) -> np.ndarray:
    """Free energies in units of kT, relative to the first; ``log_boltzmann`` holds −U/kT, ``(J, n)``."""
    simulated = np.flatnonzero(counts)
    own = log_boltzmann[simulated] + np.log(counts[simulated] / counts.sum())[:, None]
    share = counts[simulated] / counts.sum()

    def objective(rest):  # adding a number to all free energies changes nothing: the first stays at 0
        joint = np.concatenate([[0.0], rest])[:, None] + own
        mixture = _log_sum(joint, 0)
        probability = np.exp(joint[1:] - mixture)
        return mixture.mean() - share[1:] @ rest, probability.mean(1) - share[1:], probability

    def curvature(rest):
        probability = objective(rest)[2]
        return np.diag(probability.mean(1)) - probability @ probability.T / own.shape[1]

    guess = -_log_sum(log_boltzmann, 1) if start is None else start
    rest = (guess - guess[simulated[0]])[simulated[1:]]
    if len(rest):
        rest = optimize.minimize(
            lambda rest: objective(rest)[:2], rest, jac=True, hess=curvature, method="trust-exact",
            options={"gtol": 1e-10, "maxiter": 1000},
        ).x  # fmt: skip
    mixture = _log_sum(np.concatenate([[0.0], rest])[:, None] + own, 0)
    free = -_log_sum(log_boltzmann - mixture, 1)
    return free - free[0]


def log_mixture(
    reference: Float[np.ndarray, "J n"], origin: np.ndarray, start: Float[np.ndarray, "J"] | None = None
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "J"]]:
    """Log density of every frame in the mixture of all frames, up to a constant, and the free energies [kT].

    Args:
        reference: :math:`-U_j(x_n)/kT` of every frame in every reference potential.
        origin: number of the reference that drove each frame, ``(n,)``.
        start: free energies of nearly the same frames, to begin with.
    """
    if len(reference) == 1:
        return reference[0], np.zeros(1)
    counts = np.bincount(origin, minlength=len(reference))
    free = _reduced_free_energies(reference, counts, start)
    with np.errstate(divide="ignore"):  # a reference without frames counts as nothing
        return _log_sum(reference + (free + np.log(counts))[:, None], 0), free


def _log_sum(logs: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(special.logsumexp(logs, axis=axis))


def weigh(log_ratio: Float[Array, "*#S n"], kind: str) -> Float[Array, "*#S n"]:
    """Weights from logs of density ratios, on the host or traced: exponential ones, or those of the first order.

    Frames with the log −inf are left out.
    """
    xp = log_ratio.__array_namespace__()
    if kind == "first_order":
        kept = xp.isfinite(log_ratio)
        number = kept.sum(-1, keepdims=True)
        centred = log_ratio - xp.where(kept, log_ratio, 0.0).sum(-1, keepdims=True) / number
        return xp.where(kept, 1.0 + centred, 0.0) / number
    boltzmann = xp.exp(log_ratio - log_ratio.max(-1, keepdims=True))  # the largest is 1: no overflow
    return boltzmann / boltzmann.sum(-1, keepdims=True)


def kish_size(weight: Float[Array, "S n"]) -> Float[np.ndarray, "S"]:
    r"""Kish's effective number of frames, :math:`1/\sum_n w_n^2`: of so many the average would be as uncertain."""
    return 1.0 / (np.asarray(weight) ** 2).sum(1)


def perplexity(weight: Float[Array, "S n"]) -> Float[np.ndarray, "S"]:
    r"""Effective number of frames from the entropy, :math:`\exp(-\sum_n w_n \ln w_n)`; larger than Kish's."""
    return np.exp(special.entr(np.asarray(weight)).sum(1))


def pareto_k(log_ratio: Float[np.ndarray, "S n"], inefficiency: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """Shape of the tail of each row of weights: above 0.7 their average is dominated by frames that were not seen.

    −inf for weights that are all equal, NaN where the tail cannot be fitted; ArviZ does the fit.
    """
    from arviz_stats.base.array import array_stats

    out = np.full(len(log_ratio), -np.inf)
    for s in np.flatnonzero(np.ptp(log_ratio, axis=1) > 1e-12):
        out[s] = array_stats.psislw(-log_ratio[s], r_eff=1.0 / inefficiency[s])[1]
    return out


def inefficiency(series: Float[np.ndarray, "S R T"]) -> Float[np.ndarray, "S"]:
    """Statistical inefficiency: number of successive frames that tell as much as an independent one, at least 1.

    From Geyer's estimate of the autocorrelation in each run, averaged over the ``R`` runs; 1 for a constant.
    """
    from arviz_stats.base.array import array_stats

    runs = series.reshape(-1, 1, series.shape[-1])
    moving = np.ptp(runs, axis=(1, 2)) > 1e-12 * np.abs(runs).max((1, 2))
    share = np.ones(len(runs))
    if moving.any():
        share[moving] = array_stats.ess(runs[moving], method="mean", relative=True)
    return np.maximum(1.0 / share.reshape(series.shape[:2]).mean(1), 1.0)


def nonlinearity(log_ratio: Float[np.ndarray, "S n"], inefficiency: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    r"""What the first order neglects over what it keeps, for the response of the log weights themselves:
    :math:`\frac12 |\kappa_3| / \kappa_2`, with one standard error of the third cumulant of a Gaussian on top.

    0 for logs that are all equal.
    """
    centred = log_ratio - log_ratio.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1))
    third = np.abs((centred**3).mean(1))
    skewness = np.divide(third, deviation**3, out=np.zeros_like(third), where=deviation > 0)
    return 0.5 * deviation * (skewness + np.sqrt(6.0 * inefficiency / log_ratio.shape[1]))
