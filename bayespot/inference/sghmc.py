r"""Stochastic-gradient Hamiltonian Monte Carlo, as underdamped Langevin dynamics in a symmetric splitting.

One step is A B O B A, with one gradient of a fresh minibatch in its middle and a momentum that persists:

.. math::
   \mathrm A:\ \theta \leftarrow \theta + \tfrac h2 \sqrt G\, p, \quad
   \mathrm B:\ p \leftarrow p + \tfrac h2 \sqrt G\, g, \quad
   \mathrm O:\ p \leftarrow e^{-\gamma h} p + \sqrt{(1 - e^{-2\gamma h})\, T / N}\; \xi

======================  ==========================
:math:`h`               ``step_size(k)``
:math:`\gamma`          ``friction``
:math:`G`               ``preconditioner``
:math:`T`               ``temperature`` (1 is Bayes)
:math:`N`               ``target.size``
======================  ==========================

With the full gradient the positions have the exact covariance of a Gaussian posterior for every stable step,
:math:`h\sqrt{\lambda_{\max}} < 2`, where an explicit Euler step is unstable without much friction. Noise of the
minibatch gradient of variance V (per datum) heats: it adds about :math:`h N V / 2\gamma T` to the variance, so a larger
friction or batch, or ``control_variates``, is the remedy.

Reference:
    Chen, Fox and Guestrin, ICML (2014), arXiv:1402.4102; the splitting: Leimkuhler and Matthews, Appl. Math. Res.
    eXpress 2013, 34 (2013).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.dynamics import drifted, roots, thermal, thermostat
from bayespot.inference.preconditioner import Preconditioner, identity
from bayespot.inference.schedules import StepSize, Temperature, schedule_of
from bayespot.inference.target import Batch, Target, TargetState, require_training_data
from bayespot.tree import noise
from bayespot.typing import Array, Key, Params


class SGHMCState(NamedTuple):
    """Parameters, momentum (of variance T/N in every component), preconditioner, target's state, and step number."""

    params: Params
    momentum: Params
    preconditioner: Any
    target: TargetState
    step: Array


def sghmc(
    target: Target,
    step_size: StepSize,
    *,
    friction: float,
    temperature: Temperature = 1.0,
    preconditioner: Preconditioner | None = None,
) -> Algorithm:
    """Underdamped Langevin sampling of a target.

    Args:
        target: log density per datum.
        step_size: a number, or a schedule ``step → h``. In the limit of large friction it moves like SGLD with ε = h/γ.
        friction: γ, per unit of h. The momentum forgets after 1/γh steps, of which 10 to 100 are usual.
        temperature: of the posterior, or a schedule of it; below 1 it is colder (narrower) than Bayes'.
        preconditioner: diagonal G, an inverse mass; default none.

    Raises:
        ValueError: for a step size, friction or temperature that is not positive.
    """
    if not friction > 0:
        raise ValueError(f"friction must be positive. Got {friction}. A usual value is 0.1 / step size.")
    heat, schedule = thermostat(temperature, target.size), schedule_of(step_size)
    scaling = preconditioner or identity()

    def init(key: Key, params: Params) -> SGHMCState:
        one, two = jax.random.split(key)
        start = jnp.zeros((), jnp.int32)
        momentum = thermal(one, params, heat(start))
        return SGHMCState(params, momentum, scaling.init(params), target.init(two, params), start)

    def step(key: Key, state: SGHMCState, batch: Batch):
        key_target, key_noise = jax.random.split(key)
        h, root = schedule(state.step), roots(scaling, state.preconditioner)
        middle = drifted(state.params, 0.5 * h, root, state.momentum)
        value, gradient, target_state, info = target.value_and_grad(key_target, middle, state.target, batch)
        inner = scaling.update(state.preconditioner, gradient, state.step)
        keep = jnp.exp(-friction * h)
        spread = jnp.sqrt((1 - keep**2) * heat(state.step))

        def kick_and_damp(p, r, g, xi):
            half = 0.5 * h * r * g
            return (keep * (p + half) + spread * xi + half).astype(p.dtype)

        momentum = jax.tree.map(kick_and_damp, state.momentum, root, gradient, noise(key_noise, state.params))
        params = drifted(middle, 0.5 * h, root, momentum)
        new = SGHMCState(params, momentum, inner, target_state, state.step + 1)
        return new, {"log_density": value, "step_size": h, **info}

    check = partial(require_training_data, target)
    return Algorithm(init, step, lambda state: state.params, target.spec, check)
