"""The contract of everything that moves parameters: optimisers, SG-MCMC, full-batch MCMC."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bayespot.inference.target import Batch, Info
from bayespot.typing import Key, Params, Spec

State = Any


class Algorithm(NamedTuple):
    """Three pure functions; ``infer`` drives them.

    Attributes:
        init: ``(key, params) → state``.
        step: ``(key, state, batch) → state, info``. ``info`` is a dictionary of scalars with at least
            ``log_density`` (per datum); a boolean ``done`` in it tells that further steps change nothing.
        params: ``state → parameters`` that count as the draw (the best ones for an optimiser).
        spec: of the potential inside the target.
        check: raises ``ValueError`` for training data that do not belong to the target (host).
    """

    init: Callable[[Key, Params], State]
    step: Callable[[Key, State, Batch], tuple[State, Info]]
    params: Callable[[State], Params]
    spec: Spec
    check: Callable[[Batch], None] = lambda data: None
