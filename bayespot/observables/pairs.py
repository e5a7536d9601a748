"""Distances between all atoms of one frame, right in any cell: minimum image plus the further images that reach in.

Wrapping a difference vector into the cell centred at zero leaves one image per pair. A sphere that does not fit into
that cell also sees others; which translations can matter depends on the cell alone and is found here on the host.
"""

from itertools import product

import jax.numpy as jnp
import numpy as np
from scipy.optimize import lsq_linear

from bayespot.observables.observable import sound
from bayespot.records.system import System, heights
from bayespot.records.trajectory import Trajectory
from bayespot.typing import Array, Bool, Float, Int

NEAREST = ((0, 0, 0),)
"""Translations where the minimum image suffices."""


def translations(boxes: np.ndarray, radius: float) -> tuple[tuple[int, int, int], ...]:
    """Lattice translations that can bring a wrapped difference vector closer than ``radius`` [Å] (host).

    Args:
        boxes: cells ``(n, 3, 3)`` [Å]; the result suffices for all of them.
        radius: of the sphere [Å].

    Returns:
        Integer triples, the zero translation first.
    """
    boxes = np.unique(np.asarray(boxes, np.float64).reshape(-1, 3, 3), axis=0)
    reach = np.floor(radius / heights(boxes).min(axis=0) + 0.5).astype(int)
    a, b, c = (range(-k, k + 1) for k in reach)
    candidates = [n for n in product(a, b, c) if any(n)]
    # Many different boxes (constant pressure): testing each is slow, the bounding range is right for all of them.
    if len(boxes) <= 4:
        candidates = [n for n in candidates if any(_nearest(box, n) <= radius for box in boxes)]
    return (*NEAREST, *candidates)


def _nearest(box: np.ndarray, translation: tuple[int, ...]) -> float:
    """Smallest length of (d + translation)·box for |d_i| ≤ 1/2; a hair smaller to stay on the safe side."""
    fit = lsq_linear(box.T, -box.T @ np.array(translation, float), bounds=(-0.5, 0.5), tol=1e-12)
    return float(np.linalg.norm(fit.fun)) * (1 - 1e-6)


def sound_boxes(trajectories: Trajectory) -> np.ndarray:
    """Boxes of all frames of the sound runs, ``(n, 3, 3)``; of all runs where none is sound."""
    boxes, good = np.asarray(trajectories.frames.system.box), sound(trajectories)
    return (boxes[good] if good.any() else boxes).reshape(-1, 3, 3)


def wrapped(system: System, vectors: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Difference vectors wrapped into the cell centred at zero; open directions stay as they are."""
    inverse = jnp.linalg.pinv(system.box)
    return vectors - jnp.round(vectors @ inverse) @ system.box


def half_height(system: System) -> Float[Array, ""]:
    """Radius up to which the minimum image is the only one [Å]; infinite for an open box."""
    inverse = jnp.linalg.norm(jnp.linalg.pinv(system.box), axis=0).max()
    return jnp.where(inverse > 0, 0.5 / jnp.where(inverse > 0, inverse, 1.0), jnp.inf)


def require_volume(trajectories: Trajectory, name: str) -> None:
    """Refuse boxes that are open in some direction.

    Raises:
        ValueError: naming the observable.
    """
    boxes = np.asarray(trajectories.frames.system.box)
    if (np.abs(np.linalg.det(boxes)) == 0).any():
        raise ValueError(
            f"{name} needs a box that is periodic in all three directions, because it refers to a volume. "
            "Got an open direction (a zero row of `box`). Simulate in a periodic box or choose another observable."
        )


def require_species(trajectories: Trajectory, wanted: tuple[int, ...], name: str) -> None:
    """Refuse species that no atom has.

    Raises:
        ValueError: naming the observable and the species there are.
    """
    there = set(np.unique(np.asarray(trajectories.frames.system.species)).tolist()) - {0}
    if missing := sorted(set(wanted) - there):
        raise ValueError(f"{name} needs atoms of the species {missing} (atomic numbers). Got {sorted(there)}.")


def selected(species: Int[Array, "*shape"], wanted: int | None) -> Bool[Array, "*shape"]:
    """Atoms of one species, or all real ones."""
    return species > 0 if wanted is None else species == wanted


def symbols(numbers: tuple[int, ...] | None) -> str:
    """Chemical symbols for names, as in ``" Si–O"``; empty for ``None``."""
    if numbers is None:
        return ""
    from ase.data import chemical_symbols

    return " " + "–".join(chemical_symbols[z] for z in numbers)
