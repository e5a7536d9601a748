"""The default potential as made from data: its invariants by hand, their standardisation, its constants."""

from itertools import combinations_with_replacement

import jax
import numpy as np
import pytest
from ase.build import bulk

from bayespot.potentials.build import build
from bayespot.potentials.classical import stillinger_weber
from bayespot.potentials.descriptor_mlp import descriptor_mlp, features, moments
from bayespot.potentials.teacher import label
from bayespot.records.dataset import dataset
from bayespot.records.neighbors import neighbors
from bayespot.records.statistics import force_scale
from bayespot.records.system import from_ase, system
from bayespot.tree import replace, take

CUTOFF, CHANNELS = 5.0, 8


@pytest.fixture(scope="module")
def data():
    teacher, frames = stillinger_weber(14), []
    for seed in range(6):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.1, seed=seed)
        frames.append(from_ase(atoms))
    return label(teacher, teacher.init(jax.random.key(0)), frames, CUTOFF)


def test_invariants_of_a_dimer():
    # with a single neighbour every scalar product of unit vectors is 1, and f_c(r) is all there is
    r = 2.4
    sys = system([[0, 0, 0], [r * 0.6, 0, r * 0.8]], [14, 14])
    x = np.arange(1, CHANNELS + 1) * np.pi * r / CUTOFF
    f = np.sqrt(2 / CUTOFF) * np.sin(x) / r * (1 - (r / CUTOFF) ** 2) ** 3
    pairs = np.outer(f, f)[np.triu_indices(CHANNELS)]
    expected = np.concatenate([f, np.tile(pairs, 3), np.tile(f**3, 3)])
    found = jax.jit(lambda *pair: features(*pair, (14,), None, CUTOFF, CHANNELS))(sys, neighbors(sys, CUTOFF))
    assert found.shape == (2, 140)
    np.testing.assert_allclose(found, np.tile(expected, (2, 1)), rtol=1e-10, atol=1e-12)


def test_moments_are_the_sums_of_outer_products_of_unit_vectors():
    """Components in the order of ``combinations_with_replacement``, which is the order of the module."""
    rng = np.random.default_rng(0)
    vectors, radial = rng.normal(size=(3, 5, 3)), rng.normal(size=(2, 3, 5))
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    for rank, found in enumerate(jax.jit(moments)(vectors, radial)):
        found = np.asarray(found)
        for m, axes in enumerate(combinations_with_replacement(range(3), rank)):
            expected = np.einsum("cnk,nk->cn", radial, np.prod(unit[..., list(axes)], axis=-1))
            np.testing.assert_allclose(found[:, m], expected, atol=1e-12)


def test_invariants_are_standardised_over_the_atoms(data):
    spec = descriptor_mlp(data).spec
    one = [take((data.system, data.neighbors), k) for k in range(len(data))]
    compiled = jax.jit(lambda *pair: features(*pair, (14,), None, CUTOFF, CHANNELS))
    raw = np.concatenate([compiled(*pair) for pair in one])
    scaled = (raw - np.array(spec["mean"])) / np.array(spec["std"])
    np.testing.assert_allclose(scaled.mean(0), 0.0, atol=1e-9)
    varied = raw.std(0) > 1e-6 * np.abs(raw).max()
    np.testing.assert_allclose(scaled.std(0)[varied], 1.0, rtol=1e-9)
    assert varied.sum() > 100


def test_constants_and_size(data):
    potential = descriptor_mlp(data)
    assert potential.spec["scale"] == pytest.approx(float(np.sqrt((np.asarray(data.forces) ** 2).mean())))
    assert potential.spec["shift"]["14"] == pytest.approx(float(np.asarray(data.energy).mean() / 8))
    params = jax.jit(potential.init)(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 140 * 64 + 64 + 64 * 64 + 64 + 64 + 1 < 60_000
    again = build(potential.spec)
    frame = take((data.system, data.neighbors), 0)
    both = [jax.jit(p.atom_energies)(params, *frame) for p in (again, potential)]
    np.testing.assert_array_equal(*both)


def test_data_without_energies_have_no_reference_energies(data):
    forces_only = replace(data, has_energy=np.zeros(len(data), bool))
    assert descriptor_mlp(forces_only, CUTOFF).spec["shift"] == {"14": 0.0}


def test_perfect_crystals_are_refused():
    crystal = from_ase(bulk("Si", cubic=True))
    data = dataset([crystal], CUTOFF, energy=[-34.7], forces=[np.zeros((8, 3))])
    with pytest.raises(ValueError, match="displace atoms"):
        descriptor_mlp(data)
    with pytest.raises(ValueError, match="needs frames with forces"):
        force_scale(dataset([crystal], CUTOFF, energy=[-34.7]))
