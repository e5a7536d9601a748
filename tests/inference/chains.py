"""Posterior samples whose values are AR(1) series of known correlation, with mean 0 and variance 1."""

import jax.numpy as jnp
import numpy as np

from bayespot.records.posterior import as_samples
from bayespot.tree import replace


def chains(number=4, draws=400, memory=0.0, apart=0.0, seed=0, components=3):
    """Samples of ``number`` chains, and AR(1) values with this correlation of neighbours, chains shifted ``apart``."""
    rng = np.random.default_rng(seed)
    x = np.zeros((number, draws, components))
    x[:, 0] = rng.normal(size=(number, components))
    for n in range(1, draws):
        x[:, n] = memory * x[:, n - 1] + np.sqrt(1 - memory**2) * rng.normal(size=(number, components))
    x = x + apart * np.arange(number)[:, None, None]
    samples = as_samples({"a": jnp.zeros(number * draws)}, {})
    samples = replace(samples, chain=jnp.repeat(jnp.arange(number), draws), draw=jnp.tile(jnp.arange(draws), number))
    return samples, {"energy": x.reshape(number * draws, components)}
