r"""Free energies: differences between two potentials (Zwanzig, BAR), and over one or two collective variables.

The differences are plain functions on the host, of energies that have been evaluated already; their standard errors
hold for independent frames. Of correlated ones pass every so-manieth only, about two correlation times apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from bayespot.observables.observable import Observable, Weights
from bayespot.observables.populations import binned
from bayespot.records.trajectory import Frame
from bayespot.typing import Array, Float


class FreeEnergyDifference(NamedTuple):
    """A free-energy difference.

    Attributes:
        value: new minus old potential [the unit of kT].
        standard_error: of ``value``, for independent frames [the unit of kT].
    """

    value: float
    standard_error: float


def zwanzig(dU: Float[Array, "T"], kT: float) -> FreeEnergyDifference:
    r"""Free-energy perturbation: the difference between two potentials from frames of one,

    .. math:: \Delta F = -kT \ln \left\langle e^{-\Delta U/kT} \right\rangle_\mathrm{old},
              \qquad \frac{\sigma^2}{(kT)^2}
              = \frac1T\, \frac{\mathrm{var}(e^{-\Delta U/kT})}{\langle e^{-\Delta U/kT} \rangle^2}

    Few frames carry the average when :math:`\Delta U` scatters by more than about 2 kT; value (biased upwards) and
    error are then both too optimistic. With frames of both potentials ``bar`` is better.

    Args:
        dU: :math:`U_\mathrm{new} - U_\mathrm{old}` of the frames of the old potential [eV].
        kT: temperature [eV].

    Raises:
        ValueError: for kT that is not positive, fewer than two frames, or energies that are not finite.

    Reference: Zwanzig, *J. Chem. Phys.* 22, 1420 (1954).
    """
    x = -_checked(dU, kT, "dU")
    boltzmann = np.exp(x - x.max())  # the largest is 1: neither overflow nor a sum of zeros
    value = -kT * (np.log(boltzmann.mean()) + x.max())
    error = kT * boltzmann.std(ddof=1) / boltzmann.mean() / np.sqrt(len(x))
    return FreeEnergyDifference(float(value), float(error))


def bar(dU_forward: Float[Array, "T1"], dU_backward: Float[Array, "T2"], kT: float) -> FreeEnergyDifference:
    r"""Bennett's acceptance ratio: the difference between two potentials from frames of both, with the least variance.

    :math:`\Delta F` solves, with :math:`f(x) = 1/(1 + e^x)` and :math:`M = \ln(T_1/T_2)`,

    .. math:: \sum_{t=1}^{T_1} f\!\left(M + \frac{\Delta U^+_t - \Delta F}{kT}\right)
              = \sum_{t=1}^{T_2} f\!\left(-M + \frac{\Delta U^-_t + \Delta F}{kT}\right), \qquad
              \frac{\sigma^2}{(kT)^2} = \sum_{\pm} \frac{1}{T_\pm}
              \left(\frac{\langle f^2 \rangle_\pm}{\langle f \rangle_\pm^2} - 1\right) .

    Both arguments are the energy in the *other* potential minus that in the *own*, so that exchanging them changes the
    sign of the result.

    ========================  ===============
    symbol                    argument
    ========================  ===============
    :math:`\Delta U^+`        ``dU_forward``
    :math:`\Delta U^-`        ``dU_backward``
    :math:`kT`                ``kT`` [eV]
    ========================  ===============

    Args:
        dU_forward: :math:`U_\mathrm{new} - U_\mathrm{old}` of the :math:`T_1` frames of the old potential [eV].
        dU_backward: :math:`U_\mathrm{old} - U_\mathrm{new}` of the :math:`T_2` frames of the new potential [eV].
        kT: temperature of both [eV].

    Raises:
        ValueError: as ``zwanzig``; for energies that no two potentials can have (this finds some wrong signs, not all);
            for potentials whose frames have nothing in common.

    Reference: Bennett, *J. Comput. Phys.* 22, 245 (1976).
    """
    forward, backward = _checked(dU_forward, kT, "dU_forward"), _checked(dU_backward, kT, "dU_backward")
    _require_signs(forward, backward)
    shift = np.log(len(forward) / len(backward))

    def acceptances(difference):
        return special.expit(difference - forward - shift), special.expit(shift - backward - difference)

    def excess(difference):
        there, back = acceptances(difference)
        return there.sum() - back.sum()

    # Rising from −T2 to T1: fifty kT beyond all energies one of the sums is as good as zero and the other full.
    reach = 50.0 + abs(shift)
    low, high = min(forward.min(), -backward.max()) - reach, max(forward.max(), -backward.min()) + reach
    difference = optimize.root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-12).root
    variance = 0.0
    for acceptance in acceptances(difference):
        if acceptance.max() < 1e-100:  # the sums are equal because both are zero
            raise ValueError(
                "bar needs two potentials whose frames overlap. Got energy differences hundreds of kT apart. "
                "Simulate intermediate potentials and add up the differences."
            )
        variance += acceptance.var() / acceptance.mean() ** 2 / len(acceptance)
    return FreeEnergyDifference(float(kT * difference), float(kT * np.sqrt(variance)))


def free_energy_profile(
    variable: Callable[[Frame], Array],
    kT: float,
    low: float,
    high: float,
    bins: int = 50,
    axis: str = "collective variable",
) -> Observable:
    r"""Free-energy profile [eV] along a collective variable, from a weighted histogram,

    .. math:: F(s) = -kT \ln\left[ (s_2 - s_1)\, p(s) \right], \qquad \int_{s_1}^{s_2} p(s)\, ds = 1 .

    Only differences have a meaning. The zero is that of a uniform distribution between the ends and not the lowest
    bin, whose noise would then be in every other. Values outside the ends are left out.

    ===================================  =================
    symbol                               argument
    ===================================  =================
    :math:`s`                            ``variable``
    :math:`s_1, s_2`                     ``low``, ``high``
    :math:`kT`                           ``kT`` [eV]
    ===================================  =================

    Args:
        variable: ``Frame → scalar``, traceable and blind to padding (species 0), e.g. a distance or an angle. Define it
            once: a new function is compiled anew.
        kT: temperature of the runs [eV].
        low, high: ends of the range [unit of the variable].
        bins: number of equal bins; the coordinate is their centre.
        axis: name and unit of the variable, for figures.

    Raises:
        ValueError: for kT or a range that is not positive, or no bins; in ``observe`` for a variable that is no scalar.
            A bin that a run or a block of it never visits gives inf, a variable that is NaN gives NaN; ``interval``
            refuses both: take a narrower range, fewer bins, or longer runs.
    """
    if kT <= 0 or high <= low or bins < 1:
        raise ValueError(
            "free_energy_profile needs kT > 0 [eV], low < high and at least one bin. "
            f"Got kT={kT}, low={low}, high={high}, bins={bins}."
        )

    def frame(frame: Frame) -> Float[Array, ""]:
        s = jnp.asarray(variable(frame), frame.energy.dtype)
        if s.ndim:
            raise ValueError(f"The collective variable must be a scalar per frame. Got the shape {s.shape}.")
        return s

    def combine(values: Float[Array, "T"], weights: Weights) -> Float[Array, "bins"]:
        share = binned(values, weights, low, high, bins)
        return -kT * jnp.log(share * (bins / share.sum()))

    centres = low + (np.arange(bins) + 0.5) * ((high - low) / bins)
    return Observable(frame, combine, "free energy", "eV", centres, axis)


def free_energy_surface(
    variables: tuple[Callable[[Frame], Array], Callable[[Frame], Array]],
    kT: float,
    ranges: Sequence[tuple[float, float]] = ((-np.pi, np.pi), (-np.pi, np.pi)),
    bins: tuple[int, int] = (36, 36),
    ceiling: float = np.inf,
) -> Observable:
    r"""Free-energy surface [eV] over two collective variables, e.g. the backbone angles φ and ψ of a peptide,

    .. math:: F(s, t) = -kT \ln\left[ (s_2 - s_1)(t_2 - t_1)\, p(s, t) \right] .

    The value is flat, row by row: ``value.reshape(…, *bins)`` has the first variable in the rows. The zero is that of a
    uniform distribution in the ranges, as in ``free_energy_profile``. Values outside are left out.

    Args:
        variables: two functions ``Frame → scalar``, traceable and blind to padding. Define them once: new functions
            are compiled anew.
        kT: temperature of the runs [eV].
        ranges: ends of both variables [unit of the variable]; default the full circle [rad].
        bins: number of equal bins of both.
        ceiling: what is higher, also where no frame was, counts as this high [eV]. Without it an empty bin is inf,
            which ``interval`` refuses. It may not be above what one frame in a bin stands for, kT ln(frames/bins), in
            the shortest part of a run that is averaged (a block): an interval would call it known.

    Raises:
        ValueError: for kT or a range that is not positive, or no bins; in ``observe`` for variables that are no
            scalars, or too high a ceiling. A variable that is NaN, or no frame in the ranges, gives NaN, which
            ``interval`` refuses.
    """
    (low, high), (low2, high2) = ranges
    if kT <= 0 or high <= low or high2 <= low2 or min(bins) < 1:
        raise ValueError(
            "free_energy_surface needs kT > 0 [eV], low < high in both ranges and at least one bin. "
            f"Got kT={kT}, ranges={ranges}, bins={bins}."
        )
    number = bins[0] * bins[1]

    def frame(frame: Frame) -> Float[Array, ""]:
        s, t = (jnp.asarray(variable(frame), frame.energy.dtype) for variable in variables)
        if s.ndim or t.ndim:
            raise ValueError(f"The variables must be scalars per frame. Got the shapes {s.shape} and {t.shape}.")
        row, column = (
            jnp.floor((s - low) * (bins[0] / (high - low))),
            jnp.floor((t - low2) * (bins[1] / (high2 - low2))),
        )
        inside = (row >= 0) & (row < bins[0]) & (column >= 0) & (column < bins[1])
        return jnp.where(jnp.isnan(s + t), jnp.nan, jnp.where(inside, row * bins[1] + column, -1.0))

    def combine(places: Float[Array, "T"], weights: Weights) -> Float[Array, "bins"]:
        seen = kT * np.log(len(places) / number)
        if np.isfinite(ceiling) and ceiling > seen:
            raise ValueError(
                f"{len(places)} frames in {number} bins see free energies up to {seen:.3g} eV. "
                f"Got the ceiling {ceiling}. Lower it, take fewer bins or blocks, or more frames."
            )
        share = binned(places, weights, -0.5, number - 0.5, number)
        return jnp.minimum(-kT * jnp.log(share * (number / share.sum())), ceiling)

    return Observable(frame, combine, "free energy", "eV", np.arange(number), "bin, row by row")


def _checked(dU, kT: float, name: str) -> np.ndarray:
    """Energies in units of kT, float64."""
    x = np.asarray(dU, np.float64)
    if kT <= 0 or x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        bad = "" if np.isfinite(x).all() else f", {(~np.isfinite(x)).sum()} not finite"
        raise ValueError(
            f"`{name}` must hold one finite energy difference for each of two or more frames, and kT must be positive. "
            f"Got shape {x.shape}{bad}, kT={kT}."
        )
    return x / kT


def _require_signs(forward: np.ndarray, backward: np.ndarray) -> None:
    """Gibbs and Bogoliubov: ⟨U_new − U_old⟩_old ≥ ΔF ≥ −⟨U_old − U_new⟩_new, so the means add up to zero or more."""
    gap = forward.mean() + backward.mean()
    error = np.sqrt(forward.var(ddof=1) / len(forward) + backward.var(ddof=1) / len(backward))
    if gap < -5.0 * error - 1e-6 * (np.abs(forward).max() + np.abs(backward).max()):
        raise ValueError(
            "The means of `dU_forward` and `dU_backward` must add up to zero or more, whatever the two potentials. "
            f"Got {gap:.4g} ± {error:.2g} kT. Take the other potential minus the own one in both."
        )
