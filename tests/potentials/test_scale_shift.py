"""Scale and shift of energies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.potential import energy_and_forces
from bayespot.potentials.scale_shift import scale_shift
from bayespot.records.neighbors import neighbors
from bayespot.records.system import System, system


def test_energies_and_forces():
    plain = lennard_jones(sigma=2.0, epsilon=0.5, cutoff=5.0)
    shifted = scale_shift(plain, 3.0, {14: -5.0, 8: 1.5})
    params = plain.init(jax.random.key(0))
    sys = system([[0, 0, 0], [2.1, 0, 0], [0, 2.3, 0.4]], [14, 8, 14])
    nbrs = neighbors(sys, 5.0)
    energy, force = jax.jit(energy_and_forces(plain))(params, sys, nbrs)
    energy_shifted, force_shifted = jax.jit(energy_and_forces(shifted))(params, sys, nbrs)
    assert float(energy_shifted) == pytest.approx(3.0 * float(energy) - 5.0 + 1.5 - 5.0, rel=1e-13)
    np.testing.assert_allclose(force_shifted, 3.0 * force, rtol=1e-12)
    assert shifted.species == (8, 14)


def test_padding_is_not_shifted():
    shifted = scale_shift(lennard_jones(2.0, 0.5, 5.0), 1.0, {14: -5.0})
    sys = System(jnp.zeros((3, 3)), jnp.array([14, 0, 0]), jnp.zeros((3, 3)))
    u = jax.jit(shifted.atom_energies)(shifted.init(jax.random.key(0)), sys, neighbors(sys, 5.0))
    np.testing.assert_array_equal(u, [-5.0, 0.0, 0.0])


def test_a_pure_scale_keeps_all_species():
    assert scale_shift(lennard_jones(2.0, 0.5, 5.0), 0.1, {}).species == ()


@pytest.mark.parametrize(("scale", "shift", "message"), [(1.0, {8: 0.0}, "14"), (float("nan"), {14: 0.0}, "finite")])
def test_refuses(scale, shift, message):
    with pytest.raises(ValueError, match=message):
        scale_shift(stillinger_weber(14), scale, shift)
