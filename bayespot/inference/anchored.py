r"""Randomised maxima of a posterior: every member of an ensemble has an anchor in its prior, and errors in its labels.

.. math:: \hat\theta = \operatorname{arg\,max}_\theta\; -\tfrac12 \sum_n \big[ r_n(\theta) + \varepsilon_n \big]^2
          + \log p(\theta - a + \mu), \qquad \varepsilon_n \sim \mathcal N(0, 1), \quad a \sim p

with the standardised errors :math:`r_n` of all labels and a Gaussian prior of mean :math:`\mu`, which the anchor
:math:`a` replaces. Where predictions are linear in θ and the scales of the errors are known, the maxima are independent
draws of the exact posterior; elsewhere they are near to it as far as it is Gaussian around each mode. With the labels
as given the covariance is :math:`H^{-1} P H^{-1}` instead of :math:`H^{-1}`, for the Hessians :math:`H` of −log
posterior and :math:`P` of −log prior, and that is too small.

Up to a constant both changes add a random linear term,

.. math:: -\sum_n r_n(\theta)\, \varepsilon_n + \theta^\top P^{1/2} z, \qquad z \sim \mathcal N(0, 1),

because :math:`P (a - \mu)` has the covariance :math:`P`. So labels that are missing stay out, and parameters without a
prior get no anchor.

Reference:
    Pearce, Leibfried, Brintrup, Zaki and Neely, AISTATS (2020), arXiv:1810.05546; Bardsley, Solonen, Haario and Laine,
    SIAM J. Sci. Comput. 36, A1895 (2014), for perturbed labels.
"""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.inference.target import Batch, LeastSquares, Target, TargetState
from bayespot.tree import length, name_of, noise, total
from bayespot.typing import Array, Int, Key, Params, PyTree, Scalar

LABELS = ("perturbed", "given")


class Anchored(NamedTuple):
    """State of one member: that of the target inside, :math:`P^{1/2} z`, and the seed of the errors of its labels."""

    target: TargetState
    slope: Params
    seed: Int[Array, ""]


def anchored(
    target: Target, labels: str = "perturbed", number: Callable[[Batch], Int[Array, "B"]] = attrgetter("frame")
) -> Target:
    """The target with an anchor, and errors of the labels, that are each chain's own: an ensemble of ``optimise``.

    Members of a plain ensemble differ by their starting points alone, so that a direction which the data leave open
    gets the spread of the starting points, and one which all starting points agree in gets none. Here the first gets
    the prior's, the second that of the labels' errors. Validation data and ``metrics`` are left as they are.

    Args:
        target: with Gaussian errors and a Gaussian prior, independent from parameter to parameter.
        labels: ``"perturbed"`` by further errors at the target's own scales, the same ones whenever a member meets the
            frame, at twice the cost per step; or as ``"given"``, where the prior alone is to set the spread.
        number: ``batch → (B,)``, a number for every frame, from which the errors of its labels are made.

    Raises:
        ValueError: for errors or a prior that are not Gaussian, or another word for ``labels``; and, from ``infer``,
            for frames that share a number.

    Example:
        ``infer(key, optimise(anchored(target), optax.adam(1e-3)), initial(key, target, chains=8), data, steps=5_000)``
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {LABELS}. Got {labels!r}.")
    squares = target.least_squares
    if squares is None:
        raise ValueError(
            "An anchored ensemble needs a target with Gaussian errors (its least_squares). Got one without. "
            "Use force_matching with Noise(dof=None), and with_frames afterwards."
        )
    precision = partial(_precision, squares.log_prior, squares.scales)
    _check_prior(squares, precision, jax.eval_shape(target.initial, jax.random.key(0)))

    def check(data: Batch) -> None:
        target.check(data)
        if labels == "perturbed" and len(np.unique(np.asarray(number(data)))) < length(data):
            raise ValueError(
                "Every frame needs a number of its own, from which the errors of its labels are made. Got frames that "
                "share one. Number them anew: replace(data, frame=np.arange(len(data)))."
            )

    def init(key: Key, params: Params) -> Anchored:
        inner, prior, errors = jax.random.split(key, 3)
        ones = jax.tree.map(jnp.ones_like, params)
        slope = jax.tree.map(lambda p, z: jnp.sqrt(p) * z, precision(params, ones), noise(prior, params))
        return Anchored(target.init(inner, params), slope, jax.random.bits(errors, (), jnp.uint32).astype(jnp.int32))

    def value_and_grad(key: Key, params: Params, state: Anchored, batch: Batch):
        def linear(params: Params) -> Scalar:
            anchor = _inner(state.slope, params) / target.size
            if labels == "given":
                return anchor
            errors = squares.residuals(params, batch)
            return anchor - _inner(errors, perturbation(state.seed, number(batch), errors)) / length(batch)

        value, gradient, inner, info = target.value_and_grad(key, params, state.target, batch)
        more, slope = jax.value_and_grad(linear)(params)
        return value + more, jax.tree.map(jnp.add, gradient, slope), state._replace(target=inner), info

    return target._replace(init=init, value_and_grad=value_and_grad, check=check, least_squares=None)


def perturbation(seed: Int[Array, ""], numbers: Int[Array, "B"], errors: PyTree) -> PyTree:
    """Standard normal errors of all labels of a minibatch, each frame's a function of the seed and its number."""

    def frame(number, one):
        return noise(jax.random.fold_in(jax.random.key(seed), number), one)

    return jax.vmap(frame)(numbers, errors)


def _inner(one: PyTree, other: PyTree) -> Scalar:
    """Sum of products of all numbers, in the widest precision in use."""
    terms = jax.tree.map(lambda a, b: (a * b).sum(dtype=jnp.result_type(float)), one, other)
    return total([jnp.zeros((), jnp.result_type(float)), *jax.tree.leaves(terms)])


def _precision(log_prior: Callable, scales: tuple[str, ...], params: Params, direction: Params) -> Params:
    """−∇² log prior times a direction, without the scales of the errors, whose prior is no Gaussian."""
    _, curvature = jax.jvp(jax.grad(log_prior), (params,), (direction,))
    return jax.tree.map(jnp.negative, _without(scales, curvature))


def _without(scales: tuple[str, ...], params: Params) -> Params:
    """The tree with zeros for the scales of the errors."""

    def rest(path, leaf):
        return jnp.zeros_like(leaf) if name_of(path).split("/")[0] in scales else leaf

    return jax.tree_util.tree_map_with_path(rest, params)


def _check_prior(squares: LeastSquares, precision: Callable, shapes: Params) -> None:
    """Refuse priors whose slopes at opposite points, near and far, are not those of independent Gaussians."""

    def slope(params):
        return _without(squares.scales, jax.grad(squares.log_prior)(params))

    @jax.jit
    def gaussian(place):
        opposite = jax.tree.map(jnp.negative, place)
        diagonal = precision(place, jax.tree.map(jnp.ones_like, place))
        same = jax.tree.map(
            lambda p, x, a, b: ((p >= 0) & (jnp.abs(2 * p * x + a - b) <= 1e-4 * (jnp.abs(a) + jnp.abs(b)))).all(),
            diagonal, place, slope(place), slope(opposite),
        )  # fmt: skip
        return jnp.stack(jax.tree.leaves(same)).all()

    near = noise(jax.random.key(0), shapes)
    if not (gaussian(near) and gaussian(jax.tree.map(lambda x: 1000 * x, near))):
        raise ValueError(
            "An anchored ensemble needs a prior that is Gaussian, and independent from parameter to parameter. "
            "Got another one. Use normal(…) or scaled_normal(…)."
        )
