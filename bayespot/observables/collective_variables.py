"""Collective variables: distances, angles and dihedrals between chosen atoms, as functions of a frame.

They serve ``free_energy_profile``, ``free_energy_surface``, ``distribution`` and the conditions of ``population``.
Atoms are counted from 0 without padding. Vectors between consecutive atoms are minimum images: an angle or a dihedral
does not depend on how a molecule lies across the faces of the box, as long as its bonds are shorter than half the box
is thick.
The same arguments give the same function, so that nothing is compiled twice.
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import jax.numpy as jnp
import numpy as np

from bayespot.records.geometry import angle_between, dihedral_of, length, minimum_image
from bayespot.records.system import System
from bayespot.records.trajectory import Frame
from bayespot.typing import Array, Float

_AROUND = np.array(list(product((-1, 0, 1), repeat=3)))

Variable = Callable[[Frame], Array]
"""``Frame → scalar``, or the values of several molecules ``(n,)``; NaN where an atom does not exist."""


@cache
def distance(i: int, j: int) -> Variable:
    """Distance between two atoms [Å], the nearest images (of a box that is not far more skewed than a hexagonal one).

    Raises:
        ValueError: for a negative index, or the same atom twice.
    """
    rows = _checked(((i, j),), 2)

    def variable(frame: Frame) -> Array:
        one, other = _places(frame.system, rows)[0]
        vector = minimum_image(other - one, frame.system.box)
        # In a skewed cell the nearest image may be a neighbour of the one whose fractions are smallest.
        return length(vector + jnp.asarray(_AROUND, vector.dtype) @ frame.system.box).min()

    return variable


@cache
def angle(i: int, j: int, k: int) -> Variable:
    """Angle that the atoms ``i`` and ``k`` form at ``j`` [rad], from 0 to π.

    Raises:
        ValueError: as ``distance``.
    """
    return _variable(_checked(((i, j, k),), 3), lambda vectors: angle_between(-vectors[0], vectors[1])[0])


@cache
def dihedral(i: int, j: int, k: int, l: int) -> Variable:
    """Dihedral angle of four atoms [rad], from −π to (not including) π; the sign is IUPAC's, 0 is cis.

    Backbone angles are φ = dihedral(C, N, Cα, C) and ψ = dihedral(N, Cα, C, N).

    Raises:
        ValueError: as ``distance``.

    Reference: IUPAC-IUB Commission on Biochemical Nomenclature, *Biochemistry* 9, 3471 (1970).
    """
    several = dihedrals(((i, j, k, l),))
    return lambda frame: several(frame)[0]


@cache
def dihedrals(atoms: tuple[tuple[int, int, int, int], ...]) -> Variable:
    """Dihedral angles of several quadruples, ``(n,)`` [rad], e.g. those of one kind in all molecules.

    Raises:
        ValueError: as ``distance``.
    """

    def turned(vectors: list[Array]) -> Float[Array, "n"]:
        phi = dihedral_of(*vectors)
        return jnp.where(phi >= np.pi, -np.pi, phi)  # the ends are one angle, which belongs into the first bin

    return _variable(_checked(atoms, 4), turned)


def _checked(atoms: tuple[tuple[int, ...], ...], number: int) -> np.ndarray:
    rows = [tuple(row) for row in atoms]
    if not rows or any(len(row) != number or len(set(row)) < number or min(row) < 0 for row in rows):
        raise ValueError(f"Need {number} different atoms, counted from 0. Got {atoms}.")
    return np.asarray(rows, int)


def _variable(rows: np.ndarray, function: Callable[[list[Array]], Array]) -> Variable:
    """A function of the vectors from each atom of every row to the next."""

    def variable(frame: Frame) -> Array:
        position = _places(frame.system, rows)
        steps = minimum_image(position[:, 1:] - position[:, :-1], frame.system.box)
        return function([steps[:, n] for n in range(rows.shape[1] - 1)])

    return variable


def _places(system: System, rows: np.ndarray) -> Float[Array, "n atoms 3"]:
    """Positions of real atoms by their number, NaN beyond the last."""
    count = jnp.cumsum(system.species > 0)
    place = jnp.searchsorted(count, jnp.asarray(rows + 1))
    found = jnp.asarray(system.position)[jnp.minimum(place, len(count) - 1)]
    return jnp.where((place < len(count))[..., None], found, jnp.nan)
