"""Several algorithms in turn: alternation between targets, where a joint density is not what one wants."""

import jax

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.target import Batch
from bayespot.typing import Key, Params


def alternate(*algorithms: Algorithm) -> Algorithm:
    """One step of each algorithm in turn, from the parameters that the one before has left.

    Every algorithm keeps a state of its own, so two optimisers have their own momenta and schedules: reference
    calculations and experiments as in the reference. What is sampled or optimised then depends on the step sizes; a
    joint density, ``fused(…)``, does not.

    Args:
        algorithms: such as ``optimise(force_matching(…), …)`` and ``optimise(difftre(…), …)``; those whose targets
            score frames share the data (``with_frames`` lets one score others). Their parameters must have the same
            structure, and their states hold them as ``params`` (``replica_exchange`` has several).

    Returns:
        An algorithm whose draws are those of the last one. Its ``info`` holds what each tells, as ``"0/log_density"``,
        and as ``log_density`` that of the first.

    Raises:
        ValueError: for no algorithm, or different potentials.

    Reference: Röcken and Zavadlav, *npj Comput. Mater.* 10, 69 (2024).
    """
    if not algorithms:
        raise ValueError("alternate needs at least one algorithm. Got none.")
    if any(a.spec != algorithms[0].spec for a in algorithms):
        raise ValueError(f"The algorithms must share a potential. Got {[dict(a.spec) for a in algorithms]}.")

    def init(key: Key, params: Params):
        keys = jax.random.split(key, len(algorithms))
        return tuple(a.init(k, params) for a, k in zip(algorithms, keys, strict=True))

    def step(key: Key, state: tuple, batch: Batch):
        keys, current, states, told = jax.random.split(key, len(algorithms)), state[-1].params, [], {}
        for n, (algorithm, k, own) in enumerate(zip(algorithms, keys, state, strict=True)):
            own, info = algorithm.step(k, own._replace(params=current), batch)
            current, states = own.params, [*states, own]
            told |= {f"{n}/{name}": x for name, x in info.items()}
        return tuple(states), told | {"log_density": told["0/log_density"]}

    def params(state: tuple) -> Params:
        return algorithms[-1].params(state[-1])

    def check(data: Batch) -> None:
        for algorithm in algorithms:
            algorithm.check(data)

    return Algorithm(init, step, params, algorithms[0].spec, check)
