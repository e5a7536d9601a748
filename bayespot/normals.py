r"""Standard normal numbers from JAX's keys, on a CPU three times as fast as ``jax.random.normal`` draws them.

Samplers draw one for each parameter in every step; where the gradient is cheap this is most of the step. The bits come
from the same generator, the blocks of which are all used here and unrolled, so that they are vectorised. Two numbers
:math:`u \in (0, 1]` and :math:`v \in [-\frac12, \frac12)` of a block become two normal ones,

.. math:: z_1 = \sqrt{-2 \ln u}\, \cos 2\pi v, \qquad z_2 = \sqrt{-2 \ln u}\, \sin 2\pi v,

with :math:`\cos 2\pi v = 1 - 2 \sin^2 \pi v` and :math:`\sin 2\pi v = 2 \sin \pi v \cos \pi v` from polynomials that
are right to 1.1e-7: XLA's sine has to serve large angles, too.

Reference:
    Salmon et al., *Proc. SC11*, doi:10.1145/2063384.2063405 (Threefry-2x32, 20 rounds); Box and Muller, *Ann. Math.
    Stat.* 29, 610 (1958).
"""

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.typing import Array, Float, Key

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
# sin(πv)/v and cos(πv) in powers of v², interpolated at Chebyshev points of [0, 1/4]
SINE = (3.1415927410125732, -5.167710304260254, 2.550077438354492, -0.598291277885437, 0.07765766233205795)
COSINE = (0.9999999403953552, -4.934792995452881, 4.058411121368408, -1.331876516342163, 0.21968960762023926)


def standard_normals(key: Key, size: int, dtype=jnp.float32) -> Float[Array, "size"]:
    """Independent standard normal numbers.

    In float32 with a key of JAX's default kind they have 24 random bits in the radius and 32 in the angle, and stay
    within ±5.77. Otherwise they are those of ``jax.random.normal``.

    Args:
        key: of any kind; not to be used for anything else.
        size: how many.
        dtype: a floating type.
    """
    if dtype != jnp.float32 or str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.normal(key, (size,), dtype)
    counter = jax.lax.iota(jnp.uint32, -(-size // 2))
    own = jax.random.key_data(jax.random.split(key, 1)[0])  # splitting marks the key as used, for those who check
    # Without the barriers XLA would merge the stages, and for every consumer again, into loops that are not vectorised.
    words = jax.lax.optimization_barrier(threefry(own, jnp.zeros_like(counter), counter))
    pair = jax.lax.optimization_barrier(_box_muller(*words))
    return jax.lax.optimization_barrier(jnp.concatenate(pair))[:size]


def threefry(key, high, low) -> tuple[Array, Array]:
    """Two random words of 32 bits for each counter of two words; ``key`` has two words, too."""
    schedule = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    high, low = high + schedule[0], low + schedule[1]
    for group in range(5):
        for shift in ROTATIONS[group % 2]:
            high = high + low
            low = ((low << np.uint32(shift)) | (low >> np.uint32(32 - shift))) ^ high
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return high, low


def _box_muller(radius, angle) -> tuple[Array, Array]:
    """Two normal numbers from two words. Only signed integers are converted quickly."""
    u = ((radius >> np.uint32(8)).astype(jnp.int32) + 1).astype(jnp.float32) * np.float32(2**-24)
    v = jax.lax.bitcast_convert_type(angle, jnp.int32).astype(jnp.float32) * np.float32(2**-32)
    r, square = jnp.sqrt(np.float32(-2) * jnp.log(u)), v * v
    sine, cosine = v * _polynomial(SINE, square), _polynomial(COSINE, square)
    twice = 2 * r * sine
    return r - twice * sine, twice * cosine


def _polynomial(coefficients: tuple[float, ...], x):
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + np.float32(c)
    return total
