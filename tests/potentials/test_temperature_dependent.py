"""Potentials that depend on the temperature, against the free energy of a coordinate that was integrated out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.potentials.bonded import bonded, topology
from bayespot.potentials.build import build
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.potential import Potential, energy_and_forces, require_whole_molecules
from bayespot.potentials.temperature_dependent import temperature_dependent
from bayespot.records.neighbors import neighbors
from bayespot.records.system import system

REFERENCE = 0.025
STIFFNESS = 0.4, 0.3  # of the hidden coordinate, k(r) = 0.4 + 0.3 r²


def of_distance(function, name: str) -> Potential:
    """A potential of two atoms that is a function of their distance."""

    def atom_energies(params, sys, nbrs):
        return jnp.full(2, 0.5 * function(jnp.linalg.norm(sys.position[1] - sys.position[0])))

    return Potential(lambda key: {}, atom_energies, 5.0, (), {"name": name})


def stiffness(r):
    return STIFFNESS[0] + STIFFNESS[1] * r**2


def integrated_out(r: float, kT: float) -> float:
    """−kT ln ∫ exp(−(0.1 (r − 2)² + k(r) y²/2)/kT) dy, by the trapezoidal rule, less what does not depend on r."""
    y = np.linspace(-5.0, 5.0, 20_001)
    weight = np.exp(-(0.1 * (r - 2.0) ** 2 + 0.5 * stiffness(r) * y**2) / kT)
    return -kT * np.log(np.trapezoid(weight, y) / np.sqrt(2 * np.pi * kT))


@pytest.mark.parametrize("kT", [0.5 * REFERENCE, REFERENCE, 1.7 * REFERENCE])
def test_is_the_free_energy_of_what_was_left_out(kT):
    mean_force = of_distance(lambda r: 0.1 * (r - 2.0) ** 2 + 0.5 * REFERENCE * jnp.log(stiffness(r)), "energy")
    entropy = of_distance(lambda r: -0.5 * REFERENCE * jnp.log(stiffness(r)), "entropy")
    family = temperature_dependent(mean_force, entropy, REFERENCE)
    for r in (1.3, 2.4):
        pair = system([[0, 0, 0], [r, 0, 0]], [1, 1])
        energy, force = energy_and_forces(family(kT))({"potential": {}, "entropy": {}}, pair, neighbors(pair, 5.0))
        assert float(energy) == pytest.approx(integrated_out(r, kT), rel=1e-9)
        slope = (integrated_out(r + 1e-4, kT) - integrated_out(r - 1e-4, kT)) / 2e-4
        assert float(force[1, 0]) == pytest.approx(-slope, rel=1e-6)


def test_one_spec_for_all_temperatures():
    family = temperature_dependent(lennard_jones(2.0, 0.4, 4.5), lennard_jones(2.2, 0.1, 4.0), REFERENCE)
    assert family(0.01).spec == family(0.03).spec
    assert jax.tree.structure(family(0.01).init(jax.random.key(0))) == jax.tree.structure(
        family(0.03).init(jax.random.key(0))
    )
    again = build(json.loads(json.dumps(family(0.01).spec)))
    pair = system([[0, 0, 0], [2.3, 0, 0]], [14, 14])
    params, nbrs = again.init(jax.random.key(0)), neighbors(pair, 5.0)
    at = {kT: float(family(kT).energy(params, pair, nbrs)) for kT in (0.01, REFERENCE)}
    assert float(again.energy(params, pair, nbrs)) == at[REFERENCE]
    assert at[0.01] != at[REFERENCE]


def test_bonded_parts_need_whole_molecules():
    initial = {"bond": {"k": [1.0] * 3, "r0": [2.0] * 3}, "angle": {"k": [1.0] * 2, "theta0": [1.9] * 2}}
    initial |= {"dihedral": {"cosine": [[0.1]], "sine": [[0.1]]}}
    chain = bonded(*topology([(0, 1), (1, 2), (2, 3)]), initial=initial)
    pairs = lennard_jones(2.2, 0.1, 4.0)
    for parts in ((chain, pairs), (pairs, chain)):
        with pytest.raises(ValueError, match="whole molecules of 4"):
            require_whole_molecules(temperature_dependent(*parts, REFERENCE)(REFERENCE), np.array([6]), "frame {}")


def test_refuses():
    with pytest.raises(ValueError, match="kT must be positive"):
        temperature_dependent(lennard_jones(2.0, 0.4, 4.5), lennard_jones(2.2, 0.1, 4.0), 0.0)
    with pytest.raises(ValueError, match="kT must be positive"):
        temperature_dependent(lennard_jones(2.0, 0.4, 4.5), lennard_jones(2.2, 0.1, 4.0), 0.02)(-1.0)
    with pytest.raises(ValueError, match="share a species"):
        temperature_dependent(stillinger_weber(14), stillinger_weber(32), 0.02)
