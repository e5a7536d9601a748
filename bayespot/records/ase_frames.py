"""Labelled frames of ASE as a ``Dataset``: which key a label is taken from, its sign and shape, and what is refused."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bayespot.errors import DataError, listed
from bayespot.records.dataset import Dataset, dataset
from bayespot.records.neighbors import pairs
from bayespot.records.system import System, from_ase
from bayespot.tree import replace

SHORTEST_DISTANCE = 0.1
"""Atoms closer than this [Å], images included, are taken for a mistake in the file."""

DEFAULT_GROUP_KEY = "config_type"

REFERENCE_KEYS = {
    "energy": ("REF_energy",),
    "forces": ("REF_forces",),
    "stress": ("REF_stress", "REF_virials", "REF_virial"),
}
"""Keys tried before the results of the frame's calculator."""


class Keys(NamedTuple):
    """Explicit keys of the labels (``None``: look for them) and of the group."""

    energy: str | None
    forces: str | None
    stress: str | None
    group: str | None


class Entry(NamedTuple):
    """One frame, and where it comes from."""

    source: str
    frame: int
    atoms: Any

    def error(self, message: str) -> DataError:
        """The error that names this frame."""
        return DataError(self.source, self.frame, message)


def from_ase_frames(
    frames: Iterable,
    cutoff: float,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    group_key: str | None = DEFAULT_GROUP_KEY,
) -> Dataset:
    """A ``Dataset`` from ``ase.Atoms`` in memory; labels are looked up as ``bayespot.read`` does for files.

    Args:
        frames: the ``ase.Atoms``.
        cutoff: for the neighbours [Å].
        energy_key: where the total energy [eV] is, in ``info``, ``arrays`` or the calculator's results. Without it,
            ``REF_energy`` is looked for, then the calculator's result.
        forces_key: the same for forces [eV/Å].
        stress_key: the same for the stress [eV/Å³], positive = tension; a key with "virial" in its name holds
            a virial [eV], and the stress is −virial / volume.
        group_key: name in ``info`` that sorts frames into groups; ``None`` for a single group.

    Raises:
        DataError: for labels or structures that cannot be right, naming frame, key and remedy.
    """
    entries = [Entry("memory", k, atoms) for k, atoms in enumerate(frames)]
    return assemble(entries, cutoff, Keys(energy_key, forces_key, stress_key, group_key))


def assemble(entries: list[Entry], cutoff: float, keys: Keys) -> Dataset:
    """A ``Dataset`` from frames of one or several sources; raises ``DataError``."""
    sources = list(dict.fromkeys(entry.source for entry in entries))
    if not entries:
        raise DataError("memory", None, "at least one frame is needed, got none.")
    systems = [_system(entry) for entry in entries]
    labels = {}
    for label in ("energy", "forces", "stress"):
        found = [_find(entry, label, getattr(keys, label)) for entry in entries]
        for source in sources:
            here = [(e, f) for e, f in zip(entries, found, strict=True) if e.source == source]
            _check_keys(here, label, getattr(keys, label))
        labels[label] = [f and _CONVERT[label](e, *f) for e, f in zip(entries, found, strict=True)]
    for source in sources:
        mine = [k for k, entry in enumerate(entries) if entry.source == source]
        if all(labels["energy"][k] is None and labels["forces"][k] is None for k in mine):
            raise DataError(
                source,
                None,
                f"no frame has an energy or forces. {_available(entries[mine[0]])} "
                "Name the right ones with energy_key=… or forces_key=….",
            )
    data = dataset(systems, cutoff, **labels, group=_groups(entries, sources, keys.group))
    frame = np.array([entry.frame for entry in entries])
    return replace(data, frame=data.frame * 0 + frame, source=", ".join(sources))


def _system(entry: Entry) -> System:
    """The frame's ``System``, refused where it cannot be meant."""
    atoms = entry.atoms
    cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)

    if len(atoms) == 0:
        raise entry.error("a frame needs at least one atom, got none. Remove it.")
    if (atoms.numbers < 1).any():
        where = listed(np.flatnonzero(atoms.numbers < 1))
        raise entry.error(f"unknown element at atoms {where} (symbol X or number 0). Give chemical symbols.")
    missing = pbc & (np.abs(cell).sum(1) == 0)
    if missing.any():
        raise entry.error(
            f"pbc is on along {', '.join('abc'[k] for k in np.flatnonzero(missing))} but the lattice vector is "
            "missing. Add Lattice, or switch pbc off."
        )
    try:
        made = from_ase(atoms)
    except ValueError as error:
        raise entry.error(f"{error} Correct or remove the frame.") from error
    box = cell * pbc[:, None]
    periodic = box[pbc]
    thickness = np.linalg.svd(periodic, compute_uv=False).min() if len(periodic) else np.inf
    if thickness < SHORTEST_DISTANCE:
        raise entry.error(
            f"the periodic cell is only {thickness:.1g} Å thick (zero volume). Correct Lattice or remove the frame."
        )
    # Searched within 2 Å: much shorter cutoffs make the search slow, since it divides the box into cells of that size.
    i, j, shift = pairs(atoms.positions, box, 2.0)
    gaps = np.linalg.norm(atoms.positions[j] + shift @ box - atoms.positions[i], axis=-1)
    if gaps.min(initial=np.inf) < SHORTEST_DISTANCE:
        k = gaps.argmin()
        raise entry.error(
            f"atoms {i[k]} and {j[k]} overlap: {gaps[k]:.3g} Å apart, images included, at least {SHORTEST_DISTANCE} Å "
            "is needed. Remove one of them, or correct positions or cell."
        )
    return made


def _find(entry: Entry, label: str, key: str | None) -> tuple[str, object] | None:
    """Name and value of a frame's label: explicit key, else reference keys, else the calculator's result."""
    atoms = entry.atoms
    for name in (key,) if key is not None else REFERENCE_KEYS[label]:
        for place in (atoms.info, atoms.arrays):
            if name in place:
                return name, place[name]
    name = label if key is None else key
    value = getattr(atoms.calc, "results", {}).get(name)
    if value is None:
        return None
    # A calculator remembers the atoms that its results belong to; results of other positions would be wrong labels.
    check = getattr(atoms.calc, "check_state", None)
    changed = set(check(atoms)) & {"positions", "numbers", "cell", "pbc"} if check else set()
    if changed:
        raise entry.error(
            f"the calculator's {name} belongs to other {', '.join(sorted(changed))}: the atoms "
            "were changed after the calculation. Calculate it again."
        )
    return name, value


def _check_keys(found: list, label: str, key: str | None) -> None:
    """Refuse an explicit key that no frame has, and one label from different keys within one source."""
    source = found[0][0].source
    frames: dict[str, list[int]] = {}
    for entry, hit in found:
        if hit is not None:
            frames.setdefault("REF_" if hit[0].startswith("REF_") else hit[0], []).append(entry.frame)
    if key is not None and not frames:
        raise DataError(source, None, f"no frame has the {label}_key {key!r}. {_available(found[0][0])}")
    if len(frames) > 1:
        names = [f"{name + label if name == 'REF_' else name} in frames {listed(n)}" for name, n in frames.items()]
        raise DataError(
            source,
            min(n[0] for n in list(frames.values())[1:]),
            f"{label} must come from one key, got "
            f"{' and '.join(names)}. They may be of different levels of theory: choose one with {label}_key=….",
        )


def _available(entry: Entry) -> str:
    atoms = entry.atoms
    own = {"numbers", "positions", "initial_magmoms", "initial_charges", "masses", "tags", "momenta"}
    results = getattr(atoms.calc, "results", {})
    names = sorted({*atoms.info, *(k for k in atoms.arrays if k not in own), *results})
    return f"Its first frame has the keys {', '.join(map(str, names)) or 'none'}."


def _numbers(entry: Entry, key: str, value, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """A label as finite floats of one of the shapes, or a ``DataError``."""
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise entry.error(f"{key} must be numbers, got {value!r}. Correct it.") from error
    if array.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise entry.error(
            f"{key} must have the shape {wanted}, got {array.shape}. Correct the file or name another key."
        )
    if not np.isfinite(array).all():
        raise entry.error(
            f"{key} must be finite, got NaN or inf. Correct it, or leave the label out (it is then masked)."
        )
    return array


def _energy(entry: Entry, key: str, value) -> float:
    return float(_numbers(entry, key, value, ((), (1,))).reshape(()))


def _forces(entry: Entry, key: str, value) -> np.ndarray:
    return _numbers(entry, key, value, ((len(entry.atoms), 3),))


def _stress(entry: Entry, key: str, value) -> np.ndarray | None:
    """Stress ``(3, 3)``; ``None`` where the frame is not periodic in all directions and has no volume."""
    if not np.all(entry.atoms.pbc):
        return None
    array = _numbers(entry, key, value, ((6,), (9,), (3, 3)))
    if array.size == 6:
        xx, yy, zz, yz, xz, xy = array
        array = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    array = array.reshape(3, 3)
    skew = np.abs(array - array.T).max()
    if skew > 0.01 * np.abs(array).max():
        raise entry.error(
            f"{key} must be symmetric, got components that differ by {skew:.3g}. Check the "
            "order of its components: xx yy zz yz xz xy, or all nine."
        )
    array = 0.5 * (array + array.T)
    return -array / entry.atoms.cell.volume if "virial" in key.lower() else array


_CONVERT = {"energy": _energy, "forces": _forces, "stress": _stress}


def _groups(entries: list[Entry], sources: list[str], key: str | None) -> list[str] | None:
    named = [key is not None and key in entry.atoms.info for entry in entries]
    if not any(named):
        if key not in (None, DEFAULT_GROUP_KEY):
            raise DataError(", ".join(sources), None, f"no frame has the group_key {key!r}. {_available(entries[0])}")
        return None
    return [str(e.atoms.info[key]) if has else "unnamed" for e, has in zip(entries, named, strict=True)]
