"""Trajectories in files: NetCDF for all runs of a posterior, exactly; extended XYZ and other formats of ASE for one.

NetCDF (HDF5 inside) goes through xarray: named dimensions and units, so that other tools can read it, too.
"""

import os
from pathlib import Path

import jax
import numpy as np

from bayespot.errors import DataError
from bayespot.records.system import System, to_ase
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import take

FORMAT_VERSION = 2  # 2 with masses, 1 without
_UNITS = {
    "position": "Å",
    "velocity": "Å sqrt(eV/(amu Å²))",
    "energy": "eV",
    "stress": "eV/Å³",
    "box": "Å",
    "species": "atomic number",
    "mass": "amu",
    "time": "Å sqrt(amu/eV)",
    "valid_until": "Å sqrt(amu/eV)",
    "status": "",
}
_OF_FRAME = {
    "position": ("atom", "xyz"),
    "velocity": ("atom", "xyz"),
    "energy": (),
    "stress": ("row", "column"),
    "box": ("vector", "xyz"),
    "species": ("atom",),
    "mass": ("atom",),
}
_OF_RUN = {"time": ("frame",), "valid_until": (), "status": ()}


def write_trajectory(path: str | Path, trajectory: Trajectory) -> None:
    """Write a trajectory; the suffix of the file tells the format.

    Args:
        path: ``.nc`` for NetCDF, which keeps everything: all samples and replicas, frames, times and status, in their
            precision; or a format of ASE that can hold several frames, such as ``.extxyz`` and ``.traj``, for a single
            run: positions, box, momenta, energy, stress and time. A file that exists is replaced.
        trajectory: of ``simulate`` or ``propagate``. Of many runs one is ``take(trajectory, (sample, replica))``.

    Raises:
        ValueError: for many runs in a format that holds one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    try:
        _write_netcdf(temporary, trajectory) if path.suffix == ".nc" else _write_ase(temporary, trajectory)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_trajectory(path: str | Path) -> Trajectory:
    """Read a trajectory: NetCDF of ``write_trajectory``, or a file of ASE's with frames of one run.

    What such a file lacks is NaN (energy, stress), 0 (velocity), or the number of the frame (time); the run counts as
    sound to its end.

    Raises:
        DataError: for a file that is missing, not a trajectory, of a newer format, or whose frames differ in their
            atoms.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, None, f"there is no such file (looked from {Path.cwd()}). Check its name.")
    return _read_netcdf(path) if path.suffix == ".nc" else _read_ase(path)


def thin(trajectory: Trajectory, every: int, discard: int = 0) -> Trajectory:
    """Every so-manieth frame of all runs, after the first ``discard``; the last of each stretch is kept.

    Raises:
        ValueError: when nothing is left, or for a number that is not positive.
    """
    frames = trajectory.time.shape[-1]
    kept = np.arange(discard + every - 1, frames, every) if every > 0 and discard >= 0 else np.zeros(0, int)
    if not len(kept):
        raise ValueError(f"Nothing is left of {frames} frames with every={every}, discard={discard}. Keep more.")
    axis = trajectory.time.ndim - 1

    def chosen(x):
        return np.take(np.asarray(x), kept, axis)

    return Trajectory(
        frames=jax.tree.map(chosen, trajectory.frames),
        time=chosen(trajectory.time),
        status=np.asarray(trajectory.status),
        valid_until=np.asarray(trajectory.valid_until),
    )


def _write_netcdf(path: Path, trajectory: Trajectory) -> None:
    import xarray as xr

    runs = ("sample", "replica")[: np.ndim(trajectory.status)]
    frame, system = trajectory.frames, trajectory.frames.system
    values = {
        "position": system.position, "species": system.species, "box": system.box, "velocity": frame.velocity,
        "energy": frame.energy, "stress": frame.stress, "time": trajectory.time,
        "valid_until": trajectory.valid_until, "status": trajectory.status,
    }  # fmt: skip
    dimensions = {k: (*runs, "frame", *d) for k, d in _OF_FRAME.items()} | {k: (*runs, *d) for k, d in _OF_RUN.items()}
    values |= {} if system.mass is None else {"mass": system.mass}
    data = xr.Dataset({k: (dimensions[k], np.asarray(v), {"units": _UNITS[k]}) for k, v in values.items()})
    data.attrs = {"bayespot": "trajectory", "format_version": 1 if system.mass is None else FORMAT_VERSION}
    same = values.keys() & {"species", "mass", "box"}  # in every frame, mostly
    packed = {k: {"zlib": True, "complevel": 1} for k in same}
    data.to_netcdf(path, engine="h5netcdf", encoding=packed)


def _read_netcdf(path: Path) -> Trajectory:
    import xarray as xr

    try:
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as data:
            attributes, found = dict(data.attrs), {k: np.asarray(data[k].values) for k in _UNITS if k in data}
    except (OSError, ValueError) as error:
        raise DataError(
            path, None, f"this is not a whole NetCDF file ({error}). Write the trajectory again."
        ) from error
    if attributes.get("bayespot") != "trajectory" or set(_UNITS) - set(found) - {"mass"}:
        raise DataError(path, None, "this NetCDF file was not written by write_trajectory. Give one that was.")
    if (version := int(attributes["format_version"])) > FORMAT_VERSION:
        raise DataError(
            path,
            None,
            f"the file has format version {version}, this bayespot reads up to {FORMAT_VERSION}. Upgrade it.",
        )
    system = System(found["position"], found["species"], found["box"], found.get("mass"))
    frames = Frame(system, found["velocity"], found["energy"], found["stress"])
    return Trajectory(frames, found["time"], found["status"], found["valid_until"])


def _write_ase(path: Path, trajectory: Trajectory) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    if np.ndim(trajectory.status):
        raise ValueError(
            f"{path.suffix} holds a single run. Got runs of the shape {trajectory.status.shape}. "
            "Choose one, take(trajectory, (sample, replica)), or write all to a .nc file."
        )
    images = []
    for n, time in enumerate(np.asarray(trajectory.time)):
        one = take(trajectory.frames, n)
        atoms, real = to_ase(one.system), np.asarray(one.system.species) > 0
        atoms.set_velocities(np.asarray(one.velocity, float)[real])
        known = {"energy": float(one.energy), "stress": np.asarray(one.stress, float)}
        known = {k: v for k, v in known.items() if np.isfinite(v).all()}
        if "stress" in known:
            known["stress"] = known["stress"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        atoms.calc = SinglePointCalculator(atoms, **known)
        atoms.info["time"] = float(time)
        images.append(atoms)
    write(path, images, format=_ase_format(path))


def _ase_format(path: Path) -> str:
    from ase.io.formats import filetype, ioformats

    name = filetype(path.name, read=False)  # by the suffix, also that of an unknown format
    if name not in ioformats or not ioformats[name].can_write or ioformats[name].single:
        raise ValueError(
            f"No format for trajectories is known by the suffix {path.suffix!r}. Use .nc, .extxyz or .traj."
        )
    return name


def _read_ase(path: Path) -> Trajectory:
    from ase import Atoms
    from ase.io import read

    try:
        images = [atoms for atoms in read(path, ":") if isinstance(atoms, Atoms)]
    except Exception as error:  # whatever a reader of ASE raises
        raise DataError(path, None, f"ASE cannot read it ({type(error).__name__}: {error}). Check the file.") from error
    if not images:
        raise DataError(path, None, "there is no frame in it. Check the file.")
    if wrong := [n for n, atoms in enumerate(images) if not np.array_equal(atoms.numbers, images[0].numbers)]:
        raise DataError(path, wrong[0], "its atoms are not those of the first frame. A trajectory keeps its atoms.")
    known = [{} if atoms.calc is None else atoms.calc.results for atoms in images]
    stress = [
        a.get_stress(voigt=False) if "stress" in k else np.full((3, 3), np.nan)
        for a, k in zip(images, known, strict=True)
    ]
    box = [np.asarray(atoms.cell) * atoms.pbc[:, None] for atoms in images]
    position, species = np.stack([a.positions for a in images]), np.stack([a.numbers.astype(np.int32) for a in images])
    mass = np.stack([a.get_masses() for a in images]) if any(a.has("masses") for a in images) else None
    system = System(position, species, np.stack(box), mass)
    velocity, energy = (
        np.stack([a.get_velocities() for a in images]),
        np.array([k.get("energy", np.nan) for k in known]),
    )
    time = np.array([atoms.info.get("time", n) for n, atoms in enumerate(images)], float)
    return Trajectory(
        Frame(system, velocity, energy, np.stack(stress)), time, np.array(0, np.int32), np.array(time[-1])
    )
