"""Step sizes as functions of the step number; any optax schedule serves as well."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from bayespot.typing import Scalar

Schedule = Callable[[Scalar], Scalar]

StepSize = float | Schedule
"""A number, which stays, or a schedule."""

Temperature = float | Scalar | Schedule
"""Of the posterior: a number, or a schedule of it."""


def constant(value: float) -> Schedule:
    """The same step size for ever."""
    return lambda step: jnp.full_like(jnp.asarray(step, jnp.result_type(float)), value)


def schedule_of(step_size: StepSize) -> Schedule:
    """A number as the schedule that is constant.

    Raises:
        ValueError: for a number that is not positive.
    """
    if callable(step_size):
        return step_size
    if not step_size > 0:
        raise ValueError(f"A step size must be positive. Got {step_size}.")
    return constant(step_size)


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


class Cycle(NamedTuple):
    """Schedules of a cyclical run; see ``cyclical``.

    Attributes:
        step_size: ``step → ε``.
        temperature: ``step → T``.
        sampling: ``number of steps done → bool``, whether the last of them was a sampling step; the ``keep`` of
            ``infer``.
    """

    step_size: Schedule
    temperature: Schedule
    sampling: Callable[[int], bool]


def cyclical(
    first: float, last: float, length: int, explore: float = 0.5, temperature: float = 1.0, hot: float = 0.0
) -> Cycle:
    r"""Warm restarts: each cycle starts with large steps that reach other modes, and ends with small ones that sample.

    .. math:: \epsilon_k = \epsilon_\mathrm{last}
              + \tfrac12 (\epsilon_\mathrm{first} - \epsilon_\mathrm{last}) \big[ 1 + \cos(\pi\, r_k) \big],
              \quad r_k = (k \bmod L) / L

    While :math:`r_k` is below ``explore`` the temperature is ``hot``: 0, as in the paper, is plain optimisation,
    which large steps and minibatch noise must carry to other modes; a value far above 1 crosses barriers by heat.
    Either way a mode gets the weight with which it attracts that phase, which is its posterior weight only by
    symmetry.

    Args:
        first: largest step size, at the beginning of every cycle.
        last: smallest, at its end.
        length: L, steps of a cycle.
        explore: share of a cycle at the temperature ``hot``.
        temperature: of the rest.
        hot: temperature while exploring.

    Raises:
        ValueError: unless 0 < last ≤ first, 0 ≤ explore < 1, a cycle has two steps, the temperature is positive and
            ``hot`` not negative.

    Reference:
        Zhang, Li, Zhang, Chen and Wilson, ICLR (2020), arXiv:1902.03932, eq. 1 and algorithm 1.

    Example:
        >>> cycle = cyclical(1e-2, 1e-4, length=1000, explore=0.8)
        >>> [bool(cycle.sampling(n)) for n in (1, 800, 801, 1000, 1001)]
        [False, False, True, True, False]
    """
    if not 0 < last <= first or not 0 <= explore < 1 or length < 2 or not temperature > 0 or hot < 0:
        raise ValueError(
            "Need 0 < last ≤ first, 0 ≤ explore < 1, length ≥ 2, temperature > 0, hot ≥ 0. "
            f"Got {first=}, {last=}, {explore=}, {length=}, {temperature=}, {hot=}."
        )
    begin = explore * length

    def step_size(step):
        return last + 0.5 * (first - last) * (1 + jnp.cos(jnp.pi * (step % length) / length))

    def warmth(step):
        return jnp.where(step % length < begin, hot, temperature)

    return Cycle(step_size, warmth, lambda done: (done - 1) % length >= begin)
