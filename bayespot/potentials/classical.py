r"""Potentials of a few physical parameters: Lennard-Jones and Stillinger–Weber.

Their parameters are learnt like the weights of a network. Few and known, they make posteriors that can be checked
against exact methods, and teachers whose observables are known.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params

STILLINGER_WEBER = {
    14: {"epsilon": 2.16826, "sigma": 2.0951, "lambda": 21.0, "A": 7.049556277, "B": 0.6022245584},
    32: {"epsilon": 1.93, "sigma": 2.181, "lambda": 31.0, "A": 7.049556277, "B": 0.6022245584},
}
"""Published parameters, epsilon [eV] and sigma [Å]. Si: Stillinger and Weber (1985); Ge: Ding and Andersen (1986)."""

_RANGE, _GAMMA, _POWER = 1.8, 1.2, 4  # a, γ, p of the publication, shared by Si and Ge; q = 0


def switch(r: Array, onset: Array | float, cutoff: Array | float) -> Array:
    r"""Smooth step from 1 at ``onset`` to 0 at ``cutoff`` [Å].

    With :math:`x = (r-r_o)/(r_c-r_o)` it is :math:`1 - 10x^3 + 15x^4 - 6x^5`. Its first two derivatives vanish at both
    ends, so that an energy times it has continuous forces with a continuous derivative.
    """
    x = jnp.clip((r - onset) / (cutoff - onset), 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))


def lengths(vectors: Float[Array, "N K 3"]) -> Float[Array, "N K"]:
    """Lengths of displacement vectors [Å]."""
    x, y, z = (vectors[..., a] for a in range(3))  # a sum over an axis of three is slow on a CPU
    # Behind the barrier the derivative by the length is computed once, not again for each of the three components.
    return jax.lax.optimization_barrier(jnp.sqrt(x * x + y * y + z * z))


def lennard_jones(
    sigma: float, epsilon: float, cutoff: float, onset: float | None = None, species: Sequence[int] = ()
) -> Potential:
    r"""Dispersion and overlap repulsion between all pairs of atoms, which are treated alike.

    .. math:: U = \sum_{i<j} 4\epsilon\left[(\sigma/r_{ij})^{12} - (\sigma/r_{ij})^6\right] s(r_{ij}),

    where *s* switches smoothly from 1 at ``onset`` to 0 at ``cutoff``. The parameters are ``{"sigma", "epsilon"}``,
    starting at the given values.

    Args:
        sigma: distance of zero energy [Å].
        epsilon: depth of the well [eV].
        cutoff: beyond which the energy is exactly 0 [Å].
        onset: below which the energy is exactly Lennard-Jones [Å]; default 0.66 × cutoff.
        species: atomic numbers it may be used for; default all.

    Raises:
        ValueError: unless 0 < onset < cutoff and sigma > 0.

    Reference: J. E. Lennard-Jones, Proc. R. Soc. A 106, 463 (1924).
    """
    onset = 0.66 * cutoff if onset is None else onset
    if not (0 < onset < cutoff and sigma > 0):
        raise ValueError(f"Need sigma > 0 and 0 < onset < cutoff. Got sigma={sigma}, onset={onset}, cutoff={cutoff}.")
    known = tuple(sorted(int(z) for z in species))

    def init(key: Key) -> Params:
        return {"sigma": jnp.asarray(sigma, float), "epsilon": jnp.asarray(epsilon, float)}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        vectors, _ = displacements(system, neighbors)
        r = lengths(vectors)
        inside = r < cutoff
        r = jnp.where(inside, r, cutoff)
        sixth = (params["sigma"] / r) ** 6
        pair = 4 * params["epsilon"] * (sixth * sixth - sixth) * switch(r, onset, cutoff)
        # Without the barrier the compiler puts all of this into the loop of the sum, which it does not vectorise.
        pair = jax.lax.optimization_barrier(jnp.where(inside, pair, 0.0))
        return mask_atoms(0.5 * pair.sum(1), system.species, known)

    spec = {
        "name": "lennard_jones",
        "sigma": float(sigma),
        "epsilon": float(epsilon),
        "cutoff": float(cutoff),
        "onset": float(onset),
        "species": list(known),
    }
    return Potential(init, atom_energies, float(cutoff), known, spec)


def stillinger_weber(species: int = 14) -> Potential:
    r"""Tetrahedral semiconductor: a pair term and a penalty on angles that differ from 109.47°.

    .. math:: U = \sum_{i<j} A\epsilon\left[B(\sigma/r_{ij})^4 - 1\right] e^{\sigma/(r_{ij}-r_c)}
              + \sum_i\sum_{j<k}\lambda\epsilon\left(\cos\theta_{jik}+\tfrac13\right)^2
                e^{\gamma\sigma/(r_{ij}-r_c)}\,e^{\gamma\sigma/(r_{ik}-r_c)}, \qquad r_c = a\sigma_0 .

    The parameters are ``{"epsilon", "sigma", "lambda", "A", "B"}``, starting at the published values. While they are
    learnt the range :math:`r_c` stays at that of the published :math:`\sigma_0`, so that lists of neighbours stay
    complete.

    The sum over the triplets of an atom is evaluated exactly from three moments of its neighbours,
    :math:`s=\sum_k g_k`, :math:`v=\sum_k g_k\hat r_k`, :math:`T=\sum_k g_k\hat r_k\hat r_k^\top`:
    :math:`\sum_{jk}g_jg_k(\cos\theta_{jk}+\frac13)^2 = T{:}T + \frac23 v\cdot v + \frac19 s^2`, less the terms *j = k*.

    Args:
        species: atomic number, 14 (Si) or 32 (Ge).

    Raises:
        ValueError: for another species.

    Reference: F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), eqs. 2.3–2.6; Ge: K. Ding, H. C. Andersen,
    Phys. Rev. B 34, 6987 (1986).
    """
    if species not in STILLINGER_WEBER:
        raise ValueError(f"Published parameters exist for the species {sorted(STILLINGER_WEBER)}. Got {species}.")
    published = STILLINGER_WEBER[species]
    cutoff = _RANGE * published["sigma"]

    def init(key: Key) -> Params:
        return {name: jnp.asarray(value, float) for name, value in published.items()}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        epsilon, sigma = params["epsilon"], params["sigma"]
        vectors, _ = displacements(system, neighbors)
        r = lengths(vectors)
        inside = r < cutoff
        unit = vectors / r[..., None]
        gap = jnp.where(inside, r - cutoff, -1.0)
        r = jnp.where(inside, r, cutoff)
        pair = params["A"] * (params["B"] * (sigma / r) ** _POWER - 1.0) * jnp.exp(sigma / gap)
        weight = jnp.where(inside, jnp.exp(_GAMMA * sigma / gap), 0.0)
        vector = jnp.einsum("nk,nkx->nx", weight, unit)
        tensor = jnp.einsum("nk,nkx,nky->nxy", weight, unit, unit)
        squares = (tensor**2).sum((1, 2)) + 2 / 3 * (vector**2).sum(1) + weight.sum(1) ** 2 / 9
        triplets = 0.5 * (squares - 16 / 9 * (weight**2).sum(1))
        energies = epsilon * (0.5 * jnp.where(inside, pair, 0.0).sum(1) + params["lambda"] * triplets)
        return mask_atoms(energies, system.species, (species,))

    return Potential(init, atom_energies, cutoff, (species,), {"name": "stillinger_weber", "species": int(species)})
