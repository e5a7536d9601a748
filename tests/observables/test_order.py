"""Coordination number and tetrahedral order against crystals, random gases and neighbours counted by ASE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list

from bayespot.observables.observable import observe
from bayespot.observables.structure import coordination, tetrahedral_order
from bayespot.records.system import System, from_ase
from bayespot.records.trajectory import Frame, Trajectory

WATER = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def run_of(positions, species, box) -> Trajectory:
    """Frames of one box, in the memory of the host."""
    t, n = positions.shape[:2]
    system = System(np.asarray(positions), np.tile(np.int32(species), (t, 1)), np.tile(np.float64(box), (t, 1, 1)))
    frames = Frame(system, np.zeros((t, n, 3)), np.zeros(t), np.zeros((t, 3, 3)))
    return Trajectory(frames, np.arange(t) * 1.0, np.array(0), np.array(float(t)))


def value(observable, run):
    return np.asarray(observe(observable, run, blocks=1).value[0, 0])


def crystal(atoms) -> Trajectory:
    one = from_ase(atoms)
    return run_of(np.asarray(one.position)[None], one.species, one.box)


def skewed():
    """A rattled salt in a skewed cell, smaller than the distances asked for."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.4, 0], [0, 1.1, -0.3], [0, 0, 0.8]]), scale_atoms=True)
    atoms.rattle(0.4, seed=3)
    return atoms


@pytest.mark.parametrize("copies", [1, 2])
def test_coordination_of_diamond_counts_the_shells_even_in_the_primitive_cell(copies):
    run = crystal(bulk("Si", "diamond", a=5.43).repeat(copies))
    assert value(coordination(5.6), run) == pytest.approx(4 + 12 + 12 + 6, rel=1e-12)


def test_coordination_is_around_the_first_species():
    water = run_of(WATER[None], [8, 1, 1], np.zeros((3, 3)))
    assert value(coordination(1.2, (8, 1)), water) == pytest.approx(2, rel=1e-12)
    assert value(coordination(1.2, (1, 8)), water) == pytest.approx(1, rel=1e-12)
    assert value(coordination(1.2, (1, 1)), water) == 0


def test_coordination_agrees_with_neighbours_counted_by_ase():
    atoms, cutoff = skewed(), 5.5
    i, j = neighbor_list("ij", atoms, cutoff)
    both = (atoms.numbers[i] == 11) & (atoms.numbers[j] == 17)
    assert value(coordination(cutoff), crystal(atoms)) == pytest.approx(len(i) / len(atoms), rel=1e-12)
    assert value(coordination(cutoff, (11, 17)), crystal(atoms)) == pytest.approx(both.sum() / 4, rel=1e-12)


@pytest.mark.parametrize("copies", [1, 2])
def test_tetrahedral_order_of_diamond_is_one_even_in_the_primitive_cell(copies):
    run = crystal(bulk("Si", "diamond", a=5.43).repeat(copies))
    assert value(tetrahedral_order(), run) == pytest.approx(1.0, abs=1e-12)


def test_tetrahedral_order_of_a_square_lattice_in_a_box_with_an_open_direction():
    """Two straight and four right angles: 1 − 3/8 (2 · 4/9 + 4 · 1/9) = 1/2, all neighbours images of one atom."""
    run = run_of(np.zeros((1, 1, 3)), [6], np.diag([2.0, 2.0, 0.0]))
    assert value(tetrahedral_order(), run) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("species", [None, 17])
def test_tetrahedral_order_agrees_with_a_plain_loop(species):
    atoms = skewed()
    i, j, d, v = neighbor_list("ijdD", atoms, 12.0)
    orders = []
    for centre in np.flatnonzero(atoms.numbers > 0 if species is None else atoms.numbers == species):
        around = np.flatnonzero((i == centre) & (species is None or atoms.numbers[j] == species))
        four = v[around[np.argsort(d[around])[:4]]]
        four /= np.linalg.norm(four, axis=1)[:, None]
        orders.append(1 - 3 / 8 * sum((four[a] @ four[b] + 1 / 3) ** 2 for a in range(4) for b in range(a)))
    assert value(tetrahedral_order(species), crystal(atoms)) == pytest.approx(np.mean(orders), rel=1e-11)


def test_tetrahedral_order_of_an_ideal_gas_is_zero():
    parts, frames, atoms, edge = 25, 16, 30, 10.0
    position = np.random.default_rng(0).uniform(0, edge, (parts, frames, atoms, 3))
    runs = [run_of(x, [18] * atoms, edge * np.eye(3)) for x in position]
    together = jax.tree.map(lambda *x: np.stack(x)[:, None], *runs)
    order = np.asarray(observe(tetrahedral_order(), together, blocks=1).value[:, 0])
    error = order.std(ddof=1) / np.sqrt(parts)
    # Independent runs: Student's t of 24 degrees of freedom beyond 4.5 has a chance of 1.5e-4, and the seed is fixed.
    assert error < 0.01
    assert abs(order.mean()) < 4.5 * error


def test_without_preparation_neighbours_beyond_half_the_box_give_nan():
    small, large = (crystal(bulk("Si", "diamond", a=5.43).repeat(n)).frames for n in (1, 2))
    for observable in (coordination(2.4), tetrahedral_order()):
        values = [
            jax.jit(observable.frame)(jax.tree.map(lambda x: jnp.asarray(x)[0], frames)) for frames in (small, large)
        ]
        assert np.isnan(values[0])
        assert np.isfinite(values[1])


def test_what_is_missing_is_refused():
    water = run_of(WATER[None], [8, 1, 1], np.zeros((3, 3)))
    with pytest.raises(ValueError, match="cutoff > 0"):
        coordination(0.0)
    with pytest.raises(ValueError, match=r"species \[14\]"):
        observe(coordination(2.0, (8, 14)), water, blocks=1)
    with pytest.raises(ValueError, match=r"species \[14\]"):
        observe(tetrahedral_order(14), water, blocks=1)
    with pytest.raises(ValueError, match="four other atoms"):
        observe(tetrahedral_order(), water, blocks=1)
