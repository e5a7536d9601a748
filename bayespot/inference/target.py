r"""The contract of everything that scores parameters.

**Convention.** Log densities are per datum: ``value`` estimates :math:`\frac{1}{N}\log p(\theta \mid D)`, up to a
constant, from a minibatch. A step size therefore does not depend on the number ``N`` of data, and a
sampler at temperature ``T`` (1 is Bayes' posterior; it divides likelihood and prior alike) injects its noise at
``T / N``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bayespot.tree import length
from bayespot.typing import Key, Params, PyTree, Scalar, Spec

TargetState = PyTree
Batch = PyTree
"""Any tree whose leaves share their leading axis, the frames of the minibatch."""
Info = dict[str, Any]


class Target(NamedTuple):
    """A (possibly stateful) log density of the parameters, per datum.

    Attributes:
        initial: ``key → parameters``, a random starting point.
        init: ``(key, params) → state``; ``()`` where there is none.
        value_and_grad: ``(key, params, state, batch) → value, gradient, state, info``.
        metrics: ``(params, batch) → dict`` of scalars over all frames of ``batch``; ``"log_likelihood"`` per frame is
            what early stopping watches.
        size: ``N``, number of data.
        spec: of the potential inside, so that its posterior can rebuild it.
        check: raises ``ValueError`` for data that the target cannot score (host).
    """

    initial: Callable[[Key], Params]
    init: Callable[[Key, Params], TargetState]
    value_and_grad: Callable[[Key, Params, TargetState, Batch], tuple[Scalar, Params, TargetState, Info]]
    metrics: Callable[[Params, Batch], dict[str, Scalar]]
    size: int
    spec: Spec
    check: Callable[[Batch], None] = lambda data: None


def initial(key: Key, target: Target, chains: int) -> Params:
    """Starting points of ``chains`` independent chains or ensemble members, stacked along a leading axis."""
    return jax.jit(jax.vmap(target.initial))(jax.random.split(key, chains))


def require_training_data(target: Target, data: Batch) -> None:
    """Refuse data other than those the target was made for: their number weighs the prior against the likelihood.

    Raises:
        ValueError: for another number of frames, or data that the target cannot score.
    """
    if (frames := length(data)) != target.size:
        raise ValueError(f"The target was made for {target.size} frames. Got {frames}. Make it from these data.")
    target.check(data)
