"""Labelled configurations: stacked frames of different sizes, padded, with their neighbours."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.neighbors import Neighbors, fill, pairs
from bayespot.records.system import System, masses
from bayespot.tree import record, replace, take
from bayespot.typing import Array, Bool, Float, Int


@record(static=("cutoff", "group_names", "source"))
class Dataset:
    """``M`` labelled frames; every array has the leading axis ``M``, so slicing, gathering and ``vmap`` just work.

    A frame with fewer atoms than the largest is padded with species 0. A missing label is 0 with a ``False`` in its
    mask, never an invented value.

    Attributes:
        system: positions ``(M, N, 3)`` [Å], species ``(M, N)``, boxes ``(M, 3, 3)`` [Å], and masses ``(M, N)`` [amu]
            where a frame has masses of its own.
        neighbors: neighbours within ``cutoff``, ``(M, N, K)``.
        energy: total energies ``(M,)`` [eV].
        forces: ``(M, N, 3)`` [eV/Å].
        stress: ``(M, 3, 3)`` [eV/Å³], ASE's sign (positive = tension).
        has_energy, has_forces, has_stress: masks ``(M,)`` of labels that exist.
        frame: number of the frame in its file, ``(M,)``.
        group: index into ``group_names``, ``(M,)``.
        cutoff: of the neighbours [Å].
        group_names: names of the groups (``config_type`` of the file, if any).
        source: file name, for messages.
    """

    system: System
    neighbors: Neighbors
    energy: Float[Array, "M"]
    forces: Float[Array, "M N 3"]
    stress: Float[Array, "M 3 3"]
    has_energy: Bool[Array, "M"]
    has_forces: Bool[Array, "M"]
    has_stress: Bool[Array, "M"]
    frame: Int[Array, "M"]
    group: Int[Array, "M"]
    cutoff: float
    group_names: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return self.energy.shape[0]

    def __getitem__(self, index) -> Dataset:
        """Frames by slice, integer array or mask; an integer gives one frame, still with its axis ``M``."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):  # also what ends a loop over the frames
                raise IndexError(f"There are {len(self)} frames. Got number {index}.")
            index = slice(index % len(self), index % len(self) + 1)
        return take(jax.tree.map(np.asarray, self), index)  # on the host, where every shape need not be compiled

    @property
    def atom_counts(self) -> np.ndarray:
        """Number of real atoms of every frame, ``(M,)``."""
        return np.asarray((self.system.species > 0).sum(-1))

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(int(z) for z in np.unique(np.asarray(self.system.species)) if z > 0)


def stack_neighbors(positions: list, boxes: list, cutoff: float) -> Neighbors:
    """Neighbours of frames of different sizes, padded to one ``(M, N, K)`` (host); padding is index ``N``."""
    found = [pairs(x, h, cutoff) for x, h in zip(positions, boxes, strict=True)]
    n = max((len(x) for x in positions), default=1)
    counts = [np.bincount(i, minlength=len(x)) for (i, _, _), x in zip(found, positions, strict=True)]
    k = max([int(c.max(initial=0)) for c in counts] + [1])
    index, shift = fill(found, counts, n, k)
    return Neighbors(jnp.asarray(index), jnp.asarray(shift))


def dataset(systems: list[System], cutoff: float, energy=None, forces=None, stress=None, group=None) -> Dataset:
    """A ``Dataset`` from single systems and their labels in memory (files: ``bayespot.read``).

    Args:
        systems: ``M`` single systems, of any sizes.
        cutoff: for the neighbours [Å].
        energy: ``M`` total energies [eV]; a ``None`` in any of the lists marks a missing label.
        forces: ``M`` arrays ``(N, 3)`` [eV/Å].
        stress: ``M`` arrays ``(3, 3)`` [eV/Å³], positive = tension.
        group: ``M`` names.

    Padding that the systems already have is dropped.

    Raises:
        ValueError: when there is no frame, the cutoff is not positive, lists differ in length, or a label has the
            wrong shape or contains NaN or inf.
    """
    m = len(systems)
    if m == 0:
        raise ValueError("A dataset needs at least one frame. Got none.")
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff must be positive [Å]. Got {cutoff}.")
    lists = {"energy": energy, "forces": forces, "stress": stress, "group": group}
    if wrong := {k: len(v) for k, v in lists.items() if v is not None and len(v) != m}:
        raise ValueError(f"Every list of labels needs one entry for each of the {m} systems. Got {wrong}.")
    real = [np.asarray(s.species) > 0 for s in systems]
    species = [np.asarray(s.species)[r] for s, r in zip(systems, real, strict=True)]
    positions = [np.asarray(s.position, np.float64)[r] for s, r in zip(systems, real, strict=True)]
    boxes = [np.asarray(s.box, np.float64) for s in systems]
    n = max(len(z) for z in species)
    mass = _masses(systems, real, n)
    energies, has_energy = _labels("energy", energy, [()] * m)
    force, has_forces = _labels("forces", forces, [(len(r), 3) for r in real])
    stresses, has_stress = _labels("stress", stress, [(3, 3)] * m)
    force = [f[r] for f, r in zip(force, real, strict=True)]
    _warn_of_rounding(energies, [len(z) for z in species])
    names = tuple(dict.fromkeys(group)) if group is not None else ("all",)
    codes = [names.index(g) for g in group] if group is not None else [0] * m
    return Dataset(
        system=System(_padded(positions, n), _padded(species, n, np.int32), jnp.asarray(np.stack(boxes)), mass),
        neighbors=stack_neighbors(positions, boxes, cutoff),
        energy=jnp.asarray(np.stack(energies)),
        forces=_padded(force, n),
        stress=jnp.asarray(np.stack(stresses)),
        has_energy=has_energy,
        has_forces=has_forces,
        has_stress=has_stress,
        frame=jax.device_put(np.arange(m, dtype=np.int32)),
        group=jnp.asarray(np.array(codes, np.int32)),
        cutoff=float(cutoff),
        group_names=names,
        source="memory",
    )


def _masses(systems: list[System], real: list[np.ndarray], n: int) -> Float[Array, "M N"] | None:
    """Masses of all frames where any has its own; forces need none, but whoever simulates from a frame does."""
    if all(s.mass is None for s in systems):
        return None
    return _padded([np.asarray(masses(s), float)[r] for s, r in zip(systems, real, strict=True)], n)


def _warn_of_rounding(energies: list[np.ndarray], atoms: list[int]) -> None:
    """Say so when total energies are so large that their storage in float32 spoils them by 0.1 meV/atom or more."""
    if jax.config.jax_enable_x64:
        return
    rounding = max(float(np.spacing(np.float32(abs(e)))) / n for e, n in zip(energies, atoms, strict=True))
    if rounding > 1e-4:
        warnings.warn(
            f"Total energies are rounded by up to {1e3 * rounding:.2g} meV/atom in float32. Subtract the energies of "
            'free atoms before, or compute in float64: jax.config.update("jax_enable_x64", True).',
            RuntimeWarning,
            stacklevel=3,
        )


def _labels(name: str, values, shapes: list[tuple[int, ...]]) -> tuple[list[np.ndarray], Bool[Array, "M"]]:
    """Checked labels, zeros where there is none, and the mask of those that exist."""
    values = [None] * len(shapes) if values is None else values
    labels = []
    for frame, (value, shape) in enumerate(zip(values, shapes, strict=True)):
        label = np.zeros(shape) if value is None else np.asarray(value, float)
        if label.shape != shape:
            raise ValueError(f"Frame {frame}: {name} must have the shape {shape}. Got {label.shape}.")
        if not np.isfinite(label).all():
            raise ValueError(f"Frame {frame}: {name} must be finite. Got NaN or inf. Correct it or give None.")
        labels.append(label)
    return labels, jnp.asarray([value is not None for value in values])


def _padded(rows: list[np.ndarray], n: int, dtype: type = float) -> Array:
    """Arrays ``(n_m, ...)`` of different lengths as one ``(M, n, ...)``, filled up with zeros."""
    out = np.zeros((len(rows), n, *rows[0].shape[1:]), dtype)
    for m, row in enumerate(rows):
        out[m, : len(row)] = row
    return jnp.asarray(out)


def with_cutoff(data: Dataset, cutoff: float) -> Dataset:
    """The same frames with neighbours computed anew for another cutoff [Å] (host).

    Raises:
        ValueError: when the cutoff is not positive.
    """
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff must be positive [Å]. Got {cutoff}.")
    counts = data.atom_counts
    positions = [np.asarray(x, np.float64)[:c] for x, c in zip(data.system.position, counts, strict=True)]
    found = stack_neighbors(positions, list(np.asarray(data.system.box, np.float64)), cutoff)
    width = data.system.position.shape[1]
    missing = width - found.index.shape[1]
    index, shift = np.array(found.index), np.asarray(found.shift)
    index[index == index.shape[1]] = width
    index = np.pad(index, ((0, 0), (0, missing), (0, 0)), constant_values=width)
    shift = np.pad(shift, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return replace(data, neighbors=Neighbors(jnp.asarray(index), jnp.asarray(shift)), cutoff=float(cutoff))


@record
class Graph:
    """A minibatch with the atoms of all its structures in one row of ``A``.

    Attributes:
        system: ``position (A, 3)``, ``species (A,)``, ``box (A, 3, 3)`` (the box of each atom's structure); without
            masses, which energies and forces do not need.
        neighbors: ``(A, K)``; index ``A`` marks padding.
        structure: number of each atom's structure, ``(A,)``; ``B`` for padding.
        atom: place of each atom in the stacked ``(B * N,)`` axis, ``(A,)``; ``B * N`` for padding.
    """

    system: System
    neighbors: Neighbors
    structure: Int[Array, "A"]
    atom: Int[Array, "A"]


def flatten(batch: Dataset, capacity: int) -> Graph:
    """Flatten stacked frames into one graph of ``capacity`` atoms, without the padding between frames (traceable).

    The caller guarantees that the frames hold at most ``capacity`` atoms; atoms beyond it would be lost.
    """
    b, n = batch.system.species.shape
    real = (batch.system.species > 0).ravel()
    place = jnp.where(real, jnp.minimum(jnp.cumsum(real) - 1, capacity), capacity).astype(jnp.int32)
    atom = jnp.full(capacity, b * n, jnp.int32).at[place].set(jnp.arange(b * n, dtype=jnp.int32), mode="drop")
    row = jnp.minimum(atom, b * n - 1)
    structure = jax.lax.div(atom, jnp.int32(n))  # the signs that // heeds take long to compile

    def rows(x):
        return x.reshape(b * n, *x.shape[2:])[row]

    index = rows(batch.neighbors.index)
    index = jnp.where(index < n, index + jnp.minimum(structure, b - 1)[:, None] * n, b * n)
    used = atom < b * n
    index = jnp.where(used[:, None], jnp.append(place, jnp.int32(capacity))[index], capacity)
    flat = System(
        position=rows(batch.system.position),
        species=jnp.where(used, rows(batch.system.species), 0),
        box=batch.system.box[jnp.minimum(structure, b - 1)],
    )
    return Graph(flat, Neighbors(index, rows(batch.neighbors.shift)), structure, atom)


def single(data: Dataset, index: int | np.integer) -> tuple[System, Neighbors]:
    """System and neighbours of one frame, padding included."""
    return jax.tree.map(lambda x: x[index], (data.system, data.neighbors))
