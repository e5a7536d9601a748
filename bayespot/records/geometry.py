"""Distances, angles and dihedrals from displacement vectors, in open and periodic boxes; traceable and differentiable.

Where a gradient does not exist (atoms on one line, or on one place) it is 0 in place of NaN.
"""

import jax
import jax.numpy as jnp

from bayespot.typing import Array, Float

_DEGENERATE = 1e-12


def minimum_image(vectors: Float[Array, "... 3"], box: Float[Array, "... 3 3"]) -> Float[Array, "... 3"]:
    """Displacements [Å] moved by lattice vectors into the cell centred at zero; open directions stay as they are.

    Of vectors shorter than half the distance between opposite faces of the box it finds the shortest image.
    """
    image = jnp.round(jnp.einsum("...x,...xy->...y", vectors, _inverse(box), precision="highest"))
    return vectors - jnp.einsum("...x,...xy->...y", image, box, precision="highest")


def _inverse(box: Float[Array, "... 3 3"]) -> Float[Array, "... 3 3"]:
    """Matrix that turns Cartesian rows into fractional ones, 0 for open directions, without derivative.

    By Gram's matrix, which is invertible as soon as open directions have a one on the diagonal; a pseudo-inverse takes
    a singular value decomposition, which accelerators are slow at.
    """
    h = jax.lax.stop_gradient(box)
    open_ = (jnp.abs(h).sum(-1) == 0).astype(h.dtype)
    gram = jnp.einsum("...ax,...bx->...ab", h, h, precision="highest") + open_[..., None] * jnp.eye(3, dtype=h.dtype)
    faces = jnp.cross(jnp.roll(gram, -1, -2), jnp.roll(gram, -2, -2))
    inverse = faces.swapaxes(-1, -2) / (gram[..., 0, :] * faces[..., 0, :]).sum(-1)[..., None, None]
    return jnp.einsum("...ax,...ab->...xb", h, inverse, precision="highest")


def length(vector: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Lengths of vectors [Å]."""
    square = (vector**2).sum(-1)
    none = square == 0  # not so NaN, which stays what it is
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, square)))


def angle_between(a: Float[Array, "... 3"], b: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Angles between vectors [rad], from 0 to π; precise near both ends, where the arc cosine is not."""
    return jnp.arctan2(*_guarded(length(jnp.cross(a, b)), (a * b).sum(-1)))


def dihedral_of(
    first: Float[Array, "... 3"], second: Float[Array, "... 3"], third: Float[Array, "... 3"]
) -> Float[Array, "..."]:
    r"""Dihedral angles [rad] of three consecutive bond vectors, from −π to π,

    .. math:: \varphi = \mathrm{atan2}\big[\, |b_2|\; b_1 \cdot (b_2 \times b_3),\;
              (b_1 \times b_2) \cdot (b_2 \times b_3) \,\big] .

    Positive where the far bond is turned clockwise from the near one (IUPAC); 0 is cis, ±π is trans.
    """
    left, right = jnp.cross(first, second), jnp.cross(second, third)
    return jnp.arctan2(*_guarded(length(second) * (first * right).sum(-1), (left * right).sum(-1)))


def _guarded(y: Array, x: Array) -> tuple[Array, Array]:
    """Sine and cosine times a common factor; the angle 0, without gradient, where both vanish."""
    undefined = x * x + y * y <= _DEGENERATE  # not so NaN, which stays what it is
    return jnp.where(undefined, 0.0, y), jnp.where(undefined, 1.0, x)
