r"""The posterior as an ASE calculator: energies, forces and stresses of the mean, and what the samples disagree about.

.. math:: \bar U(x) = \sum_s w_s\,U_s(x), \qquad \bar F = -\partial\bar U/\partial x, \qquad
          \bar\sigma = \frac1V\,\partial\bar U/\partial\epsilon

The weights do not depend on the configuration, so that the forces are those of the mean energy and dynamics with them
conserves it. Neighbours are found anew, with their images, for every configuration: a list with a skin would hold more
pairs, each of which costs an evaluation for every sample, and have to watch the cell.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import default_batch_size, each, over_batches, within_memory
from bayespot.errors import FailedSamples, UncertaintyWarning, listed
from bayespot.potentials.potential import Potential, energy_forces_stress
from bayespot.records.neighbors import Neighbors, neighbors
from bayespot.records.posterior import PosteriorSamples, weights
from bayespot.records.system import System, from_ase
from bayespot.uq.predict import _moments, atom_uncertainty, check_samples

QUANTITIES = ("energy", "forces", "stress")
PROPERTIES = ("free_energy", *QUANTITIES, *(f"{q}_{kind}" for kind in ("uncertainty", "ensemble") for q in QUANTITIES))
"""Everything that the calculator declares as implemented."""

_VOIGT = [0, 4, 8, 5, 2, 1]  # xx yy zz yz xz xy of the flattened tensor


def calculator(
    potential: Potential, samples: PosteriorSamples, *, warn_above: float | None = None, batch_size: int | None = None
):
    """An ASE calculator of the posterior, for molecular dynamics, optimisers and whatever else ASE does.

    ``results`` holds after each calculation (``S`` samples, ``N`` atoms):

    - ``energy``, ``free_energy`` [eV], ``forces`` ``(N, 3)`` [eV/Å] and ``stress`` ``(6,)`` [eV/Å³] of the (weighted)
      posterior mean; the stress is positive for tension, in the order xx yy zz yz xz xy;
    - ``energy_uncertainty``, ``forces_uncertainty``, ``stress_uncertainty``: standard deviations between the samples
      (``ddof=1``), same shapes and units;
    - ``energy_ensemble`` ``(S,)``, ``forces_ensemble`` ``(S, N, 3)``, ``stress_ensemble`` ``(S, 6)``: every sample's.

    The three of the stress exist where the cell is periodic in all directions; elsewhere ASE raises
    ``PropertyNotImplementedError``. Cells may be skewed and smaller than the cutoff. Code is compiled anew when the
    number of atoms changes, and when the largest number of neighbours leaves its step of ``capacity``.

    Args:
        potential: that the samples belong to.
        samples: at least two, all sound (``healthy``).
        warn_above: uncertainty of the force on an atom [eV/Å], see ``atom_uncertainty``, above which an
            ``UncertaintyWarning`` names the least certain atom; once, and again only after all atoms were below it.
        batch_size: samples evaluated at once; default 1 on a CPU, as many as its memory holds on an accelerator.

    Raises:
        FailedSamples: when a sample's status is not OK; during a calculation, when samples give non-finite numbers.
        ValueError: for fewer than two samples, samples of another potential, or a limit that is not positive; during a
            calculation, for atoms that the potential cannot treat.

    Example:
        atoms.calc = bp.calculator(potential, samples, warn_above=0.5)
        atoms.get_forces(), atoms.calc.results["forces_uncertainty"]
    """
    check_samples(samples, potential)
    if warn_above is not None and not warn_above > 0:
        raise ValueError(f"warn_above must be positive [eV/Å], or None for no warning. Got {warn_above}.")
    size = default_batch_size(len(samples)) if batch_size is None else batch_size
    params, weight = jax.tree.map(jnp.asarray, (samples.params["potential"], weights(samples)))

    def evaluate(system, listed, number: int):
        nonlocal size
        size = number  # the next step begins with what the memory held
        return _evaluator(potential.atom_energies, number)(params, weight, system, listed)

    def results(atoms) -> dict:
        _check_atoms(atoms, potential.species)
        system = from_ase(atoms)
        listed = padded(neighbors(system, potential.cutoff))
        members, moments = jax.device_get(within_memory(partial(evaluate, system, listed), size))
        return _results(members, moments, QUANTITIES if atoms.pbc.all() else QUANTITIES[:2])

    return _ase_class()(results, warn_above)


@cache
def _ase_class() -> type:
    """The class that ASE asks for, made when first needed so that importing this module does not import ASE."""
    from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
    from ase.outputs import Properties, all_outputs

    class Posterior(Calculator):
        """Hands configurations to a function and remembers whether the last one was too uncertain."""

        implemented_properties: ClassVar[list[str]] = list(PROPERTIES)
        ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}

        def __init__(self, evaluate: Callable, warn_above: float | None):
            super().__init__()
            self.evaluate, self.warn_above, self.uncertain = evaluate, warn_above, False

        def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
            """All results of one configuration, whichever properties are asked for."""
            wanted = [name for name in properties if name.startswith("stress")]
            if wanted and atoms is not None and not atoms.pbc.all():
                raise PropertyNotImplementedError(f"{wanted[0]} needs a cell that is periodic in all directions.")
            super().calculate(atoms, properties, system_changes)
            self.results = {}  # so that a failure leaves none of another configuration
            self.results = self.evaluate(self.atoms)
            if self.warn_above is not None:
                was, self.uncertain = self.uncertain, False
                message = exceeded(self.results["forces_uncertainty"], self.warn_above)
                self.uncertain = bool(message)
                if message and not was:
                    _warn(message)

        def export_properties(self):
            """What ASE itself has a name for."""
            return Properties({name: x for name, x in self.results.items() if name in all_outputs})

    return Posterior


@lru_cache(maxsize=8)
def _evaluator(atom_energies: Callable, batch_size: int) -> Callable:
    """Compiled means, standard deviations and members of one configuration; new parameters do not compile anew."""
    single = energy_forces_stress(Potential(lambda key: {}, atom_energies, 0.0, (), {}))

    def batch(params, system: System, neighbors: Neighbors):
        return each(lambda one: single(one, system, neighbors), batch_size)(params)

    def evaluate(params, weight, system: System, neighbors: Neighbors):
        members = over_batches(batch, params, system, neighbors, batch_size=batch_size)
        return members, tuple(_moments(y, weight) for y in members)

    return jax.jit(evaluate)


def _results(members: tuple, moments: tuple, quantities: tuple[str, ...]) -> dict:
    """Results under ASE's names, in float64 (host)."""
    finite = [np.isfinite(y).reshape(len(y), -1).all(1) for y in members[: len(quantities)]]
    wrong = ~np.all(finite, 0)
    if bad := tuple(np.flatnonzero(wrong).tolist()):
        raise FailedSamples(
            f"{len(bad)} of {len(wrong)} samples gave numbers that are not finite ({listed(bad)}). Check the "
            "configuration, e.g. for atoms that overlap; a shorter time step may have avoided it.",
            bad,
        )
    out = {}
    for name, each_sample, (mean, std) in zip(quantities, members, moments, strict=False):
        for key, value in {name: mean, f"{name}_uncertainty": std, f"{name}_ensemble": each_sample}.items():
            x = np.asarray(value, np.float64)
            x = x.reshape(*x.shape[:-2], 9)[..., _VOIGT] if name == "stress" else x
            out[key] = float(x) if x.ndim == 0 else x
    return {**out, "free_energy": out["energy"]}


def capacity(needed: int) -> int:
    """Neighbours per atom to make room for: 4, 8, …, 64, then in steps of an eighth of the power of two below.

    At least ``needed``, at most an eighth more (or 3), so that a simulation whose numbers of neighbours fluctuate
    meets two or three compiled sizes, and none of its neighbours is left out.

    Example:
        >>> [capacity(n) for n in (1, 30, 64, 65, 200)]
        [4, 32, 64, 72, 208]
    """
    step = max(4, 2 ** (max(needed, 1).bit_length() - 4))
    return -(-max(needed, 1) // step) * step


def padded(found: Neighbors) -> Neighbors:
    """The same neighbours with room for ``capacity`` of them per atom (host)."""
    n, k = found.index.shape
    more = capacity(k) - k
    index = np.pad(np.asarray(found.index), ((0, 0), (0, more)), constant_values=n)
    return Neighbors(jnp.asarray(index), jnp.asarray(np.pad(np.asarray(found.shift), ((0, 0), (0, more), (0, 0)))))


def exceeded(forces_uncertainty: np.ndarray, limit: float) -> str:
    """What to say when the force on some atom is less certain than ``limit`` [eV/Å]; empty when none is."""
    uncertainty = atom_uncertainty(forces_uncertainty)
    atom = int(uncertainty.argmax())
    if uncertainty[atom] <= limit:
        return ""
    return (
        f"The force on atom {atom} has an uncertainty of {uncertainty[atom]:.3g} eV/Å, more than warn_above = "
        f"{limit:g} eV/Å. Configurations like this one are missing in the training data."
    )


def _warn(message: str) -> None:
    """Warn at the user's line that asked for the calculation, wherever ASE called the calculator from."""
    import ase

    inside = tuple(os.path.dirname(path) + os.sep for path in (ase.__file__, os.path.dirname(__file__)))
    warnings.warn(message, UncertaintyWarning, skip_file_prefixes=inside)


def _check_atoms(atoms, known: tuple[int, ...]) -> None:
    """Refuse atoms that the potential cannot treat.

    Raises:
        ValueError: for none at all, unknown elements, or a periodic direction without lattice vector.
    """
    if len(atoms) == 0 or (atoms.numbers < 1).any():
        raise ValueError(f"Every atom must be of a chemical element. Got {atoms.get_chemical_formula() or 'no atom'}.")
    if known and (unknown := sorted(set(atoms.numbers.tolist()) - set(known))):
        raise ValueError(f"The potential knows the species {known}. Got also {unknown} in the atoms.")
    if missing := [
        axis for axis, on, vector in zip("abc", atoms.pbc, atoms.cell, strict=True) if on and not any(vector)
    ]:
        raise ValueError(
            f"pbc is on along {', '.join(missing)} but the lattice vector is missing. Set the cell, or switch pbc off."
        )
