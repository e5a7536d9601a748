r"""A pair potential of free form: cubic B-splines on a uniform grid of distances.

.. math:: U = \sum_{i<j} s \sum_{k=0}^{n-4} c_k\, B\Big(\frac{r_{ij} - r_0}{h} - k\Big), \qquad h = \frac{r_c - r_0}{n},

with the cardinal cubic B-spline :math:`B`, which lives on (0, 4) and whose translates sum to 1. Energy, force and
curvature are continuous, and 0 at :math:`r_0` and below as well as at :math:`r_c` and beyond. The energy is linear in
the parameters, so that force matching is linear regression and the relative entropy is convex.

References:
    de Boor, *A Practical Guide to Splines* (1978), chapter IX; Chaimovich and Shell, *J. Chem. Phys.* 134, 094112
    (2011), for such splines learned by relative entropy.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from bayespot.potentials.classical import lengths
from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params


def pair_spline(
    start: float,
    cutoff: float,
    intervals: int,
    scale: float = 0.1,
    species: Sequence[int] = (),
    initial: Sequence[float] = (),
) -> Potential:
    """A spline between all pairs of atoms, which are treated alike; for coarse-grained beads, beside a repulsive core.

    It can follow a radial distribution function as finely as the grid; what depends on angles it leaves to another
    potential, see ``add``. It is 0 below ``start``, where data are rare and atoms must be kept apart by another
    potential, e.g. ``lennard_jones``. The parameters are ``{"coefficients": (intervals - 3,)}``.

    Args:
        start: r₀ [Å], a little less than the shortest distances in the data.
        cutoff: r_c [Å].
        intervals: n of the grid. A wave of the energy should be several of them long.
        scale: s, energy of one unit of a coefficient [eV]. With ``normal(1.0)`` as prior it is the width of that.
        species: atomic numbers it may be used for; default all.
        initial: coefficients at the start; default 0.

    Raises:
        ValueError: unless 0 ≤ start < cutoff, intervals ≥ 4 and scale > 0, or for another number of coefficients.
    """
    if not (0 <= start < cutoff and intervals >= 4 and scale > 0):
        raise ValueError(
            "Need 0 ≤ start < cutoff, intervals ≥ 4 and scale > 0. "
            f"Got start={start}, cutoff={cutoff}, intervals={intervals}, scale={scale}."
        )
    known, width, number = tuple(sorted(int(z) for z in species)), (cutoff - start) / intervals, intervals - 3
    first = [float(c) for c in initial] or [0.0] * number
    if len(first) != number:
        raise ValueError(f"initial must hold intervals - 3 = {number} coefficients. Got {len(first)}.")

    def init(key: Key) -> Params:
        return {"coefficients": jnp.asarray(first, float)}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        vectors, _ = displacements(system, neighbors)
        x = (lengths(vectors) - start) / width
        # Every function at every distance: to look up the four that are not 0 is slow for a batch of parameters.
        basis = _spline(x - jnp.arange(2.0, number + 2, dtype=x.dtype)[:, None, None])
        pair = jnp.tensordot(params["coefficients"].astype(x.dtype), basis, 1, precision="highest")
        return mask_atoms(0.5 * scale * pair.sum(1), system.species, known)

    spec = {
        "name": "pair_spline",
        "start": float(start),
        "cutoff": float(cutoff),
        "intervals": int(intervals),
        "scale": float(scale),
        "species": list(known),
        "initial": [float(c) for c in initial],
    }
    return Potential(init, atom_energies, float(cutoff), known, spec)


def _spline(u: Array) -> Array:
    """The cubic B-spline of the knots −2, −1, 0, 1 and 2."""
    distance = jnp.abs(u)
    return (jnp.maximum(2 - distance, 0) ** 3 - 4 * jnp.maximum(1 - distance, 0) ** 3) / 6
