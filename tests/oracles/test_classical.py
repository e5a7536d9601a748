"""Classical potentials against published numbers, other programs and explicit loops."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from bayespot import units
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.potential import energy_forces_stress, forces, strained
from bayespot.potentials.repulsion import repulsion
from bayespot.records.neighbors import neighbors, pairs
from bayespot.records.system import from_ase, system
from bayespot.tree import replace

LATTICE = 5.43095  # Å, where the pressure of Stillinger–Weber silicon vanishes


def evaluate(potential, sys):
    """Energy, forces and stress at the starting parameters."""
    nbrs = neighbors(sys, potential.cutoff + 0.1)
    return jax.jit(energy_forces_stress(potential))(potential.init(jax.random.key(0)), sys, nbrs)


def dimer(potential, r, species=(14, 14)):
    return float(evaluate(potential, system([[0, 0, 0], [0, 0, r]], species))[0])


# Stillinger–Weber


@pytest.fixture(scope="module")
def silicon():
    """The perfect crystal, its neighbours and a compiled stress under a strain and an inner displacement."""
    sys = from_ase(bulk("Si", a=LATTICE))
    nbrs, potential = neighbors(sys, 4.2), stillinger_weber(14)
    params = potential.init(jax.random.key(0))
    all_three = energy_forces_stress(potential)

    @jax.jit
    def response(strain, inner):
        x = strained(sys, strain)
        x = replace(x, position=x.position.at[1].add(inner))
        return all_three(params, x, nbrs)

    return response


def strain_of(a, b, size):
    """Symmetric strain with the engineering component ``a, b`` equal to ``size``."""
    strain = np.zeros((3, 3))
    strain[a, b] += size / 2
    strain[b, a] += size / 2
    return jnp.asarray(strain)


def relaxed(response, strain):
    """Displacement of the second atom of the cell that makes the forces vanish (Newton's method)."""
    inner = jnp.zeros(3)
    for _ in range(5):
        force, slope = response(strain, inner)[1][1], jax.jacfwd(lambda u: response(strain, u)[1][1])(inner)
        inner = inner - jnp.linalg.solve(slope, force)
    assert np.abs(response(strain, inner)[1]).max() < 1e-10
    return inner


def elastic_constant(response, stress_component, strain_component, relax):
    """Slope of the stress [GPa] by a central difference; its error, (1e-4)² times a third-order constant, is < 0.01."""
    sigma = []
    for size in (1e-4, -1e-4):
        strain = strain_of(*strain_component, size)
        inner = relaxed(response, strain) if relax else jnp.zeros(3)
        sigma.append(response(strain, inner)[2][stress_component] / units.GPa)
    return float(sigma[0] - sigma[1]) / 2e-4


def test_silicon_crystal(silicon):
    """Cohesive energy is −2 ε, and 5.43095 Å has no stress: 1e-5 Å of it would make 5e-4 GPa."""
    energy, force, sigma = silicon(jnp.zeros((3, 3)), jnp.zeros(3))
    assert float(energy) / 2 == pytest.approx(-4.3365, abs=5e-5)
    np.testing.assert_allclose(force, 0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(sigma) / units.GPa, 0, atol=1e-3)


@pytest.mark.parametrize(
    ("stress_component", "strain_component", "relax", "expected"),
    [
        ((0, 0), (0, 0), False, 151.42),
        ((1, 1), (0, 0), False, 76.42),
        ((1, 2), (1, 2), True, 56.45),
        ((1, 2), (1, 2), False, 109.76),
    ],
    ids=["C11", "C12", "C44", "C44 without inner relaxation"],
)
def test_silicon_elastic_constants(silicon, stress_component, strain_component, relax, expected):
    """Cowley, Phys. Rev. Lett. 60, 2379 (1988): 151.4, 76.4, 56.4 GPa; to the rounding of the second decimal."""
    assert elastic_constant(silicon, stress_component, strain_component, relax) == pytest.approx(expected, abs=0.02)


def test_inner_relaxation_does_not_change_c11(silicon):
    assert elastic_constant(silicon, (0, 0), (0, 0), relax=True) == pytest.approx(151.42, abs=0.02)


def test_germanium_crystal():
    """In reduced units the crystal is the same for every λ: energy −2 ε, lattice constant 5.43095 σ_Ge/σ_Si Å."""
    energy, _, sigma = evaluate(stillinger_weber(32), from_ase(bulk("Ge", "diamond", a=LATTICE * 2.181 / 2.0951)))
    assert float(energy) / 2 == pytest.approx(-2 * 1.93, abs=1e-4)
    np.testing.assert_allclose(np.asarray(sigma) / units.GPa, 0, atol=1e-3)


def reference_stillinger_weber(position, box, epsilon, sigma, lam):
    """The published sums, written out as loops over pairs and triplets with all images."""
    i, j, s = pairs(position, box, 1.8 * sigma)
    vectors = position[j] + s @ box - position[i]
    total = 0.0
    for a in range(len(position)):
        legs = vectors[i == a]
        for v in legs:
            x = np.linalg.norm(v) / sigma
            total += 0.5 * epsilon * 7.049556277 * (0.6022245584 / x**4 - 1) * np.exp(1 / (x - 1.8))
        for v, w in combinations(legs, 2):
            x, y = np.linalg.norm(v) / sigma, np.linalg.norm(w) / sigma
            cosine = v @ w / np.linalg.norm(v) / np.linalg.norm(w)
            total += epsilon * lam * (cosine + 1 / 3) ** 2 * np.exp(1.2 / (x - 1.8) + 1.2 / (y - 1.8))
    return total


@pytest.mark.parametrize(("species", "numbers"), [(14, (2.16826, 2.0951, 21.0)), (32, (1.93, 2.181, 31.0))])
def test_stillinger_weber_equals_the_sum_over_triplets(species, numbers):
    atoms = bulk("Si", "diamond", a=4.9 * numbers[1] / 2.0951)
    atoms.set_cell(np.asarray(atoms.cell) @ np.array([[1.1, 0.1, 0], [0, 0.95, -0.2], [0.05, 0, 1]]), scale_atoms=True)
    atoms.rattle(0.25, seed=1)
    atoms.numbers[:] = species
    energy, _, _ = evaluate(stillinger_weber(species), from_ase(atoms))
    expected = reference_stillinger_weber(atoms.positions, np.asarray(atoms.cell), *numbers)
    assert float(energy) == pytest.approx(expected, rel=1e-11)


def test_stillinger_weber_species():
    with pytest.raises(ValueError, match="14, 32"):
        stillinger_weber(6)


# Lennard-Jones


def argon(rattle):
    atoms = bulk("Ar", "fcc", a=5.26, cubic=True) * (1, 1, 2)
    atoms.rattle(rattle, seed=2)
    return atoms


@pytest.mark.parametrize(
    "atoms",
    [argon(0.02), Atoms("Ar4", [[0, 0, 0], [3.6, 0, 0.1], [0.2, 3.9, 0], [1.7, 1.9, 3.3]])],
    ids=["crystal smaller than the cutoff", "molecule"],
)
def test_lennard_jones_equals_ase(atoms):
    """No pair lies between onset and cutoff, where the two switching functions differ (ASE's is of lower order)."""
    atoms.calc = LennardJones(sigma=3.405, epsilon=0.01042, rc=7.1, ro=6.75, smooth=True)
    distances = np.linalg.norm(_vectors(atoms, 8.0), axis=1)
    assert not ((distances > 6.75) & (distances < 7.1)).any()
    energy, force, sigma = evaluate(lennard_jones(3.405, 0.01042, cutoff=7.1, onset=6.75), from_ase(atoms))
    assert float(energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(force, atoms.get_forces(), atol=1e-10)
    if atoms.pbc.all():
        np.testing.assert_allclose(sigma, atoms.get_stress(voigt=False), atol=1e-12)


def _vectors(atoms, cutoff):
    box = np.asarray(atoms.cell) * atoms.pbc[:, None]
    i, j, s = pairs(atoms.positions, box, cutoff)
    return atoms.positions[j] + s @ box - atoms.positions[i]


def test_lennard_jones_dimer():
    potential = lennard_jones(sigma=2.0, epsilon=0.5, cutoff=6.0, onset=4.0)
    assert dimer(potential, 2.0) == pytest.approx(0.0, abs=1e-14)
    assert dimer(potential, 2.0 * 2 ** (1 / 6)) == pytest.approx(-0.5, rel=1e-12)
    half_way = 4 * 0.5 * ((2 / 5) ** 12 - (2 / 5) ** 6)
    assert dimer(potential, 5.0) == pytest.approx(half_way / 2, rel=1e-12)
    assert dimer(potential, 6.0) == 0.0


@pytest.mark.parametrize("arguments", [{"onset": 7.0}, {"onset": 0.0}, {"sigma": -1.0}])
def test_lennard_jones_refuses(arguments):
    with pytest.raises(ValueError, match="onset"):
        lennard_jones(**{"sigma": 2.0, "epsilon": 0.5, "cutoff": 6.0} | arguments)


# Repulsion of the nuclei


@pytest.mark.parametrize(
    ("species", "r", "expected"),
    [
        # Multiplied out in 20 digits: a = 0.4685/(14^0.23 + 14^0.23) = 0.1276645 Å, x = 7.833031,
        # φ = 2.4e-12 + 3.176355e-4 + 1.193705e-2 + 5.806406e-3 = 0.01806109, U = 14.399645·196/1.0·φ.
        ((14, 14), 1.0, 50.974362),
        # a = 0.4685/(1 + 8^0.23) = 0.1792764 Å, x = 1.673394,
        # φ = 8.590795e-4 + 0.1053527 + 0.1427885 + 0.02010298 = 0.2691033, U = 14.399645·8/0.3·φ.
        ((1, 8), 0.3, 103.333109),
    ],
)
def test_repulsion_of_two_nuclei(species, r, expected):
    """Below half the sum of the covalent radii (Si–Si 1.11 Å, O–H 0.485 Å) it is the published formula."""
    assert dimer(repulsion(cutoff=5.0), r, species) == pytest.approx(expected, rel=1e-6)


def test_repulsion_ends_before_bonds():
    """Covalent radii in ASE: Si 1.11 Å, H 0.31 Å, O 0.66 Å."""
    potential = repulsion(cutoff=5.0)
    for species, end in [((14, 14), 2.22), ((1, 8), 0.97), ((1, 14), 1.42)]:
        assert dimer(potential, end + 1e-9, species) == 0.0
        assert dimer(potential, 0.9 * end, species) > 0.0
    assert dimer(repulsion(cutoff=1.5), 1.5) == 0.0
    assert dimer(repulsion(cutoff=1.5), 1.4) > 0.0


def test_repulsion_pushes_apart_everywhere():
    potential = repulsion(cutoff=5.0)
    r = jnp.linspace(0.2, 2.2, 100)
    sys = system([[0, 0, 0], [0, 0, 1.0]], [14, 14])
    nbrs, force = neighbors(sys, 5.0), forces(potential)

    def outward(x):
        return force({}, replace(sys, position=jnp.array([[0, 0, 0], [0, 0, 1.0]]) * x), nbrs)[1, 2]

    pushes = np.asarray(jax.jit(jax.vmap(outward))(r))
    assert (pushes > 0).all()
    assert (np.diff(pushes) < 0).all()


def test_repulsion_refuses():
    with pytest.raises(ValueError, match="positive"):
        repulsion(cutoff=0.0)
