"""A configuration of atoms."""

import jax.numpy as jnp
import numpy as np

from bayespot.tree import record
from bayespot.typing import Array, Float, Int


@record
class System:
    """Atoms in a box.

    Attributes:
        position: Cartesian positions [Å], shape ``(N, 3)``; they need not lie inside the box.
        species: atomic numbers, shape ``(N,)``; 0 marks padding, which no potential and no observable sees.
        box: lattice vectors as rows [Å], shape ``(3, 3)``; a zero row marks a direction without periodicity. In a
            flattened minibatch, where the atoms of many structures stand in a row, one box per atom, ``(A, 3, 3)``.
    """

    position: Float[Array, "*#batch N 3"]
    species: Int[Array, "*#batch N"]
    box: Float[Array, "*#box 3 3"]


def system(position, species, box=None, dtype=None) -> System:
    """A checked ``System`` from anything that converts to arrays.

    Args:
        position: Cartesian positions [Å], shape ``(N, 3)``.
        species: atomic numbers, shape ``(N,)``.
        box: lattice vectors as rows [Å], or three edge lengths, or ``None`` for an isolated molecule.
        dtype: of positions and box; default JAX's (float32, or float64 where x64 is enabled).

    Raises:
        ValueError: for shapes that do not agree, an unknown species, or a box without volume.
    """
    position, species = np.asarray(position, float), np.asarray(species)
    box = np.zeros((3, 3)) if box is None else np.asarray(box, float)
    if box.ndim == 1:
        box = np.diag(box)
    if position.ndim != 2 or position.shape[1] != 3 or species.shape != position.shape[:1] or box.shape != (3, 3):
        raise ValueError(
            "Need position (N, 3), species (N,), box (3, 3) or (3,). "
            f"Got {position.shape}, {species.shape}, {box.shape}."
        )
    if not (np.isfinite(position).all() and np.isfinite(box).all()):
        raise ValueError("Positions and box must be finite. Got NaN or inf.")
    if species.size and (species.min() < 0 or species.max() > 118):
        raise ValueError(f"species are atomic numbers from 1 to 118. Got {species.min()} … {species.max()}.")
    periodic = np.abs(box).sum(1) > 0
    if periodic.any() and np.linalg.matrix_rank(box) < periodic.sum():
        raise ValueError(f"Lattice vectors must be linearly independent. Got {box.tolist()}.")
    return System(jnp.asarray(position, dtype), jnp.asarray(species, jnp.int32), jnp.asarray(box, dtype))


def from_ase(atoms, dtype=None) -> System:
    """``System`` of an ``ase.Atoms``; directions with ``pbc=False`` become open."""
    box = np.array(atoms.cell) * np.asarray(atoms.pbc)[:, None]
    return system(atoms.positions, atoms.numbers, box, dtype)


def to_ase(sys: System):
    """``ase.Atoms`` of a single ``System``; padding is left out."""
    from ase import Atoms

    real = np.asarray(sys.species) > 0
    box = np.asarray(sys.box, float)
    return Atoms(
        np.asarray(sys.species)[real], np.asarray(sys.position, float)[real], cell=box, pbc=np.abs(box).sum(1) > 0
    )


def masses(species: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Atomic masses [amu] of atomic numbers (ASE's table, IUPAC 2016); padding gets 1 so that it can be divided by."""
    from ase.data import atomic_masses

    table = np.array(atomic_masses)
    table[0] = 1.0
    return jnp.asarray(table, jnp.result_type(float))[species]


def volume(box: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch"]:
    """Volume [Å³] of a fully periodic box; 0 where a direction is open."""
    return jnp.abs(jnp.linalg.det(box))


def heights(box: np.ndarray) -> np.ndarray:
    """Distances [Å] between opposite faces of cells ``(..., 3, 3)``; infinite in open directions (host)."""
    inverse = np.linalg.norm(np.linalg.pinv(np.asarray(box, np.float64)), axis=-2)
    return np.divide(1.0, inverse, out=np.full(inverse.shape, np.inf), where=inverse > 0)
