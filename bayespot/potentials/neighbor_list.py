r"""Neighbours during a simulation: found anew inside compiled code, for atoms that have left their cell.

One list serves every cell: large, small, skewed, or open. The image of a candidate is the nearest one in fractional
coordinates, plus, in a cell thinner than twice the reach, further images around it. Atoms are not wrapped into the
cell; the shifts refer to the positions as they are. Candidates are all atoms, or those of the 27 surrounding cells of
a grid where these are fewer.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.neighbors import Neighbors, pairs
from bayespot.records.system import System, heights
from bayespot.typing import Array, Float, Int


class NeighborList(NamedTuple):
    """A neighbour list of fixed capacity.

    Attributes:
        update: ``system → neighbours, needed`` (traceable). ``needed`` holds the numbers of neighbours per atom and of
            atoms per grid cell that this configuration asks for. Where one is above ``capacity`` the list has
            **overflowed** and lacks pairs: make a new one with ``larger(capacity, needed)``.
        capacity: neighbours per atom, and atoms per cell of the grid (0 without grid).
        cutoff: reach of the list [Å]: the potential's cutoff plus the skin.
        thinnest: smallest distances between opposite faces of the box for which the list is right [Å].
    """

    update: Callable[[System], tuple[Neighbors, Int[Array, "2"]]]
    capacity: tuple[int, int]
    cutoff: float
    thinnest: tuple[float, float, float]


def larger(capacity: tuple[int, int], needed) -> tuple[int, int]:
    """Capacities with room above what was ``needed``, and never below ``capacity`` (host)."""
    a, b = (c if n <= c else int(1.1 * n) + 2 for c, n in zip(capacity, np.asarray(needed).tolist(), strict=True))
    return a, b


def inverse_box(box: np.ndarray) -> np.ndarray:
    """Matrix that turns Cartesian rows into fractional ones, ``(3, 3)``; 0 for open directions (host)."""
    box = np.asarray(box, np.float64)
    return np.where(np.abs(box).sum(1) > 0, np.linalg.pinv(box), 0.0)


def neighbor_list(
    system: System,
    cutoff: float,
    skin: float = 0.4,
    capacity: tuple[int, int] | None = None,
    thinnest: tuple[float, float, float] | None = None,
) -> NeighborList:
    r"""A neighbour list for simulations from ``system`` on; good until an atom has moved by half the skin (host).

    Args:
        system: a single system; padded atoms are nobody's neighbours.
        cutoff: of the potential [Å].
        skin: added to the cutoff [Å].
        capacity: neighbours per atom and atoms per cell; default what ``system`` needs and a fifth more.
        thinnest: for a box that changes, how thin it may become (see ``NeighborList``, which may allow for more). By
            default every update is for the box of ``system``.

    Raises:
        ValueError: if cutoff or skin are not positive, or for a changing box that is open in some direction.
    """
    if not (cutoff > 0 and skin >= 0):
        raise ValueError(f"cutoff must be positive and skin not negative [Å]. Got {cutoff} and {skin}.")
    reach, n = float(cutoff) + float(skin), system.species.shape[0]
    box = np.asarray(system.box, np.float64)
    inverse, (count, offsets, cells, room) = inverse_box(box), _layout(box, thinnest, reach)
    if capacity is None:
        capacity = _needed(system, box, reach, inverse, cells)
    # Gathering a candidate from the grid costs about twice as much as streaming over all atoms (measured on a CPU).
    grid = capacity[1] > 0 and 2 * 3 ** int((cells > 1).sum()) * capacity[1] < n
    all_images, asked = n * len(offsets), capacity[0]
    complete = not grid and all_images <= 1.1 * capacity[0]  # to sort out the few that are not near takes longer
    capacity = (all_images if complete else capacity[0], capacity[1] if grid else 0)

    def update(system: System) -> tuple[Neighbors, Array]:
        x, real = system.position, system.species > 0
        h, inverse_h = jnp.asarray(box, x.dtype), jnp.asarray(inverse, x.dtype)
        if thinnest is not None:
            h, inverse_h = system.box, inverse_of(system.box)
        if grid:
            j, crowd = _grid_candidates(jnp.matmul(x, inverse_h, precision="highest"), real, cells, capacity[1])
        else:
            j, crowd = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (n, n)), jnp.zeros((), jnp.int32)
        other = jnp.minimum(j, n - 1)
        of_other = (lambda values: values[other]) if grid else (lambda values: jnp.broadcast_to(values, (n, n)))
        # Component by component instead of arrays (N, M, O, 3): the compiler fuses and vectorises it.
        apart = [of_other(component) - component[:, None] for component in x.T]
        first = [jnp.ceil(-0.5 * c - f) for c, f in zip(count.tolist(), _times(apart, inverse_h), strict=True)]
        image = [f[:, :, None] + jnp.asarray(o, x.dtype) for f, o in zip(first, offsets.T, strict=True)]
        square = sum((a[:, :, None] + t) ** 2 for a, t in zip(apart, _times(image, h), strict=True))
        itself = (j == jnp.arange(n)[:, None])[..., None] & (image[0] == 0) & (image[1] == 0) & (image[2] == 0)
        known = (j < n) & of_other(real) & real[:, None]
        near = (known[..., None] & ~itself & (square < reach**2)).reshape(n, -1)
        entries = _all_entries if complete else partial(_near_entries, capacity=capacity[0])
        index, shift, found, most = entries(near, j, first, offsets)
        most = jnp.minimum(most, asked) if complete else most  # a complete list cannot overflow
        neighbors = Neighbors(jnp.where(found, index, n), jnp.where(found[..., None], shift, 0))
        # Without the barrier the compiler puts the search into every loop of an energy that uses the list.
        return jax.lax.optimization_barrier(neighbors), jnp.stack([most, crowd])

    return NeighborList(update, capacity, reach, room)


def inverse_of(box: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """The same for a box that is periodic in all three directions (traceable; compiles faster than a solver)."""
    faces = jnp.cross(jnp.roll(box, -1, 0), jnp.roll(box, -2, 0))
    return faces.T / (box[0] @ faces[0])


def heights_of(box: Float[Array, "*n 3 3"]) -> Float[Array, "*n 3"]:
    """Distances between opposite faces of boxes that are periodic in all three directions [Å] (traceable)."""
    faces = jnp.cross(jnp.roll(box, -1, -2), jnp.roll(box, -2, -2))
    return jnp.abs((box * faces).sum(-1)) / jnp.linalg.norm(faces, axis=-1)


def _layout(box: np.ndarray, thinnest, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple]:
    """Images per direction, their offsets, cells of the grid, and the smallest heights for which these are right."""
    height = heights(box)
    if thinnest is not None and not np.isfinite(height).all():
        raise ValueError(f"A box that changes must be periodic in all three directions. Got {box.tolist()}.")
    height = height if thinnest is None else np.asarray(thinnest)
    # Pairs within reach differ by at most reach / height in fractional coordinates: so many images lie in that span.
    count = np.floor(2 * reach / height + 1e-4).astype(int) + 1
    offsets = np.stack(np.meshgrid(*(np.arange(c) for c in count), indexing="ij"), -1).reshape(-1, 3)
    cells = np.array([int(h / reach) if 3 * reach <= h < np.inf else 1 for h in height])
    room = np.maximum(2 * reach / (count - 1e-4), np.where(cells > 1, cells * reach, 0.0))
    return count, offsets, cells, tuple((room * (1 + 1e-9)).tolist())  # a hair inside: the same layout for itself


def _needed(system: System, box: np.ndarray, reach: float, inverse: np.ndarray, cells: np.ndarray) -> tuple[int, int]:
    """Capacities for this configuration, with a fifth more (host): to run again costs a compilation."""
    real = np.asarray(system.species) > 0
    x = np.asarray(system.position, np.float64)[real]
    neighbors = np.bincount(pairs(x, box, reach)[0], minlength=1).max(initial=0)
    cell = np.floor(x @ inverse * cells).astype(int) % cells
    crowd = np.unique(cell, axis=0, return_counts=True)[1].max(initial=0) if (cells > 1).any() else 0
    return int(1.2 * neighbors) + 2, int(1.3 * crowd) + 2 if crowd else 0


def _times(row: list, matrix: Array) -> list:
    """``row @ matrix`` for a row that is given by its three components."""
    return [sum(row[a] * matrix[a, b] for a in range(3)) for b in range(3)]


def _all_entries(near: Array, j: Array, first: list, offsets: np.ndarray) -> tuple[Array, Array, Array, Array]:
    """Index, shift and mask of all candidates, and the largest number of neighbours of an atom."""
    image = [
        (f[:, :, None] + jnp.asarray(o, f.dtype)).reshape(near.shape) for f, o in zip(first, offsets.T, strict=True)
    ]
    most = near.sum(1, dtype=jnp.int32).max(initial=0)
    return jnp.repeat(j, len(offsets), 1), jnp.stack(image, -1).astype(jnp.int32), near, most


def _near_entries(near: Array, j: Array, first: list, offsets: np.ndarray, capacity: int):
    """The same of those that are neighbours, in ``capacity`` columns."""
    column, most = _compact(near, capacity)
    found, column = column < near.shape[1], jnp.minimum(column, near.shape[1] - 1)
    images = jnp.int32(len(offsets))  # jax.lax: the signs that // and % heed take long to compile
    place, offset = jax.lax.div(column, images), jnp.asarray(offsets, jnp.int32)[jax.lax.rem(column, images)]
    shift = jnp.stack([jnp.take_along_axis(f, place, 1) for f in first], -1).astype(jnp.int32) + offset
    return jnp.take_along_axis(j, place, 1), shift, found, most


def _compact(mask: Array, capacity: int) -> tuple[Array, Array]:
    """Columns of the first ``capacity`` true entries of each row (the number of columns where there are fewer), and
    the largest number of true entries in a row."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, capacity + 1, dtype=jnp.int32)
    return jax.vmap(lambda row: jnp.searchsorted(row, wanted))(count).astype(jnp.int32), count[:, -1].max(initial=0)


def _grid_candidates(fraction: Array, real: Array, cells: np.ndarray, capacity: int) -> tuple[Array, Array]:
    """Atoms in the cells around each atom, ``(N, cells around × capacity)``, ``N`` where empty; the fullest cell."""
    n, total = fraction.shape[0], int(cells.prod())
    place = jnp.floor(fraction * cells).astype(jnp.int32) % jnp.asarray(cells, jnp.int32)
    stride = jnp.asarray([cells[1] * cells[2], cells[2], 1], jnp.int32)
    cell = jnp.where(real, place @ stride, total)
    order = jnp.argsort(cell).astype(jnp.int32)
    first = jnp.searchsorted(cell[order], jnp.arange(total + 1, dtype=jnp.int32)).astype(jnp.int32)
    around = np.stack(np.meshgrid(*([-1, 0, 1] if c > 1 else [0] for c in cells), indexing="ij"), -1).reshape(-1, 3)
    near = ((place[:, None] + jnp.asarray(around, jnp.int32)) % jnp.asarray(cells, jnp.int32)) @ stride
    slot = first[near][..., None] + jnp.arange(capacity, dtype=jnp.int32)
    atom = jnp.where(slot < first[near + 1][..., None], order[jnp.minimum(slot, n - 1)], n)
    return atom.reshape(n, -1), jnp.diff(first).max()
