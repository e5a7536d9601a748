"""The potentials of the contract tests; a new one is one line in ``MEMBERS``."""

from typing import NamedTuple

from bayespot.potentials.bonded import bonded, topology
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.combination import combination
from bayespot.potentials.descriptor_mlp import from_constants
from bayespot.potentials.dimenet import dimenet
from bayespot.potentials.pair_spline import pair_spline
from bayespot.potentials.potential import Potential, add
from bayespot.potentials.repulsion import repulsion
from bayespot.potentials.scale_shift import scale_shift
from bayespot.potentials.temperature_dependent import temperature_dependent


class Member(NamedTuple):
    """A potential, the species to test it with, and a typical distance between neighbours [Å]."""

    potential: Potential
    species: tuple[int, ...]
    spacing: float


def small_dimenet() -> Potential:
    return dimenet((14, 8), cutoff=3.6, width=8, blocks=1, radial=3, angular=4, output_width=8, output_layers=1)


def small_descriptor_mlp() -> Potential:
    return from_constants((14, 8), 4.0, 2, (8,), mean=(), std=(), shift={14: -5.4, 8: -2.0}, scale=2.0)


def four_bonded_atoms() -> Potential:
    """A chain with all terms beside a weak Lennard-Jones, which gives it neighbours."""
    initial = {
        "bond": {"k": [0.3, 0.2, 0.4], "r0": [2.0, 2.2, 2.5]},
        "angle": {"k": [0.5, 0.3], "theta0": [1.9, 1.4]},
        "dihedral": {"cosine": [[0.2, 0.1, -0.1]], "sine": [[0.1, -0.1, 0.3]]},
    }
    chain = bonded(*topology([(0, 1), (1, 2), (2, 3)]), initial=initial)
    return add(chain, lennard_jones(2.2, 0.01, 4.5))


def two_temperatures() -> Potential:
    """At the reference temperature, for which the spec stands."""
    return temperature_dependent(lennard_jones(2.2, 0.4, 4.5), lennard_jones(2.0, 0.1, 4.0), 0.05)(0.05)


MEMBERS = {
    "lennard_jones": lambda: Member(lennard_jones(sigma=2.2, epsilon=0.4, cutoff=4.5), (14, 8), 2.5),
    "pair_spline": lambda: Member(
        pair_spline(1.0, 4.5, 12, initial=[2.0, 1.0, -1.0, 0.5, -2.0, 1.5, 0.3, -0.7, 1.0]), (14, 8), 2.5
    ),
    "stillinger_weber_Si": lambda: Member(stillinger_weber(14), (14,), 2.4),
    "stillinger_weber_Ge": lambda: Member(stillinger_weber(32), (32,), 2.5),
    "repulsion": lambda: Member(repulsion(cutoff=1.7), (14, 22), 1.5),
    "dimenet": lambda: Member(small_dimenet(), (14, 8), 2.5),
    "descriptor_mlp": lambda: Member(small_descriptor_mlp(), (14, 8), 2.5),
    "combination": lambda: Member(combination(lennard_jones(2.2, 0.4, 4.5), 2), (14, 8), 2.5),
    "bonded": lambda: Member(four_bonded_atoms(), (14, 8), 2.5),
    "add": lambda: Member(add(repulsion(cutoff=3.0), stillinger_weber(14)), (14,), 2.2),
    "temperature_dependent": lambda: Member(two_temperatures(), (14, 8), 2.5),
    "scale_shift": lambda: Member(scale_shift(lennard_jones(2.2, 0.4, 4.5), 0.5, {14: -5.4, 8: -2.0}), (14, 8), 2.5),
}

# With the slow tests: what they do, others do too.
ALIKE = ("stillinger_weber_Ge", "combination", "scale_shift", "temperature_dependent", "add")
OF_MOLECULES = ("bonded",)
