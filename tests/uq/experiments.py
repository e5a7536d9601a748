"""Simulated observables of known parametric and sampling variance."""

import jax.numpy as jnp
import numpy as np

from bayespot.records.interval import Observed


def observed(value, blocks=None, chain=None, log_weight=None, status=None) -> Observed:
    value = jnp.asarray(value)
    s = value.shape[0]
    return Observed(
        value=value,
        blocks=jnp.asarray(value[:, :, None] if blocks is None else blocks),
        coordinate=jnp.zeros((s, 0)),
        status=jnp.zeros(value.shape[:2], int) if status is None else jnp.asarray(status),
        log_weight=jnp.zeros(s) if log_weight is None else jnp.asarray(log_weight),
        chain=jnp.arange(s) if chain is None else jnp.asarray(chain),
        name="energy",
        unit="eV",
        axis="",
    )


def experiments(seed, samples, replicas, model, noise, number, chains=None, correlation=0.0):
    """``number`` independent repetitions as points of one curve: θ_s ~ N(0, model²), plus noise; and the truth."""
    rng = np.random.default_rng(seed)
    chains = samples if chains is None else chains
    shared = np.repeat(rng.normal(size=(chains, number)), samples // chains, axis=0)
    theta = model * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=(samples, number)))
    value = theta[:, None] + noise * rng.normal(size=(samples, replicas, number))
    chain = np.repeat(np.arange(chains), samples // chains)
    return observed(value, chain=chain), model * rng.normal(size=number)


REPETITIONS = 4000


def binomial(p, sigmas=4.0):
    return sigmas * np.sqrt(p * (1 - p) / REPETITIONS)


def with_blocks(seed, model, noise, number, samples=8, replicas=2, blocks=4, trapped=0.0):
    """As ``experiments``, with independent blocks of standard deviation ``noise``; replicas that are ``trapped`` differ
    for good."""
    rng = np.random.default_rng(seed)
    theta = model * rng.normal(size=(samples, 1, 1, number))
    stuck = trapped * rng.normal(size=(samples, replicas, 1, number))
    x = theta + stuck + noise * rng.normal(size=(samples, replicas, blocks, number))
    return observed(x.mean(2), blocks=x), model * rng.normal(size=number)
