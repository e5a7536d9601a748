r"""Stochastic-gradient Langevin dynamics, plain or preconditioned.

.. math:: \theta \leftarrow \theta + \epsilon_k\, G\, g + \sqrt{2 \epsilon_k\, G\, T / N}\; \xi, \quad
          \xi \sim \mathcal N(0, 1)

with :math:`g` the minibatch gradient of the log density per datum; it samples :math:`p(\theta\mid D)^{1/T}`.

======================  ==========================
:math:`\epsilon_k`      ``step_size(k)``
:math:`G`               ``preconditioner``
:math:`T`               ``temperature`` (1 is Bayes)
:math:`N`               ``target.size``
======================  ==========================

There is no factor 1/2 on the step, and the gradient is per datum: ε here is N/2 times Welling and Teh's. Minibatch
noise widens the posterior; in one dimension with curvature λ and variance V of the minibatch gradient, both per datum,
the variance is that of the posterior times :math:`(1 + \epsilon N V / 2T) / (1 - \epsilon\lambda / 2)`.

Reference:
    Welling and Teh, ICML (2011), eq. 4; Li et al., AAAI (2016), arXiv:1512.07666.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.dynamics import thermostat
from bayespot.inference.preconditioner import Preconditioner, identity
from bayespot.inference.schedules import StepSize, Temperature, schedule_of
from bayespot.inference.target import Batch, Target, TargetState, require_training_data
from bayespot.tree import noise
from bayespot.typing import Array, Key, Params


class SGLDState(NamedTuple):
    """Parameters, state of the preconditioner and of the target, and the step number."""

    params: Params
    preconditioner: Any
    target: TargetState
    step: Array


def sgld(
    target: Target,
    step_size: StepSize,
    *,
    temperature: Temperature = 1.0,
    preconditioner: Preconditioner | None = None,
) -> Algorithm:
    """Langevin sampling of a target; with ``preconditioner=rms(…)`` this is pSGLD.

    Args:
        target: log density per datum.
        step_size: a number, or a schedule ``step → ε``, e.g. ``polynomial(1e-3, 1e-4, steps)``.
        temperature: of the posterior, or a schedule of it; below 1 it is colder (narrower) than Bayes'.
        preconditioner: diagonal G; default none.

    Raises:
        ValueError: for a temperature or step size that is not positive.
    """
    heat, schedule = thermostat(temperature, target.size), schedule_of(step_size)
    scaling = preconditioner or identity()

    def init(key: Key, params: Params) -> SGLDState:
        return SGLDState(params, scaling.init(params), target.init(key, params), jnp.zeros((), jnp.int32))

    def step(key: Key, state: SGLDState, batch: Batch):
        key_target, key_noise = jax.random.split(key)
        value, gradient, target_state, info = target.value_and_grad(key_target, state.params, state.target, batch)
        inner = scaling.update(state.preconditioner, gradient, state.step)
        epsilon = schedule(state.step)
        spread = jnp.sqrt(2 * epsilon * heat(state.step))

        def move(x, g, diagonal, xi):
            return x + (epsilon * diagonal * g + spread * jnp.sqrt(diagonal) * xi).astype(x.dtype)

        params = jax.tree.map(move, state.params, gradient, scaling.diagonal(inner), noise(key_noise, state.params))
        return SGLDState(params, inner, target_state, state.step + 1), {
            "log_density": value,
            "step_size": epsilon,
            **info,
        }

    check = partial(require_training_data, target)
    return Algorithm(init, step, lambda state: state.params, target.spec, check)
