"""Beads with masses of their own, from the start of a simulation to its file and its observables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot import units
from bayespot.observables.observable import observe
from bayespot.observables.thermodynamics import density, kinetic_energy, temperature
from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.system import system
from bayespot.records.trajectory import Trajectory
from bayespot.simulation.ensemble import npt_nose_hoover, nve, nvt_langevin, nvt_nose_hoover
from bayespot.simulation.simulate import simulate
from bayespot.targets.reference_run import like_start, reference_run
from bayespot.trajectory_files import read_trajectory, thin, write_trajectory

KT, STIFFNESS, EDGE = 0.025, 0.5, 30.0
MASS = np.repeat([18.0, 72.0], 150)
SITES = np.random.default_rng(0).uniform(0, EDGE, (300, 3))


def springs() -> Potential:
    """Every bead on a spring of its own."""

    def energies(params, sys, neighbors):
        return mask_atoms(0.5 * params["k"] * ((sys.position - SITES) ** 2).sum(-1), sys.species, ())

    return Potential(lambda key: {"k": jnp.array(STIFFNESS)}, energies, 0.5, (), {"name": "springs"})


def run(ensemble, steps=600) -> Trajectory:
    return simulate(
        jax.random.key(1), springs(), {"k": jnp.array(STIFFNESS)}, beads(), ensemble, steps=steps, every=20,
        equilibration=300, progress=False,
    )  # fmt: skip


def beads():
    return system(SITES, np.ones(300, int), [EDGE] * 3, mass=MASS)


@pytest.fixture(scope="module")
def langevin() -> Trajectory:
    return run(nvt_langevin(KT, 5 * units.fs, gamma=0.2))


def test_velocities_and_temperature_are_those_of_the_masses(langevin):
    # 30 frames, 100 fs apart with friction 1/(50 fs): v² forgets within a frame. 450 components of each kind: standard
    # error sqrt(2/13500) = 1.2 %, 4 sigma. BAOAB's velocities are off by (ω dt)²/4 < 0.1 %.
    squared = np.asarray(langevin.frames.velocity) ** 2
    np.testing.assert_allclose(squared[:, :150].mean(), KT / 18.0, rtol=0.05)
    np.testing.assert_allclose(squared[:, 150:].mean(), KT / 72.0, rtol=0.05)
    kelvin = float(observe(temperature(), langevin, blocks=1).value[0, 0])
    np.testing.assert_allclose(kelvin, KT / units.kB, rtol=0.035)
    kinetic = 0.5 * (MASS[:, None] * squared).sum((1, 2)).mean()
    np.testing.assert_allclose(observe(kinetic_energy(), langevin, blocks=1).value[0, 0], kinetic, rtol=1e-6)


def test_density_is_that_of_the_masses(langevin):
    grams = MASS.sum() * 1.66053907e-24
    got = observe(density(), langevin, blocks=1).value[0, 0]
    np.testing.assert_allclose(got, grams / (EDGE * 1e-8) ** 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["run.nc", "run.extxyz", "run.traj"])
def test_masses_survive_simulation_and_file(tmp_path, name, langevin):
    few = thin(langevin, 10)
    write_trajectory(tmp_path / name, few)
    back = read_trajectory(tmp_path / name)
    np.testing.assert_allclose(back.frames.system.mass, np.tile(MASS, (3, 1)), rtol=1e-7)
    np.testing.assert_allclose(back.frames.velocity, few.frames.velocity, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "ensemble",
    [nve(units.fs, KT), nvt_nose_hoover(KT, units.fs), npt_nose_hoover(KT, 0.0, units.fs)],
    ids=lambda ensemble: ensemble.spec["name"],
)
def test_every_ensemble_takes_the_masses(ensemble):
    state = ensemble.init(jax.random.key(0), beads())
    np.testing.assert_array_equal(state.mass[:, 0], MASS)
    # 450 squares of each kind: 6.7 % standard error, 4 sigma
    np.testing.assert_allclose((state.momentum[150:] ** 2).mean(), KT * 72.0, rtol=0.27)


def test_a_reference_run_keeps_the_masses():
    padded = system(np.eye(3), [1, 0, 1], mass=[72.0, 0.0, 18.0])
    reference = reference_run(padded, nvt_langevin(KT, units.fs), steps=10, every=1)
    np.testing.assert_array_equal(reference.start.mass, [72.0, 18.0])
    assert like_start(reference).frames.system.mass.shape == (1, 1, 9, 2)
