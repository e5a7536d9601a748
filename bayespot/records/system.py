"""A configuration of atoms."""

import jax.numpy as jnp
import numpy as np

from bayespot.tree import record, replace
from bayespot.typing import Array, Float, Int


@record
class System:
    """Atoms in a box.

    Attributes:
        position: Cartesian positions [Å], shape ``(N, 3)``; they need not lie inside the box.
        species: atomic numbers, shape ``(N,)``; 0 marks padding, which no potential and no observable sees.
        box: lattice vectors as rows [Å], shape ``(3, 3)``; a zero row marks a direction without periodicity. In a
            flattened minibatch, where the atoms of many structures stand in a row, one box per atom, ``(A, 3, 3)``.
        mass: of the atoms [amu], shape ``(N,)``; ``None`` for those of the chemical elements. With masses of their own
            the beads of a coarse-grained model may take any numbers from 1 to 118 as their species, one per kind.
    """

    position: Float[Array, "*#batch N 3"]
    species: Int[Array, "*#batch N"]
    box: Float[Array, "*#box 3 3"]
    mass: Float[Array, "*#batch N"] | None = None


def system(position, species, box=None, dtype=None, mass=None) -> System:
    """A checked ``System`` from anything that converts to arrays.

    Args:
        position: Cartesian positions [Å], shape ``(N, 3)``.
        species: atomic numbers, shape ``(N,)``.
        box: lattice vectors as rows [Å], or three edge lengths, or ``None`` for an isolated molecule.
        dtype: of positions, box and masses; default JAX's (float32, or float64 where x64 is enabled).
        mass: masses [amu], shape ``(N,)``; default those of the chemical elements.

    Raises:
        ValueError: for shapes that do not agree, an unknown species, a mass that is not positive, or a box without
            volume.
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
    mass = None if mass is None else jnp.asarray(_checked_mass(mass, species), dtype)
    return System(jnp.asarray(position, dtype), jnp.asarray(species, jnp.int32), jnp.asarray(box, dtype), mass)


def _checked_mass(mass, species: np.ndarray) -> np.ndarray:
    mass = np.asarray(mass, float)
    if mass.shape != species.shape:
        raise ValueError(f"Need one mass [amu] for each of the {len(species)} atoms. Got the shape {mass.shape}.")
    real = mass[species > 0]
    if not (np.isfinite(real) & (real > 0)).all():
        raise ValueError(f"Masses must be positive and finite [amu]. Got {real.min()} … {real.max()}.")
    return mass


def from_ase(atoms, dtype=None) -> System:
    """``System`` of an ``ase.Atoms``; directions with ``pbc=False`` become open.

    Masses are taken over where they were set, as isotopes' and beads' are; otherwise they are those of the elements.
    """
    box = np.array(atoms.cell) * np.asarray(atoms.pbc)[:, None]
    return system(atoms.positions, atoms.numbers, box, dtype, atoms.get_masses() if atoms.has("masses") else None)


def to_ase(sys: System):
    """``ase.Atoms`` of a single ``System``, with its masses where it has its own; padding is left out."""
    from ase import Atoms

    real = np.asarray(sys.species) > 0
    box = np.asarray(sys.box, float)
    return Atoms(
        np.asarray(sys.species)[real],
        np.asarray(sys.position, float)[real],
        masses=None if sys.mass is None else np.asarray(sys.mass, float)[real],
        cell=box,
        pbc=np.abs(box).sum(1) > 0,
    )


def masses(sys: System) -> Float[Array, "*batch N"]:
    """Masses [amu] of the atoms: their own, or those of the chemical elements (ASE's table, IUPAC 2016).

    Padding gets 1 so that it can be divided by.
    """
    from ase.data import atomic_masses

    if sys.mass is not None:
        return jnp.where(sys.species > 0, sys.mass, 1.0)
    table = np.array(atomic_masses)
    table[0] = 1.0
    return jnp.asarray(table, jnp.result_type(float))[sys.species]


def without_padding(sys: System) -> System:
    """The real atoms of a single system (host)."""
    real = np.flatnonzero(np.asarray(sys.species) > 0)
    mass = None if sys.mass is None else sys.mass[real]
    return replace(sys, position=sys.position[real], species=sys.species[real], mass=mass)


def volume(box: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch"]:
    """Volume [Å³] of a fully periodic box; 0 where a direction is open."""
    return jnp.abs(jnp.linalg.det(box))


def heights(box: np.ndarray) -> np.ndarray:
    """Distances [Å] between opposite faces of cells ``(..., 3, 3)``; infinite in open directions (host)."""
    inverse = np.linalg.norm(np.linalg.pinv(np.asarray(box, np.float64)), axis=-2)
    return np.divide(1.0, inverse, out=np.full(inverse.shape, np.inf), where=inverse > 0)
