r"""Elastic constants of a crystal at its temperature, from the fluctuations of its stress at constant volume.

The canonical mean stress is differentiated by the strain. At fixed scaled coordinates :math:`s`, with the box
:math:`h \to h(1+\epsilon)` and :math:`\sigma_{ij} = \frac1V\,\partial U/\partial\epsilon_{ij}`,

.. math:: \langle\sigma_{ij}\rangle_\mathrm{total}
          = \frac{\int\! ds\, \sigma_{ij}\, e^{-U/kT}}{\int\! ds\, e^{-U/kT}} - \delta_{ij}\, \frac{N kT}{V} .

Of its derivative by :math:`\epsilon_{kl}` the integrand gives the mean slope of the stress (Born), the two exponentials
:math:`-\frac{1}{kT}\,\mathrm{cov}(\sigma_{ij}, \partial U/\partial\epsilon_{kl})`, and the volume, of which
:math:`\partial V/\partial\epsilon_{kl} = V\delta_{kl}`, the kinetic term :math:`\delta_{ij}\delta_{kl} N kT/V`.

The same as second derivatives of the free energy would have the kinetic term
:math:`\frac{N kT}{V}\delta_{il}\delta_{jk}` by linear strain, and :math:`\frac{N kT}{V}(\delta_{ik}\delta_{jl} +
\delta_{il}\delta_{jk})` by Lagrangian strain. Each differs from Hooke's constants by terms in the total stress, and a
Born term by one strain does not go with the kinetic term by the other.

The potential must have continuous second derivatives, also at its cutoff, as those of this library have; where they
jump, the Born term lacks the jumps.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from bayespot import units
from bayespot.observables.observable import Observable, Weights, sound
from bayespot.observables.pairs import require_volume, sound_boxes
from bayespot.potentials.neighbor_list import neighbor_list
from bayespot.potentials.potential import Potential, strained, stress
from bayespot.records.neighbors import Neighbors, pairs
from bayespot.records.system import System, heights, volume
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float, Params

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

_EQUIVALENT = {
    "cubic": ("11 22 33", "12 13 23 21 31 32", "44 55 66"),
    "hexagonal": ("11 22", "12 21", "13 23 31 32", "33", "44 55"),
    "none": tuple(f"{a}{b}" for a in range(1, 7) for b in range(1, 7)),
}
"""Components of the Voigt matrix that a symmetry makes equal; the first names their mean."""


def elastic_constants(
    potential: Potential, kT: float, symmetry: str = "cubic", params: Params | None = None
) -> Observable:
    r"""Isothermal elastic constants [GPa] in Voigt's notation, the slopes of the mean stress against a small strain,

    .. math:: C_{ijkl} = \frac{\partial \langle\sigma_{ij}\rangle}{\partial \epsilon_{kl}}
              = \left\langle \frac{\partial \sigma_{ij}}{\partial \epsilon_{kl}} \right\rangle
              - \frac{V}{kT}\, \mathrm{cov}(\sigma_{ij}, \sigma_{kl}) + \frac{N kT}{V}\, \delta_{ij}\,\delta_{kl} .

    The first term strains each frame homogeneously; the second lets the atoms relax, also against each other in the
    cell of a crystal with a basis, and remains at T → 0; the third is that of the ideal gas. These are the constants of
    Hooke's law, also under pressure, where second derivatives of the free energy differ from them by the pressure;
    under another load :math:`C_{ijkl} \neq C_{klij}`, and equivalent components are not equal. Sound measures adiabatic
    ones, of which C11 and C12 are a little larger, C44 of a cubic crystal is the same.

    ===============  ================================================================================================
    ``symmetry``     value
    ===============  ================================================================================================
    ``"cubic"``      C11, C12, C44, ``(3,)``, with the axes of the cube along x, y, z
    ``"hexagonal"``  C11, C12, C13, C33, C44, ``(5,)``, with the sixfold axis along z; C66 is (C11 − C12)/2
    ``"none"``       all 36, row by row; ``reshape(…, 6, 6)`` has the stress in the rows, the strain in the columns
    ===============  ================================================================================================

    The runs must sample the canonical ensemble in a constant box, best one without mean stress, and be long:
    fluctuations converge slowly, and a drift counts as softness. The covariance is divided by :math:`1 - \sum_t w_t^2`,
    which is right on average for independent frames; a few frames that are correlated bias it (those of a vibration
    towards softness).

    Args:
        potential: that drove the runs; it is asked for the stress of every frame and its slope.
        kT: temperature of the thermostat [eV].
        symmetry: of the crystal; equivalent components are averaged.
        params: of the potential, for all runs; by default those of the ``samples`` that are given to ``observe``.

    Raises:
        ValueError: for a wrong argument; in ``observe`` for missing parameters, an open box, or one that changes.

    Reference: Squire, Holt and Hoover, *Physica* 42, 388 (1969), there by Lagrangian strain; for Hooke's constants
    under load: Wallace, *Thermodynamics of Crystals* (1972).
    """
    if not kT > 0 or symmetry not in _EQUIVALENT:
        raise ValueError(f"Need kT > 0 [eV] and a symmetry of {sorted(_EQUIVALENT)}. Got {kT}, {symmetry!r}.")
    names = _EQUIVALENT[symmetry]
    observable = Observable(
        frame=_unprepared,
        combine=partial(_combine, kT, tuple(tuple(6 * int(n[0]) + int(n[1]) - 7 for n in x.split()) for x in names)),
        name="elastic constants",
        unit="GPa",
        coordinate=np.array([float(x[:2]) for x in names]),
        axis="Voigt indices",
        parametric=_unprepared if params is None else None,
        spec=potential.spec,
    )
    return observable._replace(prepare=_preparation(observable, potential, params))


def _combine(kT: float, groups: tuple, values: Float[Array, "T 44"], weights: Weights) -> Float[Array, "components"]:
    """Of slopes, stresses, numbers of atoms and volumes, as ``_slopes_and_stress`` returns them."""
    share, atoms, v = jnp.asarray(weights, values.dtype), values[0, 42], values[0, 43]
    mean = share @ values
    away = values[:, 36:42] - mean[36:42]
    covariance = jnp.einsum("t,ta,tb->ab", share, away, away) / (1.0 - share @ share)
    gas = jnp.zeros((6, 6), values.dtype).at[:3, :3].set(atoms * kT / v)
    matrix = mean[:36] + (gas - v / kT * covariance).ravel()
    return jnp.stack([matrix[jnp.asarray(group)].mean() for group in groups]) / units.GPa


def _preparation(observable: Observable, potential: Potential, params: Params | None) -> Callable:
    """``Observable.prepare``: lists that hold the neighbours of all frames."""

    @cache  # the same function for the same lists: no second compilation
    def asking(atoms: int, box: tuple, thinnest: tuple, capacity: int) -> Callable:
        shape = System(np.zeros((atoms, 3)), np.ones(atoms, np.int32), np.asarray(box))
        update = neighbor_list(shape, potential.cutoff, 0.0, (capacity, 0), thinnest).update

        def function(frame: Frame, params: Params) -> Float[Array, "44"]:
            listed, needed = update(frame.system)
            values = _slopes_and_stress(potential, params, frame.system, listed)
            return jnp.where(needed[0] > capacity, jnp.nan, values)

        return function

    @cache
    def of_all_runs(*facts) -> Callable:
        return lambda frame: asking(*facts)(frame, params)

    def prepare(trajectories: Trajectory) -> Observable:
        facts = _facts(trajectories, potential.cutoff)
        if params is None:
            return observable._replace(parametric=asking(*facts))
        return observable._replace(frame=of_all_runs(*facts))

    return prepare


def _unprepared(frame: Frame, *params) -> Array:
    raise ValueError("elastic_constants must know the neighbours of all frames first: use observe, or call prepare.")


def _slopes_and_stress(potential: Potential, params, system: System, listed: Neighbors) -> Float[Array, "44"]:
    """∂σ/∂ε in Voigt's notation row by row and σ [eV/Å³], the number of atoms, and the volume [Å³]."""
    sigma, dtype = stress(potential), system.position.dtype
    row, column = (np.array(x) for x in zip(*_VOIGT, strict=True))

    def strained_stress(strain: Float[Array, "6"]):  # shear as angle, γ = 2 ε: `strained` makes the tensor symmetric
        tensor = jnp.zeros((3, 3), dtype).at[row, column].set(strain)
        found = sigma(params, strained(system, tensor), listed)[row, column]
        return found, found

    slopes, found = jax.jacfwd(strained_stress, has_aux=True)(jnp.zeros(6, dtype))
    facts = jnp.stack([(system.species > 0).sum().astype(dtype), volume(system.box)])
    return jnp.concatenate([slopes.ravel(), found, facts])


def _facts(trajectories: Trajectory, cutoff: float) -> tuple[int, tuple, tuple, int]:
    """What the lists of all frames need: number of atoms, a box, smallest heights, most neighbours of an atom (host).

    Raises:
        ValueError: for an open box, or one that changes within a run.
    """
    require_volume(trajectories, "elastic_constants")
    system, good = trajectories.frames.system, sound(trajectories)
    good = good if good.any() else np.ones_like(good)
    boxes = np.asarray(system.box, np.float64)[good]
    change = np.abs(boxes - boxes[:, :1]).max()
    if change > 1e-6 * np.abs(boxes).max():
        raise ValueError(
            "elastic_constants needs runs in a constant box (NVT), where the stress fluctuates instead. "
            f"Got lattice vectors that change by {change:.3g} Å within a run. Simulate in the mean box of such a run."
        )
    frames = (np.asarray(x)[good].reshape(-1, *x.shape[3:]) for x in (system.position, system.species, system.box))
    most = 0
    for position, species, box in zip(*frames, strict=True):
        real = species > 0
        i, _, _ = pairs(position[real], np.asarray(box, np.float64), cutoff)
        most = max(most, int(np.bincount(i, minlength=1).max(initial=0)))
    first = tuple(map(tuple, boxes[0, 0].tolist()))
    most = -(-most // 8) * 8  # other runs of this system then mostly need no other program
    return system.position.shape[3], first, tuple(heights(sound_boxes(trajectories)).min(0).tolist()), most
