"""Bonded terms: against ASE's geometry and by hand, in minibatches and across boxes; their Boltzmann inversion."""

import ase
import jax
import numpy as np
import pytest

from bayespot import units
from bayespot.potentials.boltzmann_inversion import bonded_from_data
from bayespot.potentials.bonded import Topology, bonded, topology
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import add, check_compatible, energy_and_forces
from bayespot.potentials.scale_shift import scale_shift
from bayespot.records.dataset import dataset, flatten
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System, system
from bayespot.tree import replace

CHAIN = topology([(0, 1), (1, 2), (2, 3), (3, 4)])
INITIAL = {
    "bond": {"k": [3.0, 4.0, 5.0, 6.0], "r0": [1.5, 1.4, 1.3, 1.6]},
    "angle": {"k": [1.0, 2.0, 3.0], "theta0": [1.9, 2.0, 2.1]},
    "dihedral": {"cosine": [[0.1, 0.2, 0.3], [0.0, -0.5, 0.1]], "sine": [[0.4, 0.0, -0.2], [0.1, 0.3, 0.0]]},
}
BOX = np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-1.0, 0.8, 10.0]])
POTENTIAL = bonded(*CHAIN, initial=INITIAL)
PARAMS = POTENTIAL.init(jax.random.key(0))


def chains(molecules: int, seed: int = 0) -> np.ndarray:
    """Positions of random chains, ``(5 m, 3)``."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.cumsum(rng.normal(size=(5, 3)), 0) + rng.uniform(0, 9, 3) for _ in range(molecules)])


def expected_energy(position: np.ndarray) -> float:
    """Of one chain, with distances, angles and dihedrals from ASE."""
    atoms, energy = ase.Atoms("C5", position), 0.0
    for (i, j), k, r0 in zip(CHAIN.bonds, *INITIAL["bond"].values(), strict=True):
        energy += 0.5 * k * (atoms.get_distance(i, j) - r0) ** 2
    for row, k, theta0 in zip(CHAIN.angles, *INITIAL["angle"].values(), strict=True):
        energy += 0.5 * k * (np.radians(atoms.get_angle(*row)) - theta0) ** 2
    for row, cosine, sine in zip(CHAIN.dihedrals, *INITIAL["dihedral"].values(), strict=True):
        energy += series(np.radians(atoms.get_dihedral(*row)), cosine, sine)
    return energy


def series(phi, cosine, sine):
    """Real part of the Fourier series with the coefficients c − i s."""
    factors = np.asarray(cosine) - 1j * np.asarray(sine)
    return sum((c * np.exp(1j * n * phi)).real for n, c in enumerate(factors, 1))


def nobody(sys: System) -> Neighbors:
    """Lists of neighbours, which these terms do not need, without any."""
    n = len(sys.species)
    return Neighbors(np.full((n, 1), n, np.int32), np.zeros((n, 1, 3), np.int32))


COMPILED = jax.jit(energy_and_forces(POTENTIAL))
ENERGIES = jax.jit(POTENTIAL.atom_energies)


def evaluate(sys: System):
    """Energy and forces; padded to three molecules, so that the tests share what is compiled."""
    n = len(sys.species)
    missing = 15 - n
    sys = replace(
        sys,
        position=np.pad(sys.position, ((0, missing), (0, 0))),
        species=np.pad(np.asarray(sys.species), (0, missing)),
    )
    energy, force = COMPILED(PARAMS, sys, nobody(sys))
    return energy, force[:n]


def carbon(position, box=None) -> System:
    return system(position, np.full(len(position), 6), box)


def test_all_terms_of_a_chain_and_of_a_branch():
    assert CHAIN.angles == ((0, 1, 2), (1, 2, 3), (2, 3, 4))
    assert CHAIN.dihedrals == ((0, 1, 2, 3), (1, 2, 3, 4))
    branch = topology([(1, 0), (1, 2), (1, 3)])
    assert branch == Topology(4, ((0, 1), (1, 2), (1, 3)), ((0, 1, 2), (0, 1, 3), (2, 1, 3)), ())
    assert len(topology([(0, 1), (1, 2), (0, 2)]).dihedrals) == 0  # a ring of three has none
    assert topology([(0, 1)], atoms=3) == Topology(3, ((0, 1),))


@pytest.mark.parametrize("seed", range(3))
def test_energy_is_that_of_the_formula_with_the_geometry_of_ase(seed):
    position = chains(3, seed)
    expected = sum(expected_energy(one) for one in position.reshape(3, 5, 3))
    np.testing.assert_allclose(evaluate(carbon(position))[0], expected, rtol=1e-12)


def test_molecules_may_cross_the_box_in_any_images():
    position = chains(3)
    energy, force = evaluate(carbon(position))
    images = np.random.default_rng(1).integers(-2, 3, (15, 3))
    for box in (BOX, BOX * [[1], [1], [0]], BOX * [[0], [1], [0]]):  # some directions are open
        sys = carbon(position + images @ box, box)
        np.testing.assert_allclose(evaluate(sys)[0], energy, rtol=1e-12)
        np.testing.assert_allclose(evaluate(sys)[1], force, atol=1e-11)


def test_a_flattened_minibatch_equals_its_systems():
    systems = [carbon(chains(2, 1), BOX), carbon(chains(1, 2)), carbon(chains(2, 3), 1.1 * BOX)]
    graph = flatten(dataset(systems, 2.0), 33)

    def total(position):
        u = POTENTIAL.atom_energies(PARAMS, replace(graph.system, position=position), graph.neighbors)
        return u.sum(), u

    (_, u), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(graph.system.position)
    split = np.bincount(graph.structure, u, 4)
    for m, sys in enumerate(systems):
        energy, force = evaluate(sys)
        np.testing.assert_allclose(split[m], energy, rtol=1e-12)
        np.testing.assert_allclose(-gradient[np.asarray(graph.structure) == m], force, atol=1e-11)
    assert split[3] == 0
    assert np.isfinite(gradient).all()


def test_an_unknown_position_gives_no_energy():
    position = chains(2)
    for atom in range(5):
        lost = position.copy()
        lost[atom] = np.nan
        assert np.isnan(evaluate(replace(carbon(position), position=lost))[0])


def test_what_is_not_whole_molecules_has_no_energy():
    broken = carbon(chains(2)[:8])
    u = ENERGIES(PARAMS, broken, nobody(broken))
    assert np.isfinite(u[:5]).all()
    assert np.isnan(u[5:]).all()
    gap = system(np.eye(5, 3), [6, 6, 0, 6, 6])
    u = ENERGIES(PARAMS, gap, nobody(gap))
    assert np.isnan(u).tolist() == [True, True, False, True, True]
    few = carbon(chains(1)[:4])
    with pytest.raises(ValueError, match=r"5 atoms. Got a system of 4"):
        ENERGIES(PARAMS, few, nobody(few))


def test_data_of_broken_molecules_are_refused():
    """Frames of 7 and 8 atoms would make three molecules in a row."""
    data = dataset([carbon(chains(2)[:7]), carbon(chains(2)[:8])], 2.0)
    nested = scale_shift(add(POTENTIAL, lennard_jones(1.0, 0.01, 2.0)), 1.0, {})
    with pytest.raises(ValueError, match=r"whole molecules of 5 atoms\. Got 7 atoms in frame 0 of memory"):
        check_compatible(nested, data)
    check_compatible(nested, dataset([carbon(chains(2))], 2.0))


LINES = {
    "straight": [[0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0], [4.0, 0, 0]],
    "folded": [[0, 0, 0], [1.0, 0, 0], [0, 0, 0], [1.0, 0, 0], [0, 0, 0]],
    "cis": [[0, 1, 0], [0, 0, 0], [1.0, 0, 0], [1.0, 1, 0], [2.0, 1, 0]],
    "trans": [[0, 1, 0], [0, 0, 0], [1.0, 0, 0], [1.0, -1, 0], [2.0, -1, 0]],
    "on one place": np.zeros((5, 3)),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("away", [0.0, 1e-12, 1e-6])
def test_forces_are_finite_where_angles_and_dihedrals_end(line, dtype, away):
    position = np.array(LINES[line]) + away * np.random.default_rng(0).normal(size=(5, 3))
    energy, force = evaluate(jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float64 else x, carbon(position)))
    assert np.isfinite(energy)
    assert np.isfinite(force).all()


def test_a_straight_angle_that_is_bent_by_little_has_its_force():
    """U = k/2 (π − θ)² for θ0 = π: with an angle of 1e-5 the force is 1e-5 of k, by hand."""
    straight = bonded(3, angles=[(0, 1, 2)], initial={"angle": {"k": [2.0], "theta0": [np.pi]}})
    sys = carbon([[1.0, 1e-5, 0], [0, 0, 0], [-1.0, 0, 0]])
    _, force = jax.jit(energy_and_forces(straight))(straight.init(jax.random.key(0)), sys, nobody(sys))
    np.testing.assert_allclose(force[:, 1], [-2e-5, 4e-5, -2e-5], rtol=1e-6)


def test_wrong_terms_and_values_are_refused():
    with pytest.raises(ValueError, match=r"angle connects 3 .* 0 to 2. Got \(0, 1, 3\)"):
        bonded(3, angles=[(0, 1, 3)], initial={"angle": {"k": [1.0], "theta0": [1.0]}})
    with pytest.raises(ValueError, match="given once"):
        topology([(0, 1), (1, 0)])
    with pytest.raises(ValueError, match=r"terms there are, \['bond'\]. Got \[\]"):
        bonded(2, [(0, 1)])
    with pytest.raises(ValueError, match="k and r0 for each of the 1"):
        bonded(2, [(0, 1)], initial={"bond": {"k": [1.0, 2.0], "r0": [1.0, 2.0]}})
    with pytest.raises(ValueError, match="two axes"):
        bonded(4, dihedrals=[(0, 1, 2, 3)], initial={"dihedral": {"cosine": [1.0], "sine": [1.0]}})


# Boltzmann inversion

KT, COPIES = 0.025, 20_000


def four_atoms(r, theta, phi) -> np.ndarray:
    """Four atoms with the given second bond length, first angle and dihedral ``(n,)``; ``(n, 4, 3)``."""
    one, zero = np.ones_like(r), np.zeros_like(r)
    first = np.stack([np.cos(theta), np.sin(theta), zero], -1)
    last = np.stack([r + 0.5, np.cos(phi), np.sin(phi)], -1)
    return np.stack([first, np.zeros_like(first), np.stack([r, zero, zero], -1), last * one[:, None]], 1)


def leaves(params, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of cosines and sines of one dihedral."""
    return tuple(np.asarray(params["dihedral"][name][place]) for name in ("cosine", "sine"))


def draws(density, low: float, high: float, rng) -> np.ndarray:
    """From a density on an interval, by its quantiles."""
    grid = np.linspace(low, high, 20_001)
    cumulative = np.cumsum(density(grid))
    return np.interp(rng.uniform(size=COPIES), cumulative / cumulative[-1], grid)


def test_inversion_gives_back_harmonic_terms_and_a_series():
    """20 000 draws: the standard error of a variance is 1 %, of a mean 0.7 % of the spread; bounds of 4 sigma.

    The histogram's 72 bins have 280 counts each on average, errors of 6 % of kT; 6 coefficients fitted to them have
    1 % of kT, and the curve with them about 2.5 %; the bound is 0.1 kT.
    """
    rng = np.random.default_rng(3)
    r = draws(lambda r: r**2 * np.exp(-((r - 1.5) ** 2) / (2 * 0.03**2)), 1.2, 1.8, rng)
    theta = draws(lambda x: np.sin(x) * np.exp(-((x - 1.9) ** 2) / (2 * 0.05**2)), 1.4, 2.4, rng)
    cosine, sine = np.array([0.02, 0.015, -0.01]), np.array([0.01, -0.025, 0.005])
    grid = np.linspace(-np.pi, np.pi, 20_001)
    phi = draws(lambda phi: np.exp(-series(phi, cosine, sine) / KT), -np.pi, np.pi, rng)
    terms = Topology(4, ((1, 2),), ((0, 1, 2),), ((0, 1, 2, 3),))
    params = bonded_from_data(four_atoms(r, theta, phi), terms, KT).init(jax.random.key(0))
    np.testing.assert_allclose(params["bond"]["k"], KT / 0.03**2, rtol=0.04)
    np.testing.assert_allclose(params["bond"]["r0"], 1.5, atol=4 * 0.03 / COPIES**0.5)
    np.testing.assert_allclose(params["angle"]["k"], KT / 0.05**2, rtol=0.04)
    np.testing.assert_allclose(params["angle"]["theta0"], 1.9, atol=4 * 0.05 / COPIES**0.5)
    difference = series(grid, *leaves(params, 0)) - series(grid, cosine, sine)
    assert np.abs(difference).max() < 0.1 * KT


@pytest.mark.parametrize("seed", range(3))
def test_inversion_of_soft_terms_knows_their_volumes(seed):
    """Draws of r² exp(−U/kT) and sin θ exp(−U/kT): plain moments are off by 20 and more standard errors.

    They give θ0 = 2.223 and k = 0.354, and r0 = 1.61 and k = 0.322. With weights the errors are, in 200 repeats, 0.0024
    and 0.0029 of r0 and θ0, and 1.5 and 1.6 % of their k. What π cuts off the angle's Gaussian moves θ0 by −0.003 and k
    by 2.5 %. Bounds: 4 sigma of the bond; these shifts and 4 sigma of the angle.
    """
    kT, k_bond, r0, k_angle, theta0 = 0.0259, 0.3, 1.5, 0.3, 2.3
    rng, spread = np.random.default_rng(seed), (0.0259 / 0.3) ** 0.5
    r = draws(lambda r: r**2 * np.exp(-k_bond * (r - r0) ** 2 / (2 * kT)), 1e-3, 4.0, rng)
    theta = draws(lambda x: np.sin(x) * np.exp(-k_angle * (x - theta0) ** 2 / (2 * kT)), 0.0, np.pi, rng)
    assert abs(theta.mean() - theta0) > 20 * spread / COPIES**0.5
    terms = Topology(4, ((1, 2),), ((0, 1, 2),))
    params = bonded_from_data(four_atoms(r, theta, np.zeros(COPIES)), terms, kT).init(jax.random.key(0))
    np.testing.assert_allclose(params["bond"]["r0"], r0, atol=0.0096)
    np.testing.assert_allclose(params["bond"]["k"], k_bond, rtol=0.06)
    np.testing.assert_allclose(params["angle"]["theta0"], theta0, atol=0.0146)
    np.testing.assert_allclose(params["angle"]["k"], k_angle, rtol=0.09)


def test_a_straight_angle_gives_no_single_datum_all_the_weight():
    """Bends of a Gaussian about a straight line: with weights, the distance from π has one half of it."""
    rng = np.random.default_rng(5)
    bend = 0.1 * np.sqrt(-2 * np.log(rng.uniform(size=COPIES)))
    last = np.stack([-np.cos(bend), np.sin(bend), np.zeros(COPIES)], -1)
    position = np.stack([np.tile([1.0, 0, 0], (COPIES, 1)), np.zeros((COPIES, 3)), last], 1)
    angle = bonded_from_data(position, Topology(3, angles=((0, 1, 2),)), KT).spec["initial"]["angle"]
    np.testing.assert_allclose(angle["theta0"], np.pi - 0.1 * (2 / np.pi) ** 0.5, atol=0.01)
    np.testing.assert_allclose(angle["k"], KT / 0.1**2 / (1 - 2 / np.pi), rtol=0.1)


def test_a_term_of_a_force_field_is_the_series_up_to_its_constant():
    """k [1 + cos(nφ − φ_n)] of every order: the difference of two energies is that of the formula."""
    k, phase = np.array([0.02, 0.03, 0.01]), np.array([0.5, -1.0, 2.5])
    initial = {"dihedral": {"cosine": [k * np.cos(phase)], "sine": [k * np.sin(phase)]}}
    potential = bonded(4, dihedrals=[(0, 1, 2, 3)], initial=initial)
    angles = np.array([-2.8, -1.0, 0.1, 1.7])
    frames = four_atoms(np.full(4, 1.5), np.full(4, 1.9), angles)
    params = potential.init(jax.random.key(0))
    energy = [float(potential.atom_energies(params, carbon(x), nobody(carbon(x))).sum()) for x in frames]
    expected = (k * (1 + np.cos(np.arange(1, 4) * angles[:, None] - phase))).sum(1) - k.sum()
    np.testing.assert_allclose(energy, expected, atol=1e-12)


def test_a_dihedral_that_hardly_moves_stays_near_its_place():
    """With one visited valley at trans the series has its minimum there, and no deep one elsewhere."""
    rng = np.random.default_rng(4)
    phi = np.pi + rng.normal(0, 0.1, COPIES)
    terms = Topology(4, dihedrals=((0, 1, 2, 3),))
    potential = bonded_from_data(four_atoms(np.full(COPIES, 1.5), np.full(COPIES, 1.9), phi), terms, KT)
    params = potential.init(jax.random.key(0))
    grid = np.linspace(-np.pi, np.pi, 721)
    curve = series(grid, *leaves(params, 0))
    assert np.abs(np.abs(grid[curve.argmin()]) - np.pi) < 0.05
    curvature = np.gradient(np.gradient(np.roll(curve[:-1], 360), grid[:-1]), grid[:-1])[360]
    np.testing.assert_allclose(curvature, KT / 0.1**2, rtol=0.25)


@pytest.mark.slow
def test_periodic_data_and_arrays_give_the_same():
    position = np.stack([chains(3, seed) for seed in range(6)])
    box = 3 * BOX
    wrapped = [x - np.floor(x @ np.linalg.inv(box)) @ box for x in position]  # atom by atom: molecules are broken
    assert np.abs(np.diff(wrapped, axis=1)).max() > 20
    one = bonded_from_data(position, CHAIN, KT, orders=2, bins=12).spec["initial"]
    for frames in ([x + 5 * BOX[0] for x in position], wrapped):
        data = dataset([carbon(x, box) for x in frames], 2.0)
        other = bonded_from_data(data, CHAIN, KT, orders=2, bins=12).spec["initial"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, other)


def test_a_bond_longer_than_half_the_box_is_its_shorter_image():
    """The documented limit: 3.5 Å along a box of 5 Å are 1.5 Å, in whole molecules as in broken ones."""
    r = 3.5 + np.random.default_rng(6).normal(0, 0.05, 50)
    systems = [carbon([[0, 0, 0], [x, 0, 0]], np.eye(3) * 5.0) for x in r]
    found = bonded_from_data(dataset(systems, 2.0), topology([(0, 1)]), KT).spec["initial"]["bond"]
    np.testing.assert_allclose(found["r0"], 1.5, atol=0.05)


def test_what_cannot_be_inverted_is_refused():
    with pytest.raises(ValueError, match=r"Every bond must fluctuate. .* atoms \(0, 1\)"):
        bonded_from_data(np.stack([np.eye(2, 3)] * 3), topology([(0, 1)]), KT)
    with pytest.raises(ValueError, match=r"Got frames of \[3\] atoms"):
        bonded_from_data(np.zeros((4, 3, 3)), topology([(0, 1)]), KT)
    with pytest.raises(ValueError, match="kT=0"):
        bonded_from_data(np.zeros((4, 2, 3)), topology([(0, 1)]), 0.0)


@pytest.mark.slow
def test_bonds_of_alanine_dipeptide_have_the_stiffness_of_their_forces(data_folder):
    """The mean force along a bond has the slope −kT/variance (Yvon's theorem, up to 2 var/r² < 0.1 %).

    A step of 4 fs made stiff bonds fluctuate by some percent too little; 20 000 frames know a variance to 1 %.
    """
    with np.load(data_folder / "cg_reference" / "ala2_cg10_obc2.npz") as file:
        position, forces = np.float64(file["R"]), np.float64(file["F"])
    bonds = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]
    kT = 300 * units.kB
    potential = bonded_from_data(position, topology(bonds), kT)
    ratios = []
    for (i, j), k in zip(bonds, potential.spec["initial"]["bond"]["k"], strict=True):
        along = position[:, j] - position[:, i]
        r = np.linalg.norm(along, axis=1)
        force = 0.5 * ((forces[:, j] - forces[:, i]) * along).sum(1) / r
        ratios.append(-np.cov(force, r)[0, 1] / r.var(ddof=1) / k)
    np.testing.assert_allclose(np.mean(ratios), 1.0, atol=0.05)
    np.testing.assert_allclose(ratios, 1.0, atol=0.08)


@pytest.mark.slow
def test_all_terms_of_alanine_dipeptide(data_folder):
    """What is inverted has its minimum near the data; the peptide bonds are trans."""
    with np.load(data_folder / "cg_reference" / "ala2_cg10_obc2.npz") as file:
        position = np.float64(file["R"][::10])
    bonds = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]
    terms, kT = topology(bonds), 300 * units.kB
    potential = bonded_from_data(position, terms, kT)
    params, sys = potential.init(jax.random.key(0)), carbon(position[0])
    energy, force = jax.vmap(lambda x: energy_and_forces(potential)(params, replace(sys, position=x), nobody(sys)))(
        position[:200]
    )
    assert np.isfinite(force).all()
    # 9 + 12 harmonic terms of kT/2 each on average; dihedrals scatter by about kT
    assert np.ptp(energy) < 40 * kT
    grid = np.radians(np.arange(-180, 180))
    curve = series(grid, *leaves(params, terms.dihedrals.index((0, 1, 3, 4))))
    assert abs(grid[curve.argmin()]) > np.radians(165)
