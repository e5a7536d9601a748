r"""Coordinates in which a posterior of few measured averages is round, so that one step size suits all directions.

A curve with its errors determines some directions of the parameters a thousand times better than others. A diagonal
preconditioner knows nothing of directions: steps that are safe in the best known ones take for ever in the others.
With the standardised errors :math:`r`, their derivatives :math:`J = \partial r/\partial\theta` and the precision
:math:`\Lambda` of the prior (diagonal), all at :math:`\theta_0`,

.. math:: \theta = \theta_0 + S z, \qquad S = \Lambda^{-1/2} \Big( 1 - V \big(1 - (1 + s^2)^{-1/2}\big) V^\top \Big),
          \qquad J \Lambda^{-1/2} = U s V^\top,

makes the curvature of −log posterior in :math:`z` the unit matrix: :math:`S S^\top = (\Lambda + J^\top J)^{-1}`, the
posterior covariance wherever averages are linear in the parameters. There are no more singular values than measured
numbers, so that no matrix of the parameters' size squared is needed. The target stays what it was; where the averages
are not linear the coordinates are just less than ideal.

Reference:
    Cui, Martin, Marzouk, Solonen and Spantini, *Inverse Problems* 30, 114015 (2014), for the directions that data
    inform; Martin, Wilcox, Burstedde and Ghattas, *SIAM J. Sci. Comput.* 34, A1460 (2012), for the low rank.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from bayespot.inference.subset import check_shapes
from bayespot.inference.target import Target
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import replace
from bayespot.typing import Key, Params


class Whitened(NamedTuple):
    """A target in other coordinates, and the way there and back.

    Attributes:
        target: over the coordinates, which have the structure of the parameters, for any algorithm.
        params: coordinates of the point around which they were made: 0.
        complete: ``samples of coordinates → samples of parameters``, for ``predict`` and ``propagate``.
        coordinates: ``parameters → coordinates``, one set.
        strengths: ``(m,)``, singular values :math:`s`, largest first: by √(1 + s²) the measurements narrow the prior in
            so many directions. Those far below 1 are directions that they say nothing of.
    """

    target: Target
    params: Params
    complete: Callable[[PosteriorSamples], PosteriorSamples]
    coordinates: Callable[[Params], Params]
    strengths: np.ndarray


def whitened(key: Key, target: Target, params: Params, *, runs: int = 10, progress: bool = True) -> Whitened:
    r"""A target of measured averages in coordinates in which its posterior is about a standard normal distribution.

    There ``sgld`` without preconditioner forgets in about 1 / ε steps, and ε may be 0.1 to 0.3. How far that carries
    depends on how linear the averages are: where a move in an open direction turns the best known ones by an angle φ,
    the curvature becomes :math:`s^2 \varphi^2` in place of 1. The read-out of a network, in which its energy is linear,
    behaves well, all of its layers with a wide prior do not; so combine it with ``subset``. Make the coordinates near
    the mode, since far from it other directions are informed.

    Args:
        key: of the simulations.
        target: a ``difftre``, or a ``subset`` of one, with a proper prior whose parameters are independent. In
            directions of which the measurements say nothing the coordinates have the whole width of the prior, which
            must therefore leave potentials that can be simulated.
        params: one set of parameters, e.g. ``jax.tree.map(lambda x: x[0], best.params)``.
        runs: simulations, as long as those of a step, over which the derivatives are averaged. Their noise makes weak
            directions look informed, which costs efficiency and nothing else.
        progress: whether to show a bar.

    Raises:
        ValueError: for another kind of target, a prior that leaves parameters open, parameters of another shape, or
            simulations that failed.

    Example::

        part = bp.subset(likelihood, jax.tree.map(lambda x: x[0], best.params), ("kernel_2",))
        white = bp.whitened(key, part.target, part.params)
        start = jax.tree.map(lambda x: jnp.stack([x] * 4), white.params)
        drawn = bp.infer(other_key, bp.sgld(white.target, 0.2), start, None, steps=100, burn_in=20, thin=5)
        samples = part.complete(white.complete(drawn))
    """
    if target.linearise is None:
        raise ValueError(
            "Whitening needs a likelihood of measured averages. Got another target. Make one with difftre."
        )
    if runs < 1:
        raise ValueError(f"runs must be at least 1. Got {runs}.")
    check_shapes(target, params, stacked=False)
    params = jax.tree.map(jnp.asarray, params)
    slopes, precision = _averaged(key, target.linearise, target.init, params, runs, progress)
    return _in_coordinates(target, params, *_basis(slopes, precision))


def _averaged(
    key: Key, linearise: Callable, init: Callable, params: Params, runs: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives ``(m, D)``, means over successive simulations, and the prior's precisions ``(D,)`` (host)."""
    first, *keys = jax.random.split(key, runs + 1)

    def flat(key, state):
        found = linearise(key, params, state)
        return jax.vmap(lambda x: ravel_pytree(x)[0])(found.slopes), ravel_pytree(found.precision)[0], found.state

    step, state = jax.jit(flat), init(first, params)
    total, precision = np.zeros(()), np.zeros(())
    for k in tqdm(keys, desc="whiten", unit="run", disable=not progress):
        slopes, precision, state = step(k, state)
        total = total + np.asarray(slopes, np.float64)
    if not np.isfinite(total).all():
        raise ValueError(
            "The simulation with these parameters must be stable. Got NaN. Take parameters of a stable run."
        )
    return total / runs, np.asarray(precision, np.float64)


def _basis(slopes: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths of the prior ``(D,)``, informed directions ``(m, D)`` and their singular values ``(m,)`` (host)."""
    good = (precision > 0) & np.isfinite(precision)
    if not good.all():
        raise ValueError(
            "The prior must be proper in every parameter. Got one without a width in "
            f"{(~good).sum()} of {precision.size}. Give difftre a prior for all of them: "
            "normal(scale, skip=()), or prior(lambda path, leaf: Normal(centre, width))."
        )
    width = precision**-0.5
    _, strengths, directions = np.linalg.svd(slopes * width, full_matrices=False)
    return width, directions, strengths


def _in_coordinates(
    target: Target, params: Params, width: np.ndarray, directions: np.ndarray, strengths: np.ndarray
) -> Whitened:
    centre, back = ravel_pytree(params)
    scale, rows = jnp.asarray(width, centre.dtype), jnp.asarray(directions, centre.dtype)
    narrowed = np.sqrt(1 + strengths**2)
    shrink, grow = (jnp.asarray(x, centre.dtype) for x in (1 / narrowed - 1, narrowed - 1))

    def along(v: jax.Array, factor: jax.Array) -> jax.Array:
        inner = jnp.dot(rows, v, precision="highest")
        return v + jnp.dot(factor * inner, rows, precision="highest")

    def whole(z: Params) -> Params:
        return back(centre + scale * along(ravel_pytree(z)[0], shrink))

    def coordinates(other: Params) -> Params:
        return back(along((ravel_pytree(other)[0] - centre) / scale, grow))

    def value_and_grad(key, z, state, batch):
        value, gradient, state, info = target.value_and_grad(key, whole(z), state, batch)
        return value, back(along(scale * ravel_pytree(gradient)[0], shrink)), state, info

    def complete(samples: PosteriorSamples) -> PosteriorSamples:
        return replace(samples, params=jax.vmap(whole)(samples.params))

    share = target.share
    inner = target._replace(
        initial=lambda key: coordinates(target.initial(key)),
        init=lambda key, z: target.init(key, whole(z)),
        value_and_grad=value_and_grad,
        metrics=lambda z, batch: target.metrics(whole(z), batch),
        least_squares=None,
        share=None if share is None else lambda z, state: share(whole(z), state),
        linearise=None,
    )
    return Whitened(inner, jax.tree.map(jnp.zeros_like, params), complete, coordinates, strengths)
