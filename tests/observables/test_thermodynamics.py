"""Temperature, energies, pressure, density and heat capacity against closed formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from bayespot import units
from bayespot.observables.fluctuations import heat_capacity
from bayespot.observables.observable import observe
from bayespot.observables.thermodynamics import (
    density,
    energy_per_atom,
    kinetic_energy,
    pressure,
    stress_tensor,
    temperature,
)
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace


def gas(frames=1, atoms=901, edge=30.0, kelvin=296.15, mass=39.948) -> Trajectory:
    rng = np.random.default_rng(3)
    system = System(
        jnp.asarray(rng.uniform(0, edge, (frames, atoms, 3))),
        jnp.full((frames, atoms), 18, jnp.int32),
        jnp.tile(edge * jnp.eye(3), (frames, 1, 1)),
    )
    velocity = rng.normal(size=(frames, atoms, 3)) * np.sqrt(kelvin * units.kB / mass)
    frames = Frame(system, jnp.asarray(velocity), jnp.zeros(frames) - 2.0, jnp.zeros((frames, 3, 3)))
    return Trajectory(frames, jnp.arange(len(velocity)) * 1.0, jnp.array(0), jnp.array(1.0))


def value(observable, run):
    return np.asarray(observe(observable, run, blocks=1).value[0, 0])


def test_kinetic_energy_temperature_and_pressure_of_an_ideal_gas():
    run = gas()
    kinetic = 0.5 * 39.948 * (np.asarray(run.frames.velocity) ** 2).sum()
    assert value(kinetic_energy(), run) == pytest.approx(kinetic, rel=1e-12)
    kelvin = 2 * kinetic / (3 * 901 * units.kB)
    assert value(temperature(), run) == pytest.approx(kelvin, rel=1e-12)
    assert value(temperature(constraints=3), run) == pytest.approx(kelvin * 901 / 900, rel=1e-12)
    expected = 901 * units.kB * kelvin / 30.0**3 / units.GPa
    assert value(pressure(), run) == pytest.approx(expected, rel=1e-12)
    assert expected * 1e4 == pytest.approx(1364 * kelvin / 296.15, rel=1e-3)  # bar; N k T / V for 901 in 27 nm³
    # The kinetic energy of 3·901 degrees of freedom scatters by sqrt(2/2703) = 2.7 %; 3 sigma.
    assert kelvin == pytest.approx(296.15, rel=0.082)


def test_pressure_has_the_opposite_sign_of_tension():
    run = gas(frames=2, atoms=3)
    run = replace(run, frames=replace(run.frames, velocity=jnp.zeros((2, 3, 3))))
    stress = jnp.diag(jnp.array([1.0, 2.0, 6.0])) * units.GPa
    run = replace(run, frames=replace(run.frames, stress=jnp.stack([stress, 3 * stress])))
    assert value(pressure(), run) == pytest.approx(-6.0, rel=1e-12)  # mean of −3 and −9 GPa


def test_the_stress_tensor_is_that_of_ase():
    run = gas(atoms=20)
    given = np.random.default_rng(4).normal(size=(3, 3))
    run = replace(run, frames=replace(run.frames, stress=jnp.asarray(given + given.T)[None]))
    atoms = Atoms("Ar20", cell=30.0 * np.eye(3), pbc=True, positions=run.frames.system.position[0])
    atoms.set_masses(np.full(20, 39.948))
    atoms.set_velocities(run.frames.velocity[0])  # ASE's unit of time is that of amu, Å and eV, as here
    atoms.calc = SinglePointCalculator(atoms, stress=full_3x3_to_voigt_6_stress(given + given.T))
    expected = atoms.get_stress(include_ideal_gas=True) / units.GPa
    np.testing.assert_allclose(value(stress_tensor(), run), expected, rtol=1e-12)
    assert value(pressure(), run) == pytest.approx(-expected[:3].mean(), rel=1e-12)


def test_pressure_of_an_open_box_is_refused():
    run = gas(atoms=3)
    opened = replace(run.frames.system, box=run.frames.system.box.at[:, 2].set(0.0))
    with pytest.raises(ValueError, match="periodic in all three"):
        observe(pressure(), replace(run, frames=replace(run.frames, system=opened)), blocks=1)


def test_energy_is_per_real_atom():
    run = gas(frames=2, atoms=5)
    assert value(energy_per_atom(), run) == pytest.approx(-0.4, rel=1e-12)


def test_run_averages_carry_weights_and_chains_of_the_samples():
    from bayespot.records.posterior import PosteriorSamples

    runs = jax.tree.map(lambda x: jnp.stack([x, x])[:, None], gas(atoms=3))
    zero = jnp.zeros(2, int)
    samples = PosteriorSamples({}, jnp.log(jnp.array([0.2, 0.8])), jnp.array([4, 4]), zero, jnp.zeros(2), zero, {}, "")
    got = observe(energy_per_atom(), runs, samples=samples, blocks=1)
    np.testing.assert_allclose(np.exp(got.log_weight), [0.2, 0.8])
    np.testing.assert_array_equal(got.chain, [4, 4])
    with pytest.raises(ValueError, match="that drove the runs"):
        observe(energy_per_atom(), gas(atoms=3), samples=samples, blocks=1)


def test_density_is_that_of_the_handbook():
    from ase.build import bulk

    from bayespot.records.system import from_ase

    for atoms, handbook in [(bulk("Si", a=5.4307), 2.329), (bulk("NaCl", "rocksalt", a=5.6402), 2.163)]:
        one = from_ase(atoms)
        system = jax.tree.map(lambda x: x[None], one)
        frames = Frame(system, jnp.zeros((1, 2, 3)), jnp.zeros(1), jnp.zeros((1, 3, 3)))
        run = Trajectory(frames, jnp.zeros(1), jnp.array(0), jnp.array(0.0))
        # The four digits of the handbook and of the lattice constant.
        assert value(density(), run) == pytest.approx(handbook, rel=5e-4)


def test_density_needs_a_volume():
    run = gas(atoms=3)
    opened = replace(run.frames.system, box=jnp.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match="density needs a box"):
        observe(density(), replace(run, frames=replace(run.frames, system=opened)), blocks=1)


def einstein_crystal(rng, frames, atoms, kT, stiffness=3.0):
    """Canonical potential energies of atoms in harmonic wells: U of x drawn from exp(−U/kT)."""
    x = rng.normal(size=(frames, 3 * atoms)) * np.sqrt(kT / stiffness)
    return 0.5 * stiffness * (x**2).sum(1)


def test_heat_capacity_of_an_einstein_crystal_is_dulong_petit():
    kT, frames, atoms = 0.04, 5000, 8
    run = gas(frames, atoms)
    energy = einstein_crystal(np.random.default_rng(1), frames, atoms, kT) - 5.0 * atoms
    run = replace(run, frames=replace(run.frames, energy=jnp.asarray(energy)))
    got = value(heat_capacity(kT), run)
    # var(U) = 3N/2 (kT)² makes 3/2 of the 3 k_B; U is Gamma-distributed with excess kurtosis 4/N, so that the
    # variance has the relative standard error sqrt((2 + 4/N)/T) = 2.2 %; 3 sigma.
    assert got == pytest.approx(3.0, abs=1.5 * 3 * np.sqrt(2.5 / frames))
    assert got == pytest.approx(1.5 + energy.var(ddof=1) / (atoms * kT**2), rel=1e-9)
    assert value(heat_capacity(kT, constraints=3), run) == pytest.approx(got - 3 / (2 * atoms), rel=1e-12)


def test_heat_capacity_of_reweighted_frames_is_that_of_the_other_potential():
    kT, parts, frames = 0.04, 20, 2000
    energy = einstein_crystal(np.random.default_rng(2), parts * frames, 1, kT)
    other = 1.4 * energy  # of the same frames, with stiffer springs; still 3 k_B
    observable = heat_capacity(kT)

    def of(u, log_weight):
        weight = jnp.exp(log_weight - log_weight.max())
        return observable.combine(jnp.stack([u, jnp.ones_like(u)], axis=1), weight / weight.sum())

    u, log_weight = (jnp.asarray(x.reshape(parts, frames)) for x in (other, (energy - other) / kT))
    got = np.asarray(jax.jit(jax.vmap(of))(u, log_weight))
    error = got.std(ddof=1) / np.sqrt(parts)
    assert error < 0.03
    assert abs(got.mean() - 3.0) < 3 * error  # without weights: 1.5 + 1.96 · 1.5 = 4.44


@pytest.mark.parametrize("wrong", [{"kT": 0.0}, {"kT": 0.1, "constraints": -1}])
def test_arguments_of_the_heat_capacity_are_checked(wrong):
    with pytest.raises(ValueError, match="kT > 0"):
        heat_capacity(**wrong)
