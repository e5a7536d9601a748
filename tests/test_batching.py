"""Batches over devices: the same as ``vmap``, for every number of elements and size of batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.batching import default_batch_size, over_batches


def work(batch, factor, shift):
    """Acts on a batch; each result depends on its own element only."""
    return {"sum": batch["x"].sum(-1) * factor + shift, "n": batch["n"] + 1}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_same_as_one_batch(n, batch_size):
    assert jax.device_count() == 2  # as the configuration of the tests asks for: both branches are taken
    tree = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(n, 4))), "n": jnp.arange(n)}
    out = jax.jit(over_batches, static_argnums=0, static_argnames="batch_size")(
        work, tree, 3.0, jnp.float64(0.5), batch_size=batch_size
    )
    expected = work(tree, 3.0, 0.5)
    assert out["n"].tolist() == expected["n"].tolist()
    np.testing.assert_allclose(out["sum"], expected["sum"], rtol=1e-14)


def test_same_as_vmap_with_keys():
    """Random numbers depend on the element's key alone, not on batches or devices."""

    def keys():
        return jax.random.split(jax.random.key(0), 5)

    def draw(key):
        return jax.random.normal(key, (3,))

    expected = jax.vmap(draw)(keys())
    for batch_size in (1, 2, 5):
        out = over_batches(lambda batch: jax.vmap(draw)(batch), keys(), batch_size=batch_size)
        np.testing.assert_array_equal(out, expected)


def test_function_sees_batches_of_the_given_size():
    shapes = []

    def function(batch):
        shapes.append(batch.shape)
        return batch

    over_batches(function, jnp.ones((7, 2)), batch_size=3)
    assert set(shapes) == {(3, 2)}


def test_gradient_passes():
    x = jnp.arange(5.0)
    gradient = jax.grad(lambda a: over_batches(lambda b, a: b**2 * a, x, a, batch_size=2).sum())(2.0)
    assert float(gradient) == pytest.approx(30.0)


def test_one_element_per_batch_on_a_cpu():
    assert default_batch_size(64) == 1
