r"""DimeNet++: messages along bonds that see the angles between bonds.

The message of the directed edge *j → i* is updated from the messages *k → j* that arrive at its tail, weighted by a
basis in the distance :math:`r_{kj}` and the angle *kji*. All triplets around an atom come from its dense list of
neighbours, so there is no separate list of triplets that could overflow. Excluding the edge itself by its slot, not by
its atom, keeps the images apart in cells smaller than the cutoff.

Reference: J. Gasteiger, S. Giri, J. T. Margraf, S. Günnemann, arXiv:2011.14115; J. Gasteiger, J. Groß, S. Günnemann,
arXiv:2003.03123 (bases: eqs. 6–8).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bayespot.potentials.classical import lengths
from bayespot.potentials.potential import Potential, mask_atoms, species_index
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.system import System
from bayespot.tree import noise
from bayespot.typing import Array, Float, Int, Key, Params


def envelope(x: Array, power: int) -> Array:
    r"""Smooth step from 1 at ``x = 0`` to 0 at ``x = 1``, where its first two derivatives vanish.

    .. math:: 1-\tfrac12(p+1)(p+2)\,x^p+p(p+2)\,x^{p+1}-\tfrac12p(p+1)\,x^{p+2}
    """
    p = power
    return 1.0 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * p * (p + 1) / 2))


@lru_cache
def bessel_roots(angular: int, radial: int) -> np.ndarray:
    """Positive roots :math:`z_{ln}` of the spherical Bessel functions, ``(angular, radial)`` (host).

    The roots of order *l* lie between those of order *l - 1*.
    """
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    roots = [np.pi * np.arange(1, radial + angular)]
    for l in range(1, angular):
        brackets = zip(roots[-1][:-1], roots[-1][1:], strict=True)
        roots.append(np.array([brentq(lambda t, l=l: spherical_jn(l, t), a, b, xtol=1e-14) for a, b in brackets]))
    return np.stack([row[:radial] for row in roots])


@lru_cache
def bessel_coefficients(angular: int, radial: int) -> np.ndarray:
    r"""Chebyshev coefficients of the functions of ``spherical_bessel_basis``, ``(degree + 1, angular, radial)`` (host).

    The upward recursion in *l* is unstable where the argument is smaller than *l*, and the closed forms divide by high
    powers; a Chebyshev series is accurate to rounding everywhere and has well-behaved derivatives. Its terms decay
    faster than exponentially beyond half the largest argument.
    """
    from numpy.polynomial.chebyshev import chebinterpolate
    from scipy.special import spherical_jn

    roots = bessel_roots(angular, radial)
    degree = int(roots.max() / 2 + 24)
    out = np.empty((degree + 1, angular, radial))
    for l, n in np.ndindex(angular, radial):
        norm = 2**0.5 / abs(spherical_jn(l + 1, roots[l, n]))
        out[:, l, n] = norm * chebinterpolate(lambda y, l=l, n=n: spherical_jn(l, roots[l, n] * (y + 1) / 2), degree)
    return out


def spherical_bessel_basis(x: Float[Array, "*n"], angular: int, radial: int) -> Float[Array, "*n l r"]:
    r"""Radial functions :math:`\sqrt2\,j_l(z_{ln}x)/|j_{l+1}(z_{ln})|` of ``0 ≤ x ≤ 1``, where :math:`j_l(z_{ln}) = 0`.

    For each *l* they are orthonormal with the weight :math:`x^2`.
    """
    coefficients = jnp.asarray(bessel_coefficients(angular, radial), x.dtype)
    y = 2.0 * x - 1.0
    terms = [jnp.ones_like(y), y]
    for _ in range(len(coefficients) - 2):
        terms.append(2.0 * y * terms[-1] - terms[-2])
    return jnp.einsum("...d,dlr->...lr", jnp.stack(terms, -1), coefficients)


def legendre_basis(cosine: Float[Array, "*n"], angular: int) -> Float[Array, "*n l"]:
    r"""Zonal harmonics :math:`Y_l^0 = \sqrt{(2l+1)/4\pi}\,P_l(\cos\alpha)`; smooth for collinear atoms too."""
    terms = [jnp.ones_like(cosine), cosine]
    for l in range(1, angular - 1):
        terms.append(((2 * l + 1) * cosine * terms[-1] - l * terms[-2]) / (l + 1))
    norm = np.sqrt((2 * np.arange(angular) + 1) / (4 * np.pi))
    return jnp.stack(terms[:angular], -1) * jnp.asarray(norm, cosine.dtype)


def triplet_basis(unit: Float[Array, "N K 3"], angular: int) -> Float[Array, "N K K l"]:
    """Angular functions of every two edges of an atom, from their unit vectors; 0 for an edge with itself."""
    cosine = jnp.einsum("nsx,nkx->nsk", unit, unit)
    other = 1.0 - jnp.eye(unit.shape[1], dtype=unit.dtype)
    return legendre_basis(cosine, angular) * other[..., None]


def reverse_slots(neighbors: Neighbors) -> Int[Array, "N K"]:
    """Slot of each edge's reverse in its neighbour's list: this atom, opposite shift; ``K`` where it is missing."""
    n, k = neighbors.index.shape
    j = jnp.where(neighbors.index < n, neighbors.index, 0)
    same_atom = neighbors.index[j] == jnp.arange(n, dtype=neighbors.index.dtype)[:, None, None]
    opposite = jnp.all(neighbors.shift[j] == -neighbors.shift[:, :, None, :], axis=-1)
    match = same_atom & opposite & (neighbors.index < n)[:, :, None]
    return jnp.where(match.any(-1), jnp.argmax(match, -1), k).astype(jnp.int32)


def _dense(width: int, use_bias: bool = True) -> nn.Dense:
    """Linear layer whose matrix ``_randomised`` draws."""
    return nn.Dense(width, use_bias=use_bias, kernel_init=nn.initializers.zeros_init())


def _randomised(params: Params, key: Key) -> Params:
    """Parameters with random orthogonal matrices of Glorot's variance, and embeddings uniform with variance 1.

    All come from one draw, and matrices of one shape from one decomposition: to compile those of a hundred matrices one
    by one takes twenty seconds.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names, leaves = [path[-1].key for path, _ in paths], [leaf for _, leaf in paths]
    of_matrices, of_embedding = jax.random.split(key)
    matrices = [n for n, name in enumerate(names) if name not in ("bias", "frequency", "embedding")]
    normal = dict(zip(matrices, noise(of_matrices, [leaves[n] for n in matrices]), strict=True))
    for shape in {leaves[n].shape for n in matrices}:
        same = [n for n in matrices if leaves[n].shape == shape]
        for n, matrix in zip(same, _orthogonal(jnp.stack([normal[n] for n in same])), strict=True):
            leaves[n] = matrix.astype(leaves[n].dtype)
    n = names.index("embedding")
    leaves[n] = jax.random.uniform(of_embedding, leaves[n].shape, leaves[n].dtype, -(3**0.5), 3**0.5)
    return jax.tree.unflatten(structure, leaves)


def _orthogonal(normal: Float[Array, "M a b"]) -> Float[Array, "M a b"]:
    """Orthogonal matrices, or parts of them, with Glorot's variance, from normal numbers; vectors have length 1."""
    _, a, b = normal.shape
    q, r = jnp.linalg.qr(normal if a >= b else normal.mT)
    q = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None]  # evenly distributed (Mezzadri, math-ph/0609050)
    q = q if a >= b else q.mT
    return q * jnp.sqrt(2.0 / ((a + b) * jnp.var(q, axis=(1, 2), keepdims=True))) if min(a, b) > 1 else q


class Residual(nn.Module):
    """Two dense layers added to their input."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n f"]) -> Float[Array, "*n f"]:
        """Same shape out as in."""
        y = nn.swish(_dense(x.shape[-1])(x))
        return x + nn.swish(_dense(x.shape[-1])(y))


class Output(nn.Module):
    """Per-atom output from the messages that arrive at each atom."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, message: Float[Array, "N K f"], rbf: Float[Array, "N K r"]) -> Float[Array, " N"]:
        """The radial basis vanishes at the cutoff and on padding, and with it every contribution."""
        x = jnp.sum(_dense(message.shape[-1], use_bias=False)(rbf) * message, axis=1)
        x = _dense(self.width, use_bias=False)(x)
        for _ in range(self.layers):
            x = nn.swish(_dense(self.width)(x))
        return _dense(1, use_bias=False)(x)[:, 0]


class Interaction(nn.Module):
    """Update of the messages from those arriving at their tails."""

    angle_width: int
    basis_width: int

    @nn.compact
    def __call__(
        self,
        message: Float[Array, "N K f"],
        rbf: Float[Array, "N K r"],
        sbf: Float[Array, "N K l r"],
        legendre: Float[Array, "N K K l"],
        source: tuple[Int[Array, "N K"], Int[Array, "N K"]],
    ) -> Float[Array, "N K f"]:
        """``source`` holds the atom and slot of each edge's reverse, a slot of ``K`` where it is missing."""
        width, (_, _, l, r) = message.shape[-1], sbf.shape
        direct = nn.swish(_dense(width)(message))
        arriving = nn.swish(_dense(width)(message))
        arriving = arriving * _dense(width, use_bias=False)(_dense(self.basis_width, use_bias=False)(rbf))
        arriving = nn.swish(_dense(self.angle_width, use_bias=False)(arriving))
        # The basis in distance and angle enters linearly, so its two layers act on the distances before the sum over
        # triplets: the full basis of every triplet is never stored.
        zeros = nn.initializers.zeros_init()
        first = self.param("angle_basis_in", zeros, (l * r, self.basis_width), jnp.float32).astype(message.dtype)
        second = self.param("angle_basis_out", zeros, (self.basis_width, self.angle_width), jnp.float32)
        mixing = (first @ second.astype(message.dtype)).reshape(l, r, self.angle_width)
        weighted = jnp.einsum("nkc,nklr,lrc->nklc", arriving, sbf, mixing)
        departing = jnp.einsum("nskl,nklc->nsc", legendre, weighted)
        arrived = departing.at[source].get(mode="fill", fill_value=0.0)
        arrived = nn.swish(_dense(width, use_bias=False)(arrived))
        x = Residual()(direct + arrived)
        x = message + nn.swish(_dense(width)(x))
        return Residual()(Residual()(x))


class DimeNet(nn.Module):
    """The network: embedding of edges, interaction blocks, and one output per block, summed.

    Its own parameters are constants, mostly zeros, until ``_randomised`` has drawn them.
    """

    species: tuple[int, ...]
    cutoff: float
    width: int
    blocks: int
    radial: int
    angular: int
    species_width: int
    angle_width: int
    basis_width: int
    output_width: int
    output_layers: int
    power: int

    @nn.compact
    def __call__(self, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        """Energies per atom, without unit and before masking."""
        vectors, mask = displacements(system, neighbors)
        r = lengths(vectors)
        x = jnp.where(r < self.cutoff, r / self.cutoff, 1.0)
        j = jnp.where(mask, neighbors.index, 0)
        cut = jnp.where(r < self.cutoff, envelope(x, self.power), 0.0)[..., None]
        frequency = self.param("frequency", lambda _, n: jnp.pi * jnp.arange(1, n + 1, dtype=jnp.float32), self.radial)
        rbf = 2**0.5 * cut * jnp.sin(frequency.astype(x.dtype) * x[..., None]) / x[..., None]
        sbf = cut[..., None] * spherical_bessel_basis(x, self.angular, self.radial)
        legendre = triplet_basis(vectors / r[..., None], self.angular)
        source = (j, reverse_slots(neighbors))

        known = jnp.maximum(species_index(system.species, self.species), 0)
        embedding = nn.Embed(len(self.species), self.species_width, embedding_init=nn.initializers.zeros_init())
        atom = embedding(known).astype(x.dtype)
        pair = jnp.concatenate([atom[j], jnp.broadcast_to(atom[:, None], (*j.shape, self.species_width))], -1)
        message = jnp.concatenate([pair, _dense(self.width)(rbf)], -1)
        message = nn.swish(_dense(self.width)(message))
        energy = Output(self.output_width, self.output_layers)(message, rbf)
        for _ in range(self.blocks):
            message = Interaction(self.angle_width, self.basis_width)(message, rbf, sbf, legendre, source)
            energy = energy + Output(self.output_width, self.output_layers)(message, rbf)
        return energy


def dimenet(
    species: Sequence[int],
    cutoff: float,
    width: int = 32,
    blocks: int = 4,
    radial: int = 6,
    angular: int = 7,
    species_width: int = 16,
    angle_width: int = 16,
    basis_width: int = 8,
    output_width: int = 64,
    output_layers: int = 3,
    power: int = 6,
) -> Potential:
    """DimeNet++: a message-passing network that is accurate for molecules and materials of any elements.

    The energies of an untrained network are of the order of 10 eV per atom in a solid; fit them to the data's with
    ``scale_shift``. Atoms without neighbours get an energy that does not depend on their species, before that shift.
    Memory grows as N K².

    Args:
        species: atomic numbers it can be used for.
        cutoff: of one message; the energy of an atom depends on atoms up to ``(blocks + 1) × cutoff`` away [Å].
        width: numbers per message.
        blocks: number of interaction blocks.
        radial: functions of distance, with learnt frequencies; also per angular function.
        angular: functions of angle, at least 2.
        species_width: numbers that describe an element.
        angle_width: numbers per message while it is combined with angles.
        basis_width: of the bottleneck that the bases pass.
        output_width: of the output layers.
        output_layers: number of dense layers that make an atom's energy.
        power: of the envelope that ends the bases at the cutoff.

    Raises:
        ValueError: for no or unknown species, or a size that is not positive.
    """
    species = tuple(sorted({int(z) for z in species}))
    if not species or species[0] < 1 or species[-1] > 118:
        raise ValueError(f"species must be atomic numbers from 1 to 118, at least one. Got {list(species)}.")
    sizes: dict[str, Any] = {"width": width, "blocks": blocks, "radial": radial, "angular": angular}
    sizes |= {"species_width": species_width, "angle_width": angle_width, "basis_width": basis_width}
    sizes |= {"output_width": output_width, "output_layers": output_layers, "power": power}
    least = {"angular": 2, "blocks": 0, "output_layers": 0}
    small = {name: size for name, size in sizes.items() if size < least.get(name, 1)}
    if small or not cutoff > 0:
        raise ValueError(f"Sizes must be at least 1 (angular: 2), cutoff positive. Got cutoff {cutoff} and {small}.")
    module = DimeNet(species=species, cutoff=float(cutoff), **sizes)
    spec = {"name": "dimenet", "species": list(species), "cutoff": float(cutoff), **sizes}

    def init(key: Key) -> Params:
        dimer = System(jnp.diag(jnp.full(3, 0.5 * cutoff))[:2], jnp.full(2, species[0], jnp.int32), jnp.zeros((3, 3)))
        pair = Neighbors(jnp.array([[1], [0]], jnp.int32), jnp.zeros((2, 1, 3), jnp.int8))
        return _randomised(module.init(jax.random.key(0), dimer, pair)["params"], key)  # the key 0 draws nothing

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        energies = jnp.asarray(module.apply({"params": params}, system, neighbors))
        return mask_atoms(energies, system.species, species)

    return Potential(init, atom_energies, float(cutoff), species, spec)
