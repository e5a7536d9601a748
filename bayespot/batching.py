"""One loop over samples, chains or replicas: sequential in small batches, spread over the devices there are.

On a CPU a batch of one needs least memory and keeps ``cond`` a branch; on an accelerator the batch should fill the
machine.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from bayespot.tree import length, take
from bayespot.typing import Array, PyTree

TOGETHER = "together"  # axis of the elements of one batch


def default_batch_size(number: int) -> int:
    """1 on a CPU; all of ``number``, shared among the devices, on an accelerator: where to begin ``within_memory``."""
    return 1 if jax.default_backend() == "cpu" else -(-number // jax.device_count())


def within_memory[T](function: Callable[[int], T], size: int) -> T:
    """``function(size)``; while the device's memory does not hold so many at once, with half as many (host).

    Args:
        function: takes a batch size, and begins anew with every call.
        size: what it is called with first.
    """
    while True:
        try:
            return jax.block_until_ready(function(size))
        except jax.errors.JaxRuntimeError as error:
            if size == 1 or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = -(-size // 2)


def each(function: Callable, size: int) -> Callable:
    """``function`` over the leading axis of ``size`` elements; no ``vmap`` for a single one, which would turn ``cond``
    into a selection that computes both branches."""
    if size > 1:
        return jax.vmap(function, axis_name=TOGETHER)
    return lambda *args: jax.tree.map(lambda x: x[None], function(*take(args, 0)))


def any_together(due: Array) -> Array:
    """Whether any of the elements that ``each`` treats together is due: a condition that all of them share.

    ``vmap`` turns a ``cond`` whose condition differs between elements into a selection that computes both branches,
    every time. With this one it stays a branch; what it does must be right for those, too, that are not due themselves.
    """
    try:
        return jax.lax.pmax(due.astype(jnp.int32), TOGETHER) > 0
    except NameError:  # not in a batch
        return due


def precise(function: Callable) -> Callable:
    """The function with matrix products in the precision of their arguments, wherever it runs.

    An accelerator shortens the mantissa of float32 by default, to 10 bits on recent GPUs: too short for energies,
    distances and log densities. Setting ``jax_default_matmul_precision`` overrules.
    """

    def full(*arguments):
        with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "highest"):
            return function(*arguments)

    return full


def over_batches(function: Callable, tree: PyTree, *shared, batch_size: int) -> PyTree:
    """Apply ``function(batch, *shared)`` to consecutive batches of the leading axis; traceable, and ``precise``.

    Args:
        function: takes ``batch_size`` elements along the leading axis and returns as many.
        tree: ``n`` elements along the leading axis; a last, incomplete batch is filled with copies of the last
            element, whose results are dropped.
        shared: arguments without that axis, the same for every batch.
        batch_size: elements per call; batches run one after another on every device.

    Returns:
        ``n`` results along the leading axis, independent of the number of devices.
    """
    n = length(tree)
    devices = min(jax.device_count(), -(-n // batch_size))
    total = -(-n // (batch_size * devices)) * batch_size * devices

    def split(x):
        index = jnp.minimum(jnp.arange(total), n - 1)
        return x[index].reshape(total // batch_size, batch_size, *x.shape[1:])

    def run(batches, shared):
        return jax.lax.map(lambda batch: precise(function)(batch, *shared), batches)

    if devices > 1:
        mesh = Mesh(jax.devices()[:devices], ("batch",))
        spread, everywhere = PartitionSpec("batch"), PartitionSpec()
        run = jax.shard_map(run, mesh=mesh, in_specs=(spread, everywhere), out_specs=spread, check_vma=False)
    out = run(jax.tree.map(split, tree), shared)
    return jax.tree.map(lambda x: x.reshape(total, *x.shape[2:])[:n], out)
