"""Linear combinations of potentials against the single ones (invariances and derivatives are contract tests)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.combination import combination
from bayespot.potentials.potential import energy_and_forces
from bayespot.potentials.repulsion import repulsion
from bayespot.records.neighbors import neighbors
from bayespot.records.system import system
from bayespot.tree import replace

SYSTEM = system([[0, 0, 0], [2.1, 0, 0], [0, 2.3, 0.4]], [14, 8, 14])


def test_energies_and_forces_are_the_combination():
    plain = lennard_jones(sigma=2.0, epsilon=0.5, cutoff=5.0)
    nbrs = neighbors(SYSTEM, 5.0)
    members = {"sigma": jnp.array([1.9, 2.0, 2.2]), "epsilon": jnp.array([0.3, 0.5, 0.4])}
    coefficient = jnp.array([2.0, -1.5, 0.25])
    single = [jax.tree.map(lambda x, n=n: x[n], members) for n in range(3)]
    energy, force = zip(*[jax.jit(energy_and_forces(plain))(p, SYSTEM, nbrs) for p in single], strict=True)
    params = {"members": members, "coefficient": coefficient}
    got_energy, got_force = jax.jit(energy_and_forces(combination(plain, 3)))(params, SYSTEM, nbrs)
    np.testing.assert_allclose(got_energy, coefficient @ jnp.stack(energy), rtol=1e-12)
    np.testing.assert_allclose(got_force, jnp.tensordot(coefficient, jnp.stack(force), 1), rtol=1e-11, atol=1e-12)


def test_starts_as_the_mean_also_without_parameters():
    fixed = repulsion(cutoff=2.5)
    mean = combination(fixed, 4)
    params = mean.init(jax.random.key(0))
    np.testing.assert_allclose(params["coefficient"], 0.25)
    close = replace(SYSTEM, position=0.6 * SYSTEM.position)
    nbrs = neighbors(close, 2.5)
    expected = jax.jit(fixed.atom_energies)(fixed.init(jax.random.key(0)), close, nbrs)
    np.testing.assert_allclose(jax.jit(mean.atom_energies)(params, close, nbrs), expected, rtol=1e-12)
    assert np.abs(expected).max() > 1e-3


def test_needs_a_member():
    with pytest.raises(ValueError, match="members must be positive"):
        combination(repulsion(cutoff=2.0), 0)
