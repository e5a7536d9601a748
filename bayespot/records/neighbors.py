"""Neighbours of every atom with integer image shifts, computed once per data frame by ``vesin``.

Lists with image shifts are right in any cell, also in skewed ones and in those smaller than twice the cutoff, where
the minimum-image convention silently drops neighbours.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.system import System
from bayespot.tree import record
from bayespot.typing import Array, Bool, Float, Int


@record
class Neighbors:
    """Neighbours within the cutoff, every pair from both sides, padded to ``K`` per atom.

    Attributes:
        index: number of the neighbouring atom, shape ``(N, K)``; ``N`` marks padding.
        shift: lattice translations from the neighbour to its image, shape ``(N, K, 3)``, integers.
    """

    index: Int[Array, "*#batch N K"]
    shift: Int[Array, "*#batch N K 3"]


def displacements(system: System, neighbors: Neighbors) -> tuple[Float[Array, "N K 3"], Bool[Array, "N K"]]:
    r"""Vectors from every atom to its neighbours [Å], and the mask of real ones.

    .. math:: r_{ik} = x_{j(i,k)} + S_{ik} h - x_i

    Padded entries hold the vector (1, 1, 1) × 10⁴ Å, which lies beyond every cutoff and has a finite norm and
    gradient, so that potentials need no second guard against 0/0.
    """
    n = system.position.shape[0]
    mask = neighbors.index < n
    j = jnp.where(mask, neighbors.index, 0)
    shift = neighbors.shift.astype(system.position.dtype)
    # Component by component: the compiler gathers and, in the gradient, scatters numbers faster than rows of three, and
    # an accelerator's matrix product would be off by 0.01 Å.
    row = (Ellipsis, None) if system.box.ndim == 3 else ()  # the box of each atom, for all its neighbours
    columns = []
    for a in range(3):
        x = system.position[:, a]
        image = sum(shift[..., b] * system.box[..., b, a][row] for b in range(3))
        columns.append(jnp.where(mask, x[j] + image - x[:, None], 1e4))
    # The barrier keeps the compiler from gathering the positions anew in every loop that uses the vectors.
    return jax.lax.optimization_barrier(jnp.stack(columns, -1)), mask


def pairs(position: np.ndarray, box: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs ``i, j`` closer than ``cutoff`` [Å] and their integer image shifts (host, numpy)."""
    from vesin import NeighborList

    periodic = np.abs(box).sum(1) > 0
    cell = np.where(periodic[:, None], box, 0.0)
    calculator = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    i, j, shift = calculator.compute(
        points=np.asarray(position, np.float64), box=cell, periodic=periodic, quantities="ijS", copy=True
    )
    return i, j, shift


def fill(found: list, counts: list, n: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of ``M`` frames as padded arrays: indices ``(M, n, K)`` and shifts ``(M, n, K, 3)`` (host).

    Shifts take one byte, or four where atoms lie so far outside their box that one does not hold them.
    """
    farthest = max((int(np.abs(shift).max(initial=0)) for _, _, shift in found), default=0)
    index = np.full((len(found), n, capacity), n, np.int32)
    shifts = np.zeros((len(found), n, capacity, 3), np.int8 if farthest < 128 else np.int32)
    for m, ((i, j, shift), count) in enumerate(zip(found, counts, strict=True)):
        order = np.argsort(i, kind="stable")
        i, j, shift = i[order], j[order], shift[order]
        slot = np.arange(len(i)) - (np.cumsum(count) - count)[i]
        index[m, i, slot], shifts[m, i, slot] = j, shift
    return index, shifts


def neighbors(system: System, cutoff: float, capacity: int | None = None) -> Neighbors:
    """Neighbours of one system (host only).

    Args:
        system: a single system; padded atoms get no neighbours.
        cutoff: distance [Å] within which atoms are neighbours.
        capacity: ``K``; default the largest number of neighbours of an atom, at least 1.

    Raises:
        ValueError: if an atom has more than ``capacity`` neighbours.
    """
    species, box = np.asarray(system.species), np.asarray(system.box, np.float64)
    n, real = len(species), np.flatnonzero(species > 0)
    i, j, s = pairs(np.asarray(system.position, np.float64)[real], box, cutoff)
    i, j = real[i], real[j]
    counts = np.bincount(i, minlength=n)
    largest = max(int(counts.max(initial=0)), 1)
    capacity = largest if capacity is None else capacity
    if largest > capacity:
        raise ValueError(f"An atom has {largest} neighbours within {cutoff} Å but capacity is {capacity}. Raise it.")
    index, shift = fill([(i, j, s)], [counts], n, capacity)
    return Neighbors(jnp.asarray(index[0]), jnp.asarray(shift[0]))
