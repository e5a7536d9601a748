"""Muon moves kernels along orthogonal matrices and everything else as Adam with Nesterov momentum does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bayespot as bp

PARAMS = {
    "kernel_0": jnp.zeros((2, 9, 5)),  # two species
    "kernel_1": jnp.zeros((2, 5, 1)),
    "bias_0": jnp.zeros((2, 1, 5)),
    "mixing": jnp.zeros((2, 4, 4)),
    "noise": jnp.zeros(()),
}


def updates(optimiser):
    gradient = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)
    return optimiser.update(gradient, optimiser.init(PARAMS), PARAMS)[0]


def test_kernels_move_along_orthogonal_matrices():
    moved = np.asarray(updates(bp.muon(1.0))["kernel_0"])
    singular = np.linalg.svd(moved, compute_uv=False)
    # five Newton–Schulz steps bring the singular values into about [0.7, 1.2]; sqrt(9/5) is optax's factor for shape
    assert singular.min() > 0.6
    assert singular.max() < 1.3 * (9 / 5) ** 0.5
    assert singular.max() / singular.min() < 1.8  # of the gradient itself: 5.8


@pytest.mark.parametrize("name", ["kernel_1", "bias_0", "mixing", "noise"])
def test_the_rest_moves_as_with_nadam(name):
    np.testing.assert_allclose(updates(bp.muon(0.08))[name], updates(optax.nadam(0.03))[name], rtol=1e-6)
    np.testing.assert_allclose(updates(bp.muon(0.08, 0.01))[name], updates(optax.nadam(0.01))[name], rtol=1e-6)


def test_schedules_are_followed():
    halved = bp.muon(lambda step: 0.5 ** (1 + step))
    expected, found = updates(bp.muon(0.5)), updates(halved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, found)
