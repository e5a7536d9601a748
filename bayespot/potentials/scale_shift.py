"""Change of scale and origin of a potential's energies, so that a network works with numbers of order one."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System
from bayespot.typing import Array, Float, Params


def scale_shift(potential: Potential, scale: float, shift: Mapping[int, float] | Mapping[str, float]) -> Potential:
    r"""The potential with energies :math:`u_i \to a\,u_i + b_{Z_i}` per atom; *a* and *b* are fixed, not learnt.

    Args:
        potential: whose parameters become those of the result.
        scale: *a*, without unit.
        shift: *b* [eV] for each atomic number (or its text, as in JSON). It must name every species that
            ``potential`` knows; where that is "all", the result knows the species named here, or all when ``shift`` is
            empty.

    Raises:
        ValueError: for a species without a shift, or numbers that are not finite.
    """
    shift = {int(z): float(b) for z, b in shift.items()}
    known = potential.species or tuple(sorted(shift))
    if missing := sorted(set(known) - set(shift)):
        raise ValueError(f"shift must name every species of the potential, {known}. Add the atomic numbers {missing}.")
    if not np.isfinite([scale, *shift.values()]).all():
        raise ValueError(f"scale and shift must be finite. Got {scale} and {shift}.")
    table = np.zeros(119)
    table[list(shift)] = list(shift.values())

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        energies = potential.atom_energies(params, system, neighbors)
        shifted = scale * energies + jnp.asarray(table, energies.dtype)[system.species]
        return mask_atoms(shifted, system.species, known)

    spec = {
        "name": "scale_shift",
        "potential": potential.spec,
        "scale": float(scale),
        "shift": {str(z): b for z, b in sorted(shift.items())},
    }
    return Potential(potential.init, atom_energies, potential.cutoff, known, spec)
