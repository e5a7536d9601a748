"""Files: reading labelled configurations, saving and loading posterior samples."""

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.errors import DataError
from bayespot.records.ase_frames import DEFAULT_GROUP_KEY, Entry, Keys, assemble
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples
from bayespot.typing import PyTree

FORMAT_VERSION = 1
"""Version of the files that ``save`` writes; older ones stay readable."""


def read(
    path: str | Path | Sequence[str | Path],
    cutoff: float,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    group_key: str | None = DEFAULT_GROUP_KEY,
    index: int | str | slice = ":",
) -> Dataset:
    """Read labelled configurations from a file (or several) of any format that ASE reads, also compressed.

    A label is taken from its explicit key; without one from ``REF_energy``, ``REF_forces``, ``REF_stress`` or
    ``REF_virials``; without these from what ASE takes for the result of the calculation. A frame may lack labels:
    they are masked. The stress has ASE's sign (positive = tension) and order (xx yy zz yz xz xy, or nine numbers); it
    is left out where a frame is not periodic in all directions, because it then has no meaning.

    Args:
        path: file name, or several.
        cutoff: for the neighbours [Å].
        energy_key: where the total energy [eV] is, in a frame's ``info``, ``arrays`` or calculator results.
        forces_key: the same for forces [eV/Å].
        stress_key: the same for the stress [eV/Å³]; a key with "virial" in its name holds a virial [eV], and the
            stress is −virial / volume.
        group_key: name in a frame's ``info`` that sorts frames into groups; ``None`` for a single group.
        index: frames of every file, as in Python: a number, a slice, or text like ``"::10"``.

    Raises:
        DataError: for files, structures or labels that cannot be right; it names file, frame, key and remedy.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    entries = [entry for p in paths for entry in _frames(Path(p), index)]
    return assemble(entries, cutoff, Keys(energy_key, forces_key, stress_key, group_key))


def _frames(path: Path, index: int | str | slice) -> list[Entry]:
    """The chosen frames of one file; all are read, so that every error can name its frame."""
    from ase.io import iread
    from ase.utils import string2index

    if not path.is_file():
        raise DataError(path, None, f"there is no such file (looked from {Path.cwd()}). Check its name.")
    frames = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE warns of its own internals and of things that are checked here
        try:
            for atoms in iread(str(path), ":", do_not_split_by_at_sign=True):
                frames.append(Entry(str(path), len(frames), atoms))
        except Exception as error:  # the readers of ASE raise errors of every kind
            cause = "unknown element or entry" if isinstance(error, KeyError) else type(error).__name__
            raise DataError(
                path,
                len(frames),
                f"ASE cannot read this frame ({cause}: {error}). "
                "The file may be empty, truncated, damaged or of another format.",
            ) from error
    _check_all_read(path, frames)
    chosen = string2index(index) if isinstance(index, str) else index
    try:
        selected = frames[chosen] if isinstance(chosen, slice) else [frames[int(chosen)]]
    except IndexError as error:
        raise DataError(path, None, f"index must lie within the {len(frames)} frames, got {index}.") from error
    if not selected:
        raise DataError(path, None, f"at least one frame is needed, got none of {len(frames)} with index {index!r}.")
    return selected


def _check_all_read(path: Path, frames: list[Entry]) -> None:
    """Refuse an xyz file with text after the last frame: ASE stops silently at a blank line between frames."""
    from ase.io.formats import open_with_compression

    if not {".xyz", ".extxyz"} & set(path.suffixes):
        return
    expected = sum(len(entry.atoms) + 2 for entry in frames)
    with open_with_compression(str(path), "rt") as file:
        for number, line in enumerate(file, start=1):
            if number > expected and line.strip() and not line.startswith("VEC"):
                raise DataError(
                    path,
                    len(frames),
                    f"text from line {number} on is not read, because a blank line stands before it. Remove that.",
                )


def save(samples: PosteriorSamples, path: str | Path) -> None:
    """Save posterior samples with their potential's specification in one file, without pickle.

    The file is in safetensors format: the arrays bit by bit, and as JSON in the header the nested names, the
    specification and the version of the format. A file that exists is replaced, in one step.

    Raises:
        ValueError: when parameters are not nested dictionaries, lists and tuples of numeric arrays.
    """
    from safetensors.numpy import save as to_bytes

    fields = {name: getattr(samples, name) for name in _FIELDS}
    tensors: dict[str, np.ndarray] = {}
    description = {"format_version": FORMAT_VERSION, "spec": samples.spec, "fields": _describe(fields, tensors, "")}
    content = to_bytes(tensors, metadata={"bayespot": json.dumps(description)})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private, results need not be
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The permissions that new files of this process must not have; reading them means setting them."""
    current = os.umask(0)
    os.umask(current)
    return current


def load(path: str | Path) -> PosteriorSamples:
    """Load posterior samples that ``save`` wrote.

    Arrays become JAX arrays: where x64 is not enabled, float64 becomes float32.

    Raises:
        DataError: when the file is missing, damaged, not of bayespot, or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise DataError(path, None, f"there is no such file (looked from {Path.cwd()}). Check its name.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("bayespot")
            tensors = {name: file.get_tensor(name) for name in file.keys()} if header else {}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(
            path, None, f"this is not a whole safetensors file ({error}). Save the samples again."
        ) from error
    if header is None:
        raise DataError(path, None, "this safetensors file was not written by bayespot.save. Give one that was.")
    description = json.loads(header)
    if (version := description["format_version"]) > FORMAT_VERSION:
        raise DataError(
            path,
            None,
            f"the file has format version {version}, this bayespot reads up to {FORMAT_VERSION}. Upgrade bayespot.",
        )
    fields = _rebuild(description["fields"], tensors)
    return PosteriorSamples(**fields, spec=description["spec"])


_FIELDS = ("params", "log_weight", "chain", "draw", "log_density", "status", "history")


def _describe(node: PyTree, tensors: dict[str, np.ndarray], place: str):
    """A tree as JSON; its arrays go to ``tensors`` under consecutive numbers, so that names may hold any character."""
    if node is None:
        return {"none": True}
    if isinstance(node, dict):
        if wrong := [k for k in node if not isinstance(k, str)]:
            raise ValueError(f"Names of parameters must be text. Got {wrong} in {place or 'the samples'}.")
        return {"dict": [[k, _describe(v, tensors, f"{place}[{k!r}]")] for k, v in node.items()]}
    if type(node) in (list, tuple):
        return {type(node).__name__: [_describe(v, tensors, f"{place}[{k}]") for k, v in enumerate(node)]}
    if not isinstance(node, jax.Array | np.ndarray | np.generic) or jnp.issubdtype(node.dtype, jax.dtypes.extended):
        raise ValueError(f"Only numeric arrays can be saved. Got {type(node).__name__} in {place or 'the samples'}.")
    array = np.array(node, order="C")  # a contiguous copy: safetensors writes the memory as it lies
    name, kind = str(len(tensors)), array.dtype.name
    if array.dtype.kind == "V":  # bfloat16 and its like, which safetensors does not know in numpy: their bits
        array = array.view(f"u{array.dtype.itemsize}")
    tensors[name] = array
    return {"array": name, "dtype": kind}


def _rebuild(node, tensors: dict[str, np.ndarray]) -> PyTree:
    """The tree that ``_describe`` described."""
    if "dict" in node:
        return {k: _rebuild(v, tensors) for k, v in node["dict"]}
    if "list" in node:
        return [_rebuild(v, tensors) for v in node["list"]]
    if "tuple" in node:
        return tuple(_rebuild(v, tensors) for v in node["tuple"])
    return None if "none" in node else jnp.asarray(tensors[node["array"]].view(jnp.dtype(node["dtype"])))
