r"""Repulsion of the nuclei at distances below a single bond, where training data are rare or missing."""

import jax.numpy as jnp
import numpy as np

from bayespot import units
from bayespot.potentials.classical import lengths, switch
from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.neighbors import Neighbors, displacements
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params

# Universal screening function and length of Ziegler, Biersack and Littmark, as Σ c exp(-d x).
_AMPLITUDE = np.array([0.18175, 0.50986, 0.28022, 0.02817])
_DECAY = np.array([3.19980, 0.94229, 0.40290, 0.20162])
_LENGTH, _EXPONENT = 0.46850, 0.23
_ONSET = 0.5  # where the switching starts, as a fraction of where it ends


def repulsion(cutoff: float) -> Potential:
    r"""Screened repulsion between bare nuclei, for every pair of elements and without parameters.

    .. math:: U = \sum_{i<j} \frac{e^2}{4\pi\varepsilon_0}\frac{Z_iZ_j}{r_{ij}}\,\phi(r_{ij}/a_{ij})\,s(r_{ij}), \qquad
              a_{ij} = \frac{0.4685\,\text{Å}}{Z_i^{0.23}+Z_j^{0.23}} .

    The smooth step *s* falls from 1 to 0 between half and all of the sum of the covalent radii of the pair (or of
    ``cutoff``, if that is shorter), which is about the length of a single bond: the term keeps atoms of an unstable or
    little trained model apart. Shorter bonds (double, triple, or compressed by heat) feel it too; whatever is added to
    it learns the difference.

    Args:
        cutoff: upper bound of its range [Å].

    Raises:
        ValueError: unless cutoff > 0.

    Reference: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Solids (1985), eq. 2-74;
    radii: B. Cordero et al., Dalton Trans. 2832 (2008), as in ASE.
    """
    from ase.data import covalent_radii

    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive. Got {cutoff} Å.")
    radii, charge_power = np.array(covalent_radii[:119]), np.arange(119.0) ** _EXPONENT

    def init(key: Key) -> Params:
        return {}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        vectors, mask = displacements(system, neighbors)
        r, dtype = lengths(vectors), vectors.dtype
        z = system.species
        zj = z[jnp.where(mask, neighbors.index, 0)]
        radius, power = jnp.asarray(radii, dtype), jnp.asarray(charge_power, dtype)
        end = jnp.minimum(radius[z][:, None] + radius[zj], cutoff)
        inside = r < end
        r = jnp.where(inside, r, end)
        x = r * (power[z][:, None] + power[zj]) / _LENGTH
        screening = sum(float(c) * jnp.exp(-float(d) * x) for c, d in zip(_AMPLITUDE, _DECAY, strict=True))
        charges = (z[:, None] * zj).astype(dtype)
        pair = units.coulomb * charges / r * screening * switch(r, _ONSET * end, end)
        return mask_atoms(0.5 * jnp.where(inside, pair, 0.0).sum(1), z, ())

    return Potential(init, atom_energies, float(cutoff), (), {"name": "repulsion", "cutoff": float(cutoff)})
