"""How often: the distribution of a collective variable, and the population of a region of configurations."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from bayespot.observables.observable import Observable, Weights, average
from bayespot.records.trajectory import Frame
from bayespot.typing import Array, Float


def binned(values: Float[Array, "T *n"], weights: Weights, low: float, high: float, bins: int) -> Float[Array, "bins"]:
    """Weight in each of equal bins, what is outside left out; NaN where a value is NaN."""
    s = values.reshape(len(values), -1)
    place = jnp.floor((s - low) * (bins / (high - low)))
    inside = (place >= 0) & (place < bins)
    share = jnp.broadcast_to(jnp.asarray(weights, s.dtype)[:, None], s.shape) / s.shape[1]
    counted = jnp.zeros(bins, s.dtype).at[jnp.where(inside, place, bins).astype(jnp.int32)].add(share, mode="drop")
    return jnp.where(jnp.isnan(s).any(), jnp.nan, counted)


def distribution(
    variable: Callable[[Frame], Array],
    low: float,
    high: float,
    bins: int = 50,
    axis: str = "collective variable",
) -> Observable:
    r"""Probability density of a collective variable, :math:`p(s)` with :math:`\int_{s_1}^{s_2} p(s)\, ds = 1`.

    Where the variable has several values in a frame, all count alike. Values outside the ends are left out. Other than
    in a free-energy profile bins may stay empty.

    ===================================  =================
    symbol                               argument
    ===================================  =================
    :math:`s`                            ``variable``
    :math:`s_1, s_2`                     ``low``, ``high``
    ===================================  =================

    Args:
        variable: ``Frame → scalar`` or array, traceable and blind to padding, e.g. ``dihedral(1, 3, 4, 6)``. Define it
            once: a new function is compiled anew.
        low, high: ends of the range [unit of the variable].
        bins: number of equal bins; the coordinate is their centre.
        axis: name and unit of the variable, for figures.

    Raises:
        ValueError: for a range that is not positive, or no bins. A variable that is NaN, or never in the range, gives
            NaN, which ``interval`` refuses.
    """
    if high <= low or bins < 1:
        raise ValueError(f"distribution needs low < high and at least one bin. Got {low}, {high}, bins={bins}.")

    def frame(frame: Frame) -> Array:
        return jnp.asarray(variable(frame), frame.energy.dtype)

    def combine(values: Float[Array, "T *n"], weights: Weights) -> Float[Array, "bins"]:
        share = binned(values, weights, low, high, bins)
        return share / share.sum() * (bins / (high - low))

    centres = low + (np.arange(bins) + 0.5) * ((high - low) / bins)
    return Observable(frame, combine, "distribution", "", centres, axis)


def population(
    variables: Sequence[Callable[[Frame], Array]], condition: Callable[..., Array], name: str = "population"
) -> Observable:
    """Share of the configurations that are in a region, e.g. in a basin of a free-energy surface.

    Args:
        variables: functions ``Frame → scalar``, traceable and blind to padding, e.g. ``dihedral(1, 3, 4, 6)``.
        condition: from their values to true or false, e.g. ``lambda phi, psi: (phi < 0) & (psi < 1)``. Define
            it once: a new function is compiled anew.
        name: for tables.

    Raises:
        ValueError: in ``observe`` for variables or a condition that are no scalars. A variable that is NaN gives NaN,
            which ``interval`` refuses; its comparisons would be false.
    """

    def frame(frame: Frame) -> Float[Array, ""]:
        values = [jnp.asarray(variable(frame), frame.energy.dtype) for variable in variables]
        inside = jnp.asarray(condition(*values), frame.energy.dtype)
        if inside.ndim or any(v.ndim for v in values):
            raise ValueError(
                "Variables and condition must be one value per frame. "
                f"Got the shapes {[v.shape for v in values]} and {inside.shape}."
            )
        return jnp.where(jnp.isnan(jnp.stack(values)).any(), jnp.nan, inside)

    return Observable(frame, average, name, "")
