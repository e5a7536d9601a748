r"""SG-MCMC whose trajectories are accepted or rejected with the density of all data: exact in spite of minibatch noise.

After ``length`` steps of a reversible integrator on minibatch gradients, the end is accepted with probability min(1,
a). Otherwise the chain returns to the start of the trajectory with its momentum reversed.

``sggmc``, steps O B A B O with two halves of the minibatch, :math:`K = |p|^2/2` after the first O and before the
second:

.. math:: \log a = \tfrac NT \Big[ \ell_D(\theta') - \ell_D(\theta) - \sum_k (K'_k - K_k) \Big]

``amagold``, reversible leapfrog steps (position half steps at the ends of the trajectory), friction γ inside:

.. math::
   p' = \frac{(1 - h\gamma/2)\, p + h \sqrt G\, g + \sqrt{2 h \gamma T/N}\; \xi}{1 + h \gamma/2}, \qquad
   \log a = \tfrac NT \Big[ \ell_D(\theta') - \ell_D(\theta) - \sum_k \tfrac h2 \sqrt G\, g_k \cdot (p_k + p'_k) \Big]

with :math:`\ell_D` the log density of all data per datum, N = ``target.size``, T = ``temperature``. A sequence of
minibatches must be as likely as its reverse, whatever came before. That holds within an epoch of minibatches without
replacement and for whole epochs, but not for a trajectory across the border of two, which is refused.

Reference:
    Garriga-Alonso and Fortuin, arXiv:2102.01691 (2021); Zhang, Cooper and De Sa, AISTATS (2020), arXiv:2003.00193.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.dynamics import at_times, drifted, roots, thermal, thermostat
from bayespot.inference.full_data import full_value
from bayespot.inference.preconditioner import Preconditioner, fixed, identity
from bayespot.inference.schedules import StepSize, schedule_of
from bayespot.inference.target import Batch, Target, TargetState, frames_scored, require_training_data
from bayespot.tree import noise, take, total
from bayespot.typing import Array, Key, Params, Scalar


class CorrectedState(NamedTuple):
    """Present point of the trajectory, its start, and what enters the acceptance."""

    params: Params
    momentum: Params
    start: Params
    start_momentum: Params
    start_value: Scalar
    work: Scalar  # per datum: change of kinetic energy along the trajectory, noise and friction left out
    accepted: Array  # share of all trajectories so far
    target: TargetState
    start_target: TargetState
    step: Array


def sggmc(
    target: Target,
    data: Batch,
    step_size: StepSize,
    *,
    friction: float,
    length: int = 10,
    temperature: float = 1.0,
    diagonal: Params | None = None,
) -> Algorithm:
    """Gradient-guided Monte Carlo: underdamped Langevin steps, corrected by a Metropolis–Hastings test.

    Args:
        target: log density per datum.
        data: the training data, all of which each test sees.
        step_size: a number, or a schedule ``step → h``, constant within a trajectory.
        friction: γ, per unit of h; the momentum forgets after 1/γh steps.
        length: steps between tests. Draw at multiples of it (``thin``, ``burn_in``); in between, the start counts.
        temperature: of the posterior.
        diagonal: G, an inverse mass of the parameters' structure; default none. It may not change.

    Raises:
        ValueError: for settings that are not positive, or data that the target was not made for. A minibatch must have
            an even number of frames (or be all data), and ``length`` divide the number of minibatches of an epoch or be
            a multiple of it.

    In float32 log a is known to about N times the log density per datum times 1e-7: use float64 where that is not
    small. ``rows`` of ``infer`` must not be given: the tests see all data.
    """

    def advance(key, state: CorrectedState, batch, h, root, kT):
        keys = jax.random.split(key, 4)
        first, second = _halves(target, batch)
        keep = jnp.exp(-0.5 * friction * h)
        spread = jnp.sqrt((1 - keep**2) * kT)

        def damp(k, momentum):
            return jax.tree.map(lambda p, z: (keep * p + spread * z).astype(p.dtype), momentum, noise(k, momentum))

        momentum = damp(keys[0], state.momentum)
        before = _kinetic(momentum)
        value, gradient, inner, info = target.value_and_grad(keys[1], state.params, state.target, first)
        momentum = drifted(momentum, 0.5 * h, root, gradient)
        params = drifted(state.params, h, root, momentum)
        other, gradient, inner, _ = target.value_and_grad(keys[2], params, inner, second)
        momentum = drifted(momentum, 0.5 * h, root, gradient)
        work = _kinetic(momentum) - before
        info = {**info, "log_density": 0.5 * (value + other)}
        return params, damp(keys[3], momentum), work, inner, info

    return _corrected(target, data, step_size, friction, length, temperature, diagonal, advance)


def amagold(
    target: Target,
    data: Batch,
    step_size: StepSize,
    *,
    friction: float,
    length: int = 10,
    temperature: float = 1.0,
    diagonal: Params | None = None,
) -> Algorithm:
    """Amortised Metropolis-adjusted Langevin sampling; one gradient per step. Arguments as for ``sggmc``."""

    def advance(key, state: CorrectedState, batch, h, root, kT):
        key_target, key_noise = jax.random.split(key)
        place = state.step % length
        before = jnp.where(place == 0, 0.5, 0.0) * h  # all later steps begin where the one before drifted to
        middle = drifted(state.params, before, root, state.momentum)
        value, gradient, inner, info = target.value_and_grad(key_target, middle, state.target, batch)
        injected, half = jnp.sqrt(2 * h * friction * kT), 0.5 * h * friction

        def kick(p, r, g, z):
            return (((1 - half) * p + h * r * g + injected * z) / (1 + half)).astype(p.dtype)

        momentum = jax.tree.map(kick, state.momentum, root, gradient, noise(key_noise, state.momentum))
        pairs = jax.tree.map(lambda r, g, p, q: (r * g * (p + q)).sum(), root, gradient, state.momentum, momentum)
        work = 0.5 * h * total(x.astype(value.dtype) for x in jax.tree.leaves(pairs))
        after = jnp.where(place == length - 1, 0.5, 1.0) * h
        return drifted(middle, after, root, momentum), momentum, work, inner, {**info, "log_density": value}

    return _corrected(target, data, step_size, friction, length, temperature, diagonal, advance)


def _corrected(target, data, step_size, friction, length, temperature, diagonal, advance) -> Algorithm:
    """The part that both share: trajectories, and the test at the end of each."""
    if not friction > 0 or length < 1:
        raise ValueError(f"Need friction > 0 and length ≥ 1. Got {friction=}, {length=}.")
    heat, schedule = thermostat(temperature, target.size), schedule_of(step_size)
    scaling: Preconditioner = identity() if diagonal is None else fixed(diagonal)
    whole = full_value(target, data)

    def init(key: Key, params: Params) -> CorrectedState:
        keys = jax.random.split(key, 3)
        start = jnp.zeros((), jnp.int32)
        momentum = thermal(keys[0], params, heat(start))
        inner = target.init(keys[1], params)
        value = whole(keys[2], params, inner)
        zero = jnp.zeros((), value.dtype)
        return CorrectedState(params, momentum, params, momentum, value, zero, zero, inner, inner, start)

    def step(key: Key, state: CorrectedState, batch: Batch):
        key_move, key_test = jax.random.split(key)
        _check_epoch(frames_scored(target, batch), target.size, length)
        h = schedule(state.step - state.step % length)
        kT = heat(state.step)
        root = roots(scaling, scaling.init(state.params))
        params, momentum, work, inner, info = advance(key_move, state, batch, h, root, kT)
        work = (state.work + work).astype(state.work.dtype)
        moved = state._replace(params=params, momentum=momentum, work=work, target=inner, step=state.step + 1)

        def tested(key: Key, moved: CorrectedState) -> CorrectedState:
            one, two = jax.random.split(key)
            value = whole(one, moved.params, moved.target)
            log_ratio = (value - moved.start_value - moved.work) / kT
            accept = jnp.log(jax.random.uniform(two, (), value.dtype)) < log_ratio
            back = jax.tree.map(jnp.negative, moved.start_momentum)
            params, momentum, value, inner = jax.tree.map(
                lambda new, old: jnp.where(accept, new, old),
                (moved.params, moved.momentum, value, moved.target),
                (moved.start, back, moved.start_value, moved.start_target),
            )
            share = moved.accepted + (accept - moved.accepted) / (moved.step // length)
            zero = jnp.zeros_like(work)
            return CorrectedState(params, momentum, params, momentum, value, zero, share, inner, inner, moved.step)

        new = at_times(moved.step % length == 0, tested, key_test, moved)
        return new, {"step_size": h, "acceptance": new.accepted, **info}

    check = partial(require_training_data, target)
    return Algorithm(init, step, lambda state: state.start, target.spec, check)


def _check_epoch(frames: int, size: int, length: int) -> None:
    """A trajectory must lie within an epoch, or be made of whole ones."""
    epoch = size // frames
    if epoch % length and length % epoch:
        raise ValueError(
            f"length must divide the number of minibatches of an epoch, {epoch}, or be a multiple of it. Got {length}."
        )


def _halves(target: Target, batch: Batch) -> tuple[Batch, Batch]:
    frames = frames_scored(target, batch)
    if frames == target.size:
        return batch, batch
    if frames % 2:
        raise ValueError(f"sggmc uses the two halves of a minibatch; batch_size must be even. Got {frames}.")
    return take(batch, slice(0, frames // 2)), take(batch, slice(frames // 2, frames))


def _kinetic(momentum: Params) -> Any:
    return 0.5 * total((p * p).sum().astype(jnp.result_type(float)) for p in jax.tree.leaves(momentum))
