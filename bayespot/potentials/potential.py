r"""The contract of every potential, and what follows from it: energy, forces, stress, sums and affine maps.

A potential is a function of parameters, a system and its neighbours that returns one energy per atom,

.. math:: U_\theta(x) = \sum_i u_i(\theta, x), \qquad F = -\partial U/\partial x, \qquad
          \sigma = \frac{1}{V}\,\partial U/\partial\epsilon .

Per-atom energies (rather than their sum) let the very same function act on one system and on a flattened minibatch
of many.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System, volume
from bayespot.tree import replace, total
from bayespot.typing import Array, Float, Key, Params, Spec

INNER = "potential", "entropy"  # entries of a spec that are specs of potentials themselves, beside the parts of a sum


class Potential(NamedTuple):
    """A potential: functions and facts, no parameters.

    Attributes:
        init: ``key → parameters`` (a nested dictionary; empty where there is nothing to learn).
        atom_energies: ``(parameters, system, neighbors) → (N,)`` [eV]; exactly 0 for padding, NaN for a species
            that the potential does not know.
        cutoff: beyond which atoms do not see each other [Å]; the neighbours may reach farther.
        species: atomic numbers it knows; empty means all.
        spec: builder name and arguments, writable as JSON, from which ``bayespot.build`` makes it again.
    """

    init: Callable[[Key], Params]
    atom_energies: Callable[[Params, System, Neighbors], Float[Array, " N"]]
    cutoff: float
    species: tuple[int, ...]
    spec: Spec

    def energy(self, params: Params, system: System, neighbors: Neighbors) -> Float[Array, ""]:
        """Total energy [eV], summed in the widest floating type in use."""
        return self.atom_energies(params, system, neighbors).astype(jnp.result_type(float)).sum()


def energy_and_forces(potential: Potential) -> Callable:
    """``(params, system, neighbors) → energy [eV], forces (N, 3) [eV/Å]``, from one gradient."""

    def function(params: Params, system: System, neighbors: Neighbors):
        def at(position):
            return potential.energy(params, replace(system, position=position), neighbors)

        energy, gradient = jax.value_and_grad(at)(system.position)
        return energy, -gradient

    return function


def forces(potential: Potential) -> Callable:
    """``(params, system, neighbors) → forces (N, 3) [eV/Å]``."""
    both = energy_and_forces(potential)
    return lambda params, system, neighbors: both(params, system, neighbors)[1]


def strained(system: System, strain: Float[Array, "3 3"]) -> System:
    """The system under a small homogeneous strain: positions and lattice vectors, as rows, times 1 + ε (symmetric)."""
    symmetric = 0.5 * (strain + strain.T)
    position, box = (x + jnp.matmul(x, symmetric, precision="highest") for x in (system.position, system.box))
    return replace(system, position=position, box=box)


def energy_forces_stress(potential: Potential) -> Callable:
    """``(params, system, neighbors) → energy [eV], forces (N, 3) [eV/Å], stress (3, 3) [eV/Å³]``, from one gradient.

    The stress has ASE's sign (positive = tension) and no kinetic part; it is NaN where the box is not periodic in
    all three directions, because it has no volume to refer to.
    """

    def function(params: Params, system: System, neighbors: Neighbors):
        def at(position, strain):
            return potential.energy(params, strained(replace(system, position=position), strain), neighbors)

        zero = jnp.zeros((3, 3), system.position.dtype)
        energy, (gradient, virial) = jax.value_and_grad(at, argnums=(0, 1))(system.position, zero)
        v = volume(system.box)
        return energy, -gradient, jnp.where(v > 0, virial / jnp.where(v > 0, v, 1.0), jnp.nan)

    return function


def stress(potential: Potential) -> Callable:
    """``(params, system, neighbors) → stress (3, 3) [eV/Å³]``, see ``energy_forces_stress``."""
    all_three = energy_forces_stress(potential)
    return lambda params, system, neighbors: all_three(params, system, neighbors)[2]


def add(*parts: Potential) -> Potential:
    """Sum of potentials; its parameters are the tuple-like dictionary ``{"0": …, "1": …}`` of the parts'.

    Priors from physics (a repulsion below the first shell), Δ-learning and long range are all sums.
    """
    if not parts:
        raise ValueError("add needs at least one potential. Got none.")
    known = [set(p.species) for p in parts if p.species]
    species = tuple(sorted(set.intersection(*known))) if known else ()
    if known and not species:
        raise ValueError(f"The parts must share a species. Got {[p.species for p in parts]}.")

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(parts))
        return {str(n): part.init(k) for n, (part, k) in enumerate(zip(parts, keys, strict=True))}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        return total(part.atom_energies(params[str(n)], system, neighbors) for n, part in enumerate(parts))

    spec = {"name": "add", "parts": [part.spec for part in parts]}
    return Potential(init, atom_energies, max(p.cutoff for p in parts), species, spec)


def species_index(species: Array, known: tuple[int, ...]) -> Array:
    """Position of each atomic number in ``known``; ``-1`` for padding and for unknown ones (traceable)."""
    table = np.full(119, -1, np.int32)
    table[list(known)] = np.arange(len(known))
    return jnp.asarray(table)[species]


def mask_atoms(energies: Float[Array, " N"], species: Array, known: tuple[int, ...]) -> Float[Array, " N"]:
    """Zero for padding, NaN for species that the potential does not know (all are known where ``known`` is empty)."""
    if known:
        energies = jnp.where(species_index(species, known) < 0, jnp.nan, energies)
    return jnp.where(species > 0, energies, 0.0)


def check_compatible(potential: Potential, data: Dataset) -> None:
    """Refuse data that the potential cannot treat (host).

    Raises:
        ValueError: for species it does not know, neighbours shorter than its cutoff, or frames that are not whole
            molecules where it has bonded terms: in a minibatch these would connect atoms of different frames.
    """
    if potential.species and (unknown := sorted(set(data.species) - set(potential.species))):
        raise ValueError(f"The potential knows the species {potential.species}. Got also {unknown} in {data.source}.")
    if data.cutoff < potential.cutoff:
        raise ValueError(
            f"The neighbours of the data must reach the potential's cutoff, {potential.cutoff} Å. "
            f"Got {data.cutoff} Å. Read them with cutoff={potential.cutoff}."
        )
    require_whole_molecules(potential, data.atom_counts, f"frame {{}} of {data.source}")


def require_whole_molecules(potential: Potential, counts: np.ndarray, place: str) -> None:
    """Refuse numbers of atoms that bonded terms cannot treat (host).

    Raises:
        ValueError: naming ``place``, a text into which the number of the frame goes.
    """
    for atoms in _molecules(potential.spec):
        if (broken := np.flatnonzero(counts % atoms)).size:
            raise ValueError(
                f"Bonded terms need whole molecules of {atoms} atoms. Got {counts[broken[0]]} atoms in "
                f"{place.format(broken[0])}. Leave such frames out."
            )


def _molecules(spec: Spec) -> set[int]:
    """Numbers of atoms in the molecules of all bonded terms in a potential."""
    parts = [*spec.get("parts", ()), *(spec[name] for name in INNER if name in spec)]
    own = {spec["atoms"]} if spec.get("name") == "bonded" else set()
    return own.union(*map(_molecules, parts))
