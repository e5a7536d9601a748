r"""SWAG: a Gaussian with the moments of the iterates that stochastic gradient descent visits.

.. math:: \theta = \bar\theta + \tfrac{1}{\sqrt 2}\, \Sigma_\mathrm{diag}^{1/2} z_1
          + \frac{1}{\sqrt{2 (K - 1)}}\, \hat D z_2, \qquad z_1, z_2 \sim \mathcal N(0, 1)

with the mean :math:`\bar\theta` of the iterates, the diagonal :math:`\overline{\theta^2} - \bar\theta^2`, and in the
columns of :math:`\hat D` the last :math:`K` deviations :math:`\theta_i - \bar\theta_i` from the running mean.

**What it ignores.** The spread of the iterates is set by step size, minibatch and curvature. It is the posterior's only
where these happen to agree (Mandt, Hoffman and Blei, J. Mach. Learn. Res. 18 (134), 1 (2017)), so that its scale has to
be calibrated on held-out labels, and only its directions are informative. Iterates that follow each other closely have
not spread out yet, and there are never more than ``K`` directions with correlations. Other modes are ignored, too,
unless several chains are started in them.

Reference:
    Maddox, Garipov, Izmailov, Vetrov and Wilson, NeurIPS (2019), arXiv:1902.02476, section 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bayespot.records.posterior import PosteriorSamples, healthy
from bayespot.tree import take
from bayespot.typing import Array, Float, Key


def swag(key: Key, iterates: PosteriorSamples, *, draws: int = 32, rank: int = 20) -> PosteriorSamples:
    """Draws from the Gaussian of every chain's iterates.

    The iterates are those of plain SGD at a constant step size, from where it has reached the minimum's neighbourhood,
    some steps apart, all of them kept as samples::

        descent = bp.optimise(target, optax.sgd(1e-3, momentum=0.9), average=0.0)
        iterates = bp.infer(key[0], descent, trained.params, data, steps=3_000, burn_in=1_000, thin=50)
        samples = bp.swag(key[1], iterates)

    Args:
        key: random key.
        iterates: ``C`` chains; chains that diverged are left out.
        draws: per chain.
        rank: ``K``, deviations kept; at most the number of iterates.

    Returns:
        ``C × draws`` samples with equal weights and unknown density (NaN), of all that the iterates hold, noise scales
        included.

    Raises:
        ValueError: for fewer than one draw, or when a chain has fewer than ``rank`` iterates or ``rank`` is below 2.
        FailedSamples: when every chain has diverged.
    """
    sound = healthy(iterates)
    chain = np.asarray(sound.chain)
    names, counts = np.unique(chain, return_counts=True)
    if draws < 1 or not 2 <= rank <= counts.min():
        raise ValueError(
            f"Need at least one draw, and rank between 2 and the number of iterates per chain, {counts.min()}. "
            f"Got {draws=}, {rank=}. Keep more iterates with a smaller thin in infer, or lower rank."
        )
    vectors = np.asarray(jax.jit(jax.vmap(lambda params: ravel_pytree(params)[0]))(sound.params))
    _, back = ravel_pytree(take(sound.params, 0))
    order = np.argsort(np.asarray(sound.draw), kind="stable")
    parts = []
    for name in names:
        of_chain = order[chain[order] == name]
        path = np.asarray(vectors[of_chain], np.float64)
        noise = jax.random.normal(jax.random.fold_in(key, int(name)), (draws, path.shape[1] + rank))
        parts.append(_gaussian(path, np.asarray(noise, np.float64), rank))
    last = np.concatenate([np.flatnonzero(chain == name)[-1:] for name in names])
    repeated = take(sound, np.repeat(last, draws))
    return PosteriorSamples(
        params=jax.jit(jax.vmap(back))(jnp.asarray(np.concatenate(parts), vectors.dtype)),
        log_weight=jax.device_put(np.zeros_like(repeated.log_weight)),
        chain=repeated.chain,
        draw=jax.device_put(np.tile(np.arange(draws), len(names)).astype(repeated.draw.dtype)),
        log_density=jax.device_put(np.full_like(repeated.log_density, np.nan)),
        status=repeated.status,
        history=repeated.history,
        spec=iterates.spec,
    )


def _gaussian(path: Float[Array, "T D"], noise: Float[Array, "n DK"], rank: int) -> Float[Array, "n D"]:
    """Standard normal rows as draws of SWAG's Gaussian; ``noise`` holds z₁ and z₂ side by side."""
    count = np.arange(1, len(path) + 1)[:, None]
    deviations = (path - np.cumsum(path, 0) / count)[-rank:]
    width = path.shape[1]
    along = noise[:, width:] @ deviations / (2 * (rank - 1)) ** 0.5
    return path.mean(0) + noise[:, :width] * path.std(0) / 2**0.5 + along
