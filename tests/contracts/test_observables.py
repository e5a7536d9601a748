"""What holds for every observable: weights, padding, rotation, translation, wrapping, replication of runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bayespot.observables.collective_variables import angle, dihedral, dihedrals
from bayespot.observables.dynamics import diffusion, msd, vacf, vibrational_density_of_states
from bayespot.observables.elasticity import elastic_constants
from bayespot.observables.fluctuations import compressibility, heat_capacity, thermal_expansion
from bayespot.observables.free_energy import free_energy_profile, free_energy_surface
from bayespot.observables.observable import average, observe
from bayespot.observables.populations import distribution, population
from bayespot.observables.structure import adf, coordination, rdf, tetrahedral_order
from bayespot.observables.thermodynamics import (
    density,
    energy_per_atom,
    kinetic_energy,
    pressure,
    stress_tensor,
    temperature,
)
from bayespot.potentials.repulsion import repulsion
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace

EVERY = 0.5
SURFACE = (lambda frame: frame.energy), dihedral(0, 5, 7, 2)
OBSERVABLES = {
    "rdf": rdf(5.5, 40),  # beyond half the box
    "rdf pair": rdf(3.0, 20, (14, 8)),
    "adf": adf(3.2, 18),
    "adf triplet": adf(3.6, 18, (8, 14, 14)),
    "coordination": coordination(4.5),
    "coordination pair": coordination(3.0, (8, 14)),
    "tetrahedral order": tetrahedral_order(),
    "tetrahedral order species": tetrahedral_order(8),  # neighbours beyond half the box
    "temperature": temperature(),
    "kinetic energy": kinetic_energy(),
    "energy": energy_per_atom(),
    "pressure": pressure(),
    "stress tensor": stress_tensor(),
    "density": density(),
    "heat capacity": heat_capacity(0.5, constraints=3),
    "compressibility": compressibility(0.5),
    "thermal expansion": thermal_expansion(0.5, 0.01),
    "elastic constants": elastic_constants(repulsion(3.0), 0.5, params={}),
    "msd": msd(2 * EVERY, EVERY),
    "msd species": msd(2 * EVERY, EVERY, 8),
    "diffusion": diffusion(EVERY, 2 * EVERY, EVERY),
    "vacf": vacf(2 * EVERY, EVERY),
    "vacf species": vacf(2 * EVERY, EVERY, 8),
    "free energy": free_energy_profile(lambda frame: frame.energy, 0.5, -3.0, 3.0, 2),
    "free energy surface": free_energy_surface(SURFACE, 0.5, ((-3.0, 3.0), (-np.pi, np.pi)), (2, 1)),
    "distribution": distribution(dihedrals(((0, 1, 2, 3), (8, 9, 10, 11))), -np.pi, np.pi, 4),
    "population": population((angle(3, 6, 9),), lambda theta: theta < 1.3),
    "vdos": vibrational_density_of_states(3 * EVERY, EVERY),
}
DYNAMICS = {"msd", "msd species", "diffusion", "vacf", "vacf species", "vdos"}  # these refuse weights
BREATHING = {"compressibility", "thermal expansion"}  # these are about the volume
TENSORS = {"elastic constants", "stress tensor"}  # their components refer to the axes
# Run with the slow tests only: what they do, others do too, or (elastic constants) they take long to compile.
ALIKE = {
    "free energy surface",
    "population",
    "compressibility",
    "thermal expansion",
    "elastic constants",
    "rdf pair",
    "adf triplet",
    "coordination pair",
    "tetrahedral order species",
    "kinetic energy",
    "msd species",
    "vacf species",
}
RATIOS = {
    "adf",
    "adf triplet",
    "heat capacity",
    "compressibility",
    "thermal expansion",
    "free energy",
    "free energy surface",
    "distribution",
    "elastic constants",
    *DYNAMICS,
}  # not plain means of frames, by definition


def trajectory(name="", frames=8, atoms=12, seed=0) -> Trajectory:
    """A random walk of a random mixture in a skewed box, with random velocities, energies and stresses."""
    rng = np.random.default_rng(seed)
    box = np.array([[7.0, 0.0, 0.0], [1.5, 6.5, 0.0], [-0.8, 0.9, 7.5]])
    start = rng.uniform(size=(atoms, 3)) @ box
    position = start + np.cumsum(0.3 * rng.normal(size=(frames, atoms, 3)), axis=0)
    stress = rng.normal(size=(frames, 3, 3))
    boxes = np.tile(box, (frames, 1, 1))
    if name in BREATHING:
        boxes *= 1 + 0.02 * rng.normal(size=(frames, 1, 1))
    species = np.tile(np.array([14, 8, 14] * (atoms // 3), np.int32), (frames, 1))
    system = System(position, species, boxes)
    velocity, energy = 0.05 * rng.normal(size=(frames, atoms, 3)), rng.normal(size=frames)
    frame = Frame(system, velocity, energy, 0.01 * (stress + stress.swapaxes(1, 2)))
    return Trajectory(frame, EVERY * np.arange(frames), np.array(0), np.array(EVERY * frames))


def value(observable, run):
    return np.asarray(observe(observable, run, blocks=1).value)[0, 0]


def values_of(observable, frames):
    """The observable of every frame."""
    return jax.jit(jax.vmap(observable.frame))(frames)


def chosen(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in names]


@pytest.fixture(params=chosen(OBSERVABLES))
def observable(request):
    return request.param, OBSERVABLES[request.param]


def test_every_value_is_finite_and_has_the_coordinate(observable):
    name, observable = observable
    got = value(observable, trajectory(name))
    assert got.shape == observable.coordinate.shape if len(observable.coordinate) else got.shape == ()
    assert np.isfinite(got).all()
    assert np.abs(got).max() > 0, name


def test_uniform_weights_are_the_plain_mean_of_the_frames(observable):
    name, observable = observable
    run = trajectory(name)
    if observable.prepare is not None:
        observable = observable.prepare(jax.tree.map(lambda x: x[None, None], run))
    values = values_of(observable, run.frames)
    combined = jax.jit(lambda x: observable.combine(x, np.full(8, 1 / 8)))(values)
    if name not in RATIOS:
        np.testing.assert_allclose(combined, np.mean(values, axis=0), rtol=1e-13)
    np.testing.assert_allclose(value(OBSERVABLES[name], run), combined, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", chosen(n for n in OBSERVABLES if n not in DYNAMICS))
def test_weights_select_frames(name):
    observable = OBSERVABLES[name]
    run = trajectory(name)
    prepared = observable.prepare(jax.tree.map(lambda x: x[None, None], run)) if observable.prepare else observable
    values = values_of(prepared, run.frames)
    weights = np.array([0, 0.25, 0.25, 0, 0.25, 0, 0.25, 0.0])
    four = np.array([1, 2, 4, 6])
    only = replace(run, frames=jax.tree.map(lambda x: x[four], run.frames), time=run.time[four])
    combined = jax.jit(prepared.combine)(values, weights)
    np.testing.assert_allclose(combined, value(observable, only), rtol=1e-12, atol=1e-14)


def test_padding_is_invisible(observable):
    name, observable = observable
    run = trajectory(name)

    def pad(x, fill):
        shape = (x.shape[0], 3, *x.shape[2:])
        return np.concatenate([x[:, :5], np.full(shape, fill, x.dtype), x[:, 5:]], axis=1)

    system = run.frames.system
    padded = replace(system, position=pad(system.position, 1.3), species=pad(system.species, 0))
    frames = replace(run.frames, system=padded, velocity=pad(run.frames.velocity, 7.0))
    got = value(observable, replace(run, frames=frames))
    np.testing.assert_allclose(got, value(observable, run), rtol=1e-12, atol=1e-14, err_msg=name)


def test_rotation_translation_and_wrapping_change_nothing(observable):
    name, observable = observable
    run = trajectory(name)
    turn = np.eye(3) if name in TENSORS else Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    system, frames = run.frames.system, run.frames
    lattice = np.random.default_rng(5).integers(-2, 3, size=(12, 3)).astype(float)
    position = system.position + np.einsum("ai,tij->taj", lattice, system.box) + np.array([0.4, -3.0, 11.0])
    moved = System(position @ turn, system.species, system.box @ turn)
    stress = np.einsum("ki,tkl,lj->tij", turn, frames.stress, turn)
    frames = Frame(moved, frames.velocity @ turn, frames.energy, stress)
    before, after = value(observable, run), value(observable, replace(run, frames=frames))
    # MSD: the lattice vectors shift the mass-weighted centre by the same amount in every frame, which cancels.
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-10, err_msg=name)


def test_samples_and_replicas_are_treated_run_by_run(observable):
    name, observable = observable
    runs = [trajectory(name, seed=n) for n in range(6)]
    together = jax.tree.map(lambda *x: np.stack(x).reshape(3, 2, *x[0].shape), *runs)
    got = observe(observable, together, blocks=2, batch_size=4)
    assert got.value.shape[:2] == (3, 2)
    assert got.blocks.shape[:3] == (3, 2, 2)
    one_by_one = np.stack([value(observable, run) for run in runs]).reshape(got.value.shape)
    np.testing.assert_allclose(got.value, one_by_one, rtol=1e-12, atol=1e-14)
    if observable.linked:  # blocks are no runs of their own: test_dynamics
        return
    halves = [jax.tree.map(lambda x: x[:4], runs[3].frames), jax.tree.map(lambda x: x[4:], runs[3].frames)]
    for b, half in enumerate(halves):
        part = replace(runs[3], frames=half, time=runs[3].time[:4])
        np.testing.assert_allclose(
            np.asarray(got.blocks)[1, 1, b], value(observable, part), rtol=1e-12, atol=1e-14, err_msg=name
        )


def test_float32_stays_float32(observable):
    name, observable = observable
    run = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, trajectory(name))
    got = observe(observable, run, blocks=1)
    assert got.value.dtype == jnp.float32
    if not name.startswith(("rdf", "adf")):  # histograms may move a count across a bin edge
        np.testing.assert_allclose(np.asarray(got.value)[0, 0], value(observable, trajectory(name)), rtol=2e-5)


def test_discard_leaves_out_the_start():
    run = trajectory()
    run.frames.energy[:3] = 1e6
    got = observe(energy_per_atom(), run, discard=3, blocks=1)
    np.testing.assert_allclose(np.asarray(got.value)[0, 0], run.frames.energy[3:].mean() / 12)


def test_average_is_weighted():
    np.testing.assert_allclose(average(jnp.array([[1.0, 2.0], [3.0, 6.0]]), np.array([0.25, 0.75])), [2.5, 5.0])


@pytest.mark.parametrize("wrong", [{"discard": 8}, {"blocks": 9}, {"blocks": 0}, {"discard": -1}])
def test_impossible_parts_are_refused(wrong):
    with pytest.raises(ValueError, match="at least one frame per block"):
        observe(energy_per_atom(), trajectory(), **wrong)


def test_a_missing_axis_is_refused():
    run = jax.tree.map(lambda x: x[None], trajectory())
    with pytest.raises(ValueError, match="axes"):
        observe(energy_per_atom(), run)
