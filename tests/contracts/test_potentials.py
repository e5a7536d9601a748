"""What every potential must satisfy. A new potential is one line in ``MEMBERS``."""

import json
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.potentials.build import build
from bayespot.potentials.potential import check_compatible, energy_and_forces, energy_forces_stress
from bayespot.records.dataset import dataset, flatten
from bayespot.records.neighbors import Neighbors, neighbors
from bayespot.records.system import System, system
from bayespot.tree import replace, stack
from tests.contracts.members import ALIKE, MEMBERS, OF_MOLECULES, Member

MOST_ATOMS, MOST_NEIGHBORS = 24, 64
OF_ANY_ATOMS = (  # tests with systems that are not whole molecules of four atoms; test_bonded.py has the like for these
    "test_permutation_permutes",
    "test_smooth_where_a_neighbour_crosses_the_cutoff",
    "test_flattened_minibatch_equals_single_systems",
    "test_one_atom_alone_has_no_forces",
    "test_atoms_beyond_the_cutoff_are_alone",
    "test_small_cell_equals_its_supercell",
)


@cache
def member(name: str) -> Member:
    return MEMBERS[name]()


@cache
def parameters(name: str):
    return jax.jit(member(name).potential.init)(jax.random.key(1))


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in MEMBERS])
def name(request):
    if request.param in OF_MOLECULES and request.function.__name__ in OF_ANY_ATOMS:
        pytest.skip(
            "its terms belong to places in molecules of four atoms: of other numbers or orders it knows nothing"
        )
    parameters(request.param)  # now: tests ask for them inside traced functions too, and a tracer must not be cached
    return request.param


def crystal(name: str, seed: int = 0, repeat=(2, 2, 1)) -> System:
    """A rattled lattice in a skewed cell that is smaller than twice (in one direction than once) the cutoff."""
    potential, species, spacing = member(name)
    random = np.random.default_rng(seed)
    box = spacing * np.diag(repeat) @ np.array([[1.0, 0.0, 0.0], [0.25, 1.05, 0.0], [-0.3, 0.2, 1.1]])
    grid = np.stack(np.meshgrid(*[np.arange(n) / n for n in repeat], indexing="ij"), -1).reshape(-1, 3)
    position = grid @ box + random.uniform(-0.06, 0.06, grid.shape) * spacing
    assert np.linalg.norm(box, axis=1).min() < 2 * potential.cutoff
    return system(position, np.resize(species, len(grid)), box)


def molecule(name: str, seed: int = 0, atoms: int = 4) -> System:
    """A few atoms in open space, no two of them close."""
    _, species, spacing = member(name)
    random = np.random.default_rng(seed)
    corners = np.array([[0, 0, 0], [1, 0, 0], [0.4, 0.95, 0], [0.5, 0.3, 0.9]])[:atoms]
    position = spacing * (corners + random.uniform(-0.05, 0.05, corners.shape))
    return system(position, np.resize(species, atoms))


def padded(sys: System, atoms: int) -> System:
    """The system with padding up to so many atoms, so that tests share what is compiled."""
    missing = atoms - len(sys.species)
    return System(np.pad(sys.position, ((0, missing), (0, 0))), np.pad(sys.species, (0, missing)), sys.box)


def deformed(sys: System, matrix) -> System:
    """Positions and box, as rows, times a matrix."""
    return replace(sys, position=np.asarray(sys.position) @ matrix, box=np.asarray(sys.box) @ matrix)


def listed(name: str, sys: System, extra: float = 0.0) -> Neighbors:
    """Neighbours, all padded to the same number so that the tests share what is compiled."""
    nbrs = neighbors(sys, member(name).potential.cutoff + extra)
    n, k = nbrs.index.shape
    missing = MOST_NEIGHBORS - k  # negative: NumPy refuses it
    index = np.pad(nbrs.index, ((0, 0), (0, missing)), constant_values=n)
    return Neighbors(index, np.pad(nbrs.shift, ((0, 0), (0, missing), (0, 0))))


class Values(NamedTuple):
    """All that a potential says of a system."""

    atoms: jax.Array
    energy: jax.Array
    forces: jax.Array
    stress: jax.Array


@cache
def compiled(name: str):
    """Everything from one program: most of the time of these tests is compilation."""
    potential = member(name).potential
    return jax.jit(lambda *args: Values(potential.atom_energies(*args), *energy_forces_stress(potential)(*args)))


def values(name: str, sys: System, nbrs: Neighbors | None = None, params=None) -> Values:
    return compiled(name)(params or parameters(name), sys, nbrs or listed(name, sys))


def five_point(function, step: float):
    """Central difference of fourth order of a function of one number."""
    return (8 * (function(step) - function(-step)) - (function(2 * step) - function(-2 * step))) / (12 * step)


# Invariances: exact up to rounding, which the sums over neighbours amplify to about 1e-13 of the largest term.


@pytest.mark.parametrize("make", [crystal, molecule])
def test_translation_changes_nothing_and_rotation_turns_the_forces(name, make):
    sys = make(name)
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    moved = deformed(replace(sys, position=np.asarray(sys.position) + np.array([3.7, -11.2, 0.9])), q)
    one, other = values(name, sys), values(name, moved)
    assert abs(one.energy) > 1e-3
    np.testing.assert_allclose(other.energy, one.energy, rtol=1e-10)
    np.testing.assert_allclose(other.forces, one.forces @ q, atol=1e-9 * np.abs(one.forces).max())


@pytest.mark.parametrize("make", [crystal, molecule])
def test_permutation_permutes(name, make):
    sys = make(name)
    order = np.random.default_rng(4).permutation(len(sys.species))
    permuted = replace(sys, position=np.asarray(sys.position)[order], species=np.asarray(sys.species)[order])
    u = np.asarray(values(name, sys).atoms)
    np.testing.assert_allclose(values(name, permuted).atoms, u[order], atol=1e-10 * np.abs(u).max())


def test_the_choice_of_images_does_not_matter(name):
    """Moving single atoms by lattice vectors changes only the shifts of their neighbours."""
    sys = crystal(name)
    shift = np.random.default_rng(5).integers(-2, 3, (len(sys.species), 3))
    moved = replace(sys, position=np.asarray(sys.position) + shift @ np.asarray(sys.box))
    u = values(name, sys).atoms
    np.testing.assert_allclose(values(name, moved).atoms, u, atol=1e-10 * np.abs(u).max())


# Derivatives. The five-point rule at h = 1e-3 has an error of about h^4 f^(5)/30, below 1e-8 of the forces here.


def test_forces_are_minus_the_gradient(name):
    sys = crystal(name)
    nbrs, position = listed(name, sys, extra=0.05), np.asarray(sys.position)
    force = values(name, sys, nbrs).forces

    def total(displacement):
        return float(values(name, replace(sys, position=position + displacement), nbrs).energy)

    unit = np.eye(force.size).reshape(-1, *force.shape)
    expected = [-five_point(lambda h, e=e: total(h * e), 1e-3) for e in unit]
    np.testing.assert_allclose(force.ravel(), np.array(expected), atol=1e-6 * np.abs(force).max())
    assert np.abs(force).max() > 1e-2


def test_energy_and_forces_alone_are_those_with_the_stress(name):
    sys = crystal(name)
    energy, force = jax.jit(energy_and_forces(member(name).potential))(parameters(name), sys, listed(name, sys))
    together = values(name, sys)
    np.testing.assert_allclose(energy, together.energy, rtol=1e-13)
    np.testing.assert_allclose(force, together.forces, atol=1e-12 * np.abs(force).max())


def test_stress_is_the_strain_derivative(name):
    sys = crystal(name)
    nbrs = listed(name, sys, extra=0.05)
    sigma = values(name, sys, nbrs).stress

    def strained(a, b, h):
        deformation = np.eye(3)
        deformation[a, b] += h / 2
        deformation[b, a] += h / 2
        return float(values(name, deformed(sys, deformation), nbrs).energy)

    volume = abs(np.linalg.det(sys.box))
    expected = [[five_point(lambda h, a=a, b=b: strained(a, b, h), 3e-4) for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(sigma, np.array(expected) / volume, atol=1e-6 * np.abs(sigma).max())
    assert np.abs(np.asarray(sigma)[np.triu_indices(3, 1)]).max() > 1e-3 * np.abs(sigma).max()


def test_stress_of_an_open_system_is_nan(name):
    found = values(name, molecule(name))
    assert np.isfinite(found.energy)
    assert np.isfinite(found.forces).all()
    assert np.isnan(found.stress).all()


def test_smooth_where_a_neighbour_crosses_the_cutoff(name):
    """Energy, force and its derivative have no jump at the cutoff, with other atoms beside.

    Across ±δ a smooth function changes by about δ times its slope; with δ = 1e-6 Å that is below 1e-4 of the size that
    the function has inside, for lengths of variation above 0.01 Å. A step of even 0.1 % would fail.
    """
    potential, species, _ = member(name)
    sys, cutoff = molecule(name, atoms=3), potential.cutoff
    sys = system(np.vstack([sys.position, np.zeros(3)]), np.resize(species, 4))
    direction = jnp.array([-0.8, -0.36, -0.48])
    nbrs = Neighbors(jnp.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]), jnp.zeros((4, 3, 3), jnp.int8))

    def energy(r):
        position = sys.position.at[3].set(sys.position[0] + r * direction)
        return potential.energy(parameters(name), replace(sys, position=position), nbrs)

    slope = jax.grad(energy)
    all_three = jax.jit(jax.vmap(lambda r: jnp.stack([energy(r), slope(r), jax.jvp(slope, (r,), (1.0,))[1]])))
    inside, beyond = np.linspace(0.7 * cutoff, cutoff, 50), np.linspace(1.2 * cutoff, 1.3 * cutoff, 3)
    crossing = cutoff + 1e-6 * np.array([-1.0, 0.0, 1.0])
    inside, beyond, (below, at, above) = np.split(all_three(np.concatenate([inside, beyond, crossing])), [50, 53])
    size = np.abs(inside - beyond[0]).max(0)
    assert (size > 1e-7).all()
    assert (np.abs(above - below) < 1e-4 * size).all()
    assert (np.abs(at - above) < 1e-4 * size).all()
    np.testing.assert_allclose(beyond[1:], beyond[:-1], atol=1e-13)


def test_padding_changes_nothing(name):
    sys, n = crystal(name), 4
    one, wide = values(name, sys), values(name, padded(sys, MOST_ATOMS))
    np.testing.assert_allclose(wide.energy, one.energy, rtol=1e-12)
    np.testing.assert_allclose(wide.forces[:n], one.forces, atol=1e-11 * np.abs(one.forces).max())
    np.testing.assert_allclose(wide.stress, one.stress, atol=1e-11 * np.abs(one.stress).max())
    assert (wide.forces[n:] == 0).all()
    assert (wide.atoms[n:] == 0).all()


def test_neighbours_beyond_the_cutoff_change_nothing(name):
    sys = crystal(name)
    near, far = listed(name, sys), listed(name, sys, extra=0.8)
    assert (far.index < len(sys.species)).sum() > (near.index < len(sys.species)).sum()
    one, other = values(name, sys, near), values(name, sys, far)
    np.testing.assert_allclose(other.energy, one.energy, rtol=1e-12)
    np.testing.assert_allclose(other.forces, one.forces, atol=1e-11 * np.abs(one.forces).max())


def test_flattened_minibatch_equals_single_systems(name):
    potential, params = member(name).potential, parameters(name)
    systems = [crystal(name), molecule(name, atoms=3), crystal(name, seed=1, repeat=(1, 1, 2)), molecule(name, atoms=1)]
    data = dataset(systems, cutoff=potential.cutoff + 0.3)
    check_compatible(potential, data)
    graph = jax.jit(flatten, static_argnums=1)(data, sum(len(s.species) for s in systems) + 2)

    def total(position):
        u = potential.atom_energies(params, replace(graph.system, position=position), graph.neighbors)
        return u.sum(), u

    (_, u), gradient = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(total, has_aux=True))(graph.system.position))
    split = np.bincount(graph.structure, u, len(systems) + 1)
    for m, sys in enumerate(systems):
        single = values(name, padded(sys, 4))
        np.testing.assert_allclose(split[m], single.energy, rtol=1e-11, atol=1e-12)
        force, size = single.forces[: len(sys.species)], max(1.0, np.abs(single.forces).max())
        np.testing.assert_allclose(-gradient[np.asarray(graph.structure) == m], force, atol=1e-10 * size)
    assert split[-1] == 0
    assert np.isfinite(gradient).all()


def test_vmap_over_parameters_equals_a_loop(name):
    potential, sys = member(name).potential, crystal(name)
    nbrs = listed(name, sys)
    initial = jax.jit(potential.init)
    few = [
        jax.tree.map(lambda x, n=n: np.asarray(x) * np.float32(1 + 0.01 * n), initial(jax.random.key(n)))
        for n in (7, 8, 9)
    ]
    if not jax.tree.leaves(few):
        assert few == [{}] * 3  # a potential without parameters has nothing to stack
        return
    batched = jax.jit(jax.vmap(potential.energy, (0, None, None)))(stack(few), sys, nbrs)
    looped = [float(values(name, sys, nbrs, p).energy) for p in few]
    np.testing.assert_allclose(batched, np.array(looped), rtol=1e-6)  # parameters of networks are float32
    assert len(np.unique(looped)) == 3


# Small and strange systems


def test_one_atom_alone_has_no_forces(name):
    alone = values(name, padded(molecule(name, atoms=1), 4))
    assert np.isfinite(alone.energy)
    assert (alone.forces == 0).all()


def test_atoms_beyond_the_cutoff_are_alone(name):
    potential, species, _ = member(name)
    pair = np.resize(species, 2)
    far = padded(system([[0, 0, 0], [potential.cutoff + 0.01, 0, 0]], pair), 4)
    u = values(name, far, listed(name, far, extra=1.0)).atoms
    alone = [values(name, padded(system([[0, 0, 0]], [z]), 4)).atoms[0] for z in pair]
    np.testing.assert_allclose(u[:2], np.array(alone), atol=1e-13)


@pytest.mark.parametrize("repeat", [(1, 1, 1), (2, 1, 1)])
def test_small_cell_equals_its_supercell(name, repeat):
    """Cells down to a single atom, whose neighbours are all its own images."""
    sys = crystal(name, repeat=repeat)
    n, (a, b, c) = len(sys.species), np.asarray(sys.box)
    copies = [i * a + j * b + k * c for i in range(3) for j in range(2) for k in range(2)]
    large = system(
        np.concatenate([np.asarray(sys.position) + t for t in copies]),
        np.tile(sys.species, len(copies)),
        np.stack([3 * a, 2 * b, 2 * c]),
    )
    one, other = values(name, padded(sys, 4)), values(name, padded(large, MOST_ATOMS))
    force, force_large = one.forces[:n], other.forces[: n * len(copies)]
    assert abs(one.energy) > 1e-3
    np.testing.assert_allclose(other.energy / len(copies), one.energy, rtol=1e-10)
    scale = max(1e-3, np.abs(force).max())
    np.testing.assert_allclose(force_large, np.tile(force, (len(copies), 1)), atol=1e-9 * scale)


def test_unknown_species_and_short_neighbours_are_refused(name):
    potential, species, _ = member(name)
    sys = molecule(name)
    strange = replace(sys, species=np.array([*sys.species[:1], 79, *sys.species[2:]], np.int32))
    u, energy = values(name, strange)[:2]
    data = dataset([strange], cutoff=potential.cutoff)
    if potential.species:
        assert set(species) <= set(potential.species)
        assert np.isnan(u[1])
        assert np.isnan(energy)
        with pytest.raises(ValueError, match="79"):
            check_compatible(potential, data)
    else:
        assert np.isfinite(u).all()
        check_compatible(potential, data)
    with pytest.raises(ValueError, match="cutoff"):
        check_compatible(potential, dataset([sys], cutoff=0.9 * potential.cutoff))


# Construction and precision


def plain(tree) -> bool:
    """A nested dictionary of arrays, as all libraries take it."""
    return isinstance(tree, jax.Array) or (
        isinstance(tree, dict) and all(isinstance(k, str) and plain(v) for k, v in tree.items())
    )


def test_spec_rebuilds_the_potential(name):
    potential, sys = member(name).potential, crystal(name)
    again = build(json.loads(json.dumps(potential.spec)))
    assert (again.cutoff, again.species, again.spec) == (potential.cutoff, potential.species, potential.spec)
    new = jax.jit(again.init)(jax.random.key(1))
    assert jax.tree.structure(new) == jax.tree.structure(parameters(name))
    assert plain(new)
    np.testing.assert_allclose(jax.jit(again.energy)(new, sys, listed(name, sys)), values(name, sys).energy, rtol=1e-12)


def test_float32_agrees_with_float64(name):
    """Within what rounding explains, with a margin of about ten.

    Coordinates of a few Å are rounded by 1e-7 Å, which changes energies by that times the forces; terms of the size of
    the largest energy are rounded by 6e-8 in each of up to a hundred operations; forces lose one more digit.
    """

    def single(tree):
        return jax.tree.map(lambda x: np.asarray(x, np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    sys = crystal(name)
    nbrs, params = listed(name, sys, extra=0.1), parameters(name)
    u, _, force, _ = values(name, sys, nbrs)
    u32, _, force32, _ = values(name, single(sys), nbrs, single(params))
    assert u32.dtype == force32.dtype == jnp.float32
    np.testing.assert_allclose(u32, u, atol=1e-5 * np.abs(u).max() + 1e-6 * np.abs(force).max())
    np.testing.assert_allclose(force32, force, atol=1e-4 * np.abs(force).max())
