r"""Potentials of mean force that change with the temperature, as those of coarse-grained beads do.

A potential of mean force is a free energy of the degrees of freedom that were left out. To first order

.. math:: u(x; T) = u_0(x) + \Big(1 - \frac{T}{T_0}\Big)\, u_s(x), \qquad
          -\frac{\partial u}{\partial T} = \frac{u_s}{T_0},

so that :math:`u_0` is the potential at the reference temperature :math:`T_0` and :math:`u_s/T_0` the entropy of what
was left out, in the state *x*. One set of parameters serves all temperatures.
"""

from collections.abc import Callable

from bayespot.potentials.potential import Potential, add
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params


def temperature_dependent(potential: Potential, entropy: Potential, reference: float) -> Callable[[float], Potential]:
    """A family of potentials with common parameters, one for each temperature.

    Several temperatures teach it together: ``fused(difftre(family(cold), …), difftre(family(hot), …))``. All members
    have the same ``spec``, so that a posterior of one belongs to all; ``build`` makes the member at the reference. That
    a simulation, its ensemble and its observables use the member of the same temperature is therefore not checked.
    Neither must frames of one temperature be reweighted to another.

    The energy of a member is a free energy; the mean energy of what was left out is that of ``family(kT)`` plus kT/kT₀
    times the second part. ``energy_per_atom`` and heat capacities do not count it.

    Args:
        potential: u₀, at the reference temperature.
        entropy: u_s [eV], the reference temperature times the entropy of what was left out.
        reference: kT₀ [eV].

    Returns:
        ``kT [eV] → potential``, with the parameters ``{"potential": …, "entropy": …}``.

    Raises:
        ValueError: for a kT that is not positive, or parts without a species in common.
    """
    _require_positive(reference)
    both = add(potential, entropy)  # checks that they fit
    spec = {
        "name": "temperature_dependent",
        "potential": potential.spec,
        "entropy": entropy.spec,
        "reference": float(reference),
    }

    def init(key: Key) -> Params:
        params = both.init(key)
        return {"potential": params["0"], "entropy": params["1"]}

    def member(kT: float) -> Potential:
        _require_positive(kT)
        share = 1.0 - float(kT) / float(reference)

        def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
            energies = potential.atom_energies(params["potential"], system, neighbors)
            return energies + share * entropy.atom_energies(params["entropy"], system, neighbors)

        return Potential(init, atom_energies, both.cutoff, both.species, spec)

    return member


def at_reference(potential: Potential, entropy: Potential, reference: float) -> Potential:
    """The member at the reference temperature, which is what a spec stands for."""
    return temperature_dependent(potential, entropy, reference)(reference)


def _require_positive(kT: float) -> None:
    if not kT > 0:
        raise ValueError(f"kT must be positive [eV]. Got {kT}.")
