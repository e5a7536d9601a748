r"""How much the noise of minibatches widens a sampled posterior, and the largest step at which that is tolerable.

Along a direction with curvature :math:`\lambda` and gradient noise of variance :math:`\sigma^2` per frame, the
iterates are linear in the noise. A step of SGLD is :math:`x \leftarrow (1 - \epsilon\lambda) x + \epsilon \eta`, one
of SGHMC a linear map of position and momentum. Minibatches of n out of N frames, drawn without replacement within an
epoch, have

.. math:: \operatorname{Var} \eta = \frac{\sigma^2}{n} \frac{N - n}{N - 1}, \qquad
          \operatorname{Cov}(\eta, \eta') = - \frac{\sigma^2}{N - 1} \ \text{within an epoch},

so over an epoch the noise nearly cancels, and the inflation is smaller than that of independent minibatches,
:math:`(1 + \epsilon N V / 2T) / (1 - \epsilon\lambda/2)`. It is summed here exactly and averaged over the epoch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.linalg import solve_discrete_lyapunov

from bayespot.inference.full_data import full_value_and_grad
from bayespot.inference.target import Batch, Target
from bayespot.tree import length, take
from bayespot.typing import Float, Key, Params


class GradientNoise(NamedTuple):
    """Curvature and gradient noise along some directions, everything per datum and in units of the preconditioner.

    Attributes:
        curvature: second derivative of the negative log density, with preconditioner √G H √G, ``(k,)``.
        variance: σ² of the gradient of one frame, ``(k,)``.
        directions: orthonormal, ``(k, D)``, in the order of ``jax.flatten_util.ravel_pytree``; H is diagonal in them.
        size: number of frames N.
    """

    curvature: Float[np.ndarray, "k"]
    variance: Float[np.ndarray, "k"]
    directions: Float[np.ndarray, "k D"]
    size: int


def gradient_noise(
    key: Key, target: Target, params: Params, data: Batch, *, diagonal: Params | None = None, directions: int = 8
) -> GradientNoise:
    """Measure gradient noise and curvature at a point (a trained member, or a posterior sample).

    The space is spanned by the leading directions of the noise's covariance and the stiffest one. What couples to
    directions outside of it is neglected, by which the inflation comes out too large rather than too small.

    Args:
        key: for targets that are random.
        target: log density per datum, without a changing state and without control variates.
        params: one set of parameters.
        data: the training data; takes one gradient of each frame, and some 15 + ``directions`` Hessian products of all.
        diagonal: of the preconditioner G that the sampler uses; default none.
        directions: number of directions, beside the stiffest.

    Raises:
        ValueError: for data that the target was not made for, or where the gradients of all frames are equal.
    """
    params, data = jax.tree.map(jnp.asarray, (params, data))
    one, two, three = jax.random.split(key, 3)
    state = target.init(one, params)
    root = jax.tree.map(jnp.sqrt, diagonal) if diagonal is not None else jax.tree.map(jnp.ones_like, params)
    scale, back = ravel_pytree(root)
    whole = full_value_and_grad(target, data)

    @jax.jit
    def gradients(params, data):
        def of_frame(x):
            batch = take(data, x[1][None])
            return scale * ravel_pytree(target.value_and_grad(x[0], params, state, batch)[1])[0]

        return jax.lax.map(of_frame, (jax.random.split(two, length(data)), jnp.arange(length(data))))

    @jax.jit
    def curved(params, direction):
        tangent = back(scale * direction)
        slope = jax.jvp(lambda p: whole(jax.random.clone(three), p, state)[1], (params,), (tangent,))[1]
        return -scale * ravel_pytree(slope)[0]

    def times_hessian(direction: np.ndarray) -> np.ndarray:
        return np.asarray(curved(params, jnp.asarray(direction, scale.dtype)), np.float64)

    found = np.asarray(gradients(params, data), np.float64)
    centred = found - found.mean(0)
    basis = _leading(centred, directions)
    stiffest = _stiffest(times_hessian, np.random.default_rng(0).normal(size=basis.shape[1]))
    basis = _extended(basis, stiffest)
    projected = basis @ np.stack([times_hessian(u) for u in basis], 1)
    curvature, turn = np.linalg.eigh(0.5 * (projected + projected.T))
    basis = turn.T @ basis
    return GradientNoise(curvature, ((centred @ basis.T) ** 2).mean(0), basis, len(centred))


def _leading(centred: Float[np.ndarray, "N D"], number: int) -> Float[np.ndarray, "k D"]:
    """Leading directions of the covariance of gradients."""
    value, vector = np.linalg.eigh(centred @ centred.T / len(centred))
    if not value.max() > 0:
        raise ValueError("The gradients of all frames are equal here: there is no noise. Give the target itself.")
    chosen = np.argsort(value)[::-1][: min(number, len(centred) - 1, centred.shape[1])]
    along = centred.T @ vector[:, chosen[value[chosen] > 1e-10 * value.max()]]
    return (along / np.linalg.norm(along, axis=0)).T


def _stiffest(times_hessian: Callable, direction: np.ndarray, products: int = 15) -> np.ndarray:
    """Direction of the largest curvature, by power iteration."""
    for _ in range(products):
        direction = times_hessian(direction / np.linalg.norm(direction))
    return direction / np.linalg.norm(direction)


def _extended(basis: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The basis and what of the direction lies outside of it, if any."""
    rest = direction - basis.T @ (basis @ direction)
    rest -= basis.T @ (basis @ rest)
    size = np.linalg.norm(rest)
    return np.concatenate([basis, rest[None] / size]) if size > 1e-6 else basis


def variance_inflation(
    noise: GradientNoise,
    step_size: float,
    batch_size: int,
    *,
    temperature: float = 1.0,
    friction: float | None = None,
    independent: bool = False,
) -> Float[np.ndarray, "k"]:
    """Sampled variance over the posterior's, along each direction, for the Gaussian of that curvature.

    Args:
        noise: from ``gradient_noise``.
        step_size: ε of ``sgld``, or h of ``sghmc`` when a friction is given.
        batch_size: frames of a minibatch, drawn without replacement in epochs as ``infer`` does.
        temperature: of the posterior.
        friction: γ of ``sghmc``; ``None`` means ``sgld``.
        independent: whether minibatches are independent draws, instead of those of epochs.

    Returns:
        Ratios, 1 is right; ``inf`` where the step is unstable, NaN where the curvature is not positive (there is no
        stationary spread to compare with).

    Raises:
        ValueError: for a batch size that does not fit, or settings that are not positive.
    """
    if not 1 <= batch_size <= noise.size or not step_size > 0 or not temperature > 0 or (friction or 1.0) <= 0:
        raise ValueError(
            f"Need 1 ≤ batch_size ≤ {noise.size}, step_size > 0, temperature > 0, friction > 0. "
            f"Got {batch_size=}, {step_size=}, {temperature=}, {friction=}."
        )
    make = partial(_langevin, step_size) if friction is None else partial(_underdamped, step_size, friction)
    kT = temperature / noise.size
    single = (noise.size - batch_size) / max(noise.size - 1, 1) / batch_size
    common = -1.0 / max(noise.size - 1, 1) if batch_size < noise.size and not independent else 0.0
    epoch = noise.size // batch_size
    pairs = zip(noise.curvature, noise.variance, strict=True)
    return np.array([_ratio(make, c, v * single, v * common, kT, epoch) for c, v in pairs])


def largest_step(
    noise: GradientNoise,
    batch_size: int,
    *,
    tolerance: float = 0.1,
    temperature: float = 1.0,
    friction: Callable[[float], float] | None = None,
) -> float:
    """The largest step size at which no measured direction's variance is off by more than a tolerance.

    Args:
        noise, batch_size, temperature: as for ``variance_inflation``.
        tolerance: allowed inflation of the variance, 0.1 is 5 % of the standard deviation.
        friction: ``step size → γ`` for ``sghmc``, e.g. ``lambda h: 0.3 / h``; ``None`` means ``sgld``.

    Raises:
        ValueError: when no direction has a positive curvature; others are left out, because nothing confines the
            chain along them.
    """
    known = noise.curvature > 0
    if not known.any():
        raise ValueError("No direction has a positive curvature: the point is no mode. Train longer, or add a prior.")
    noise = noise._replace(
        curvature=noise.curvature[known], variance=noise.variance[known], directions=noise.directions[known]
    )
    power = 1.0 if friction is None else 0.5
    low, high = -12.0, np.log10(2.0 / noise.curvature.max()) * power + 0.31
    for _ in range(50):
        middle = 0.5 * (low + high)
        step = 10.0**middle
        found = variance_inflation(
            noise, step, batch_size, temperature=temperature, friction=None if friction is None else friction(step)
        )
        low, high = (middle, high) if (np.abs(found - 1.0) <= tolerance).all() else (low, middle)
    return float(10.0**low)


def _langevin(step: float, curvature: float, kT: float):
    """Propagator, response to the gradient's noise, and covariance of the injected noise of one step of SGLD."""
    return np.array([[1.0 - step * curvature]]), np.array([step]), np.array([[2.0 * step * kT]])


def _underdamped(step: float, friction: float, curvature: float, kT: float):
    """The same for one step A B O B A of position and momentum."""
    keep = np.exp(-friction * step)
    drift, kick = np.array([[1.0, 0.5 * step], [0.0, 1.0]]), np.array([[1.0, 0.0], [-0.5 * step * curvature, 1.0]])
    damp, half = np.diag([1.0, keep]), np.array([0.0, 0.5 * step])
    after = drift @ kick
    injected = after @ np.diag([0.0, (1.0 - keep**2) * kT]) @ after.T
    return after @ damp @ kick @ drift, drift @ (kick @ damp @ half + half), injected


def _ratio(make: Callable, curvature: float, single: float, common: float, kT: float, epoch: int) -> float:
    """Variance of the position, averaged over an epoch, over kT/λ."""
    if not curvature > 0:
        return float("nan")
    step, response, injected = make(curvature, kT)
    if np.abs(np.linalg.eigvals(step)).max() >= 1.0:
        return float("inf")
    variance = solve_discrete_lyapunov(step, injected)[0, 0]
    if single > 0:
        sums, squares, effect, own = np.zeros_like(response), np.zeros_like(injected), response, []
        for _ in range(epoch):
            sums, squares = sums + effect, squares + np.outer(effect, effect)
            own.append((single - common) * squares + common * np.outer(sums, sums))
            effect = step @ effect
        whole = np.linalg.matrix_power(step, epoch)
        carried, mean = solve_discrete_lyapunov(whole, own[-1]), 0.0
        for part in own:
            carried = step @ carried @ step.T
            mean += (carried + part)[0, 0] / epoch
        variance += mean
    return float(variance * curvature / kT)
