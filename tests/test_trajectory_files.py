"""Trajectories in files: what was written comes back; other tools read it; wrong files are named."""

import ase.io
import jax
import numpy as np
import pytest

from bayespot.errors import DataError, Status
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.trajectory_files import read_trajectory, thin, write_trajectory
from bayespot.tree import take

RNG = np.random.default_rng(0)


def trajectory(*runs, dtype=np.float32, frames=6, atoms=3):
    def numbers(*shape):
        return RNG.normal(size=(*runs, *shape)).astype(dtype)

    species = np.broadcast_to(np.array([8, 1, 1], np.int32), (*runs, frames, atoms))
    box = np.broadcast_to(np.array([[9.0, 0, 0], [1, 8, 0], [0, 2, 7]], dtype), (*runs, frames, 3, 3))
    stress = numbers(frames, 3, 3)
    stress = stress + stress.swapaxes(-1, -2)
    frame = Frame(System(numbers(frames, atoms, 3), species, box), numbers(frames, atoms, 3), numbers(frames), stress)
    time = np.broadcast_to(np.arange(1.0, frames + 1), (*runs, frames))
    status = np.zeros(runs, np.int32)
    return Trajectory(frame, time, status, np.full(runs, float(frames)))


@pytest.mark.parametrize("runs", [(), (2, 3)], ids=["one run", "many"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_netcdf_keeps_everything(tmp_path, runs, dtype):
    written = trajectory(*runs, dtype=dtype)
    if runs:
        written.status[1, 2] = Status.UNSTABLE
        written.frames.energy[1, 2, 3:] = np.nan
    write_trajectory(tmp_path / "new" / "runs.nc", written)
    back = read_trajectory(tmp_path / "new" / "runs.nc")
    for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["runs.nc"]


def test_netcdf_has_names_and_units(tmp_path):
    import xarray as xr

    write_trajectory(tmp_path / "runs.nc", trajectory(2, 1))
    with xr.open_dataset(tmp_path / "runs.nc", decode_times=False) as data:
        assert data.position.dims == ("sample", "replica", "frame", "atom", "xyz")
        assert data.stress.attrs["units"] == "eV/Å³"


@pytest.mark.parametrize("name", ["run.extxyz", "run.traj"])
def test_one_run_through_ase(tmp_path, name):
    written = take(trajectory(2, 2, dtype=np.float64), (1, 0))
    write_trajectory(tmp_path / name, written)
    atoms = ase.io.read(tmp_path / name, "2")
    np.testing.assert_allclose(atoms.get_velocities(), written.frames.velocity[2], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(atoms.get_potential_energy(), written.frames.energy[2], rtol=1e-7)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), written.frames.stress[2], rtol=1e-6, atol=1e-7)
    back = read_trajectory(tmp_path / name)
    for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_every_second_frame():
    whole = trajectory(2, 1)
    half = thin(whole, 2, discard=1)
    np.testing.assert_array_equal(half.time[1, 0], [3.0, 5.0])
    np.testing.assert_array_equal(half.frames.stress, whole.frames.stress[:, :, [2, 4]])
    assert half.status.shape == (2, 1)
    with pytest.raises(ValueError, match="every=7"):
        thin(whole, 7)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_trajectory(tmp_path / "none.nc")
    with pytest.raises(ValueError, match=r"\(2, 1\).*take"):
        write_trajectory(tmp_path / "many.extxyz", trajectory(2, 1))
    with pytest.raises(ValueError, match="No format"):
        write_trajectory(tmp_path / "run.unheard", trajectory())
    (tmp_path / "broken.nc").write_bytes(b"\x89HDF\r\n\x1a\nand no more")
    with pytest.raises(DataError, match="not a whole NetCDF"):
        read_trajectory(tmp_path / "broken.nc")
    write_trajectory(tmp_path / "run.nc", trajectory())
    import xarray as xr

    data = xr.load_dataset(tmp_path / "run.nc", decode_times=False)
    data.drop_vars("stress").to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="not written by write_trajectory"):
        read_trajectory(tmp_path / "other.nc")
    data.assign_attrs(format_version=99).to_netcdf(tmp_path / "newer.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="version 99"):
        read_trajectory(tmp_path / "newer.nc")
    frames = [ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]]), ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]])]
    ase.io.write(tmp_path / "differ.extxyz", frames)
    with pytest.raises(DataError, match="frame 1"):
        read_trajectory(tmp_path / "differ.extxyz")


def test_a_file_of_another_program(tmp_path):
    frames = [ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3 + 0.1 * n]]) for n in range(3)]
    ase.io.write(tmp_path / "other.extxyz", frames)
    run = read_trajectory(tmp_path / "other.extxyz")
    assert np.isnan(run.frames.energy).all()
    np.testing.assert_array_equal(run.time, [0, 1, 2])
    np.testing.assert_array_equal(run.frames.system.species, [[18, 18]] * 3)
