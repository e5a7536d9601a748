"""Convergence of several chains, for quantities that mean something: predictions and observables, not raw weights.

The weights of a network have symmetries (permuted neurons), so chains that agree on every prediction may look
hopelessly apart in weight space.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.posterior import PosteriorSamples
from bayespot.typing import Array, Float


def by_chain(samples: PosteriorSamples, values: Float[Array, "S *shape"]) -> Float[Array, "C D *shape"]:
    """Values of every sample, arranged by chain and draw.

    Raises:
        ValueError: if chains differ in their number of draws, or there are not as many values as samples.
    """
    chain, values = np.asarray(samples.chain), np.asarray(values)
    if values.shape[0] != len(chain):
        raise ValueError(f"Need one value for each of the {len(chain)} samples. Got {values.shape[0]}.")
    names, counts = np.unique(chain, return_counts=True)
    if len(set(counts)) != 1:
        raise ValueError(f"Chains must have equally many draws. Got {counts.tolist()}. Drop whole chains instead.")
    order = np.lexsort((np.asarray(samples.draw), chain))
    return jnp.asarray(values[order].reshape(len(names), counts[0], *values.shape[1:]))


def checked(samples: PosteriorSamples, values: Float[Array, "S *shape"], name: str) -> Float[Array, "C D *shape"]:
    """``by_chain``, for what needs two chains of eight draws; ``name`` tells in the message what does."""
    table = by_chain(samples, values)
    chains, draws = table.shape[:2]
    if chains < 2 or draws < 8:
        raise ValueError(f"{name} needs at least 2 chains of 8 draws. Got {chains} of {draws}. Run more, or thin less.")
    return table


def rhat(samples: PosteriorSamples, values: Float[Array, "S *shape"]) -> Float[Array, "*shape"]:
    """Rank-normalised split R-hat of each quantity; near 1 when the chains agree, above 1.01 a reason for doubt.

    Args:
        samples: of several chains with at least eight draws each.
        values: one per sample, any shape: predicted energies, forces, observables.

    Raises:
        ValueError: for fewer than two chains or eight draws: estimates from half-chains of two or three mean nothing.

    Reference:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), eq. 4 and section 4.
    """
    from blackjax.diagnostics import rhat as blackjax_rhat

    return _diagnosed(samples, values, blackjax_rhat, "R-hat")


def ess(samples: PosteriorSamples, values: Float[Array, "S *shape"]) -> Float[Array, "*shape"]:
    """Bulk effective sample size of each quantity, over all chains together; arguments and errors as for ``rhat``."""
    from blackjax.diagnostics import ess_bulk

    return _diagnosed(samples, values, ess_bulk, "The effective sample size")


def ess_tail(samples: PosteriorSamples, values: Float[Array, "S *shape"]) -> Float[Array, "*shape"]:
    """Effective sample size for the 5 % and 95 % quantiles, the smaller one; arguments and errors as for ``rhat``."""
    from blackjax.diagnostics import ess_tail as blackjax_ess_tail

    return _diagnosed(samples, values, blackjax_ess_tail, "The effective sample size")


def mcse(
    samples: PosteriorSamples, values: Float[Array, "S *shape"], quantile: float | None = None
) -> Float[np.ndarray, "*shape"]:
    r"""Monte Carlo standard error of the posterior mean of each quantity, or of a quantile, in its unit (host).

    .. math:: \mathrm{MCSE} = \frac{\sigma}{\sqrt{\mathrm{ESS}}}

    with the standard deviation σ of all draws and the effective sample size of the values themselves (not of their
    ranks, as in ``ess``). It tells how far the mean would move if the chains were run anew; digits below it mean
    nothing. Log weights are not heeded.

    Args:
        samples, values: as for ``rhat``.
        quantile: its probability, e.g. 0.05 or 0.95 for the ends of a 90 % interval; default the mean.

    Raises:
        ValueError: as ``rhat``, or for a probability that is not between 0 and 1.

    Reference:
        Vehtari et al., Bayesian Analysis 16, 667 (2021), section 4.3; computed by ArviZ.
    """
    from arviz_stats.base.array import array_stats

    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"quantile must be a probability between 0 and 1. Got {quantile}.")
    table = np.asarray(checked(samples, values, "The Monte Carlo error"), np.float64)
    method = "mean" if quantile is None else "quantile"
    return np.array(array_stats.mcse(table, chain_axis=0, draw_axis=1, method=method, prob=quantile))


def _diagnosed(samples, values, function, name: str):
    table = checked(samples, values, name)
    return _compiled(function)(table.reshape(*table.shape[:2], -1)).reshape(table.shape[2:])


@lru_cache
def _compiled(function):
    """The same program for the same function: the next call does not compile again."""
    return jax.jit(partial(function, chain_axis=0, sample_axis=1))
