"""Neighbours of every atom with integer image shifts, computed once per data frame by ``vesin``.

Lists with image shifts are right in any cell, also in skewed ones and in those smaller than twice the cutoff, where
the minimum-image convention silently drops neighbours.
"""

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
    r"""Vectors from every atom to its neighbours [Å], :math:`r_{ik} = x_{j(i,k)} + S_{ik} h - x_i`, and the mask of real ones.

    Padded entries hold the vector (1, 1, 1) × 10⁴ Å, which lies beyond every cutoff and has a finite norm and
    gradient, so that potentials need no second guard against 0/0.
    """
    n = system.position.shape[0]
    mask = neighbors.index < n
    j = jnp.where(mask, neighbors.index, 0)
    shift = neighbors.shift.astype(system.position.dtype)
    if system.box.ndim == 2:
        image = shift @ system.box
    else:
        image = jnp.einsum("nks,nsx->nkx", shift, system.box)
    vectors = system.position[j] + image - system.position[:, None, :]
    return jnp.where(mask[..., None], vectors, 1e4), mask


def pairs(position: np.ndarray, box: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs ``i, j`` closer than ``cutoff`` [Å] and their integer image shifts (host, numpy)."""
    from vesin import NeighborList

    periodic = np.abs(box).sum(1) > 0
    cell = np.where(periodic[:, None], box, 0.0)
    calculator = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)
    return calculator.compute(
        points=np.asarray(position, np.float64), box=cell, periodic=periodic, quantities="ijS", copy=True
    )


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
    order = np.argsort(i, kind="stable")
    i, j, s = i[order], j[order], s[order]
    slot = np.arange(len(i)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[i] if n else np.zeros(0, int)
    index, shift = np.full((n, capacity), n, np.int32), np.zeros((n, capacity, 3), np.int8)
    index[i, slot], shift[i, slot] = j, s
    return Neighbors(jnp.asarray(index), jnp.asarray(shift))
