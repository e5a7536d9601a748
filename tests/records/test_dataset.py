"""Data sets and neighbours: against ASE's neighbour list in skewed and small cells; padding, flattening, slicing."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from bayespot.records.dataset import Dataset, dataset, flatten, single, with_cutoff
from bayespot.records.neighbors import displacements, neighbors
from bayespot.records.system import System, from_ase, system, to_ase

CUTOFF = 4.2

compiled_displacements = jax.jit(displacements)


def frames() -> list[Atoms]:
    """Cells in which the minimum image fails, open and half-open ones, a lone atom, atoms outside the box."""
    rng = np.random.default_rng(0)
    small = bulk("Si")
    skewed = Atoms("Si3", rng.uniform(0, 4, (3, 3)), cell=[[4, 0, 0], [3.5, 3, 0], [-2, 2.5, 3.5]], pbc=True)
    slab = Atoms("SiGe", [[0, 0, 0], [1, 1, 2]], cell=[[3, 0, 0], [1, 3, 0], [0, 0, 9]], pbc=[True, True, False])
    wire = Atoms("Ge", [[0, 0, 0]], cell=[[0, 0, 0], [0, 0, 0], [0, 0, 2.3]], pbc=[False, False, True])
    molecule = Atoms("CH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]])
    lone = Atoms("Si", [[7, 8, 9]])
    outside = skewed.copy()
    outside.positions += np.array([[5, -9, 2], [0, 0, 0], [-3, 1, 7]]) @ np.array(outside.cell)
    far = small.copy()
    far.positions[1] += 300 * far.cell[2]
    return [small, skewed, slab, wire, molecule, lone, outside, far]


@cache
def labelled() -> Dataset:
    rng = np.random.default_rng(1)
    atoms = frames()
    return dataset(
        [from_ase(a) for a in atoms],
        CUTOFF,
        energy=[None if k == 1 else float(k) for k in range(len(atoms))],
        forces=[None if k == 2 else rng.normal(size=(len(a), 3)) for k, a in enumerate(atoms)],
        stress=[np.full((3, 3), k) if k == 0 else None for k in range(len(atoms))],
        group=["a", "b", "a", "b", "c", "c", "a", "a"],
    )


def sorted_rows(i, vectors) -> np.ndarray:
    """Atom and vector of every pair in an order that does not depend on the list."""
    rows = np.column_stack([i, np.round(vectors, 8) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


def found(sys, near) -> np.ndarray:
    vectors, mask = compiled_displacements(sys, near)
    i, k = np.nonzero(np.asarray(mask))
    return sorted_rows(i, np.asarray(vectors)[i, k])


@pytest.mark.parametrize("k", range(8))
def test_pairs_agree_with_ase(k):
    """Every pair with its vector, in the data set and for the single system, with and without spare capacity."""
    atoms = frames()[k]
    i, vectors = neighbor_list("iD", atoms, CUTOFF)
    expected = sorted_rows(i, vectors)
    data = labelled()
    np.testing.assert_allclose(found(*single(data, k)), expected, atol=2e-8)  # rounded to 1e-8
    one = from_ase(atoms)
    np.testing.assert_allclose(found(one, neighbors(one, CUTOFF)), expected, atol=2e-8)
    np.testing.assert_allclose(found(one, neighbors(one, CUTOFF, capacity=200)), expected, atol=2e-8)


def test_the_minimum_image_convention_would_fail_here():
    """The cells of these tests are hard: with one image per pair at most, neighbours would be missing."""
    near = neighbors(from_ase(frames()[1]), CUTOFF)
    counts = np.asarray((near.index < 3).sum(-1))
    assert (counts > 3).all()


def test_far_images_keep_their_shift():
    """300 lattice vectors away: a shift that one byte does not hold."""
    near = neighbors(from_ase(frames()[7]), CUTOFF)
    assert int(jnp.abs(near.shift).max()) >= 299


def test_neighbors_leave_padding_out():
    plain = from_ase(frames()[0])
    padded = System(
        jnp.concatenate([plain.position, jnp.zeros((2, 3))]),
        jnp.concatenate([plain.species, jnp.zeros(2, int)]),
        plain.box,
    )
    near = neighbors(padded, CUTOFF)
    assert (near.index[2:] == 4).all()
    np.testing.assert_array_equal(found(padded, near), found(plain, neighbors(plain, CUTOFF)))
    again = dataset([padded], CUTOFF, forces=[np.arange(12.0).reshape(4, 3)])
    assert again.system.position.shape == (1, 2, 3)
    assert again.forces[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    np.testing.assert_array_equal(found(*single(again, 0)), found(plain, neighbors(plain, CUTOFF)))


def test_capacity_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="but capacity is 3"):
        neighbors(from_ase(frames()[0]), CUTOFF, capacity=3)


def test_displacements_have_finite_gradients_at_padding():
    sys, near = single(labelled(), 5)  # the lone atom, all of whose neighbours are padding

    def total(position):
        vectors, mask = displacements(System(position, sys.species, sys.box), near)
        return jnp.where(mask, jnp.exp(-jnp.linalg.norm(vectors, axis=-1)), 0.0).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(sys.position)
    assert float(value) == 0.0
    assert not gradient.any()


def test_padding_and_masks():
    data = labelled()
    assert data.system.position.shape == (8, 5, 3)
    assert data.atom_counts.tolist() == [2, 3, 2, 1, 5, 1, 3, 2]
    assert data.species == (1, 6, 14, 32)
    assert data.has_energy.tolist() == [True, False] + [True] * 6
    assert data.has_forces.tolist() == [True, True, False] + [True] * 5
    assert data.has_stress.tolist() == [True] + [False] * 7
    assert data.energy.tolist() == [0, 0, 2, 3, 4, 5, 6, 7]
    padding = np.asarray(data.system.species) == 0
    assert not np.asarray(data.forces)[padding].any()
    assert not np.asarray(data.system.position)[padding].any()
    assert (np.asarray(data.neighbors.index)[padding] == 5).all()
    assert data.group_names == ("a", "b", "c")
    assert data.group.tolist() == [0, 1, 0, 1, 2, 2, 0, 0]


def test_indexing():
    data = labelled()
    assert len(data) == 8
    assert data[1:4].energy.tolist() == [0, 2, 3]
    assert data[np.array([3, 0])].frame.tolist() == [3, 0]
    assert data[np.asarray(data.group) == 2].frame.tolist() == [4, 5]
    assert [data[k].frame.tolist() for k in (0, 7, -1, -8)] == [[0], [7], [7], [0]]
    assert [int(one.frame[0]) for one in data] == list(range(8))
    for k in (8, -9):
        with pytest.raises(IndexError, match="8 frames"):
            data[k]


def test_with_cutoff_equals_a_fresh_data_set():
    data = labelled()
    fresh = dataset([from_ase(a) for a in frames()], 3.0)
    again = with_cutoff(data, 3.0)
    assert again.cutoff == 3.0
    for k in range(len(data)):
        np.testing.assert_array_equal(found(*single(again, k)), found(*single(fresh, k)))
    part = with_cutoff(data[2:4], 5.0)  # no frame fills the width of five atoms
    assert part.neighbors.index.shape[:2] == (2, 5)
    assert part.system.position.shape == (2, 5, 3)
    i, vectors = neighbor_list("iD", frames()[2], 5.0)
    np.testing.assert_allclose(found(*single(part, 0)), sorted_rows(i, vectors), atol=2e-8)


@pytest.mark.parametrize("spare", [0, 4])
def test_flatten_keeps_every_atom_and_pair(spare):
    data = labelled()
    order = np.array([4, 1, 3, 2])
    batch, capacity = data[order], 11 + spare
    graph = jax.jit(flatten, static_argnums=1)(batch, capacity)
    counts = data.atom_counts[order]
    starts = np.cumsum(counts) - counts
    assert graph.system.species.shape == (capacity,)
    assert np.bincount(graph.structure, minlength=5).tolist() == [*counts, spare]
    assert (np.asarray(graph.system.species) == 0).sum() == spare
    vectors, mask = compiled_displacements(graph.system, graph.neighbors)
    assert not np.asarray(mask)[11:].any()
    for b, k in enumerate(order):
        atoms = slice(starts[b], starts[b] + counts[b])
        np.testing.assert_array_equal(graph.system.position[atoms], data.system.position[k, : counts[b]])
        np.testing.assert_array_equal(graph.atom[atoms], b * 5 + np.arange(counts[b]))
        near = np.asarray(graph.neighbors.index)[atoms]
        inside = (near >= starts[b]) & (near < starts[b] + counts[b])
        assert (inside == np.asarray(mask)[atoms]).all()  # no pair crosses structures
        i, n = np.nonzero(np.asarray(mask)[atoms])
        rows = sorted_rows(i, np.asarray(vectors)[atoms][i, n])
        np.testing.assert_array_equal(rows, found(*single(data, k)))


def test_flatten_gathers_per_atom_labels():
    data = labelled()[:2]
    graph = jax.jit(flatten, static_argnums=1)(data, 7)
    forces = jnp.asarray(data.forces).reshape(-1, 3).at[graph.atom].get(mode="fill", fill_value=0)
    np.testing.assert_array_equal(forces[:5], np.concatenate([data.forces[0, :2], data.forces[1, :3]]))
    assert not forces[5:].any()


def test_bad_input_is_refused():
    one = [from_ase(frames()[0])]
    with pytest.raises(ValueError, match="at least one frame"):
        dataset([], 3.0)
    with pytest.raises(ValueError, match="cutoff must be positive"):
        dataset(one, 0.0)
    with pytest.raises(ValueError, match="cutoff must be positive"):
        with_cutoff(labelled(), -1.0)
    with pytest.raises(ValueError, match=r"one entry for each of the 1 systems.*'energy': 2"):
        dataset(one, 3.0, energy=[1.0, 2.0])
    with pytest.raises(ValueError, match="Frame 0: energy must be finite"):
        dataset(one, 3.0, energy=[np.nan])
    with pytest.raises(ValueError, match=r"Frame 0: forces must have the shape \(2, 3\). Got \(3,\)"):
        dataset(one, 3.0, forces=[np.ones(3)])
    with pytest.raises(ValueError, match=r"Frame 0: stress must have the shape \(3, 3\). Got \(6,\)"):
        dataset(one, 3.0, stress=[np.ones(6)])


def test_system_checks():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3,\)"):
        system(np.zeros((2, 3)), [14, 14, 14])
    with pytest.raises(ValueError, match="finite"):
        system([[0, 0, np.nan]], [14])
    with pytest.raises(ValueError, match="1 to 118"):
        system([[0, 0, 0]], [119])
    with pytest.raises(ValueError, match="linearly independent"):
        system([[0, 0, 0]], [14], [[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    assert system([[0, 0, 0]], [14], [2, 3, 4]).box.tolist() == [[2, 0, 0], [0, 3, 0], [0, 0, 4]]
    assert system([[0, 0, 0]], [14], dtype=jnp.float32).position.dtype == jnp.float32


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_round_trip_to_ase(k):
    atoms = frames()[k]
    back = to_ase(single(labelled(), k)[0])
    assert back.numbers.tolist() == atoms.numbers.tolist()
    assert back.pbc.tolist() == atoms.pbc.tolist()
    np.testing.assert_array_equal(back.positions, atoms.positions)
    np.testing.assert_array_equal(back.cell[atoms.pbc], atoms.cell[atoms.pbc])


def test_energies_too_large_for_float32_are_reported():
    one = from_ase(bulk("Si", cubic=True))
    with jax.enable_x64(False):
        dataset([one], 4.0, energy=[-8 * 5.4])
        with pytest.warns(RuntimeWarning, match=r"rounded by up to 0\.49 meV/atom in float32"):  # 2⁻⁸ eV over 8 atoms
            dataset([one], 4.0, energy=[-8 * 7880.0])
