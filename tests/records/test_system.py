"""Masses of a system: those of the elements, or its own, from construction to ASE and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from bayespot.records.dataset import dataset
from bayespot.records.system import from_ase, masses, system, to_ase, without_padding


def test_masses_are_those_of_the_elements_unless_given():
    np.testing.assert_allclose(masses(system(np.zeros((3, 3)), [8, 1, 0])), [15.999, 1.008, 1.0])
    beads = system(np.zeros((3, 3)), [1, 118, 0], mass=[18.015, 72.0, 0.0])
    np.testing.assert_allclose(masses(beads), [18.015, 72.0, 1.0])
    assert system([[0, 0, 0]], [1], dtype=jnp.float32, mass=[2.0]).mass.dtype == jnp.float32


@pytest.mark.parametrize("mass", [[18.0], [18.0, -1.0], [18.0, 0.0], [18.0, np.nan], 18.0])
def test_wrong_masses_are_refused(mass):
    with pytest.raises(ValueError, match=r"one mass \[amu\]|positive and finite \[amu\]"):
        system(np.zeros((2, 3)), [1, 1], mass=mass)


def test_masses_go_through_ase():
    heavy = Atoms("OH2", np.eye(3))
    assert from_ase(heavy).mass is None
    assert not to_ase(from_ase(heavy)).has("masses")
    heavy.set_masses([15.999, 2.014, 2.014])
    np.testing.assert_array_equal(from_ase(heavy).mass, heavy.get_masses())
    np.testing.assert_array_equal(to_ase(from_ase(heavy)).get_masses(), heavy.get_masses())


def test_padding_is_left_out_with_its_mass():
    real = without_padding(system(np.eye(3), [8, 0, 1], mass=[16.0, 0.0, 2.0]))
    np.testing.assert_array_equal(real.mass, [16.0, 2.0])
    np.testing.assert_array_equal(real.position, np.eye(3)[[0, 2]])
    assert without_padding(system(np.eye(3), [8, 0, 1])).mass is None


def test_data_keep_masses_where_a_frame_has_its_own():
    plain, beads = system(np.eye(3)[:1], [8]), system(np.eye(3)[:2], [8, 1], mass=[18.0, 3.0])
    assert dataset([plain], 3.0).system.mass is None
    np.testing.assert_allclose(dataset([plain, beads], 3.0).system.mass, [[15.999, 0.0], [18.0, 3.0]])
