"""Normal numbers: the generator against its published answers and JAX's, the transform against float64, the law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.normals import _box_muller, standard_normals, threefry


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_words_are_the_published_ones(key, counter, answer):
    """Known answers that come with Random123 for threefry2x32 with 20 rounds."""
    words = threefry(np.array(key, np.uint32), *(jnp.asarray([c], jnp.uint32) for c in counter))
    assert tuple(int(w[0]) for w in words) == answer


def test_words_are_those_of_jax():
    key, counter = jax.random.key(5), jnp.arange(1000, dtype=jnp.uint32)
    high, low = threefry(jax.random.key_data(key), jnp.zeros_like(counter), counter)
    with jax.threefry_partitionable(True):
        assert jnp.array_equal(high ^ low, jax.random.bits(key, (1000,), jnp.uint32))


def test_the_transform_against_double_precision():
    radius, angle = jax.random.bits(jax.random.key(0), (2, 100_000), jnp.uint32)
    ends = jnp.array([0, 255, 256, 2**31 - 1, 2**31, 2**32 - 1], jnp.uint32)
    radius, angle = (jnp.concatenate([x, *pair]) for x, pair in ((radius, (ends, ends)), (angle, (ends, ends[::-1]))))
    u = (np.asarray(radius, np.uint64) // 256 + 1) / 2**24
    v = np.asarray(angle).view(np.int32) / 2**32
    r = np.sqrt(-2 * np.log(u))
    exactly = r * np.cos(2 * np.pi * v), r * np.sin(2 * np.pi * v)
    for found, exact in zip(_box_muller(radius, angle), exactly, strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, exact, atol=2e-6)


def test_moments_distribution_and_independence():
    """Two million numbers; each moment within four standard errors, the tests of the law at a level of 1e-3."""
    z = np.asarray(standard_normals(jax.random.key(1), 2_000_000), float)
    for power, exact in enumerate((0, 1, 0, 3, 0, 15), 1):
        assert abs((z**power).mean() - exact) < 4 * (z**power).std() / len(z) ** 0.5
    assert stats.kstest(z, "norm").pvalue > 1e-3
    first, second = z[: len(z) // 2], z[len(z) // 2 :]  # the halves of the blocks
    for a, b in ((first, second), (first**2, second**2), (z[:-1], z[1:]), (z[:-1] ** 2, z[1:] ** 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / len(a) ** 0.5
    other = np.asarray(standard_normals(jax.random.key(2), len(z)), float)
    assert abs(np.corrcoef(z, other)[0, 1]) < 4 / len(z) ** 0.5


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_any_number_of_them_under_vmap(size):
    keys = jax.random.split(jax.random.key(3), 4)
    many = jax.jit(jax.vmap(lambda key: standard_normals(key, size)))(keys)
    assert many.shape == (4, size)
    assert many.dtype == jnp.float32
    for key, row in zip(keys, many, strict=True):
        np.testing.assert_array_equal(row, standard_normals(jax.random.clone(key), size))


def test_other_keys_and_types_are_drawn_by_jax():
    for key, dtype in ((jax.random.key(0, impl="rbg"), jnp.float32), (jax.random.key(0), jnp.float64)):
        drawn = standard_normals(key, 5, dtype)
        assert drawn.dtype == dtype
        np.testing.assert_array_equal(drawn, jax.random.normal(jax.random.clone(key), (5,), dtype))


def test_they_are_made_the_fast_way():
    key, counter = jax.random.key(4), jnp.arange(50, dtype=jnp.uint32)
    own = jax.random.key_data(jax.random.split(jax.random.clone(key), 1)[0])
    pair = _box_muller(*threefry(own, jnp.zeros_like(counter), counter))
    np.testing.assert_allclose(standard_normals(key, 99), jnp.concatenate(pair)[:99], atol=1e-5)


def test_a_key_that_serves_twice_is_noticed():
    key = jax.random.key(5)
    standard_normals(key, 4)
    with pytest.raises(jax.errors.KeyReuseError):
        standard_normals(key, 4)
