"""Observables of the frames of a data set: what the labels say counts, what they do not say is refused."""

import ase.build
import jax.numpy as jnp
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from bayespot.observables.dynamics import msd
from bayespot.observables.fluctuations import heat_capacity
from bayespot.observables.observable import Observable, average, observe
from bayespot.observables.structure import rdf
from bayespot.observables.thermodynamics import energy_per_atom, pressure, temperature
from bayespot.records.dataset import dataset
from bayespot.records.system import from_ase
from bayespot.tree import replace


def frames(sizes):
    result = [ase.build.bulk("Ar", "sc", a=3.8) * (n, n, n) for n in sizes]
    for n, atoms in enumerate(result):
        atoms.rattle(0.1, seed=n)
    return result


def value(observable, data):
    return np.asarray(observe(observable, data, blocks=1).value[0, 0])


def test_structure_and_labels_of_frames_of_two_sizes():
    atoms = frames((3, 2, 3, 3))
    energy = np.array([-2.7, -0.4, -2.4, -2.1])
    data = dataset([from_ase(a) for a in atoms], 3.0, energy=energy)
    np.testing.assert_allclose(value(energy_per_atom(), data), (energy / data.atom_counts).mean(), rtol=1e-12)
    for asked in (pressure(), temperature()):
        with pytest.raises(ValueError, match="have no velocities"):
            value(asked, data)
    with pytest.raises(ValueError, match="of different numbers of atoms"):
        value(
            heat_capacity(0.01), replace(data, system=replace(data.system, box=np.tile(data.system.box[:1], (4, 1, 1))))
        )
    with pytest.raises(ValueError, match="Got spacings from nan"):
        value(msd(1.0, 1.0), data)

    same = data[[0, 2, 3]]
    counts = sum(np.histogram(neighbor_list("d", atoms[n], 5.0), 10, (0, 5.0))[0] for n in (0, 2, 3)) / 3
    edges = np.linspace(0, 5.0, 11)
    ideal = 27 * 27 / atoms[0].get_volume() * 4 / 3 * np.pi * np.diff(edges**3)
    np.testing.assert_allclose(value(rdf(5.0, 10), same), counts / ideal, rtol=1e-9)


def test_a_missing_label_is_not_a_zero():
    data = dataset([from_ase(a) for a in frames((2, 2))], 3.0, energy=[-1.0, None])
    with pytest.raises(ValueError, match="their labels may be missing"):
        value(energy_per_atom(), data)
    assert value(energy_per_atom(), data[:1]) == -0.125


def test_labels_of_the_stress_are_those_of_the_frame():
    labels = np.random.default_rng(0).normal(size=(2, 3, 3))
    labels += labels.transpose(0, 2, 1)
    data = dataset([from_ase(a) for a in frames((2, 2))], 3.0, stress=list(labels))
    trace = Observable(lambda frame: jnp.trace(frame.stress), average, "trace", "eV/Å³")
    np.testing.assert_allclose(value(trace, data), np.trace(labels, axis1=1, axis2=2).mean(), rtol=1e-12)
