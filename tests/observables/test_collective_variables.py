"""Collective variables against ASE, and their distribution, free-energy surface and populations against integrals."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from scipy import integrate, special

from bayespot.observables.collective_variables import angle, dihedral, dihedrals, distance
from bayespot.observables.free_energy import free_energy_profile, free_energy_surface
from bayespot.observables.observable import observe
from bayespot.observables.populations import distribution, population
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory

BOX = np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-1.0, 0.8, 10.0]])
KT = 0.025


def frame_of(position, box=None, species=6) -> Frame:
    box = np.zeros((3, 3)) if box is None else box
    system = System(jnp.asarray(position), jnp.broadcast_to(jnp.asarray(species, jnp.int32), len(position)), box)
    return Frame(system, jnp.zeros((len(position), 3)), jnp.zeros(()), jnp.zeros((3, 3)))


def run_of(position) -> Trajectory:
    frames, atoms = position.shape[:2]
    system = System(position, np.full((frames, atoms), 6, np.int32), np.zeros((frames, 3, 3)))
    frame = Frame(system, np.zeros_like(position), np.zeros(frames), np.full((frames, 3, 3), np.nan))
    return Trajectory(frame, np.arange(frames) * 1.0, np.array(0), np.array(float(frames)))


def peptide(phi, psi) -> Trajectory:
    """Five atoms with two dihedrals in a row, one frame for each pair of angles."""
    one, zero = np.ones_like(phi), np.zeros_like(phi)
    first = np.stack([zero, np.cos(phi), -np.sin(phi)], -1)
    second, third = np.stack([zero, zero, zero], -1), np.stack([one, zero, zero], -1)
    fourth = np.stack([one, one, zero], -1)
    # About the axis from the third to the fourth atom, y; the second lies along −x from the third.
    fifth = fourth + np.stack([-np.cos(psi), zero, np.sin(psi)], -1)
    return run_of(np.stack([first, second, third, fourth, fifth], 1))


PHI, PSI = dihedral(3, 2, 1, 0), dihedral(1, 2, 3, 4)


ROWS = ((0, 1, 2, 3), (5, 4, 3, 2))
FOUR = jax.jit(lambda f: (distance(4, 2)(f), angle(0, 1, 2)(f), dihedrals(ROWS)(f), dihedral(*ROWS[1])(f)))


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_ase_also_across_the_box(seed):
    rng = np.random.default_rng(seed)
    position = np.cumsum(rng.uniform(-1.2, 1.2, (6, 3)), 0) + rng.uniform(0, 9, 3)
    atoms = Atoms("C6", position)
    for box, where in ((None, position), (BOX, position + rng.integers(-2, 3, (6, 3)) @ BOX)):
        frame = frame_of(where, box)
        length, bend, got, last = FOUR(frame)
        np.testing.assert_allclose(length, atoms.get_distance(4, 2), rtol=1e-10)
        np.testing.assert_allclose(bend, np.radians(atoms.get_angle(0, 1, 2)), rtol=1e-10)
        expected = np.radians([atoms.get_dihedral(*row) for row in ROWS])
        np.testing.assert_allclose(np.exp(1j * got), np.exp(1j * expected), atol=1e-10)
        assert (np.abs(got) <= np.pi).all()
        np.testing.assert_allclose(last, got[1], rtol=1e-12)


def test_the_ends_of_the_circle_are_one_angle_in_the_first_bin():
    trans = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, -1, 0]])
    for dtype in (np.float32, np.float64):
        frame = jax.tree.map(lambda x, d=dtype: x.astype(d) if x.dtype == float else x, frame_of(trans * 1.0))
        density = distribution(dihedral(0, 1, 2, 3), -np.pi, np.pi, 8)
        values = jax.jit(density.frame)(frame)[None]
        np.testing.assert_allclose(values, -np.pi, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(density.combine(values, np.ones(1, dtype))) > 0, [True] + [False] * 7)


def test_atoms_are_counted_without_padding_and_missing_ones_are_nan():
    position = np.random.default_rng(0).normal(size=(5, 3))
    gap = frame_of(np.insert(position, 2, 7.0, axis=0), species=[6, 6, 0, 6, 6, 6])
    assert dihedral(0, 1, 2, 3)(gap) == dihedral(0, 1, 2, 3)(frame_of(position))
    assert np.isnan(distance(0, 5)(gap))
    assert np.isfinite(distance(0, 4)(gap))
    with pytest.raises(ValueError, match="different atoms"):
        distance(1, 1)
    with pytest.raises(ValueError, match="counted from 0"):
        dihedral(-1, 0, 1, 2)


def test_distances_in_a_skewed_cell_are_those_of_the_nearest_images():
    atoms = bulk("Mg", "hcp", a=3.2, c=5.2) * (3, 3, 2)
    frame, far = frame_of(atoms.positions, box=np.array(atoms.cell)), atoms.get_all_distances(mic=True)
    got = np.array([distance(0, j)(frame) for j in range(1, len(atoms))])
    np.testing.assert_allclose(got, far[0, 1:], rtol=1e-6)


def test_no_atom_is_not_outside_of_a_region():
    """A comparison with NaN would be false, and its opposite true."""
    missing = population((dihedral(0, 1, 2, 30),), lambda phi: phi < 0)
    assert np.isnan(missing.frame(frame_of(np.random.default_rng(0).normal(size=(4, 3)))))


def test_the_same_atoms_give_the_same_function():
    assert dihedral(0, 1, 2, 3) is dihedral(0, 1, 2, 3)


# Two independent von Mises angles: evenly spaced frames with their weights are a quadrature, exact for smooth circles.

GRID, KAPPA = 240, (1.5, 0.7)


@pytest.fixture(scope="module")
def von_mises():
    each = -np.pi + (np.arange(GRID) + 0.5) * 2 * np.pi / GRID
    phi, psi = (x.ravel() for x in np.meshgrid(each, each, indexing="ij"))
    weights = np.exp(KAPPA[0] * np.cos(phi) + KAPPA[1] * np.cos(psi - 1))
    return peptide(phi, psi), weights / weights.sum()


def combined(observable, run, weights):
    return np.asarray(observable.combine(jax.jit(jax.vmap(observable.frame))(run.frames), weights))


def density_in_bins(kappa, centre, bins):
    """Mean density of von Mises' distribution in equal bins of the circle."""
    edges = np.linspace(-np.pi, np.pi, bins + 1)

    def density(x):
        return np.exp(kappa * np.cos(x - centre)) / (2 * np.pi * special.i0(kappa))

    return np.array([integrate.quad(density, a, b)[0] / (b - a) for a, b in pairwise(edges)])


def test_the_angles_of_the_peptide_are_what_they_should_be(von_mises):
    run, _ = von_mises
    got = jax.vmap(lambda frame: jnp.stack([PHI(frame), PSI(frame)]))(run.frames)
    each = -np.pi + (np.arange(GRID) + 0.5) * 2 * np.pi / GRID
    np.testing.assert_allclose(got[:, 0].reshape(GRID, GRID)[:, 0], each, atol=1e-9)
    np.testing.assert_allclose(got[:, 1].reshape(GRID, GRID)[0], each, atol=1e-9)


def test_distribution_is_the_density(von_mises):
    run, weights = von_mises
    got = combined(distribution(PHI, -np.pi, np.pi, 20), run, weights)
    np.testing.assert_allclose(got, density_in_bins(KAPPA[0], 0.0, 20), rtol=2e-3)  # midpoints, 12 per bin
    assert got.sum() * 2 * np.pi / 20 == pytest.approx(1.0, rel=1e-12)
    half = combined(distribution(PHI, 0.0, np.pi, 10), run, weights)  # what is outside is left out
    np.testing.assert_allclose(half, 2 * got[10:], rtol=1e-9)


def test_several_values_of_a_frame_count_alike(von_mises):
    run, weights = von_mises
    both = combined(distribution(dihedrals(((3, 2, 1, 0), (1, 2, 3, 4))), -np.pi, np.pi, 12), run, weights)
    each = [combined(distribution(variable, -np.pi, np.pi, 12), run, weights) for variable in (PHI, PSI)]
    np.testing.assert_allclose(both, np.mean(each, 0), rtol=1e-12)


def test_surface_of_independent_variables_is_the_sum_of_their_profiles(von_mises):
    run, weights = von_mises
    surface = combined(free_energy_surface((PHI, PSI), KT, bins=(12, 8)), run, weights).reshape(12, 8)
    densities = density_in_bins(KAPPA[0], 0.0, 12)[:, None], density_in_bins(KAPPA[1], 1.0, 8)
    expected = -KT * np.log((2 * np.pi) ** 2 * densities[0] * densities[1])
    np.testing.assert_allclose(surface, expected, atol=1e-3 * KT)
    one = combined(free_energy_profile(PHI, KT, -np.pi, np.pi, 12), run, weights)
    two = combined(free_energy_profile(PSI, KT, -np.pi, np.pi, 8), run, weights)
    np.testing.assert_allclose(surface, one[:, None] + two, atol=1e-9)


def test_empty_bins_of_a_surface_have_the_ceiling():
    run = peptide(np.array([0.5, 0.5, 0.5, -0.5]), np.full(4, 1.0))
    options = {"kT": 1.0, "bins": (2, 1)}
    got = observe(free_energy_surface((PHI, PHI), **options), run, blocks=1).value[0, 0]
    np.testing.assert_allclose(np.sort(got), -np.log([1.5, 0.5]), rtol=1e-12)
    alone = jax.tree.map(lambda x: x[:3] if x.ndim and len(x) == 4 else x, run)
    got = observe(free_energy_surface((PHI, PHI), **options), alone, blocks=1).value[0, 0]
    np.testing.assert_allclose(np.sort(got), [-np.log(2), np.inf])
    got = observe(free_energy_surface((PHI, PHI), **options, ceiling=0.4), alone, blocks=1).value[0, 0]
    np.testing.assert_allclose(np.sort(got), [-np.log(2), 0.4])
    with pytest.raises(ValueError, match=r"3 frames in 2 bins see free energies up to 0\.405 eV"):
        observe(free_energy_surface((PHI, PHI), **options, ceiling=0.5), alone, blocks=1)


def test_population_is_the_integral_over_the_region(von_mises):
    run, weights = von_mises
    got = combined(population((PHI,), lambda phi: jnp.abs(phi) < 0.5 * np.pi), run, weights)
    exact = integrate.quad(lambda x: np.exp(KAPPA[0] * np.cos(x)), -np.pi / 2, np.pi / 2)[0]
    assert got == pytest.approx(exact / (2 * np.pi * special.i0(KAPPA[0])), rel=1e-4)


def test_what_is_not_known_is_not_counted_as_outside():
    run = peptide(np.array([0.5, 0.6]), np.array([0.5, np.nan]))
    for observable in (
        population((PSI,), lambda psi: psi > 0),
        distribution(PSI, -np.pi, np.pi, 4),
        free_energy_surface((PHI, PSI), 1.0, bins=(2, 2)),
    ):
        assert np.isnan(np.asarray(observe(observable, run, blocks=1).value)).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        distribution(PHI, 1.0, 1.0)
    with pytest.raises(ValueError, match="low < high in both"):
        free_energy_surface((PHI, PSI), KT, ((0.0, 1.0), (1.0, 0.0)))
    run = peptide(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match=r"one value per frame. Got the shapes \[\(5, 3\)\]"):
        observe(population((lambda frame: frame.system.position,), lambda x: x > 0), run)
    several = dihedrals(((0, 1, 2, 3),))
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(\)"):
        observe(free_energy_surface((several, PHI), KT), run)


def test_backbone_angles_of_alanine_dipeptide(data_folder):
    """The angles of the file were made by another program; the weight of phi > 0 is that of its description."""
    with np.load(data_folder / "cg_reference" / "ala2_cg10_obc2.npz") as file:
        run, phi, psi = run_of(np.float64(file["R"])), file["phi"], file["psi"]
    for row, expected in (((1, 3, 4, 6), phi), ((3, 4, 6, 8), psi)):
        got = np.asarray(jax.jit(jax.vmap(dihedral(*row)))(run.frames))
        np.testing.assert_allclose(np.exp(1j * got), np.exp(1j * expected), atol=2e-5)
    positive = population((dihedral(1, 3, 4, 6),), lambda phi: phi > 0)
    assert float(observe(positive, run, blocks=1).value[0, 0]) == pytest.approx((phi > 0).mean(), abs=1e-6)
