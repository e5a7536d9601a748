"""Records and tree operations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.tree import all_finite, concatenate, length, noise, record, replace, stack, take
from bayespot.typing import Array, Float


@record(static=("name",))
class Point:
    """Two leaves and a static field."""

    x: Float[Array, "*n"]
    y: Float[Array, "*n"]
    name: str


def point(n=3, name="p") -> Point:
    return Point(jnp.arange(n, dtype=float), jnp.ones((n, 2)), name)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        point().x = 1


def test_round_trip_and_paths():
    leaves, structure = jax.tree.flatten(point())
    assert [x.shape for x in leaves] == [(3,), (3, 2)]
    back = jax.tree.unflatten(structure, leaves)
    assert type(back) is Point
    assert back.name == "p"
    assert [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(point())] == [".x", ".y"]


def test_static_fields_belong_to_the_structure():
    assert jax.tree.structure(point()) == jax.tree.structure(point())
    assert jax.tree.structure(point()) != jax.tree.structure(point(name="q"))
    traces = []
    f = jax.jit(lambda p: (traces.append(p.name), p.x)[1])
    for name in ("p", "p", "q"):
        f(point(name=name))
    assert traces == ["p", "q"]


def test_trees_of_anything_take_the_form():
    assert jax.tree.map(lambda x: x.shape, point()).x == (3,)
    assert jax.tree.map(lambda x: None, point()).y is None
    axes = Point(0, None, "p")
    out = jax.vmap(lambda p: p.x + p.y.sum(), in_axes=(axes,))(point())
    np.testing.assert_array_equal(out, np.arange(3) + 6.0)


def test_transformations_pass_through():
    gradient = jax.grad(lambda p: (p.x**2).sum() + p.y.sum())(point())
    np.testing.assert_array_equal(gradient.x, 2 * np.arange(3))
    assert gradient.name == "p"
    _, out = jax.lax.scan(lambda c, p: (c, replace(p, x=p.x + c)), 1.0, point())
    np.testing.assert_array_equal(out.x, np.arange(3) + 1)


def test_replace_leaves_the_original():
    one = point()
    two = replace(one, name="q")
    assert (one.name, two.name) == ("p", "q")
    assert two.x is one.x


def test_noise_is_standard_normal_and_independent(key):
    """200 000 numbers each: means have standard error 0.0022, variances 0.0032, the correlation 0.0022; 5 of each."""
    tree = {"a": jnp.zeros(200_000), "b": jnp.zeros((400, 500), jnp.float32), "c": ()}
    drawn = noise(key, tree)
    assert jax.tree.structure(drawn) == jax.tree.structure(tree)
    assert (drawn["a"].dtype, drawn["b"].dtype) == (jnp.float64, jnp.float32)
    for x in (drawn["a"], drawn["b"]):
        assert abs(float(x.mean())) < 0.011
        assert abs(float(x.var()) - 1) < 0.016
    assert abs(np.corrcoef(drawn["a"], drawn["b"].ravel())[0, 1]) < 0.011
    assert noise(jax.random.key(1), {}) == {}


def test_take_stack_concatenate():
    three = stack([point(), point(), point()])
    assert three.x.shape == (3, 3)
    assert take(three, 1).x.tolist() == [0, 1, 2]
    both = concatenate([point(2), point(3)])
    assert both.x.tolist() == [0, 1, 0, 1, 2]
    assert take(both, jnp.array([4, 0])).x.tolist() == [2, 0]


def test_length():
    assert length(point(5)) == 5
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        length({"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="share their leading axis"):
        length({})


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite(bad):
    tree = {"a": jnp.ones(3), "i": jnp.arange(3)}
    assert bool(jax.jit(all_finite)(tree))
    assert not bool(jax.jit(all_finite)({**tree, "b": jnp.array([1.0, bad])}))
    assert bool(all_finite({"i": jnp.arange(3)}))
    assert bool(all_finite({}))
