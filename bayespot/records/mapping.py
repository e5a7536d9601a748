r"""Linear mappings from atoms to the beads of a coarse-grained model, of positions and of forces.

Bead :math:`I` has the position and the instantaneous force

.. math:: R_I = \sum_i M_{Ii}\, r_i, \qquad F_I = \sum_i B_{Ii}\, f_i .

The average of :math:`F_I` at fixed beads is the force of the potential of mean force, which a coarse-grained model
should have, if

.. math:: \sum_i B_{Ii} M_{Ji} = \delta_{IJ}

and every :math:`B_I` weighs atoms alike that a rigid constraint connects, so that the force of the constraint cancels.

References:
    Noid et al., *J. Chem. Phys.* 128, 244114 (2008), section II; Krämer et al., *J. Chem. Theory Comput.* 19, 3934
    (2023), for constraints and the choice of B.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bayespot.records.dataset import Dataset, dataset
from bayespot.records.system import System, heights
from bayespot.typing import Array, Float

Matrix = Any
"""A ``scipy.sparse.csr_array``, whose shape its type stubs do not know."""

Groups = Sequence | Array
"""Indices of atoms, or groups of them."""

_TOLERANCE = 1e-6


class Mapping(NamedTuple):
    """A linear mapping from N atoms to n beads; made and checked by ``mapping``, ``centre_of_mass`` or ``slices``.

    Attributes:
        position: sparse matrix :math:`M` ``(n, N)``; the weights of a bead sum to 1.
        force: sparse matrix :math:`B` ``(n, N)``.
        mass: of the beads [amu], ``(n,)``.
    """

    position: Matrix
    force: Matrix
    mass: Float[np.ndarray, "n"]


def mapping(position, force, mass, constraints: Groups = ()) -> Mapping:
    r"""A mapping from two matrices, for instance with forces that are weighted so as to fluctuate little.

    Args:
        position: :math:`M`, dense or sparse, shape ``(n, N)``.
        force: :math:`B`, shape ``(n, N)``.
        mass: of the beads [amu], shape ``(n,)``. It acts on the dynamics only, not on structure or free energies.
        constraints: pairs of atoms at a fixed distance.

    Raises:
        ValueError: for shapes that do not agree, weights of a position that do not sum to 1, forces that are not those
            of the beads (with the bead that fails), or masses that are not positive.
    """
    m, b = _sparse(position), _sparse(force)
    mass = np.asarray(mass, float)
    if m.shape != b.shape or mass.shape != m.shape[:1]:
        raise ValueError(
            "Need matrices (n, N) for positions and forces, and the masses (n,) of the beads. "
            f"Got {m.shape}, {b.shape}, {mass.shape}."
        )
    if not (np.isfinite(mass) & (mass > 0)).all():
        raise ValueError(f"Masses of beads must be positive and finite [amu]. Got {mass.min()} … {mass.max()}.")
    total = np.asarray(m.sum(1)).ravel()
    if (wrong := np.flatnonzero(~(np.abs(total - 1) < _TOLERANCE))).size:
        raise ValueError(
            f"The weights of a bead's position must sum to 1. Got {total[wrong[0]]:.6g} for bead {wrong[0]}. Divide "
            "them by their sum."
        )
    _require_consistent(m, b)
    _require_constraints(b, constraints)
    return Mapping(m, b, mass)


def centre_of_mass(groups: Groups, masses, constraints: Groups = ()) -> Mapping:
    """Beads at the centres of mass of groups of atoms, e.g. of molecules; their force is the sum of the atoms'.

    Args:
        groups: for every bead the indices of its atoms; no atom in two beads, atoms in none are integrated out.
        masses: of all N atoms [amu]; a bead has the sum of its atoms'.
        constraints: pairs of atoms at a fixed distance, which must not connect different beads.

    Raises:
        ValueError: for indices out of range, an empty group, or an atom in two beads.
    """
    masses = np.asarray(masses, float)
    groups = [_indices(group, len(masses), bead) for bead, group in enumerate(groups)]
    total = np.array([masses[group].sum() for group in groups])
    weights = [masses[group] / sum_ for group, sum_ in zip(groups, total, strict=True)]
    ones = [np.ones(len(group)) for group in groups]
    return mapping(_matrix(groups, weights, len(masses)), _matrix(groups, ones, len(masses)), total, constraints)


def slices(atoms: Groups, masses, carried: Groups | None = None, constraints: Groups = ()) -> Mapping:
    """Beads at single atoms, e.g. all that are not hydrogen.

    The force of a bead is that of its atom and of those that move with it. Bonds to hydrogen are mostly constrained;
    the atom's force alone would then lack that of the constraint.

    Args:
        atoms: index of the atom of every bead, ``(n,)``.
        masses: of all N atoms [amu]; a bead has the sum of those whose forces it carries.
        carried: for every bead the indices of the atoms whose forces it carries, its own among them; default its own.
        constraints: pairs of atoms at a fixed distance, to check that they are carried together.

    Raises:
        ValueError: for indices out of range, or a bead that carries the atom of another bead or not its own.
    """
    masses = np.asarray(masses, float)
    own = [_indices([atom], len(masses), bead) for bead, atom in enumerate(atoms)]
    carried = own if carried is None else [_indices(g, len(masses), bead) for bead, g in enumerate(carried)]
    if len(carried) != len(own):
        raise ValueError(f"`carried` needs one group for each of the {len(own)} beads. Got {len(carried)}.")
    position, force = (_matrix(rows, [np.ones(len(row)) for row in rows], len(masses)) for rows in (own, carried))
    return mapping(position, force, np.array([masses[group].sum() for group in carried]), constraints)


def coarse_grain(beads: Mapping, frames, forces=None, box=None, *, species, cutoff: float) -> Dataset:
    """Frames of the beads, with their forces as labels and without energies, which they do not have.

    In a periodic box the atoms of a bead are first brought together around the first of them by the minimum image; the
    bead is where that atom is, not wrapped into the box.

    Args:
        beads: from atoms to beads.
        frames: a ``Dataset`` of atoms, all frames of one kind; or positions ``(M, N, 3)`` [Å], such as
            ``run.frames.system.position`` of a trajectory, with the next two arguments.
        forces: on the atoms ``(M, N, 3)`` [eV/Å]; ``None`` where there are none.
        box: lattice vectors [Å], ``(3,)``, ``(3, 3)`` or ``(M, 3, 3)``; ``None`` for isolated molecules.
        species: number of the kind of each bead, 1 … 118, ``(n,)``. Beads with one number are alike for potentials.
        cutoff: for the neighbours of beads [Å].

    Raises:
        ValueError: for shapes that do not agree, a frame that lacks atoms, or a bead that is not smaller than half the
            box.
    """
    n, atoms = beads.position.shape
    known = np.full(len(frames), forces is not None)
    if isinstance(frames, Dataset):
        if forces is not None or box is not None:
            raise ValueError("A Dataset brings its own forces and boxes. Got others beside it. Leave these out.")
        known, forces, box = frames.has_forces, frames.forces, frames.system.box
    x = np.asarray(frames.system.position if isinstance(frames, Dataset) else frames, np.float64)
    f = np.zeros_like(x) if forces is None else np.asarray(forces, np.float64)
    kinds = np.asarray(species, np.int32)
    if x.ndim != 3 or x.shape[1:] != (atoms, 3) or f.shape != x.shape or kinds.shape != (n,):
        raise ValueError(
            f"Need positions and forces (M, {atoms}, 3) and a species for each of the {n} beads. "
            f"Got {x.shape}, {f.shape}, {kinds.shape}."
        )
    if isinstance(frames, Dataset) and (frames.atom_counts != atoms).any():
        raise ValueError(f"All frames must have the {atoms} atoms of the mapping. Got {frames.atom_counts}.")
    boxes = _boxes(box, len(x))
    places = bead_positions(beads, x, boxes)
    systems = [System(p, kinds, h, beads.mass) for p, h in zip(places, boxes, strict=True)]
    labels = [bead_forces(beads, one) if there else None for one, there in zip(f, np.asarray(known), strict=True)]
    return dataset(systems, cutoff, forces=labels)


def bead_positions(beads: Mapping, position, box=None) -> Float[np.ndarray, "M n 3"]:
    """Positions of beads [Å] from those of the atoms ``(M, N, 3)``, made whole; see ``coarse_grain``."""
    x = np.asarray(position, np.float64)
    boxes = _boxes(box, len(x))
    m = beads.position
    first = m.indices[m.indptr[:-1]]
    anchor = np.repeat(first, np.diff(m.indptr))
    sums: Any = sparse.csr_array((m.data, np.arange(m.nnz), m.indptr), (m.shape[0], m.nnz))
    inverse, room = np.linalg.pinv(boxes), 0.5 * heights(boxes).min(-1)
    out = np.empty((len(x), m.shape[0], 3))
    for frame, (one, h, h_inverse) in enumerate(zip(x, boxes, inverse, strict=True)):
        away = one[m.indices] - one[anchor]
        away -= np.round(away @ h_inverse) @ h
        if (far := np.linalg.norm(away, axis=-1)).max() >= room[frame]:
            bead = np.searchsorted(m.indptr, far.argmax(), side="right") - 1
            raise ValueError(
                f"Frame {frame}: the atoms of a bead must lie within half the box, {room[frame]:.4g} Å, of its first. "
                f"Got {far.max():.4g} Å in bead {bead}. Make smaller beads, or put an atom from the middle first."
            )
        out[frame] = one[first] + sums @ away
    return out


def bead_forces(beads: Mapping, forces) -> Float[np.ndarray, "n 3"]:
    """Forces on the beads [eV/Å] from those on the atoms of one frame, ``(N, 3)``."""
    return beads.force @ np.asarray(forces, np.float64)


def _boxes(box, frames: int) -> np.ndarray:
    """Boxes of all frames, ``(M, 3, 3)``."""
    box = np.zeros((3, 3)) if box is None else np.asarray(box, np.float64)
    box = np.diag(box) if box.ndim == 1 else box
    if box.shape not in ((3, 3), (frames, 3, 3)):
        raise ValueError(f"box must have the shape (3,), (3, 3) or ({frames}, 3, 3) [Å]. Got {box.shape}.")
    return np.broadcast_to(box, (frames, 3, 3))


def _indices(group, atoms: int, bead: int) -> np.ndarray:
    group = np.asarray(group, int).ravel()
    if not group.size or group.min() < 0 or group.max() >= atoms or len(set(group.tolist())) < group.size:
        raise ValueError(
            f"Bead {bead} needs one or more atoms, each once, with indices from 0 to {atoms - 1}. Got {group.tolist()}."
        )
    return group


def _sparse(matrix) -> Matrix:
    return sparse.csr_array(matrix if sparse.issparse(matrix) else np.asarray(matrix, float))


def _matrix(groups: list[np.ndarray], weights: list[np.ndarray], atoms: int) -> Matrix:
    """Rows of weights; within a row the order of the group stays, because its first atom is special."""
    ends = np.cumsum([0, *(len(group) for group in groups)])
    return sparse.csr_array((np.concatenate(weights), np.concatenate(groups), ends), (len(groups), atoms))


def _require_consistent(m: Matrix, b: Matrix) -> None:
    product: Any = sparse.coo_array(b @ m.T - sparse.eye_array(m.shape[0]))
    if not product.nnz or not (worst := np.abs(product.data)).max() > _TOLERANCE:
        return
    one, other = (int(k[worst.argmax()]) for k in (product.row, product.col))
    found, expected = product.data[worst.argmax()] + (one == other), float(one == other)
    raise ValueError(
        "Weights of forces and positions, B and M, must satisfy B Mᵀ = 1. "
        f"Got {found:.4g} in place of {expected:g} for the forces of bead {one} and the position of bead {other}. "
        + ("Scale the bead's forces." if one == other else "A bead must not carry the forces of another's atoms.")
    )


def _require_constraints(b: Matrix, constraints: Groups) -> None:
    pairs = np.asarray(constraints, int).reshape(-1, 2)
    if not pairs.size:
        return
    if pairs.min() < 0 or pairs.max() >= b.shape[1]:
        raise ValueError(
            f"Constraints are pairs of atoms from 0 to {b.shape[1] - 1}. Got {pairs.min()} … {pairs.max()}."
        )
    columns: Any = sparse.csc_array(b)
    difference: Any = sparse.coo_array(columns[:, pairs[:, 0]] - columns[:, pairs[:, 1]])
    wrong = np.flatnonzero(np.abs(difference.data) > _TOLERANCE)
    if wrong.size:
        bead, pair = int(difference.row[wrong[0]]), pairs[difference.col[wrong[0]]].tolist()
        raise ValueError(
            f"A bead must weigh the forces of atoms alike that a constraint connects. Bead {bead} does not for the "
            f"atoms {pair}: it would contain the force of the constraint. Carry both or none."
        )
