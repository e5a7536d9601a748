r"""Where the spread of a simulated observable comes from: the posterior, or the finite length of the simulations.

For sample :math:`s` and replica :math:`r`,

.. math:: y_{sr} = \theta_s + e_{sr},

with the true ensemble average :math:`\theta_s` of that sample and the sampling error :math:`e_{sr}`. The spread of the
:math:`\bar y_s` holds both; only the first is parametric uncertainty. Everything here runs on the host in float64.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from bayespot.records.interval import Observed
from bayespot.tree import take
from bayespot.typing import Array


class Components(NamedTuple):
    """Variance components of an observable of any shape ``(...)``.

    Attributes:
        mean: posterior mean.
        spread: variance of the sample means :math:`\\bar y_s` between independent chains, sampling variance included.
        noise: the part of ``spread`` that sampling causes.
        mean_noise: sampling variance of ``mean``.
        number: effective number of independent posterior samples, between the number of chains and of samples.
        degrees: degrees of freedom of ``noise``.
        source: of ``noise``, see ``RunMeans``.
        common: the part of ``mean_noise`` that all samples have in common, so that ``spread`` does not show it.
        common_degrees: degrees of freedom of ``common``; inf where there is none.
    """

    mean: np.ndarray
    spread: np.ndarray
    noise: np.ndarray
    mean_noise: np.ndarray
    number: float
    degrees: float
    source: str
    common: np.ndarray
    common_degrees: float


class ChainSpread(NamedTuple):
    """Spread of values ``(S, ...)`` between independent chains.

    Attributes:
        mean: weighted mean.
        variance: between samples of different chains.
        number: effective number of independent samples, between the number of chains and of samples.
        weight: of each sample in ``mean``, ``(S,)``.
        paired: share of each sample in the pairs of ``variance``, ``(S,)``.
        member: 1 where a sample belongs to a chain, ``(S, C)``.
    """

    mean: np.ndarray
    variance: np.ndarray
    number: float
    weight: np.ndarray
    paired: np.ndarray
    member: np.ndarray


class RunMeans(NamedTuple):
    """Averages over all runs of each sample, and how well they are known.

    Attributes:
        mean: over the replicas, ``(S, ...)``.
        variance: squared standard error of ``mean``, ``(S, ...)``.
        degrees: degrees of freedom of each of these variances.
        source: ``"replicas"``, ``"blocks"`` or ``"replicas and blocks"``.
    """

    mean: np.ndarray
    variance: np.ndarray
    degrees: int
    source: str


class SharedError(NamedTuple):
    """Sampling error of samples that were reweighted from the same frames.

    Attributes:
        difference: the part of the spread between samples that it causes, ``(...)``.
        mean: its part in the variance of the posterior mean, ``(...)``.
        degrees: degrees of freedom of both.
    """

    difference: np.ndarray
    mean: np.ndarray
    degrees: int


def run_means(observed: Observed) -> RunMeans:
    """Mean of every sample over its replicas, and its squared standard error (host).

    The spread of the blocks of all replicas has the most degrees of freedom. It is corrected for what neighbouring
    blocks have in common (to first order in their correlation, averaged over the points of a curve). The spread of the
    replicas, of fewer degrees of freedom but right in any case, is used instead where blocks contradict it
    (``_poolable``).

    Raises:
        ValueError: with one replica and fewer than two blocks.
    """
    value = np.asarray(observed.value, np.float64)
    blocks = np.asarray(observed.blocks, np.float64)
    (s, r), b = value.shape[:2], blocks.shape[2]
    if r == 1 and b < 2:
        raise ValueError(
            f"The sampling error of {observed.name} needs two replicas or two blocks. Got one of each. "
            "Use observe(..., blocks=4) or propagate(..., replicas=2)."
        )
    mean = value.mean(1)
    if r > 1 and not _poolable(value, blocks):
        return RunMeans(mean, value.var(1, ddof=1) / r, r - 1, "replicas")
    independent = blocks.reshape(s, r * b, *blocks.shape[3:]).var(1, ddof=1) / (r * b)
    source = "replicas and blocks" if r > 1 else "blocks"
    return RunMeans(mean, _inflation(blocks) * independent, r * b - 1, source)


def _poolable(value: np.ndarray, blocks: np.ndarray) -> bool:
    """Whether the blocks of all replicas may stand for the sampling error; averages over the points of a curve.

    They may not where there is one block, or blocks do not average to the value of the run (observables that are no
    time averages), follow each other as if strongly correlated (von Neumann's ratio, two standard errors below 1), or
    replicas differ by more than their blocks let expect (F-test, 2.5 % for a scalar): runs that stay where they began.
    """
    (s, r), b = value.shape[:2], blocks.shape[2]
    if b < 2 or not np.isfinite(blocks).all():
        return False
    within = blocks.var(2, ddof=1).mean((0, 1))
    between = b * value.var(1, ddof=1).mean(0)
    if (between[within == 0] > 0).any():
        return False
    moving = within > 0
    if not moving.any():
        return True
    apart = b * ((blocks.mean(2) - value) ** 2).mean((0, 1))
    return bool(
        (apart[moving] / within[moving]).mean() < 0.1
        and np.nanmean(_von_neumann(blocks)) > 1.0 - 2.0 / np.sqrt(s * r * b)
        and (between[moving] / within[moving]).mean() < stats.f.ppf(0.975, s * (r - 1), s * r * (b - 1))
    )


def _von_neumann(blocks: np.ndarray) -> np.ndarray:
    successive = 0.5 * (np.diff(blocks, axis=2) ** 2).mean((0, 1, 2))
    overall = blocks.var(axis=2, ddof=1).mean((0, 1))
    return np.divide(successive, overall, out=np.full_like(overall, np.nan), where=overall > 0)


def _inflation(blocks: np.ndarray) -> float:
    r"""Variance of a sample's mean over what the spread of its blocks says, when neighbours have the correlation ρ.

    :math:`(1 + 2\rho(1 - 1/B)) / (1 - 2\rho(1 - 1/B)/(RB - 1))`; the denominator is what the common part takes from the
    spread. Von Neumann's ratio is :math:`(1 - \rho)/(1 - 2\rho/B)`, which of two blocks tells nothing. Negative
    estimates count as much as positive ones: of independent blocks half are, and to drop them would overestimate the
    sampling error of a scalar by a sixth.
    """
    r, b = blocks.shape[1:3]
    ratio = _von_neumann(blocks)
    if b < 3 or not np.isfinite(ratio).any():
        return 1.0
    ratio = min(float(np.nanmean(ratio)), 0.4 * b)  # the pole of ρ lies at B/2
    common = 2.0 * (1.0 - 1.0 / b) * np.clip((1.0 - ratio) / (1.0 - 2.0 * ratio / b), -1 / 3, 1 / 2)
    return (1.0 + common) / (1.0 - common / (r * b - 1))


def alike(observed: Observed) -> bool:
    """Whether blocks of single runs, or of shared frames, are clearly more alike than is corrected for at all (host).

    That is a correlation of neighbours above ½, von Neumann's ratio below ½ / (1 − 1/B); it must also be two standard
    errors below 1, that of independent blocks. False proves little: with 8 samples of 4 blocks it is true for one in
    three observables whose sampling variance is underestimated by a third, with two samples for none. Replicas show
    such an error themselves.
    """
    blocks = np.asarray(observed.blocks, np.float64)
    if observed.shared is None:
        return blocks.shape[1] == 1 and _alike(blocks, len(blocks))
    shared = np.asarray(observed.shared, np.float64)
    reused = _reused(shared)
    own = blocks[~reused]
    return _alike(shared[reused], shared.shape[1]) or (blocks.shape[1] == 1 and _alike(own, len(own)))


def _alike(blocks: np.ndarray, independent: int) -> bool:
    b = blocks.shape[2]
    if b < 3 or not blocks.size:
        return False
    ratio = _von_neumann(blocks)
    known = ratio[np.isfinite(ratio)]
    error = np.sqrt((b - 2) / independent) / (b - 1)
    return bool(known.size and known.mean() < min(0.5 / (1.0 - 1.0 / b), 1.0 - 2.0 * error))


def block_independence(observed: Observed) -> np.ndarray:
    r"""Whether the blocks are long enough: von Neumann's ratio of the blocks of all runs, ``(...)`` (host).

    .. math:: \eta = \frac{\frac12 \langle (b_{k+1} - b_k)^2 \rangle}{\langle (b_k - \bar b)^2 \rangle}

    It is 1 for independent blocks; below 1 neighbouring blocks are alike, they are too short, and the sampling error
    from blocks is too small. Its own standard error is about :math:`1/\sqrt{S R B}`. NaN where all blocks are equal.

    Raises:
        ValueError: for fewer than two blocks.

    Reference: von Neumann, *Ann. Math. Stat.* 12, 367 (1941).
    """
    blocks = np.asarray(observed.blocks if observed.shared is None else observed.shared, np.float64)
    if observed.shared is not None:
        blocks = blocks[_reused(blocks)]
    if blocks.shape[2] < 2:
        raise ValueError(
            f"block_independence needs at least two blocks. Got {blocks.shape[2]}. Use observe(..., blocks=4)."
        )
    return _von_neumann(blocks)


def chain_spread(value: np.ndarray, log_weight: Array, chain: Array) -> ChainSpread:
    r"""Variance between chains and effective number of weighted samples ``(S, ...)`` (host).

    The variance is the mean over pairs of samples from *different* chains,

    .. math:: \frac{\sum_{c(s) \ne c(t)} w_s w_t\, \frac12 (\bar y_s - \bar y_t)^2}{\sum_{c(s) \ne c(t)} w_s w_t},

    unbiased also where the draws of a chain are correlated; with one draw per chain and equal weights it is the usual
    variance with ``ddof=1``. A single chain has no such pairs: all of its draws then count as independent.
    The effective number of samples is the spread over the variance of the posterior mean as the chain means show it,
    averaged over the points of a curve.
    """
    weight = np.exp(np.asarray(log_weight, np.float64) - np.max(log_weight))
    weight /= weight.sum()
    _, chain = np.unique(np.asarray(chain), return_inverse=True)
    if chain.max() == 0:
        chain = np.arange(len(weight))
    member = (chain[:, None] == np.arange(chain.max() + 1)).astype(float)
    share = weight @ member

    mean = np.tensordot(weight, value, 1)
    centred = value - mean
    weighted = weight.reshape(-1, *[1] * (value.ndim - 1)) * centred
    chain_sum = np.tensordot(member, weighted, (0, 0))
    chain_square = np.tensordot(member, weighted * centred, (0, 0))
    inside = np.tensordot(share, chain_square, 1) - (chain_sum**2).sum(0)
    pairs = 1.0 - (share**2).sum()
    variance = np.maximum((chain_square.sum(0) - inside) / pairs, 0.0)

    c = len(share)
    mean_variance = c / (c - 1) * (chain_sum**2).sum(0)
    inverse = mean_variance[variance > 0] / variance[variance > 0]
    most, fewest = 1.0 / (weight**2).sum(), 1.0 / (share**2).sum()
    number = float(np.clip(1.0 / inverse.mean(), fewest, most)) if inverse.size else most
    return ChainSpread(mean, variance, number, weight, weight * (1.0 - share[chain]) / pairs, member)


def shared_error(shared: np.ndarray, spread: ChainSpread) -> SharedError:
    r"""What the error of shared frames does to differences between samples, and to their mean (host).

    With the covariance :math:`\Sigma_{st}` of the errors of two samples, see ``Observed.shared``,

    .. math:: \frac{\sum_{c(s) \ne c(t)} w_s w_t\, \frac12 (\Sigma_{ss} + \Sigma_{tt} - 2 \Sigma_{st})}
                   {\sum_{c(s) \ne c(t)} w_s w_t}, \qquad \sum_{st} w_s w_t \Sigma_{st} .

    What all samples have in common drops out of the first and stays in the second, however many samples there are.
    For neighbouring blocks that are alike it is enlarged as in ``run_means``, but never made smaller: all samples have
    the same few blocks, whose correlation is known so badly that 95 % intervals of an average cover in 91 to 94 % with
    both signs, in 95 to 97 % with one (16 blocks).
    """
    s, references, b = shared.shape[:3]
    total = references * b
    deviation = shared.reshape(s, total, *shared.shape[3:])
    scale = max(1.0, _inflation(shared[_reused(shared)])) / (total * (total - 1))
    weighted = spread.weight.reshape(-1, *[1] * (deviation.ndim - 1)) * deviation
    by_chain = np.tensordot(spread.member, weighted, (0, 0))
    share = spread.weight @ spread.member
    everything = (by_chain.sum(0) ** 2).sum(0)
    across = (everything - (by_chain**2).sum((0, 1))) / (1.0 - (share**2).sum())
    own = np.tensordot(spread.paired, (deviation**2).sum(1), 1)
    return SharedError(scale * np.maximum(own - across, 0.0), scale * everything, total - references)


def components(observed: Observed) -> Components:
    """Variance components from samples × replicas (or blocks), with weights and chains (host).

    The spread and the effective number of samples are those of ``chain_spread``. The sampling errors of own runs are
    independent; those of reweighted samples come from the same frames (``shared_error``). Degrees of freedom of a sum
    of both by Welch's and Satterthwaite's formula, averaged over the points of a curve.

    Raises:
        ValueError: as ``run_means``.
    """
    found = chain_spread(np.asarray(observed.value, np.float64).mean(1), observed.log_weight, observed.chain)
    shared = np.zeros((len(observed.value), 0)) if observed.shared is None else np.asarray(observed.shared, np.float64)
    own, sources = np.flatnonzero(~_reused(shared)), []
    noise = mean_noise = common = np.zeros_like(found.mean)
    degrees = common_degrees = np.inf
    if len(own):
        runs = run_means(take(observed, own))
        noise = np.tensordot(found.paired[own], runs.variance, 1)
        mean_noise = np.tensordot(found.weight[own] ** 2, runs.variance, 1)
        degrees, sources = len(own) * runs.degrees, [runs.source]
    if len(own) < len(shared):
        error = shared_error(shared, found)
        both = noise + error.difference
        share = np.divide(error.difference, both, out=np.ones_like(both), where=both > 0).mean()
        noise, mean_noise = both, mean_noise + error.mean
        common, common_degrees = np.maximum(error.mean - error.difference / found.number, 0.0), error.degrees
        degrees = 1.0 / ((1.0 - share) ** 2 / degrees + share**2 / error.degrees)
        sources = ["shared frames", *sources]
    return Components(
        found.mean, found.variance, noise, mean_noise, found.number, degrees, ", ".join(sources), common, common_degrees
    )


def _reused(shared: np.ndarray) -> np.ndarray:
    """Which samples share frames, ``(S,)``; those with runs of their own have no deviations."""
    return shared.any(axis=tuple(range(1, shared.ndim)))
