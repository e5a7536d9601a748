r"""The quadratic form of a log posterior with Gaussian errors, from residuals and their derivatives, and its minimum.

.. math:: -\log p(\theta + \delta \mid D) \approx \text{const} + g^\top \delta + \tfrac12 \delta^\top H \delta, \qquad
          g = J^\top r - \nabla \log p(\theta), \qquad H = J^\top J - \nabla^2 \log p(\theta)

with the standardised errors :math:`r` of all labels (energies, force components, stresses) and
:math:`J = \partial r / \partial\theta`. :math:`H` is the generalised Gauss–Newton matrix; it is exact where
predictions are linear in θ, as they are in the read-out of a network. Derivatives come from the device in its own
precision; they are multiplied and summed on the host in float64, so that in float32, too, :math:`J^\top J` has no
negative eigenvalues and needs no jitter.

Reference:
    Schraudolph, Neural Computation 14, 1723 (2002); Nocedal and Wright, *Numerical Optimization* (2006), section 10.3.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import linalg

from bayespot.batching import precise
from bayespot.inference.subset import Free, check_shapes, chosen, overlay, select
from bayespot.inference.target import Batch, LeastSquares, Target, require_training_data
from bayespot.tree import length, stack, take
from bayespot.typing import Array, Params

LARGEST = 5000
"""Free parameters at most: the matrix then takes 0.2 GB, and three of its size are needed."""

_FRAMES_AT_ONCE, _NUMBERS_AT_ONCE, _COLUMNS_AT_ONCE, _HALVINGS = 16, 2**24, 32, 10


class Quadratic(NamedTuple):
    """−log posterior around some parameters, to second order in the free ones (host, float64).

    Attributes:
        value: there, up to a constant.
        gradient: ``(D,)``.
        hessian: ``(D, D)``, Gauss–Newton.
    """

    value: float
    gradient: np.ndarray
    hessian: np.ndarray


def gauss_newton(target: Target, params: Params, data: Batch, *, free: Free | None = None, steps: int = 1) -> Params:
    r"""Parameters nearer to the mode of the posterior: :math:`\theta \leftarrow \theta - H^{-1} g`.

    One step reaches the mode where predictions are linear in the free parameters, e.g. after a pretrained network has
    met new data and only its read-out is to follow. A step that would lower the posterior, or leads to NaN, is halved,
    ten times at most; where that does not help the point is kept.

    Args:
        target: with Gaussian errors.
        params: starting points, stacked along a leading axis ``C`` as for ``infer``.
        data: training data of the target.
        free: what moves, see ``subset``; default everything but the scales of the noise.
        steps: per starting point; what is halved counts once.

    Returns:
        The parameters, all of them, with the same leading axis.

    Raises:
        ValueError: as ``laplace``.
    """
    names, quadratic = quadratic_form(target, params, data, free)
    ends = []
    for mode in range(length(params)):
        here = take(params, mode)
        local = quadratic(here)
        for _ in range(steps):
            here, local = _lower(here, local, names, quadratic)
        ends.append(here)
    return stack(ends)


def _lower(here: Params, local: Quadratic, names: tuple[str, ...], quadratic: Callable) -> tuple[Params, Quadratic]:
    """One step, as long as it leads down; or the same point where none does."""
    step = -solve(factorise(local), local.gradient)
    for halvings in range(_HALVINGS + 1):
        there = moved(here, names, 0.5**halvings * step)
        new = quadratic(there)
        if new.value <= local.value + 1e-6 * abs(local.value):  # float32 knows it no better; NaN is never below
            return there, new
    return here, local


def quadratic_form(
    target: Target, params: Params, data: Batch, free: Free | None
) -> tuple[tuple[str, ...], Callable[[Params], Quadratic]]:
    """Paths of the free leaves, and the function ``one set of parameters → Quadratic`` in these (host).

    Raises:
        ValueError: see ``laplace``.
    """
    squares = target.least_squares
    if squares is None:
        raise ValueError(
            "A Gauss–Newton matrix needs a target with Gaussian errors (its least_squares). Got one without. "
            "Use Noise(dof=None), or sample the posterior with infer."
        )
    require_training_data(target, data)
    check_shapes(target, params, stacked=True)
    first = take(params, 0)
    names = _free_names(first, free, squares.scales)
    number = sum(x.size for x in jax.tree.leaves(select(first, names)))
    if number > LARGEST:
        raise ValueError(
            f"At most {LARGEST} parameters may be free. Got {number}, whose matrices would need "
            f"{3 * 8e-9 * number**2:.3g} GB. Choose fewer with free, e.g. the read-out: "
            'free=("kernel_2", "bias_2").'
        )
    on_host = jax.tree.map(np.asarray, data)  # where batches need not be compiled
    return names, partial(_quadratic, squares=squares, names=names, number=number, data=on_host)


def _free_names(params: Params, free: Free | None, scales: tuple[str, ...]) -> tuple[str, ...]:
    def of_noise(path: str) -> bool:
        return path.split("/")[0] in scales

    names = chosen(params, (lambda path: not of_noise(path)) if free is None else free)
    if wrong := [name for name in names if of_noise(name)]:
        raise ValueError(f"The scales of the noise are held at their values. Got them free: {', '.join(wrong)}.")
    return names


def _quadratic(params: Params, *, squares: LeastSquares, names: tuple[str, ...], number: int, data: Batch) -> Quadratic:
    frames, one = length(data), take(data, np.arange(1))
    errors = sum(x.size for x in jax.tree.leaves(jax.eval_shape(squares.residuals, params, one)))
    size = max(1, min(_FRAMES_AT_ONCE, frames, _NUMBERS_AT_ONCE // (number * errors)))
    linearised = _linearised(squares.residuals, names, number <= errors)
    value, gradient, hessian = (np.asarray(x, np.float64) for x in _prior(squares.log_prior, names)(params))
    for start in range(0, frames, size):
        index = np.minimum(np.arange(start, start + size), frames - 1)  # a last, incomplete batch is filled up
        real = min(size, frames - start)
        r, jacobian = (np.asarray(x, np.float64)[:real] for x in linearised(params, take(data, index)))
        jacobian, r = jacobian.reshape(-1, number), r.ravel()
        value, gradient, hessian = value + 0.5 * r @ r, gradient + jacobian.T @ r, hessian + jacobian.T @ jacobian
    return Quadratic(float(value), gradient, hessian)


@lru_cache(maxsize=8)
def _linearised(residuals: Callable, names: tuple[str, ...], forward: bool) -> Callable:
    """Compiled ``params, batch → residuals (B, R), Jacobian (B, R, D)``: column by column, or row by row."""

    def at(params, batch):
        vector, back = ravel_pytree(select(params, names))

        def rows(v, batch):
            leaves = jax.tree.leaves(residuals(overlay(params, back(v)), batch))
            return jnp.concatenate([x.reshape(len(x), -1) for x in leaves], 1)

        if forward:
            value, push = jax.linearize(lambda v: rows(v, batch), vector)
            return value, jnp.moveaxis(_unit_vectors(push, vector), 0, -1)

        def frame(one):
            value, pull = jax.vjp(lambda v: rows(v, jax.tree.map(lambda x: x[None], one))[0], vector)
            return value, _unit_vectors(lambda row: pull(row)[0], value)

        return jax.lax.map(frame, batch)

    return jax.jit(precise(at))  # short mantissas would invent information about θ


@lru_cache(maxsize=8)
def _prior(log_prior: Callable, names: tuple[str, ...]) -> Callable:
    """Compiled ``params → −log prior``, its gradient ``(D,)`` and Hessian ``(D, D)``."""

    def at(params):
        vector, back = ravel_pytree(select(params, names))
        gradient = jax.grad(lambda v: -log_prior(overlay(params, back(v))))
        columns = _unit_vectors(lambda column: jax.jvp(gradient, (vector,), (column,))[1], vector)
        return -log_prior(params), gradient(vector), columns

    return jax.jit(precise(at))


def _unit_vectors(linear: Callable, like: Array) -> Array:
    """Values of a linear function at all unit vectors, some at a time, stacked."""
    batches = -(-like.size // _COLUMNS_AT_ONCE)
    size = -(-like.size // batches)
    unit = jnp.eye(batches * size, like.size, dtype=like.dtype).reshape(batches, size, like.size)
    found = jax.lax.map(jax.vmap(linear), unit)  # not batch_size=…, which compiles the remainder a second time
    return found.reshape(batches * size, *found.shape[2:])[: like.size]


class Factor(NamedTuple):
    """:math:`H = S L L^\\top S` with a diagonal S and a triangular L whose product has the diagonal 1."""

    scale: np.ndarray
    lower: np.ndarray


def factorise(local: Quadratic) -> Factor:
    """Cholesky factor of the Hessian, which must be positive definite (host, float64).

    Raises:
        ValueError: where data and prior leave a direction open, or parameters were no numbers.
    """
    hessian = local.hessian
    if not (np.isfinite(local.value) and np.isfinite(hessian).all()):
        raise ValueError(
            "Errors and their derivatives must be finite. Got NaN or inf. Leave diverged parameters out: "
            "healthy(trained).params."
        )
    diagonal = np.diag(hessian)
    if (diagonal > 0).all():
        scale = np.sqrt(diagonal)
        try:
            lower = np.asarray(linalg.cholesky(hessian / np.outer(scale, scale), lower=True))
        except linalg.LinAlgError:
            lower = np.zeros((1, 1))
        if np.diag(lower).min() ** 2 > 10 * len(scale) * np.finfo(float).eps:
            return Factor(scale, lower)
    raise ValueError(
        "Data and prior must determine every free parameter. Got a curvature that is not positive in some direction. "
        "Use a proper prior, e.g. scaled_normal(1.0) or normal(1.0, skip=()), or free fewer parameters."
    )


def solve(factor: Factor, vector: np.ndarray) -> np.ndarray:
    """:math:`H^{-1} v`."""
    return linalg.cho_solve((factor.lower, True), vector / factor.scale) / factor.scale


def moved(params: Params, names: tuple[str, ...], step: np.ndarray) -> Params:
    """Parameters with the free ones changed by ``step``: ``(D,)``, or ``(n, D)`` for ``n`` sets."""
    vector, back = ravel_pytree(select(params, names))
    ends = jnp.asarray(np.asarray(vector, np.float64) + step, vector.dtype)
    if step.ndim == 1:
        return overlay(params, back(ends))
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(step), *jnp.shape(x))), params)
    return overlay(repeated, jax.vmap(back)(ends))
