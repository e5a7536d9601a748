"""The ASE calculator against ``predict``, finite differences, ASE's own programs and results known beforehand."""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from bayespot.errors import FailedSamples, UncertaintyWarning
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.descriptor_mlp import from_constants
from bayespot.records.dataset import dataset
from bayespot.records.posterior import as_samples
from bayespot.records.system import from_ase
from bayespot.tree import replace
from bayespot.uq.calculator import QUANTITIES, _evaluator, calculator, capacity
from bayespot.uq.predict import predict

LJ = lennard_jones(sigma=2.2, epsilon=0.4, cutoff=4.5, species=(14, 8))
SW = stillinger_weber(14)
NETWORK = from_constants((8, 14), 4.0, 2, (4,), mean=(), std=(), shift={8: -2.0, 14: -5.4}, scale=2.0)
LATTICE = 5.43095  # Å, where the pressure of Stillinger–Weber silicon vanishes
VALUES = [*QUANTITIES, *(f"{q}_{kind}" for q in QUANTITIES for kind in ("uncertainty", "ensemble"))]


def scattered(potential, *names, size=0.02, number=4, seed=0):
    """Samples whose parameters (all, or those named) scatter by a relative ``size`` about the starting values."""
    rng, start = np.random.default_rng(seed), potential.init(jax.random.key(0))
    params = {
        name: x * jnp.asarray(1 + size * (name in (names or start)) * rng.normal(size=number))
        for name, x in start.items()
    }
    return as_samples(params, potential.spec)


def four_atoms(cell, pbc, seed=0):
    """Four atoms, 2.5 Å apart and a bit off."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0, 0], [1, 0, 0], [0.4, 0.95, 0], [0.5, 0.3, 0.9]]) + rng.uniform(-0.05, 0.05, (4, 3))
    return Atoms("SiOSi2", 2.5 * corners, cell=cell, pbc=pbc)


SKEWED = [[4.6, 0.0, 0.0], [1.1, 4.7, 0.0], [-0.9, 0.8, 4.9]]  # about the cutoff, half of what minimum images need
FRAMES = {
    "molecule": four_atoms(None, False),
    "skewed": four_atoms(SKEWED, True),
    "slab": four_atoms([[6.3, 0, 0], [2.0, 9.0, 0], [0, 0, 5.0]], (True, True, False)),  # neighbours along a only
}


@pytest.fixture
def silicon():
    """Eight atoms, one species, in a cell smaller than twice the cutoff."""
    atoms = bulk("Si", a=LATTICE, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def assert_as_predicted(calc, prediction, frame, atoms):
    periodic = bool(atoms.pbc.all())
    for name in QUANTITIES[: 2 + periodic]:
        expected = {
            name: getattr(prediction, name)[frame],
            f"{name}_uncertainty": getattr(prediction, f"{name}_uncertainty")[frame],
            f"{name}_ensemble": prediction.members[name][:, frame],
        }
        for key, value in expected.items():
            value = full_3x3_to_voigt_6_stress(np.asarray(value)) if name == "stress" else np.asarray(value)
            np.testing.assert_allclose(calc.get_property(key, atoms), value, rtol=1e-9, atol=1e-12, err_msg=key)
    assert ("stress" in calc.results) == periodic


def test_results_are_those_of_predict():
    samples = replace(scattered(LJ), log_weight=jnp.array([0.0, 0.5, -1.0, 1.2]))
    prediction = predict(LJ, samples, dataset([from_ase(a) for a in FRAMES.values()], LJ.cutoff))
    calc = calculator(LJ, samples)
    for frame, atoms in enumerate(FRAMES.values()):
        assert_as_predicted(calc, prediction, frame, atoms)


def energies_about(calc, atoms, change, size):
    """Energies of the samples at ``change(±size)`` of the atoms, ``(2, S)``."""
    found = []
    for signed in (size, -size):
        moved = atoms.copy()
        change(moved, signed)
        found.append(calc.get_property("energy_ensemble", moved))
    return np.array(found)


def move(atoms, size):
    atoms.positions[2, 1] += size


def shear(atoms, size):
    strain = 0.5 * size * np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)


def test_forces_and_stress_of_every_sample_are_derivatives_of_its_energy():
    calc, atoms = calculator(LJ, scattered(LJ)), FRAMES["skewed"]
    forces, stress = (calc.get_property(f"{name}_ensemble", atoms) for name in ("forces", "stress"))
    # Central differences in float64, wrong by h² times a third derivative: 1e-8 × 100 eV/Å³.
    plus, minus = energies_about(calc, atoms, move, 1e-4)
    np.testing.assert_allclose(forces[:, 2, 1], (minus - plus) / 2e-4, atol=2e-6)
    plus, minus = energies_about(calc, atoms, shear, 1e-4)
    np.testing.assert_allclose(stress[:, 4], (plus - minus) / 2e-4 / atoms.get_volume(), atol=2e-7)  # xz, the fifth


def networks():
    """A calculator of three networks, two at a time."""
    params = jax.jit(jax.vmap(NETWORK.init))(jax.random.split(jax.random.key(0), 3))
    return calculator(NETWORK, as_samples(params, NETWORK.spec), batch_size=2)


@pytest.mark.slow
def test_network_two_samples_at_a_time():
    atoms, calc = FRAMES["molecule"], networks()
    forces, (plus, minus) = calc.get_property("forces_ensemble", atoms), energies_about(calc, atoms, move, 1e-4)
    np.testing.assert_allclose(forces[:, 2, 1], (minus - plus) / 2e-4, atol=2e-6)
    assert np.abs(np.diff(forces[:, 2, 1])).min() > 1e-3  # the samples differ


def test_ase_finds_forces_and_stress_of_the_mean_consistent(silicon):
    silicon.set_cell(silicon.cell @ np.array([[1.01, 0.02, 0], [0, 0.98, 0.01], [0, 0, 1.0]]), scale_atoms=True)
    silicon.calc = calculator(SW, scattered(SW))
    numerical = calculate_numerical_forces(silicon, eps=1e-4, iatoms=[0, 5])
    np.testing.assert_allclose(silicon.get_forces()[[0, 5]], numerical, atol=1e-6)
    np.testing.assert_allclose(silicon.get_stress(), calculate_numerical_stress(silicon, eps=1e-5), atol=1e-7)
    assert silicon.get_potential_energy(force_consistent=True) == silicon.get_potential_energy()


def test_uncertainty_is_the_standard_deviation_of_the_ensemble(silicon):
    calc = calculator(SW, scattered(SW))
    silicon.calc = calc
    silicon.get_potential_energy()  # one calculation; everything can then be read from the results
    for name in QUANTITIES:
        ensemble = calc.results[f"{name}_ensemble"]
        assert ensemble.shape == (4, *np.shape(calc.results[name]))
        np.testing.assert_allclose(calc.results[name], ensemble.mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(calc.results[f"{name}_uncertainty"], ensemble.std(0, ddof=1), rtol=1e-9, atol=1e-14)
        assert np.all(calc.results[f"{name}_uncertainty"] > 0)


def test_implemented_properties_are_complete(silicon):
    calc = calculator(SW, scattered(SW))
    silicon.calc = calc
    assert set(calc.implemented_properties) == {"free_energy", *VALUES}
    for name in calc.implemented_properties:
        value = calc.get_property(name, silicon)
        assert isinstance(value, float) or value.dtype == np.float64
    assert set(calc.results) == set(calc.implemented_properties)
    assert silicon.get_properties(["energy", "stress"])["energy"] == calc.results["energy"]


def test_an_open_direction_has_no_stress():
    calc, evaluated = calculator(LJ, scattered(LJ)), []
    evaluate = calc.evaluate
    calc.evaluate = lambda atoms: evaluated.append(1) or evaluate(atoms)
    assert np.isfinite(calc.get_forces(FRAMES["molecule"])).all()
    for name in ("stress", "stress_uncertainty", "stress_ensemble"):
        with pytest.raises(PropertyNotImplementedError, match=f"{name} needs a cell"):
            calc.get_property(name, FRAMES["molecule"])
    assert np.isfinite(calc.get_forces(FRAMES["molecule"])).all()
    assert len(evaluated) == 1  # neither for what does not exist, nor again for what is known


def test_ase_writes_the_results(silicon, tmp_path):
    silicon.calc = calculator(SW, scattered(SW))
    forces = silicon.get_forces()
    for name in ("frame.extxyz", "frame.traj"):
        write(tmp_path / name, silicon)
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, atol=1e-7)


# Dynamics and relaxation


def total_energies(silicon, femtoseconds, steps):
    atoms = silicon.copy()
    atoms.calc = calculator(SW, scattered(SW))
    velocity = np.random.default_rng(2).normal(size=(8, 3)) * np.sqrt(600 * units.kB / atoms.get_masses()[:, None])
    atoms.set_velocities(velocity - velocity.mean(0))
    run, energies = VelocityVerlet(atoms, femtoseconds * units.fs), []
    run.attach(lambda: energies.append(atoms.get_total_energy()))
    run.run(steps)
    return np.array(energies)


@pytest.mark.slow
def test_nve_conserves_energy(silicon):
    """Velocity Verlet keeps a modified energy that differs from the real one by a function of the state times dt².

    So along one path the fluctuations are four times smaller at half the step, and there is no drift: the energy of the
    second half of the run is that of the first within the fluctuation. Forces of something else would add what stays.

    Of a harmonic oscillator the energy p²/2m + mω²x²/2 · (1 − (ωdt)²/4) is kept, so that its energy E fluctuates by
    less than (ωdt)²/8 · E; the fastest vibration of silicon has 16 THz, of this potential about 18.
    """
    coarse, fine = total_energies(silicon, 1.0, 200), total_energies(silicon, 0.5, 80)[::2]
    assert 3.8 < coarse[:41].std() / fine.std() < 4.2
    assert abs(coarse[101:].mean() - coarse[:100].mean()) < coarse.std()
    rest = calculator(SW, scattered(SW)).get_potential_energy(bulk("Si", a=LATTICE, cubic=True))
    assert coarse.std() < (2 * np.pi * 18e-3 * 1.0) ** 2 / 8 * (coarse[0] - rest)


def test_relaxation_finds_the_minimum_of_the_mean():
    """Samples that share σ: the mean is Lennard-Jones with the mean ε, a tetrahedron of edge 2^(1/6) σ with −6 ε."""
    samples = scattered(LJ, "epsilon", size=0.2)
    atoms = FRAMES["molecule"].copy()
    atoms.calc = calculator(LJ, samples)
    assert BFGS(atoms, logfile=None).run(fmax=1e-6, steps=200)
    edges = atoms.get_all_distances()[np.triu_indices(4, 1)]
    np.testing.assert_allclose(edges, 2 ** (1 / 6) * 2.2, rtol=1e-6)
    epsilon = np.asarray(samples.params["potential"]["epsilon"])
    assert atoms.get_potential_energy() == pytest.approx(-6 * epsilon.mean(), rel=1e-10)
    assert atoms.calc.results["energy_uncertainty"] == pytest.approx(6 * epsilon.std(ddof=1), rel=1e-10)
    assert atoms.calc.results["forces_uncertainty"].max() < 1e-5  # all samples agree on where the minimum is


def test_relaxation_of_the_cell_finds_the_crystal(silicon):
    """Samples that share all lengths: from a strained and distorted cell to the published lattice, −2 ε per atom."""
    samples = scattered(SW, "epsilon", size=0.1)
    silicon.set_cell(silicon.cell @ np.array([[1.02, 0.03, 0], [0, 1.0, -0.02], [0, 0, 0.97]]), scale_atoms=True)
    silicon.calc = calculator(SW, samples)
    assert BFGS(FrechetCellFilter(silicon), logfile=None).run(fmax=1e-3, steps=100)
    lengths, angles = np.split(silicon.cell.cellpar(), 2)
    # The filter's gradient is stress × volume / number of atoms; the smallest elastic constant is 0.35 eV/Å³.
    stress = 1e-3 * 8 / silicon.get_volume()
    assert np.abs(silicon.get_stress()).max() < stress
    np.testing.assert_allclose(lengths, LATTICE, rtol=stress / 0.35)
    np.testing.assert_allclose(angles, 90, atol=np.degrees(stress / 0.35))
    epsilon = np.asarray(samples.params["potential"]["epsilon"])
    assert silicon.get_potential_energy() == pytest.approx(-16 * epsilon.mean(), rel=1e-6)
    assert silicon.calc.results["energy_uncertainty"] == pytest.approx(16 * epsilon.std(ddof=1), rel=1e-6)


# Compilation and other atoms


def test_capacity_holds_what_is_needed_in_few_steps():
    needed = np.arange(1, 400)
    got = np.array([capacity(int(n)) for n in needed])
    assert (got >= needed).all()
    assert (got - needed <= np.maximum(3, needed / 8)).all()
    assert len(set(got)) < 40


def test_changing_neighbours_and_parameters_rarely_compile(silicon):
    """Twenty configurations and other parameters share the compiled code of at most two capacities."""
    compiled = _evaluator(SW.atom_energies, 1)
    calculator(SW, scattered(SW)).get_potential_energy(silicon)
    before = compiled._cache_size()
    widths = set()
    for seed in range(20):
        calc = calculator(SW, scattered(SW, seed=seed))
        atoms = silicon.copy()
        atoms.rattle(0.15, seed=seed)
        calc.get_potential_energy(atoms)
        widths.add(int(np.bincount(neighbor_list("i", atoms, SW.cutoff)).max()))
    assert len(widths) > 2
    assert compiled._cache_size() - before <= len({capacity(w) for w in widths}) - 1 < 3


@pytest.mark.slow
def test_number_and_species_of_the_atoms_may_change():
    calc, atoms = networks(), FRAMES["molecule"].copy()
    whole, alike = calc.get_potential_energy(atoms), Atoms("Si4", atoms.positions)
    assert abs(calc.get_potential_energy(alike) - whole) > 1.0  # the atoms alone differ by 3.4 eV
    assert calc.get_potential_energy(alike) == pytest.approx(networks().get_potential_energy(alike), rel=1e-12)
    assert calc.get_potential_energy(atoms) == whole

    calc = calculator(LJ, scattered(LJ))
    whole = calc.get_potential_energy(atoms)
    pair = Atoms("Si2", [[0, 0, 0], [0, 0, 2 ** (1 / 6) * 2.2]])
    assert calc.get_property("forces_ensemble", pair).shape == (4, 2, 3)
    assert calc.get_potential_energy(atoms) == whole


def test_the_cell_may_change_under_the_same_positions():
    calc, atoms = calculator(LJ, scattered(LJ)), FRAMES["skewed"].copy()
    before = calc.get_potential_energy(atoms)
    atoms.set_cell(1.02 * atoms.cell, scale_atoms=False)
    fresh = calculator(LJ, scattered(LJ)).get_potential_energy(atoms)
    assert abs(fresh - before) > 1e-2
    assert calc.get_potential_energy(atoms) == pytest.approx(fresh, rel=1e-12)


def test_a_calculation_that_fails_leaves_no_results():
    calc, overlap = calculator(LJ, scattered(LJ)), Atoms("Si2", [[0, 0, 0], [0, 0, 0]])
    calc.calculate(FRAMES["molecule"])
    with pytest.raises(FailedSamples):
        calc.calculate(overlap)
    assert calc.results == {}
    with pytest.raises(FailedSamples):  # and not the energy of the configuration before
        calc.get_property("energy", overlap)


def test_what_the_potential_cannot_treat_is_refused():
    calc = calculator(LJ, scattered(LJ))
    with pytest.raises(ValueError, match=r"knows the species \(8, 14\). Got also \[6\]"):
        calc.get_potential_energy(Atoms("SiC", [[0, 0, 0], [0, 0, 2]]))
    with pytest.raises(ValueError, match="chemical element"):
        calc.get_potential_energy(Atoms("SiX", [[0, 0, 0], [0, 0, 2]]))
    with pytest.raises(ValueError, match="Got no atom"):
        calc.get_potential_energy(Atoms())
    with pytest.raises(ValueError, match="pbc is on along c but"):
        calc.get_potential_energy(Atoms("Si", cell=[3, 3, 0], pbc=True))
    with pytest.raises(FailedSamples, match=r"4 of 4 samples gave numbers that are not finite \(0, 1, 2, 3\)"):
        calc.get_potential_energy(Atoms("Si2", [[0, 0, 0], [0, 0, 0]]))


def test_samples_that_give_no_uncertainty_are_refused():
    samples = scattered(LJ)
    with pytest.raises(FailedSamples, match=r"1 of 4 samples failed \(2\). Predict with healthy"):
        calculator(LJ, replace(samples, status=jnp.array([0, 0, 2, 0])))
    with pytest.raises(ValueError, match="at least two"):
        calculator(LJ, samples[:1])
    with pytest.raises(ValueError, match="must belong to the potential"):
        calculator(SW, samples)
    with pytest.raises(ValueError, match=r"warn_above must be positive \[eV/Å\]"):
        calculator(LJ, samples, warn_above=0.0)


# Warnings


def at_distance(r):
    """Atoms 0 and 1 far from each other; atom 2 at the distance r from atom 3, which feels the others a little."""
    return Atoms("Si4", [[0, 0, 0], [0, 0, 4.2], [4, 0, 4.2 + r], [4, 0, 4.2]])


def test_warning_names_atom_and_value_once_per_crossing():
    samples = scattered(LJ, "sigma")
    calc, quiet, messages = calculator(LJ, samples, warn_above=1.0), calculator(LJ, samples), []
    uncertainty = np.linalg.norm(quiet.get_property("forces_uncertainty", at_distance(2.0)), axis=1)
    for distance in (2.5, 2.0, 1.99, 2.0, 2.5, 2.0, 1.99):
        atoms = at_distance(distance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")  # ASE's own
            warnings.simplefilter("always", UncertaintyWarning)
            calc.get_forces(atoms)
            calc.get_property("energy_uncertainty", atoms)
        messages.append([str(w.message) for w in caught])
    assert [len(m) for m in messages] == [0, 1, 0, 0, 0, 1, 0]
    assert np.linalg.norm(quiet.get_property("forces_uncertainty", at_distance(2.5)), axis=1).max() < 1.0
    assert f"atom {uncertainty.argmax()} has an uncertainty of {uncertainty.max():.3g} eV/Å" in messages[1][0]
    assert "more than warn_above = 1 eV/Å" in messages[1][0]


def test_a_warning_made_an_error_stops_a_run_and_leaves_the_results():
    atoms = at_distance(2.3)
    atoms.calc = calculator(LJ, scattered(LJ, "sigma"), warn_above=1.0)
    atoms.set_velocities([[0, 0, 0], [0, 0, 0], [0, 0, -0.5], [0, 0, 0]])  # two steps later it is at 2.0 Å
    run = VelocityVerlet(atoms, 3.0 * units.fs)
    with pytest.raises(UncertaintyWarning, match=r"force on atom [23] "):  # pytest makes all warnings errors
        run.run(20)
    assert 0 < run.get_number_of_steps() < 4
    assert set(VALUES[:2]) < set(atoms.calc.results)
    assert np.linalg.norm(atoms.calc.results["forces_uncertainty"], axis=1).max() > 1.0


def test_the_how_to_runs(capsys):
    """The page, with the potential and samples of these tests: a limit that is soon exceeded."""
    page = Path(__file__).parents[2] / "docs/how-to/ase_calculator.md"
    lines = "".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    for written, quicker in {"warn_above=0.5": "warn_above=0.02", "fmax=0.01": "fmax=0.3"}.items():
        assert written in lines
        lines = lines.replace(written, quicker)
    exec(compile(lines, page.name, "exec"), {"potential": SW, "samples": scattered(SW)})
    said, numbers = capsys.readouterr().out.splitlines()
    assert "more than warn_above = 0.02 eV/Å" in said
    assert float(numbers.split()[0]) == pytest.approx(5.43**3, rel=0.05)


def test_single_precision(silicon):
    exact = calculator(SW, scattered(SW))
    expected = {name: exact.get_property(name, silicon) for name in VALUES}
    # Rounding of 2⁻²⁴ in 5 Å is 3e-7 Å: times 20 eV/Å² 6e-6 eV/Å in a force; times 5 eV/Å on 24 coordinates 7e-6 eV;
    # √32 bonds of 2.4 Å with such errors over 160 Å³ 5e-7 eV/Å³ in the stress. Four times that:
    most = {"energy": 3e-5, "forces": 2.4e-5, "stress": 2e-6}
    with jax.enable_x64(False):
        calc = calculator(SW, scattered(SW))
        for name, value in expected.items():
            got = calc.get_property(name, silicon)
            assert np.asarray(got).dtype == np.float64
            np.testing.assert_allclose(got, value, rtol=0, atol=most[name.split("_")[0]], err_msg=name)
