"""Batches over devices: the same as ``vmap``, for every number of elements and size of batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.batching import any_together, default_batch_size, each, over_batches, within_memory
from bayespot.potentials.potential import strained
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.system import System


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


def test_half_as_many_until_memory_holds_them():
    tried = []

    def function(size, room=3, message="RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."):
        tried.append(size)
        if size > room:
            raise jax.errors.JaxRuntimeError(message)
        return jnp.asarray(size)

    assert within_memory(function, 20) == 3
    assert tried == [20, 10, 5, 3]
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"):
        within_memory(lambda size: function(size, room=0), 2)
    assert tried[4:] == [2, 1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        within_memory(lambda size: function(size, message="INTERNAL: no such thing"), 8)
    assert tried[6:] == [8]


@pytest.mark.parametrize("size", [1, 4])
def test_a_branch_of_one_is_a_branch_of_all(size, capfd):
    """The costly branch runs when an element of the batch is due, and only then; derivatives pass."""

    def costly(due, x):
        jax.debug.print("costly")
        return jnp.where(due, x**2, x)

    def choose(due, x):
        return jax.lax.cond(any_together(due), costly, lambda due, x: x, due, x)

    one = jax.jit(jax.value_and_grad(choose, argnums=1))  # as a step is compiled before many of them are batched
    function = jax.jit(partial(over_batches, lambda batch: each(one, size)(*batch), batch_size=size))
    x = jnp.arange(1.0, 5.0)
    for due in (np.zeros(4, bool), np.arange(4) == 2):
        value, slope = jax.block_until_ready(function((jnp.asarray(due), x)))
        jax.effects_barrier()
        np.testing.assert_array_equal(value, np.where(due, x**2, x))
        np.testing.assert_array_equal(slope, np.where(due, 2 * x, 1.0))
        assert ("costly" in capfd.readouterr().out) == due.any()


def precisions(function, *arguments) -> list[str]:
    """Of every matrix product of the traced function."""
    text = str(jax.make_jaxpr(function)(*arguments))
    return [p.split("[", 1)[1].split("precision=")[1].split("\n")[0] for p in text.split("dot_general")[1:]]


def test_matrix_products_keep_the_precision_of_their_arguments():
    """On an accelerator they do not by default, which is too little for energies and log densities."""
    x = jnp.ones((3, 4, 4), jnp.float32)

    def products(x):
        return over_batches(lambda batch: each(jax.grad(lambda y: (y @ y).sum()), 3)(batch), x, batch_size=3)

    assert set(precisions(products, x)) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    with jax.default_matmul_precision("tensorfloat32"):
        assert "HIGHEST" not in "".join(precisions(products, x))


@pytest.mark.parametrize("boxes", [1, 2])
def test_distances_and_strains_are_precise_wherever_they_are_evaluated(boxes):
    box = jnp.eye(3) if boxes == 1 else jnp.broadcast_to(jnp.eye(3), (2, 3, 3))
    system = System(jnp.ones((2, 3)), jnp.ones(2, jnp.int32), box)
    listed = Neighbors(jnp.ones((2, 1), jnp.int32), jnp.ones((2, 1, 3), jnp.int8))
    assert precisions(lambda s: displacements(s, listed), system) == []  # no matrix product, which may be imprecise
    if boxes == 1:
        assert set(precisions(strained, system, jnp.zeros((3, 3)))) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
