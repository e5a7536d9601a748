"""Records (frozen dataclasses that are pytrees) and the few tree operations that every floor needs."""

import dataclasses
from collections.abc import Iterable
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bayespot.normals import standard_normals
from bayespot.typing import Array, Key, PyTree


def _set(self: object, names: tuple[str, ...], values) -> None:
    for name, value in zip(names, values, strict=True):
        object.__setattr__(self, name, value)


@dataclass_transform(frozen_default=True)
def record(cls: type | None = None, *, static: tuple[str, ...] = ()) -> Any:
    """Class decorator: a frozen dataclass that is a pytree.

    ``static`` fields must be hashable and become part of the tree structure. Unflattening bypasses
    ``__init__``, so that trees of anything (``None``, axes, shapes) can take the record's form; records therefore
    hold no validation, checking constructors are functions.
    """
    return _registered(cls, static) if cls is not None else lambda c: _registered(c, static)


def _registered(plain: type, static: tuple[str, ...]) -> type:
    cls = dataclasses.dataclass(frozen=True, repr=plain.__repr__ is object.__repr__, eq=False)(plain)
    fields = tuple(f.name for f in dataclasses.fields(cls))
    data, meta = tuple(f for f in fields if f not in static), tuple(static)

    def flatten_with_keys(self):
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in data)
        return children, tuple(getattr(self, n) for n in meta)

    def flatten(self):
        return tuple(getattr(self, n) for n in data), tuple(getattr(self, n) for n in meta)

    def unflatten(aux, children):
        self = object.__new__(cls)
        _set(self, data, children)
        _set(self, meta, aux)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def replace[T](instance: T, **changes: Any) -> T:
    """A copy of a record with some fields changed."""
    return dataclasses.replace(instance, **changes)  # pyright: ignore[reportArgumentType]


def noise(key: Key, tree: PyTree) -> PyTree:
    """Standard normal noise of a tree's structure, drawn in the widest precision of its leaves.

    From one draw, because each takes its time to compile.
    """
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
        return tree
    ends = list(accumulate(x.size for x in leaves))
    drawn = standard_normals(key, ends[-1], jnp.result_type(*leaves))
    parts = zip(jnp.split(drawn, ends[:-1]), leaves, strict=True)
    return jax.tree.unflatten(structure, [z.reshape(x.shape).astype(x.dtype) for z, x in parts])


def name_of(path) -> str:
    """Place of a leaf in its tree as text, e.g. ``"potential/1/kernel_0"``."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)


def _on_host(*arrays) -> bool:
    """Whether these are numbers in the memory of a CPU: what NumPy does with them takes no compilation."""
    return all(
        isinstance(x, jax.Array)
        and not isinstance(x, Tracer)
        and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        and all(device.platform == "cpu" for device in x.devices())
        for x in arrays
    )


def take(tree: PyTree, index) -> PyTree:
    """Index the leading axis of every leaf."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(index)):
        return jax.tree.map(lambda x: x[index], tree)
    rows = np.asarray(index) if isinstance(index, jax.Array) else index
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[rows]) if _on_host(x) else x[index], tree)


def stack(trees) -> PyTree:
    """Stack trees along a new leading axis."""
    return jax.tree.map(lambda *xs: _joined(np.stack, jnp.stack, xs), *trees)


def concatenate(trees) -> PyTree:
    """Concatenate trees along the leading axis."""
    return jax.tree.map(lambda *xs: _joined(np.concatenate, jnp.concatenate, xs), *trees)


def _joined(host, device, arrays):
    if _on_host(*arrays) and len({x.dtype for x in arrays}) == 1:
        return jax.device_put(host([np.asarray(x) for x in arrays]))
    return device(arrays)


def total(terms: Iterable[Array]) -> Array:
    """Sum of arrays, at least one."""
    return reduce(add, terms)


def length(tree: PyTree) -> int:
    """Length of the leading axis, which all leaves share."""
    sizes = {x.shape[0] for x in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"All leaves must share their leading axis. Got lengths {sorted(sizes)}.")
    return sizes.pop()


def all_finite(tree: PyTree) -> jax.Array:
    """True where every number of the tree is finite; scalar boolean, traceable."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)
