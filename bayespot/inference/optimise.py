r"""Maximum a posteriori by any optax optimiser; with several chains, a deep ensemble.

The parameters that count are a running average of the iterates (Polyak and Juditsky, SIAM J. Control Optim. 30, 838
(1992)), and with validation data the best average seen:

.. math:: \bar\theta_t = \bar\theta_{t-1} + (1 - \beta_t)(\theta_t - \bar\theta_{t-1}), \qquad
          \beta_t = \min\Big(\beta, \frac{1 + t}{10 + t}\Big).

Reference of deep ensembles: Lakshminarayanan, Pritzel and Blundell, NeurIPS (2017).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayespot.batching import any_together
from bayespot.inference.algorithm import Algorithm
from bayespot.inference.target import Batch, Target, TargetState, require_training_data
from bayespot.typing import Array, Key, Params, Scalar


class OptimiseState(NamedTuple):
    """Iterate, its running average, and the best average so far."""

    params: Params
    average: Params
    best: Params
    best_score: Scalar
    best_step: Array
    optimiser: Any
    target: TargetState
    step: Array


def optimise(
    target: Target,
    optimiser: optax.GradientTransformation,
    *,
    average: float = 0.995,
    validation: Batch | None = None,
    every: int = 100,
    patience: int | None = None,
    min_share: float | None = None,
) -> Algorithm:
    """An optimiser as an ``Algorithm``.

    Args:
        target: log density to be climbed.
        optimiser: from optax, with its schedule inside.
        average: β of the running average; 0 for the plain iterate.
        validation: data on which the average is scored by ``target.metrics(…)["log_likelihood"]``; without it the last
            average counts, never the starting point.
        every: steps between scores.
        patience: stop when so many consecutive scores brought no improvement; ``None`` runs to the end.
        min_share: of targets that simulate, halve a step until this part of the effective frames is left, e.g. 0.5.

    Raises:
        ValueError: for an average outside [0, 1), ``every`` or ``patience`` below 1, patience without validation data,
            validation data that the target cannot score, or ``min_share`` for a target that does not simulate.
    """
    _check(target, average, every, validation, patience, min_share)

    def init(key: Key, params: Params) -> OptimiseState:
        score, step = jnp.full((), -jnp.inf), jnp.zeros((), jnp.int32)
        started = optimiser.init(params), target.init(key, params)
        return OptimiseState(params, params, params, score, step, *started, step)

    def step(key: Key, state: OptimiseState, batch: Batch):
        value, gradient, target_state, info = target.value_and_grad(key, state.params, state.target, batch)
        updates, optimiser_state = optimiser.update(jax.tree.map(jnp.negative, gradient), state.optimiser, state.params)
        if min_share is not None and target.share is not None:  # the latter is checked above
            updates = _shortened(target.share, target_state, min_share, state.params, updates)
        params = optax.apply_updates(state.params, updates)
        t = state.step + 1
        beta = jnp.minimum(average, t / (9 + t)) if average > 0 else 0.0
        averaged = jax.tree.map(lambda m, p: p + (beta * (m - p)).astype(p.dtype), state.average, params)
        new = state._replace(params=params, average=averaged, optimiser=optimiser_state, target=target_state, step=t)
        if validation is None:
            return new, {"log_density": value, **info}
        new = _scored_at_times(new, t % every == 0, target, validation)
        if patience is not None:  # once done a member stays as it is, however long the others still run
            over = _waited(state) >= patience * every
            new = jax.tree.map(lambda before, after: jnp.where(over, before, after), state, new)
        done = jnp.asarray(False) if patience is None else _waited(new) >= patience * every
        return new, {"log_density": value, **info, "validation": new.best_score, "done": done}

    def params(state: OptimiseState) -> Params:
        if validation is None:
            return state.average
        scored = state.best_score > -jnp.inf  # before the first score, the average: never the starting point
        return jax.tree.map(lambda best, last: jnp.where(scored, best, last), state.best, state.average)

    return Algorithm(init, step, params, target.spec, partial(require_training_data, target))


def _check(target: Target, average: float, every: int, validation, patience: int | None, min_share: float | None):
    if not 0 <= average < 1 or every < 1 or (patience is not None and patience < 1):
        raise ValueError(f"Need 0 ≤ average < 1, every ≥ 1, patience ≥ 1. Got {average=}, {every=}, {patience=}.")
    if min_share is not None and (target.share is None or not 0 < min_share < 1):
        raise ValueError(f"min_share is for targets that simulate, and between 0 and 1. Got {min_share}.")
    if validation is not None:
        target.check(validation)
    elif patience is not None:
        raise ValueError("Early stopping (patience) needs validation data. Pass validation=….")


def _shortened(share: Callable, state: TargetState, least: float, params: Params, updates: Params) -> Params:
    """The updates, halved until the least part of the effective reference frames is left."""
    enough = least * share(params, state)

    def scaled(factor):
        return jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)

    def too_far(factor):
        return ~(share(optax.apply_updates(params, scaled(factor)), state) >= enough) & (factor > 1e-6)  # also for NaN

    return scaled(jax.lax.while_loop(too_far, lambda factor: 0.5 * factor, jnp.ones(())))


def _waited(state: OptimiseState) -> Array:
    """Steps since the best score."""
    return state.step - state.best_step


def _scored_at_times(state: OptimiseState, due: Array, target: Target, validation: Batch) -> OptimiseState:
    """The state after its average was scored on the validation data, if that is due; a NaN score is never better."""
    validation = jax.tree.map(jnp.asarray, validation)

    def score(state: OptimiseState) -> OptimiseState:
        value = target.metrics(state.average, validation)["log_likelihood"].astype(state.best_score.dtype)
        better = due & (value > state.best_score)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.average, state.best)
        return state._replace(
            best=best,
            best_score=jnp.where(better, value, state.best_score),
            best_step=jnp.where(better, state.step, state.best_step),
        )

    return jax.lax.cond(any_together(due), score, lambda state: state, state)
