"""What the samplers have in common: temperature as a schedule, thermal momenta, the square root of a preconditioner."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayespot.batching import any_together
from bayespot.inference.preconditioner import Preconditioner
from bayespot.inference.schedules import Schedule, Temperature
from bayespot.tree import noise
from bayespot.typing import Array, Key, Params


def thermostat(temperature: Temperature, size: int) -> Schedule:
    """``step → T / N``, the variance of a momentum and of the injected noise.

    Raises:
        ValueError: for a number that is not positive; a schedule may be 0, which means pure optimisation.
    """
    if callable(temperature):
        return lambda step: temperature(step) / size
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be positive; 1 is Bayes' posterior. Got {temperature}.")
    return lambda step: jnp.asarray(temperature / size, jnp.result_type(float))


def thermal(key: Key, params: Params, variance) -> Params:
    """Momenta of this variance in every component."""
    return jax.tree.map(lambda z: (z * jnp.sqrt(variance)).astype(z.dtype), noise(key, params))


def at_times(due: Array, function: Callable[[Key, Any], Any], key: Key, state: Any) -> Any:
    """``function(key, state)`` where ``due``, else the state; the key goes in as numbers, for batched conditions."""
    kind, bits = jax.random.key_impl(key), jax.random.key_data(key)

    def chosen(state):
        new = function(jax.random.wrap_key_data(bits, impl=kind), state)
        return jax.tree.map(lambda before, after: jnp.where(due, after, before), state, new)

    return jax.lax.cond(any_together(due), chosen, lambda state: state, state)


def roots(scaling: Preconditioner, state: Any) -> Params:
    """√G of every parameter; 0 before G has seen its first gradient (it is infinite then), so that nothing moves."""

    def root(g):
        unknown = jnp.isinf(g)
        return jnp.where(unknown, 0.0, jnp.sqrt(jnp.where(unknown, 1.0, g)))

    return jax.tree.map(root, scaling.diagonal(state))


def drifted(params: Params, time: Array, root: Params, momentum: Params) -> Params:
    r"""Positions after a drift, :math:`\theta + t \sqrt G\, p`."""
    return jax.tree.map(lambda x, r, p: x + (time * r * p).astype(x.dtype), params, root, momentum)
