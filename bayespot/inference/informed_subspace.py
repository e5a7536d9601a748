r"""The directions of the parameters that averages or frames inform, in coordinates in which the posterior is round.

A curve with its errors determines some directions of the parameters far better than others, and most not at all. A
sampler of all of them takes steps that are safe in the best known ones, crawls along the others, and in the end carries
the potential to wherever the prior alone would let it go. With standardised errors :math:`r`, their derivatives
:math:`J = \partial r/\partial\theta` and the precision :math:`\Lambda` of the prior (diagonal) at :math:`\theta_0`,
the directions that the measurements inform are singular vectors,

.. math:: J \Lambda^{-1/2} = U s V^\top, \qquad
          \theta = \theta_0 + \Lambda^{-1/2} \sum_{s_k \ge s_\text{min}} v_k \, (1 + s_k^2)^{-1/2} z_k ,

and in the coordinates :math:`z` the curvature of −log posterior is the unit matrix wherever averages are linear in the
parameters and the prior is normal. Along all other directions the parameters stay at :math:`\theta_0`. To first order
the averages lose a variance of :math:`s_k^2 / (1 + s_k^2)` by each of these, in units of the uncertainties squared and
spread over all measured numbers; what was not measured may lose all of its own.

For mapped frames and ``relative_entropy`` the rows of J are frames of the model, with the deviations of
:math:`\partial U/\partial\theta / kT` from their mean, and :math:`J^\top J = N \operatorname{cov}(\partial U/\partial
\theta) / kT^2` is the information of N frames.

References:
    Cui, Martin, Marzouk, Solonen and Spantini, *Inverse Problems* 30, 114015 (2014), with the prior in the complement;
    Izmailov et al., UAI (2019), arXiv:1907.07504, for networks in a subspace whose complement is held.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from bayespot.inference.subset import check_shapes, through
from bayespot.inference.target import Target
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import replace
from bayespot.typing import Key, Params

_MOST_NUMBERS = 2**28  # of the host, 2 GB


class InformedSubspace(NamedTuple):
    """A target over the informed directions, and the way back.

    Attributes:
        target: over ``{"coordinates": (k,)}``, for any algorithm.
        params: coordinates of the point around which they were made: 0.
        complete: ``samples of coordinates → samples of parameters``, for ``predict`` and ``propagate``.
        strengths: ``(min(m, D),)``, all singular values :math:`s`, largest first: by √(1 + s²) the measurements narrow
            the prior along the directions. Sampling errors of the slopes of averages make the weakest look stronger
            than they are.
    """

    target: Target
    params: Params
    complete: Callable[[PosteriorSamples], PosteriorSamples]
    strengths: np.ndarray


def informed_subspace(
    key: Key, target: Target, params: Params, *, min_strength: float = 0.5, runs: int = 10, progress: bool = True
) -> InformedSubspace:
    """A target over the directions that measurements or mapped frames inform, where its posterior has about unit width.

    There ``sgld`` without preconditioner forgets in about N / ε steps, with N the number of frames, for measured
    averages 1. ε / N may be 0.1 to 0.3, which widens the variance by 1 / (1 − ε / 2N). For ``relative_entropy`` take
    smaller ones and ``max_age=1``: minibatches of b of the N frames and the n independent frames of a simulation widen
    the variance by another 1 + (ε / 2N) (N / b + N / n), without N / b if all frames are used.

    How far that carries depends on how linear the averages are: strong directions must not turn while a chain moves
    along weak ones. The read-out of a network, in which its energy is linear, behaves well; so combine it with
    ``subset``. Make the subspace near the mode, since far from it other directions are informed, and once for each of
    several trained members: what differs between them tells what the rest leaves open.

    Args:
        key: of the simulations.
        target: a ``difftre`` or a ``relative_entropy``, or a ``subset`` of one, not a ``fused`` one, with a normal
            prior whose parameters are independent.
        params: one set of parameters, e.g. ``jax.tree.map(lambda x: x[0], best.params)``.
        min_strength: directions whose singular value is smaller stay as they are. Weak directions have nearly the whole
            width of the prior, which must leave potentials that can be simulated.
        runs: simulations, as long as those of a step, over which the derivatives are averaged; enough of them when
            more do not lower the weak ``strengths``. For ``relative_entropy`` enough for ten times more independent
            frames than there are free parameters: with too few, the weakest directions look weaker than they are, and
            steps along them become too long.
        progress: whether to show a bar.

    Raises:
        ValueError: for another kind of target, a prior that leaves parameters open, parameters of another shape,
            simulations that failed or make a single frame, data that inform no direction so much, or more numbers than
            fit into memory.

    Example::

        part = bp.subset(likelihood, jax.tree.map(lambda x: x[0], best.params), ("kernel_2",))
        few = bp.informed_subspace(key, part.target, part.params)
        start = jax.tree.map(lambda x: jnp.stack([x] * 4), few.params)
        drawn = bp.infer(other_key, bp.sgld(few.target, 0.2), start, None, steps=100, burn_in=20, thin=5)
        samples = part.complete(few.complete(drawn))
    """
    if target.linearise is None:
        raise ValueError(
            "Only likelihoods of measured averages or mapped frames have such directions. Got a target without (fused "
            "ones have none). Make one with difftre or relative_entropy."
        )
    if runs < 1:
        raise ValueError(f"runs must be at least 1. Got {runs}.")
    check_shapes(target, params, stacked=False)
    params = jax.tree.map(jnp.asarray, params)
    slopes, precision = _slopes(key, target.linearise, target.init, params, runs, progress)
    directions, strengths = _basis(slopes, precision, min_strength)
    return _over(target, params, directions, strengths)


def _slopes(
    key: Key, linearise: Callable, init: Callable, params: Params, runs: int, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives ``(m, D)``, averaged over simulations or joined, and the prior's precisions ``(D,)`` (host)."""
    first, *keys = jax.random.split(key, runs + 1)

    def flat(key, state):
        found = linearise(key, params, state)
        slopes = jax.vmap(lambda x: ravel_pytree(x)[0])(found.slopes)
        return slopes, ravel_pytree(found.precision)[0], found.state, found.sample

    step, state = jax.jit(flat), init(first, params)
    numbers = runs * jax.eval_shape(flat, first, state)[0].size
    if numbers > _MOST_NUMBERS:
        raise ValueError(
            f"Frames or averages of all runs times parameters must be at most {_MOST_NUMBERS:.2g}. Got {numbers:.2g}. "
            "Make fewer parameters free with subset, or take fewer runs."
        )
    each, precision, sample = [], np.zeros(()), False
    for k in tqdm(keys, desc="directions", unit="run", disable=not progress):
        slopes, precision, state, sample = step(k, state)
        each.append(np.asarray(slopes, np.float64))
    slopes = np.concatenate(each) / runs**0.5 if sample else np.mean(each, 0)
    if not np.isfinite(slopes).all():
        raise ValueError(
            "The simulations with these parameters must be sound. Got NaN. Take parameters of a stable run, or raise "
            "the capacity of the reference run, in case its neighbour lists were too short."
        )
    return slopes, np.asarray(precision, np.float64)


def _basis(slopes: np.ndarray, precision: np.ndarray, min_strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions as long as the posterior is wide ``(k, D)``, and all singular values ``(min(m, D),)`` (host)."""
    good = (precision > 0) & np.isfinite(precision)
    if not good.all():
        raise ValueError(
            "The log prior must be curved downwards in every parameter, as a normal one is. Got one that is not in "
            f"{(~good).sum()} of {precision.size}. Give the target a normal prior for all of them: "
            "normal(scale, skip=()), or prior(lambda path, leaf: Normal(centre, width))."
        )
    width = precision**-0.5
    _, strengths, directions = np.linalg.svd(slopes * width, full_matrices=False)
    chosen = strengths >= min_strength
    if not chosen.any():
        raise ValueError(
            f"The data must inform some direction with a strength of {min_strength}. Got {strengths.max():.2g} "
            "at most. Give measurements smaller uncertainties, take more frames, or give the parameters a wider prior."
        )
    return directions[chosen] * width / np.sqrt(1 + strengths[chosen, None] ** 2), strengths


def _over(target: Target, params: Params, directions: np.ndarray, strengths: np.ndarray) -> InformedSubspace:
    centre, back = ravel_pytree(params)
    rows = jnp.asarray(directions, centre.dtype)

    def whole(z: Params) -> Params:
        return back(centre + jnp.dot(z["coordinates"], rows, precision="highest"))

    def pull(gradient: Params) -> Params:
        return {"coordinates": jnp.dot(rows, ravel_pytree(gradient)[0], precision="highest")}

    def complete(samples: PosteriorSamples) -> PosteriorSamples:
        return replace(samples, params=jax.vmap(whole)(samples.params))

    zero = {"coordinates": jnp.zeros(len(rows), rows.dtype)}
    inner = through(target, whole, pull)._replace(
        initial=lambda key: {"coordinates": jax.random.normal(key, (len(rows),), rows.dtype)},
        least_squares=None,
        linearise=None,
    )
    return InformedSubspace(inner, zero, complete, strengths)
