"""Prior densities of parameters, from ``numpyro.distributions``, with a filter for parameters that must not get one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bayespot.tree import name_of
from bayespot.typing import Params, Scalar

Prior = Callable[[Params], Scalar]
"""``parameters → log density``, up to a constant."""


def prior(distribution: Callable) -> Prior:
    """A prior that gives every array of parameters its own distribution.

    Args:
        distribution: ``(path, array) → numpyro distribution or None``; the path reads like ``"1/kernel_0"``, and
            ``None`` leaves the array without a prior (a flat one).
    """

    def log_density(params: Params) -> Scalar:
        total = jnp.zeros((), jnp.result_type(float))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            chosen = distribution(name_of(path), leaf)
            if chosen is not None:
                total = total + chosen.log_prob(leaf).sum()
        return total

    return log_density


_NOT_CENTRED = (
    "frequencies",
    "frequency",
    "mixing",
    "sigma",
    "epsilon",
    "lambda",
    "A",
    "B",
    "bond",
    "angle",
    "dihedral",
)


def _skipped(name: str, skip: tuple[str, ...]) -> bool:
    return not set(skip).isdisjoint(name.split("/"))


def flat() -> Prior:
    """No prior at all (an improper, constant one)."""
    return prior(lambda name, leaf: None)


def normal(scale: float | Scalar = 1.0, skip: tuple[str, ...] = _NOT_CENTRED) -> Prior:
    """Independent zero-mean normals of standard deviation ``scale`` on every parameter.

    Args:
        scale: standard deviation; an array inside a numpyro model that samples it.
        skip: parameters with one of these names get none, because zero is no sensible centre for
            them: radial frequencies, mixing of species, constants of classical potentials, bonded terms.
    """
    import numpyro.distributions as dist

    return prior(lambda name, leaf: None if _skipped(name, skip) else dist.Normal(0.0, scale))


def scaled_normal(scale: float | Scalar = 1.0, skip: tuple[str, ...] = _NOT_CENTRED) -> Prior:
    """Zero-mean normals of standard deviation ``scale / √fan_in`` on matrices, ``scale`` on everything else.

    With it the prior over *functions* keeps its size as layers grow (Neal, *Bayesian Learning for Neural Networks*,
    1996, chapter 2). ``fan_in`` is the last but one axis.
    """
    import numpyro.distributions as dist

    return prior(lambda name, leaf: None if _skipped(name, skip) else dist.Normal(0.0, _width(scale, leaf)))


def scaled_student_t(dof: float = 3.0, scale: float | Scalar = 1.0, skip: tuple[str, ...] = _NOT_CENTRED) -> Prior:
    """Like ``scaled_normal``, with Student-t distributions: a few weights may become large.

    Trained networks have heavy-tailed weights, and such a prior lessens the gain of cold posteriors (Fortuin et al.,
    *Bayesian neural network priors revisited*, ICLR 2022).

    Args:
        dof: degrees of freedom; up to 2 the variance is infinite.
        scale, skip: as for ``scaled_normal``; the scale of the distribution is not its standard deviation.
    """
    import numpyro.distributions as dist

    return prior(lambda name, leaf: None if _skipped(name, skip) else dist.StudentT(dof, 0.0, _width(scale, leaf)))


def _width(scale: float | Scalar, leaf) -> float | Scalar:
    fan_in = leaf.shape[-2] if leaf.ndim >= 2 and leaf.shape[-2] > 1 else 1
    return scale / fan_in**0.5
