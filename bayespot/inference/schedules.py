"""Step sizes as functions of the step number; any optax schedule serves as well."""

from collections.abc import Callable

import jax.numpy as jnp

from bayespot.typing import Scalar

Schedule = Callable[[Scalar], Scalar]


def constant(value: float) -> Schedule:
    """The same step size for ever."""
    return lambda step: jnp.full_like(jnp.asarray(step, jnp.result_type(float)), value)


def polynomial(first: float, last: float, steps: int, power: float = 0.33) -> Schedule:
    r"""Polynomial decay :math:`\epsilon_k = a (b + k)^{-\gamma}` from ``first`` to ``last``, and ``last`` from then on.

    Args:
        first: step size at step 0.
        last: step size at step ``steps − 1``.
        steps: length of the decay.
        power: the exponent γ.

    Raises:
        ValueError: unless 0 < last < first.

    Reference:
        Welling and Teh, ICML (2011), section 4.

    Example:
        >>> round(float(polynomial(0.05, 0.001, 1000)(499)), 8)
        0.00125743
    """
    if not 0 < last < first or steps < 2 or power <= 0:
        raise ValueError(
            f"Need 0 < last < first, at least 2 steps and a positive power. Got {first=}, {last=}, {steps=}, {power=}. "
            "For a fixed step size use constant."
        )
    inverse = 1.0 / power
    a = ((last**-inverse - first**-inverse) / (steps - 1)) ** -power
    b = (first / a) ** -inverse
    return lambda step: a * (b + jnp.minimum(step, steps - 1)) ** -power


def cosine(first: float, steps: int, warm_up: int = 0, last: float = 0.0) -> Schedule:
    """Linear warm-up from 0 over ``warm_up`` steps, then half a cosine from ``first`` to ``last`` at ``steps``."""
    if not 0 <= warm_up < steps:
        raise ValueError(f"warm_up must be shorter than steps = {steps}. Got {warm_up}.")

    def schedule(step):
        x = jnp.clip((step - warm_up) / (steps - warm_up), 0.0, 1.0)
        decay = last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * x))
        return jnp.where(step < warm_up, first * (step + 1) / max(warm_up, 1), decay)

    return schedule
