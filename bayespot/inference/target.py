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
from bayespot.typing import Array, Key, Params, PyTree, Scalar, Spec

TargetState = PyTree
Batch = PyTree
"""Any tree whose leaves share their leading axis, the frames of the minibatch."""
Info = dict[str, Any]
SIMULATION_STATUS = "simulation_status"
"""Entry of ``Info`` in which targets that simulate tell the ``Status`` of their last simulation."""


class LeastSquares(NamedTuple):
    r"""A log density of Gaussian errors, :math:`-\frac12 \sum_n r_n(\theta)^2 + \log p(\theta)` up to a constant.

    Gaussian approximations need the residuals one by one, because the Gauss–Newton matrix is made of their derivatives.

    Attributes:
        residuals: ``(params, batch) → tree`` of standardised errors, (prediction − label) / scale, 0 where there is no
            label; the leading axis of every leaf is that of the frames.
        log_prior: ``params → log prior`` (not per datum).
        scales: top-level entries of the parameters that hold the scales of the errors. With them the constant changes,
            so that residuals alone do not tell how probable they are.
    """

    residuals: Callable[[Params, Batch], PyTree]
    log_prior: Callable[[Params], Scalar]
    scales: tuple[str, ...] = ()


class Linearised(NamedTuple):
    """What informs a target, to first order in the parameters: averages that were measured, or frames as a sample.

    Attributes:
        errors: standardised, (average − measured) / uncertainty, ``(m,)``; they carry sampling error. 0 for a sample.
        slopes: their derivatives, of the parameters' structure with a leading axis ``m``.
        precision: negative second derivative of the log prior by each parameter (0 where it has no prior).
        state: of the target, with the frames that were used.
        sample: whether the slopes are those of single frames, whose squares summed estimate the information. Those of
            further simulations are more of them, where those of averages are better estimates of the same.
    """

    errors: Array
    slopes: Params
    precision: Params
    state: TargetState
    sample: bool | Array = False


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
        least_squares: its residuals, where its errors are Gaussian; ``None`` elsewhere.
        frames: whether it scores data frames; without them any batch will do, and ``infer`` takes the data ``None``.
        share: ``(params, state) →`` effective share of the reference frames, for targets that simulate; traceable.
        linearise: ``(key, params, state) → Linearised`` at new reference frames, where the target is a likelihood of
            averages, or of frames that a simulation compares itself with; traceable.
        exact: whether the value of all frames is exact, where nothing is simulated; not for one that draws minibatches
            itself.
    """

    initial: Callable[[Key], Params]
    init: Callable[[Key, Params], TargetState]
    value_and_grad: Callable[[Key, Params, TargetState, Batch], tuple[Scalar, Params, TargetState, Info]]
    metrics: Callable[[Params, Batch], dict[str, Scalar]]
    size: int
    spec: Spec
    check: Callable[[Batch], None] = lambda data: None
    least_squares: LeastSquares | None = None
    frames: bool = True
    share: Callable[[Params, TargetState], Scalar] | None = None
    linearise: Callable[[Key, Params, TargetState], Linearised] | None = None
    exact: bool = True


def initial(key: Key, target: Target, chains: int) -> Params:
    """Starting points of ``chains`` independent chains or ensemble members, stacked along a leading axis."""
    return jax.jit(jax.vmap(target.initial))(jax.random.split(key, chains))


def frames_scored(target: Target, batch: Batch) -> int:
    """Number of frames that the target's value rests on: those of the batch, or all where it takes none of them."""
    return length(batch) if target.frames else target.size


def require_training_data(target: Target, data: Batch) -> None:
    """Refuse data other than those the target was made for: their number weighs the prior against the likelihood.

    Raises:
        ValueError: for another number of frames, or data that the target cannot score.
    """
    if not target.frames:
        return
    if (frames := length(data)) != target.size:
        raise ValueError(f"The target was made for {target.size} frames. Got {frames}. Make it from these data.")
    target.check(data)
