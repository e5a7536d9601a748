"""The neighbour list of simulations against vesin, in every kind of cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule

from bayespot.potentials.neighbor_list import larger, neighbor_list
from bayespot.records.neighbors import displacements, neighbors
from bayespot.records.system import from_ase, heights, system
from bayespot.tree import replace

SKIN = 0.5

compiled_displacements = jax.jit(displacements)


def silicon(repeat, skew=None):
    atoms = bulk("Si", cubic=True) * ((repeat,) * 3)
    if skew is not None:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + skew), scale_atoms=True)
    atoms.rattle(0.15, seed=1)
    return from_ase(atoms)


def primitive():
    atoms = bulk("Si")
    atoms.rattle(0.1, seed=4)
    return from_ase(atoms)


def slab():
    atoms = bulk("Si", cubic=True) * (1, 2, 1)
    atoms.set_pbc([True, True, False])
    atoms.rattle(0.1, seed=2)
    return from_ase(atoms)


def gas(box, n=2000):
    x = np.random.default_rng(0).random((n, 3)) @ box
    return system(x, np.full(n, 18), box)


SKEW = np.array([[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [-0.4, 0.6, 0.0]])
CASES = {
    "cubic": (silicon(2), 4.0),
    "twice the reach exceeds the cell": (silicon(2), 5.0),
    "skewed": (silicon(2, SKEW), 4.2),
    "tiny": (silicon(1), 4.0),
    "tiny, far": (silicon(1, SKEW), 8.0),
    "primitive": (primitive(), 5.0),
    "molecule": (from_ase(molecule("C2H6")), 3.0),
    "slab": (slab(), 5.0),
    "grid": (gas(np.diag([30.0, 33.0, 28.0])), 2.5),
    "grid, skewed": (gas(np.diag([30.0, 33.0, 28.0]) @ (np.eye(3) + 0.5 * SKEW)), 2.5),
    "grid, open": (gas(np.diag([30.0, 33.0, 0.0]) + np.outer([0, 0, 1], [0, 0, 28.0])), 2.5),
}


def found(sys, listed) -> set:
    """Pairs as (i, j, vector), which do not depend on how the positions are wrapped."""
    vectors, mask = compiled_displacements(sys, listed)
    i, k = np.nonzero(np.asarray(mask))
    j, d = np.asarray(listed.index)[i, k], np.round(np.asarray(vectors, float)[i, k], 3) + 0.0
    assert len(i) == len(set(zip(i, j, map(tuple, d), strict=True)))
    return set(zip(i.tolist(), j.tolist(), map(tuple, d.tolist()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_vesin_for_unwrapped_atoms(case):
    sys, cutoff = CASES[case]
    made = neighbor_list(sys, cutoff, SKIN)
    assert (made.capacity[1] > 0) == case.startswith("grid")
    cells = np.random.default_rng(3).integers(-4, 5, sys.position.shape)
    away = replace(sys, position=sys.position + cells @ sys.box)
    listed, needed = jax.jit(made.update)(away)
    assert (np.asarray(needed) <= made.capacity).all()
    reference = neighbors(sys, cutoff + SKIN)
    assert int(needed[0]) == int((reference.index < len(sys.species)).sum(1).max())
    assert found(away, listed) == found(sys, reference)


@pytest.mark.parametrize("case", ["cubic", "tiny", "slab", "grid"])
def test_holds_all_pairs_until_half_the_skin(case):
    sys, cutoff = CASES[case]
    made = neighbor_list(sys, cutoff, SKIN)
    listed, _ = jax.jit(made.update)(sys)
    direction = np.random.default_rng(5).normal(size=sys.position.shape)
    step = 0.5 * SKIN * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    moved = replace(sys, position=sys.position + step)
    assert found(moved, neighbors(moved, cutoff)) <= found(moved, listed)


@pytest.mark.parametrize("case", ["cubic", "grid"])
def test_overflow_is_flagged_and_larger_is_enough(case):
    sys, cutoff = CASES[case]
    right = neighbor_list(sys, cutoff, SKIN)
    exact, true = jax.tree.map(np.asarray, jax.jit(right.update)(sys))
    for number in range(2 if true[1] else 1):
        capacity = list(right.capacity)
        capacity[number] = int(true[number]) - 1
        short = neighbor_list(sys, cutoff, SKIN, tuple(capacity))
        needed = np.asarray(jax.jit(short.update)(sys)[1])
        assert needed[number] == true[number] > short.capacity[number]
        again = neighbor_list(sys, cutoff, SKIN, larger(short.capacity, needed))
        listed, needed = jax.jit(again.update)(sys)
        assert (np.asarray(needed) <= again.capacity).all()
        assert found(sys, listed) == found(sys, exact)


@pytest.mark.slow
def test_a_list_of_nearly_all_candidates_holds_them_all_and_cannot_overflow():
    rng = np.random.default_rng(5)
    sys = system(rng.uniform(size=(40, 3)) * 9.0, [6] * 40, 9.0 * np.eye(3))
    exact = neighbors(sys, 6.0)
    images = neighbor_list(sys, 6.0, 0.0).update(sys)[0]
    asked = int(np.ceil(neighbor_list(sys, 6.0, 0.0, (10**6, 0)).capacity[0] / 1.1))
    assert found(sys, images) == found(sys, exact)
    complete = neighbor_list(sys, 6.0, 0.0, (asked, 0))
    assert complete.capacity[0] > asked
    listed, needed = jax.jit(complete.update)(sys)
    assert found(sys, listed) == found(sys, exact)
    assert needed[0] <= asked


def test_padding_and_lost_atoms_are_nobodys_neighbours():
    sys, cutoff = CASES["cubic"]
    padded = replace(
        sys,
        position=jnp.concatenate([sys.position, jnp.zeros((2, 3))]),
        species=jnp.concatenate([sys.species, jnp.zeros(2, sys.species.dtype)]),
    )
    listed, _ = jax.jit(neighbor_list(padded, cutoff, SKIN).update)(padded)
    assert found(padded, listed) == found(sys, neighbors(sys, cutoff + SKIN))
    lost = replace(sys, position=sys.position.at[7].set(jnp.nan))
    listed, needed = jax.jit(neighbor_list(sys, cutoff, SKIN).update)(lost)
    assert not (np.asarray(listed.index) == 7).any()
    assert int(needed[0]) <= int((neighbors(sys, cutoff + SKIN).index < 64).sum(1).max())


def test_float32_keeps_its_type_and_finds_the_same():
    sys, cutoff = CASES["skewed"]
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, sys)
    listed, _ = jax.jit(neighbor_list(single, cutoff, SKIN).update)(single)
    assert compiled_displacements(single, listed)[0].dtype == jnp.float32
    pairs = {(i, j) for i, j, _ in found(single, listed)}
    assert pairs == {(i, j) for i, j, _ in found(sys, neighbors(sys, cutoff + SKIN))}


def test_heights_are_distances_between_faces():
    box = np.array([[4.0, 0, 0], [3.0, 5.0, 0], [0, 0, 0]])
    # area of the face's parallelogram over its base: 20 / |b| and 20 / |a|
    np.testing.assert_allclose(heights(box), [20 / np.hypot(3, 5), 5.0, np.inf], rtol=1e-12)


def test_refuses_a_reach_that_is_not_positive():
    with pytest.raises(ValueError, match="cutoff must be positive"):
        neighbor_list(CASES["tiny"][0], 0.0)
