r"""A fast invariant neural-network potential: contracted moment tensors of the neighbour density, into a small network.

For every atom the moment tensors up to rank 3 over radial channels ``c``,

.. math:: M^{(l)}_{i,c} = \sum_{k} f_c(r_{ik})\, \hat r_{ik}^{\otimes l}, \qquad l = 0 \dots 3,

are linear in the neighbours (no loop over triplets), and their contractions are invariants of two to four bodies:
:math:`M^{(0)}_c`, :math:`M^{(l)}_c \cdot M^{(l)}_{c'}`, and three products of third order. They are
standardised with the mean and spread that they have in the data, and go through a network of the atom's own species.
The construction follows moment tensor potentials (Shapeev, Multiscale Model. Simul. 14, 1153 (2016)), the network
Behler and Parrinello, Phys. Rev. Lett. 98, 146401 (2007). On a CPU it is the library's default.
"""

from collections.abc import Sequence
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bayespot.potentials.classical import lengths
from bayespot.potentials.potential import Potential, mask_atoms, species_index
from bayespot.records.dataset import Dataset
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.statistics import force_scale, reference_energies
from bayespot.records.system import System
from bayespot.tree import total
from bayespot.typing import Array, Float, Key, Params

# Independent components of the symmetric tensors of rank 0 to 3 made of one vector, in this order everywhere, and how
# often each occurs in the full tensor. Components come first and atoms last: the loops then run over contiguous memory.
_COMPONENTS = [list(dict.fromkeys("".join(sorted(c)) for c in product("xyz", repeat=rank))) for rank in range(4)]
_MULTIPLICITY = [[sum("".join(sorted(c)) == m for c in product("xyz", repeat=rank)) for m in _COMPONENTS[rank]]
                 for rank in range(4)]  # fmt: skip


def radial_basis(r: Float[Array, "*n"], cutoff: float, channels: int) -> Float[Array, "c *n"]:
    r"""Spherical Bessel functions :math:`\sqrt{2/r_c}\,\sin(n\pi x)/r` times the envelope :math:`(1-x^2)^3`.

    Here :math:`x = r/r_c`. They and their first two derivatives vanish at the cutoff and beyond.
    """
    inside = r < cutoff
    x = jnp.where(inside, r, 0.5 * cutoff) / cutoff
    envelope = jnp.where(inside, (1 - x * x) ** 3 / x, 0.0) * (2 / cutoff**3) ** 0.5
    # Without the barrier the compiler evaluates sine, cosine and envelope anew for every channel.
    row, twice_cosine = jax.lax.optimization_barrier((envelope * jnp.sin(np.pi * x), 2 * jnp.cos(np.pi * x)))
    before, rows = jnp.zeros_like(x), []
    for _ in range(channels):
        rows.append(row)
        before, row = row, twice_cosine * row - before  # sin((n+1)a) = 2 cos(a) sin(na) - sin((n-1)a)
    return jnp.stack(rows)


def moments(vectors: Float[Array, "N K 3"], radial: Float[Array, "C N K"]) -> list[Float[jax.Array, "C _ N"]]:
    """Moment tensors of rank 0 to 3 of every atom, as their independent components.

    Those with two or three z follow from the others, because a trace over two indices is the tensor of rank two less.
    """
    x, y, z = jnp.moveaxis(vectors, -1, 0)
    norm = jax.lax.rsqrt(x * x + y * y + z * z)
    unit = {"": jnp.ones_like(x), "x": x * norm, "y": y * norm, "z": z * norm}
    for rank in (2, 3):
        unit |= {m: unit[m[:-1]] * unit[m[-1]] for m in _COMPONENTS[rank] if not m.endswith("zz")}
    # An accelerator's short mantissa would not treat z, which follows by subtraction, like x and y.
    summed = jnp.einsum("cnk,mnk->cmn", radial, jnp.stack(list(unit.values())), precision="highest")
    part = dict(zip(unit, jnp.split(summed, len(unit), axis=1), strict=True))
    for m in ("", "x", "y", "z"):
        part[m + "zz"] = part[m] - part["".join(sorted(m + "xx"))] - part["".join(sorted(m + "yy"))]
    return [jnp.concatenate([part[m] for m in rank], axis=1) for rank in _COMPONENTS]


def invariants(moment: list[Float[jax.Array, "C _ N"]]) -> Float[Array, "N D"]:
    """Rotation invariants: rank 0; all pairs of channels for ranks 1 to 3; three third-order products per channel.

    Arrays are taken apart by ``split``: its derivative is one concatenation, that of indexing a padded array per part.
    """
    out: list[Array] = [moment[0][:, 0]]
    for rank in (1, 2, 3):
        channels = jnp.split(moment[rank], moment[rank].shape[0])
        number = jnp.asarray(_MULTIPLICITY[rank], moment[rank].dtype)[None, :, None]
        out += [(number * one * jnp.concatenate(channels[c:])).sum(1) for c, one in enumerate(channels)]
    parts = [jnp.split(m, m.shape[1], axis=1) for m in moment]

    def component(*axes):
        name = "".join(sorted(axes))
        return parts[len(axes)][_COMPONENTS[len(axes)].index(name)][:, 0]

    matrix = {(a, b): component(a, b) for a in "xyz" for b in "xyz"}
    vector = {a: component(a) for a in "xyz"}
    squared = {(a, b): total(matrix[a, c] * matrix[c, b] for c in "xyz") for a, b in matrix}
    turned = {(a, b): total(component(a, b, c) * vector[c] for c in "xyz") for a, b in matrix}
    out.append(total(squared[ab] * matrix[ab] for ab in matrix))
    out.append(total(vector[a] * matrix[a, b] * vector[b] for a, b in matrix))
    out.append(total(turned[ab] * matrix[ab] for ab in matrix))
    return jnp.concatenate(out).T


def species_mixing(species: tuple[int, ...], channels: int) -> np.ndarray:
    """Starting values of the mixing of radial functions into channels, ``(species, c, C)``.

    Every species has its own fixed random rotation, so that species are told apart from the start, and the statistics
    of the invariants are the same for all members of an ensemble.
    """
    normal = [np.random.default_rng(z).normal(size=(channels, channels)) for z in species]
    return np.stack([np.linalg.qr(x)[0] for x in normal])


def features(
    system: System, neighbors: Neighbors, species: tuple[int, ...], mixing: Array | None, cutoff: float, channels: int
) -> Float[Array, "N D"]:
    """Invariants of every atom, not standardised; ``mixing`` ``(species, c, C)`` or ``None`` for a single species."""
    vectors, mask = displacements(system, neighbors)
    radial = jnp.where(mask, radial_basis(lengths(vectors), cutoff, channels), 0.0)
    if mixing is not None:
        of_neighbor = species_index(jnp.append(system.species, 0)[neighbors.index], species)
        own = jnp.where(mask, of_neighbor, -1) == jnp.arange(len(species))[:, None, None]
        rotated = jnp.einsum("sbc,bnk->scnk", mixing.astype(radial.dtype), radial)
        radial = jnp.where(own[:, None], rotated, 0.0).sum(0)
    # Without the barriers the compiler evaluates moments, and derivatives by vectors, anew wherever they are used.
    moment = moments(jax.lax.optimization_barrier(vectors), radial)
    return invariants(jax.lax.optimization_barrier(moment))


class DescriptorMLP(nn.Module):
    """Energies per atom in units of the scale; see ``descriptor_mlp``."""

    species: tuple[int, ...]
    cutoff: float
    channels: int
    hidden: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @nn.compact
    def __call__(self, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        """Energy of every atom in units of the scale, without its reference energy."""
        mixing = None
        if len(self.species) > 1:
            mixing = self.param(
                "mixing", lambda _: jnp.asarray(species_mixing(self.species, self.channels), jnp.float32)
            )
        x = features(system, neighbors, self.species, mixing, self.cutoff, self.channels)
        if self.mean:
            x = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
        width = x.shape[-1]
        x = jnp.broadcast_to(x, (len(self.species), *x.shape))
        for n, size in enumerate((*self.hidden, 1)):
            kernel = self.param(
                f"kernel_{n}", nn.initializers.lecun_normal(batch_axis=0), (len(self.species), width, size)
            )
            bias = self.param(f"bias_{n}", nn.initializers.zeros_init(), (len(self.species), 1, size))
            x = x @ kernel.astype(x.dtype) + bias.astype(x.dtype)
            x, width = nn.silu(x) if n < len(self.hidden) else x, size
        own = species_index(system.species, self.species)
        return x[own, jnp.arange(own.shape[0]), 0] if len(self.species) > 1 else x[0, :, 0]


def descriptor_mlp(
    data: Dataset, cutoff: float = 5.0, channels: int = 8, hidden: Sequence[int] = (64, 64)
) -> Potential:
    """The library's fast default potential, made ready for some data.

    From the data come only constants: which species there are, the mean and spread of the invariants, one reference
    energy per species (ridge regression; 0 where no frame has an energy, as with beads), and the scale of the output
    (root mean square force × 1 Å).

    Args:
        data: training frames, with neighbours at least up to ``cutoff``.
        cutoff: [Å].
        channels: number of radial functions; 8 give 140 invariants.
        hidden: widths of the hidden layers. The defaults make 13 249 parameters per species.

    Raises:
        ValueError: if the neighbours of the data are shorter than ``cutoff``, or no frame has forces other than zero.
    """
    if data.cutoff < cutoff:
        raise ValueError(f"The data's neighbours must reach {cutoff} Å. Got {data.cutoff}. Read with cutoff={cutoff}.")
    if not (scale := force_scale(data)) > 0:
        raise ValueError(
            "descriptor_mlp needs forces that are not all zero. Got perfect crystals only: displace atoms."
        )
    mean, std = _statistics(data, cutoff, channels)
    return from_constants(
        species=data.species,
        cutoff=cutoff,
        channels=channels,
        hidden=hidden,
        mean=mean,
        std=std,
        shift=reference_energies(data) if np.asarray(data.has_energy).any() else dict.fromkeys(data.species, 0.0),
        scale=scale,
    )


def _statistics(data: Dataset, cutoff: float, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the invariants over the atoms of the data."""
    mixing = jnp.asarray(species_mixing(data.species, channels)) if len(data.species) > 1 else None

    def frame(pair: tuple[System, Neighbors]):
        return features(*pair, data.species, mixing, cutoff, channels)

    values = jax.jit(lambda pairs: jax.lax.map(frame, pairs))((data.system, data.neighbors))
    x = np.asarray(values, np.float64)[np.asarray(data.system.species) > 0]
    std = x.std(0)
    return x.mean(0), np.where(std > 1e-6 * np.abs(x).max(initial=1.0), std, 1.0)


def from_constants(species, cutoff, channels, hidden, mean, std, shift, scale) -> Potential:
    """The potential from its constants alone, as stored in ``spec`` (users call ``descriptor_mlp``).

    Args:
        species: atomic numbers.
        cutoff: [Å].
        channels: radial functions.
        hidden: widths of the hidden layers.
        mean, std: of the invariants, empty for none.
        shift: reference energy of each species [eV], by atomic number.
        scale: energy [eV] of one unit of output.
    """
    species = tuple(int(z) for z in species)
    shifts = {int(z): float(e) for z, e in shift.items()}
    spec = {
        "name": "descriptor_mlp",
        "species": list(species),
        "cutoff": float(cutoff),
        "channels": int(channels),
        "hidden": [int(h) for h in hidden],
        "mean": [float(x) for x in mean],
        "std": [float(x) for x in std],
        "shift": {str(z): e for z, e in shifts.items()},
        "scale": float(scale),
    }
    module = DescriptorMLP(
        species=species,
        cutoff=cutoff,
        channels=channels,
        hidden=tuple(hidden),
        mean=tuple(spec["mean"]),
        std=tuple(spec["std"]),
    )
    offsets = np.array([shifts[z] for z in species])

    def init(key: Key) -> Params:
        one = System(jnp.zeros((1, 3)), jnp.full(1, species[0], jnp.int32), jnp.zeros((3, 3)))
        return module.init(key, one, Neighbors(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1, 3), jnp.int8)))["params"]

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        energies = module.apply({"params": params}, system, neighbors) * scale
        energies = energies + jnp.asarray(offsets, energies.dtype)[species_index(system.species, species)]
        return mask_atoms(energies, system.species, species)

    return Potential(init, atom_energies, float(cutoff), species, spec)
