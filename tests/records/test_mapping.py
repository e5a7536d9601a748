"""Mappings to beads: positions across the box, and forces whose mean is that of the potential of mean force."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.records.dataset import dataset
from bayespot.records.mapping import (
    Mapping,
    bead_forces,
    bead_positions,
    centre_of_mass,
    coarse_grain,
    mapping,
    slices,
)
from bayespot.records.system import system

WATER = np.array([[0.0, 0.0, 0.0], [0.757, 0.587, 0.0], [-0.757, 0.587, 0.0]])
MASSES = [15.999, 1.008, 1.008]


def test_centre_of_mass_of_water_does_not_depend_on_its_images():
    rng = np.random.default_rng(0)
    box = np.array([[8.0, 0, 0], [1.5, 7.0, 0], [-1.0, 0.5, 9.0]])
    position = np.concatenate([WATER + shift for shift in rng.uniform(-9, 9, (4, 3))])
    expected = np.stack([np.average(m, axis=0, weights=MASSES) for m in position.reshape(4, 3, 3)])
    beads = centre_of_mass(np.arange(12).reshape(4, 3), MASSES * 4)
    np.testing.assert_allclose(beads.mass, [18.015] * 4)
    np.testing.assert_allclose(bead_positions(beads, position[None])[0], expected, rtol=1e-12)
    scattered = position + rng.integers(-2, 3, (12, 3)) * (np.arange(12) % 3 > 0)[:, None] @ box
    np.testing.assert_allclose(bead_positions(beads, scattered[None], box)[0], expected, atol=1e-12)


def test_the_first_atom_of_a_group_decides_where_its_bead_is():
    beads = centre_of_mass([[1, 0]], [1.0, 1.0])
    got = bead_positions(beads, [[[0.5, 0, 0], [9.5, 0, 0]]], [10.0] * 3)
    np.testing.assert_allclose(got, [[[10.0, 0, 0]]], atol=1e-12)


def test_net_force_is_conserved_and_labels_are_those_of_the_beads():
    rng = np.random.default_rng(1)
    position, forces = rng.uniform(0, 3, (5, 6, 3)), rng.normal(size=(5, 6, 3))
    beads = centre_of_mass([[0, 1, 2], [3, 4], [5]], [12.0, 1, 1, 16, 1, 14])
    data = coarse_grain(beads, position, forces, [30.0] * 3, species=[1, 2, 1], cutoff=4.0)
    np.testing.assert_allclose(data.forces.sum(1), forces.sum(1), atol=1e-12)
    np.testing.assert_allclose(data.forces[:, 1], forces[:, 3] + forces[:, 4])
    np.testing.assert_allclose(data.system.mass[0], [14.0, 17.0, 14.0])
    assert data.system.species[3].tolist() == [1, 2, 1]
    assert np.asarray(data.has_forces).all()
    assert not np.asarray(data.has_energy).any()


def test_data_keep_the_masks_of_their_labels():
    frames = [system(WATER + shift, [8, 1, 1], [9.0] * 3) for shift in range(2)]
    data = dataset(frames, 3.0, forces=[np.ones((3, 3)), None])
    mapped = coarse_grain(centre_of_mass([[0, 1, 2]], MASSES), data, species=[8], cutoff=3.0)
    assert mapped.has_forces.tolist() == [True, False]
    np.testing.assert_allclose(mapped.forces[0], [[3.0, 3, 3]])
    without = coarse_grain(slices([0], MASSES), data.system.position, species=[8], cutoff=3.0)
    assert not without.has_forces.any()
    assert jnp.abs(without.system.box).max() == 0


KT, SPRING, TRAP, FRAMES = 0.025, 3.0, 1.0, 20_000


def two_coupled_atoms():
    """Independent draws of two atoms in a trap, coupled by a spring, and the exact forces on them."""
    hessian = np.array([[TRAP + SPRING, -SPRING], [-SPRING, TRAP + SPRING]])
    factor = np.linalg.cholesky(KT * np.linalg.inv(hessian))
    position = np.einsum("ij,tjk->tik", factor, np.random.default_rng(2).normal(size=(FRAMES, 2, 3)))
    return position, -np.einsum("ij,tjk->tik", hessian, position), KT * np.linalg.inv(hessian)


def slope(beads: Mapping, position, forces) -> float:
    x = bead_positions(beads, position).ravel()
    f = np.stack([bead_forces(beads, one) for one in forces]).ravel()
    return (x @ f) / (x @ x)


@pytest.mark.parametrize(
    "weights", [[0.8, 0.2], *(pytest.param(w, marks=pytest.mark.slow) for w in ([0.5, 0.5], [1.0, 0.0]))]
)
def test_mean_force_is_that_of_the_coarse_grained_coordinate(weights):
    """The coordinate is Gaussian: its potential of mean force has the curvature kT/variance.

    The slope of 60 000 forces, which scatter by sqrt(kT k) ≈ 0.4 about the line, with coordinates of 0.1 has a
    standard error of about 0.01, 1 %; the bound is 5 %.
    """
    position, forces, covariance = two_coupled_atoms()
    exact = -KT / (np.array(weights) @ covariance @ weights)
    good = slices([0], [1.0, 1.0]) if weights[1] == 0 else centre_of_mass([[0, 1]], weights)
    np.testing.assert_allclose(slope(good, position, forces), exact, rtol=0.05)
    # What the check refuses has another mean force: that on the second atom alone.
    wrong = good._replace(force=slices([1], [1.0, 1.0]).force)
    assert abs(slope(wrong, position, forces) / exact - 1) > 0.2


def test_wrong_forces_are_refused_with_the_bead():
    with pytest.raises(ValueError, match=r"Got 0\.25 in place of 1 .* bead 1 .* Scale"):
        mapping(np.eye(2), np.diag([1.0, 0.25]), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"Got 1 in place of 0 .* forces of bead 0 and the position of bead 1"):
        slices([0, 1], [1.0] * 3, carried=[[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=r"Got 0 in place of 1 .* forces of bead 0 and the position of bead 0"):
        slices([0, 1], [1.0] * 3, carried=[[2], [1]])
    with pytest.raises(ValueError, match=r"in place of .* forces of bead"):
        centre_of_mass([[0, 1], [1, 2]], [1.0] * 3)


def test_constrained_atoms_are_carried_together():
    assert slices([0], [12.0, 1.0, 1.0], [[0, 1, 2]], [(0, 1), (0, 2)]).mass.tolist() == [14.0]
    with pytest.raises(ValueError, match=r"Bead 0 does not for the atoms \[0, 2\]"):
        slices([0], [12.0, 1.0, 1.0], [[0, 1]], [(0, 1), (0, 2)])
    with pytest.raises(ValueError, match="from 0 to 1"):
        centre_of_mass([[0, 1]], [1.0, 1.0], [(0, 2)])


def test_what_cannot_be_mapped_is_refused():
    one = centre_of_mass([[0, 1]], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"within half the box, 2 Å, .* Got 2 Å in bead 0"):
        bead_positions(one, [[[0.0, 0, 0], [2.0, 0, 0]]], [4.0] * 3)
    with pytest.raises(ValueError, match=r"forces \(M, 2, 3\)"):
        coarse_grain(one, np.zeros((3, 3, 3)), species=[1], cutoff=3.0)
    with pytest.raises(ValueError, match="sum to 1"):
        mapping([[0.5, 0.6]], [[1.0, 1.0]], [1.0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        centre_of_mass([[0, 2]], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive and finite"):
        mapping([[1.0]], [[1.0]], [0.0])
    with pytest.raises(ValueError, match="2 atoms of the mapping"):
        coarse_grain(
            one, dataset([system(np.eye(3)[:2], [8, 1]), system(np.ones((1, 3)), [8])], 3.0), species=[1], cutoff=3.0
        )
