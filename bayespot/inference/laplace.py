r"""Laplace's approximation: the Gaussian with its centre at a mode of the posterior and the width of the curvature.

.. math:: p(\theta \mid D)^{1/T} \approx \mathcal N(\theta_*,\; T H^{-1}), \qquad
          H = \frac{J_E^\top J_E}{\sigma_E^2} + \frac{J_F^\top J_F}{\sigma_F^2} + \frac{J_S^\top J_S}{\sigma_S^2}
          - \nabla^2 \log p(\theta_*)

with the derivatives :math:`J` of energies per atom, force components and stresses by the free parameters, for all
labels at once.

====================================  ================================
:math:`\theta_*`                      ``params``
:math:`\sigma_E, \sigma_F, \sigma_S`  ``params["noise"]``, held; or those of ``Noise``
:math:`T`                             ``temperature`` (1 is Bayes)
====================================  ================================

**What it ignores.** Everything that lies outside one Gaussian: other modes, skewness, and (Gauss–Newton) the curvature
of the predictions, so that full Laplace of a network may put draws where its predictions are no longer near to linear,
and no longer good. With the read-out alone free, predictions *are* linear, and the Gaussian is the exact posterior of
the read-out, given the layers before it and the noise scales; what it then ignores is that other layers might have
served as well. Such spreads are too small where the features that the network has learnt do not notice that a
configuration is new. Errors of the labels count as independent: correlated ones make every posterior too narrow.

Reference:
    MacKay, Neural Computation 4, 448 (1992); Daxberger et al., NeurIPS (2021), arXiv:2106.14806, for last layers;
    Eschenhagen et al., arXiv:2111.03577 (2021), for mixtures around several modes.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from bayespot.inference.gauss_newton import Factor, factorise, moved, quadratic_form, solve
from bayespot.inference.subset import Free
from bayespot.inference.target import Batch, Target
from bayespot.records.posterior import PosteriorSamples, as_samples
from bayespot.tree import concatenate, length, replace, take
from bayespot.typing import Key, Params


def laplace(
    key: Key,
    target: Target,
    params: Params,
    data: Batch,
    *,
    free: Free | None = None,
    draws: int = 32,
    temperature: float = 1.0,
) -> PosteriorSamples:
    """Draws from the Gaussian around each of some trained parameters: an ensemble's modes, or one pretrained potential.

    Args:
        key: random key.
        target: with Gaussian errors.
        params: ``C`` modes, stacked along a leading axis as for ``infer``: ``trained.params``, or the result of
            ``gauss_newton``. Of a single one: ``jax.tree.map(lambda x: x[None], params)``.
        data: training data of the target.
        free: what is uncertain, see ``subset``: the read-out, e.g. ``("kernel_2", "bias_2")`` of a ``descriptor_mlp``
            with two hidden layers; default everything but the scales of the noise, for small models.
        draws: per mode.
        temperature: of the posterior; it multiplies the covariance.

    Returns:
        ``C × draws`` samples with equal weights and unknown density (NaN), chain ``c`` around mode ``c``.
        ``history["distance"]`` is how far that mode is from the maximum of the quadratic form, in standard deviations
        of the draws, temperature included (root mean square over the directions). A warning says so where it is above
        1, and ``params`` are no mode to the accuracy that matters.

    Raises:
        ValueError: for a target whose errors are not Gaussian (Student-t), free noise scales, no free leaf, more than
            5000 free parameters, other data than the target's, parameters that give NaN, or a curvature that is not
            positive.

    A pretrained potential and data become a posterior in five lines::

        trained = bp.load("trained.safetensors")
        potential, data = bp.build(trained.spec), bp.read("labels.extxyz", cutoff=5.0)
        target = bp.force_matching(potential, data, bp.scaled_normal(1.0), bp.Noise(energy=0.005, forces=0.1))
        mode = bp.gauss_newton(target, trained.params, data, free=("kernel_2", "bias_2"))
        samples = bp.laplace(key, target, mode, data, free=("kernel_2", "bias_2"))
    """
    if draws < 1 or not temperature > 0:
        raise ValueError(f"Need draws ≥ 1 and a positive temperature; 1 is Bayes. Got {draws=}, {temperature=}.")
    names, quadratic = quadratic_form(target, params, data, free)
    parts, distances = [], []
    for mode in range(length(params)):
        here = take(params, mode)
        local = quadratic(here)
        factor = factorise(local)
        square = local.gradient @ solve(factor, local.gradient) / temperature
        distances.append((square / len(local.gradient)) ** 0.5)
        noise = jax.random.normal(jax.random.fold_in(key, mode), (draws, len(local.gradient)))
        parts.append(moved(here, names, temperature**0.5 * _correlated(factor, np.asarray(noise, np.float64))))
    _warn_of_distance(distances)
    samples, number = as_samples(together := concatenate(parts), target.spec), jnp.arange(len(parts) * draws)
    chain, draw = jnp.divmod(number, draws)
    history = {"distance": jnp.repeat(jnp.asarray(distances), draws)[:, None]}
    return replace(samples, params=together, chain=chain, draw=draw, history=history)


def _correlated(factor: Factor, noise: np.ndarray) -> np.ndarray:
    """Standard normal rows ``(n, D)`` as rows of the covariance :math:`H^{-1}`."""
    return linalg.solve_triangular(factor.lower, noise.T, lower=True, trans=1).T / factor.scale


def _warn_of_distance(distances: list[float]) -> None:
    far = [mode for mode, distance in enumerate(distances) if distance > 1]
    if far:
        warnings.warn(
            f"{len(far)} of {len(distances)} modes lie up to {max(distances):.3g} posterior standard deviations from "
            "the maximum for these data and noise scales. The Gaussians are centred at the given parameters all the "
            "same; gauss_newton(…) goes to the maximum.",
            RuntimeWarning,
            stacklevel=3,
        )
