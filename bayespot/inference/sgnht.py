r"""Stochastic-gradient Nosé–Hoover thermostat: the friction adapts itself to the noise of the minibatch gradient.

One step is A B D O D B A, with one gradient of a fresh minibatch in its middle:

.. math::
   \mathrm A:\ \theta \leftarrow \theta + \tfrac h2 \sqrt G\, p, \quad
   \mathrm B:\ p \leftarrow p + \tfrac h2 \sqrt G\, g, \quad
   \mathrm D:\ \xi \leftarrow \xi + \frac{h}{2\tau^2} \Big( \frac{N |p|^2}{d\,T} - 1 \Big), \quad
   \mathrm O:\ p \leftarrow e^{-\xi h} p + \sqrt{\frac{\gamma T}{N}\,\frac{1 - e^{-2\xi h}}{\xi}}\; \eta

The injected noise is that of a friction γ. Where the gradient adds noise of its own, the same in all directions, ξ
settles above γ by just what keeps the momenta at temperature T. Noise that differs between directions is balanced
only on average; with ``thermostats="leaf"`` on average over every array of parameters. The noise must be white:
run it with ``infer(…, batches="independent")``. The errors of minibatches without replacement cancel over an epoch,
so that they heat less than the momenta tell, and the thermostat would cool too much.

======================  =====================================
:math:`h`               ``step_size(k)``
:math:`\gamma`          ``friction``
:math:`\tau`            ``relaxation``
:math:`\xi`             friction in use, starts at γ
:math:`d`               number of parameters of a thermostat
:math:`G`               ``preconditioner``
:math:`T, N`            ``temperature``, ``target.size``
======================  =====================================

Reference:
    Ding et al., NeurIPS (2014); the splitting: Leimkuhler and Shang, SIAM J. Sci. Comput. 38, A712 (2016),
    arXiv:1505.06889, here with one gradient in the middle.
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
from bayespot.tree import noise, total
from bayespot.typing import Array, Key, Params

THERMOSTATS = ("global", "leaf")


class SGNHTState(NamedTuple):
    """Parameters, momentum, friction ξ (one per array of parameters), preconditioner, target's state, step number."""

    params: Params
    momentum: Params
    friction: Params
    preconditioner: Any
    target: TargetState
    step: Array


def sgnht(
    target: Target,
    step_size: StepSize,
    *,
    friction: float,
    relaxation: float,
    temperature: Temperature = 1.0,
    preconditioner: Preconditioner | None = None,
    thermostats: str = "global",
) -> Algorithm:
    """Langevin sampling with a friction that adapts to the noise of the gradient.

    Args:
        target: log density per datum.
        step_size: a number, or a schedule ``step → h``.
        friction: γ, per unit of h, without gradient noise.
        relaxation: τ, the time in which ξ reacts, 10 h to 100 h as a rule. The spread of ξ is 1/(τ √d).
        temperature: of the posterior, or a schedule of it (never 0 here).
        preconditioner: diagonal G, an inverse mass; default none.
        thermostats: ``"global"`` (one ξ) or ``"leaf"`` (one for every array of parameters).

    Raises:
        ValueError: for a step size, friction, relaxation or temperature that is not positive, or another kind of
            thermostats.
    """
    if not friction > 0 or not relaxation > 0 or thermostats not in THERMOSTATS:
        raise ValueError(
            f"Need friction > 0, relaxation > 0, thermostats from {THERMOSTATS}. "
            f"Got {friction}, {relaxation}, {thermostats!r}."
        )
    heat, schedule = thermostat(temperature, target.size), schedule_of(step_size)
    scaling = preconditioner or identity()

    def init(key: Key, params: Params) -> SGNHTState:
        one, two = jax.random.split(key)
        start = jnp.zeros((), jnp.int32)
        xi = jax.tree.map(lambda x: jnp.full((), friction, x.dtype), params)
        momentum = thermal(one, params, heat(start))
        return SGNHTState(params, momentum, xi, scaling.init(params), target.init(two, params), start)

    def step(key: Key, state: SGNHTState, batch: Batch):
        key_target, key_noise = jax.random.split(key)
        h, kT, root = schedule(state.step), heat(state.step), roots(scaling, state.preconditioner)
        middle = drifted(state.params, 0.5 * h, root, state.momentum)
        value, gradient, target_state, info = target.value_and_grad(key_target, middle, state.target, batch)
        inner = scaling.update(state.preconditioner, gradient, state.step)
        kicked = drifted(state.momentum, 0.5 * h, root, gradient)
        xi = _reacted(state.friction, kicked, kT, 0.5 * h / relaxation**2, thermostats)
        damped = jax.tree.map(
            lambda p, x, z: (jnp.exp(-x * h) * p + jnp.sqrt(friction * kT * _spread(x, h)) * z).astype(p.dtype),
            kicked, xi, noise(key_noise, state.params),
        )  # fmt: skip
        xi = _reacted(xi, damped, kT, 0.5 * h / relaxation**2, thermostats)
        momentum = drifted(damped, 0.5 * h, root, gradient)
        params = drifted(middle, 0.5 * h, root, momentum)
        new = SGNHTState(params, momentum, xi, inner, target_state, state.step + 1)
        return new, {"log_density": value, "step_size": h, "friction": jnp.stack(jax.tree.leaves(xi)).mean(), **info}

    check = partial(require_training_data, target)
    return Algorithm(init, step, lambda state: state.params, target.spec, check)


def _spread(xi: Array, h: Array) -> Array:
    """(1 − exp(−2 ξ h)) / ξ, also where ξ is 0 or negative."""
    small = jnp.abs(xi) < 1e-6 / h
    return jnp.where(small, 2 * h, -jnp.expm1(-2 * xi * h) / jnp.where(small, 1.0, xi))


def _reacted(xi: Params, momentum: Params, kT: Array, rate: Array, thermostats: str) -> Params:
    """Frictions after the momenta were compared with their temperature."""
    squares = jax.tree.map(lambda p: (p * p).sum(), momentum)
    if thermostats == "leaf":
        excess = jax.tree.map(lambda s, p: s / (p.size * kT) - 1.0, squares, momentum)
    else:
        together = total(s.astype(jnp.result_type(float)) for s in jax.tree.leaves(squares))
        count = sum(p.size for p in jax.tree.leaves(momentum))
        excess = jax.tree.map(lambda s: together / (count * kT) - 1.0, squares)
    return jax.tree.map(lambda x, e: (x + rate * e).astype(x.dtype), xi, excess)
