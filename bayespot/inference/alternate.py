"""Several algorithms in turn: alternation between targets, where a joint density is not what one wants."""

from collections.abc import Sequence

import jax

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.target import Batch
from bayespot.tree import length
from bayespot.typing import Key, Params


def alternate(*algorithms: Algorithm, steps: Sequence[int] | None = None) -> Algorithm:
    """A step, or several, of each algorithm in turn, from the parameters that the one before has left.

    Every algorithm keeps a state of its own, so two optimisers have their own momenta and schedules: reference
    calculations and experiments as in the reference. What is sampled or optimised then depends on the step sizes; a
    joint density, ``fused(…)``, does not.

    Args:
        algorithms: such as ``optimise(force_matching(…), …)`` and ``optimise(difftre(…), …)``; those whose targets
            score frames share the data (``with_frames`` lets one score others). Their parameters must have the same
            structure. Not for samplers that remember where they were: ``sggmc``, ``amagold``, ``replica_exchange`` and
            those of blackjax.
        steps: of each algorithm in its turn; default one. An algorithm of several gets so many parts of the minibatch,
            one after the other: ``batch_size`` of ``infer`` = 133 · 5 and ``steps=(133, 1)`` make 133 steps of five
            frames, then one of the other. So can whole epochs take turns. With the data ``None`` nothing is parted.

    Returns:
        An algorithm whose draws are those of the last one. Its ``info`` holds what each tells (of several steps, the
        last), as ``"0/log_density"``, and as ``log_density`` that of the first.

    Raises:
        ValueError: for no algorithm, different potentials, or ``steps`` that are not one positive number for each; at
            the start, for a sampler of this library that remembers, and for ``alternate``. The size of a minibatch
            must be a multiple of each of ``steps``.

    Reference: Röcken and Zavadlav, *npj Comput. Mater.* 10, 69 (2024).
    """
    turns = _turns(algorithms, steps)

    def init(key: Key, params: Params):
        keys = jax.random.split(key, len(algorithms))
        states = tuple(a.init(k, params) for a, k in zip(algorithms, keys, strict=True))
        if any(not hasattr(s, "params") or hasattr(s, "start") for s in states):
            raise ValueError(
                "In alternation parameters are moved from outside, and a sampler that keeps more copies of them, or "
                "values there, would not notice. Use sgld, sghmc, sgnht or optimise, or the joint density: fused(…)."
            )
        return states

    def step(key: Key, state: tuple, batch: Batch):
        keys, current, states, told = jax.random.split(key, len(algorithms)), state[-1].params, [], {}
        for n, (algorithm, turn, k, own) in enumerate(zip(algorithms, turns, keys, state, strict=True)):
            own, info = _several(algorithm, turn, k, own._replace(params=current), batch)
            current, states = own.params, [*states, own]
            told |= {f"{n}/{name}": x for name, x in info.items()}
        return tuple(states), told | {"log_density": told["0/log_density"]}

    def params(state: tuple) -> Params:
        return algorithms[-1].params(state[-1])

    def check(data: Batch) -> None:
        for algorithm in algorithms:
            algorithm.check(data)

    return Algorithm(init, step, params, algorithms[0].spec, check)


def _turns(algorithms: tuple[Algorithm, ...], steps: Sequence[int] | None) -> tuple[int, ...]:
    if not algorithms:
        raise ValueError("alternate needs at least one algorithm. Got none.")
    if any(a.spec != algorithms[0].spec for a in algorithms):
        raise ValueError(f"The algorithms must share a potential. Got {[dict(a.spec) for a in algorithms]}.")
    turns = (1,) * len(algorithms) if steps is None else tuple(steps)
    if len(turns) != len(algorithms) or min(turns) < 1:
        raise ValueError(f"steps must be one positive number for each of {len(algorithms)} algorithms. Got {steps}.")
    return turns


def _several(algorithm: Algorithm, turn: int, key: Key, state, batch: Batch):
    """Steps with one part of the minibatch after the other; what the last one tells."""
    if turn == 1:
        return algorithm.step(key, state, batch)
    keys = jax.random.split(key, turn)
    parts = None
    if any(x.size for x in jax.tree.leaves(batch)):  # there are frames: infer hands out empty arrays in place of None
        if (frames := length(batch)) % turn:
            raise ValueError(f"{turn} steps in turn need a batch_size that is a multiple of it. Got {frames} frames.")
        parts = jax.tree.map(lambda x: x.reshape(turn, frames // turn, *x.shape[1:]), batch)

    def one(state, each):
        k, part = each
        return algorithm.step(k, state, batch if part is None else part)

    state, infos = jax.lax.scan(one, state, (keys, parts))
    return state, jax.tree.map(lambda x: x[-1], infos)
