"""Reference energies against exact compositions; scales and tables against numbers worked out by hand."""

import numpy as np
import pytest

from bayespot.records.dataset import dataset
from bayespot.records.statistics import force_scale, reference_energies, shortest_distance, summary
from bayespot.records.system import system

ATOMIC = {1: -13.6, 6: -1030.0, 8: -2040.0}


def mixture(compositions, noise=0.0, missing=()):
    rng = np.random.default_rng(0)
    species = [[z for z, n in zip(ATOMIC, c, strict=True) for _ in range(n)] for c in compositions]
    energy = [sum(ATOMIC[z] for z in s) + noise * len(s) * rng.normal() for s in species]
    systems = [system(3.0 * np.arange(3 * len(s)).reshape(-1, 3), s) for s in species]
    return dataset(systems, 2.0, energy=[None if k in missing else e for k, e in enumerate(energy)])


def test_exact_atomic_energies_are_found():
    """Energies that are sums over atoms. The ridge moves them to the mean by about λ / (variance of the fractions) of
    the distance, 1e-6 / 0.02 × 1700 eV = 0.09 eV; with λ = 1e-10 that is 1e-5 eV."""
    data = mixture([(4, 1, 0), (2, 0, 1), (6, 2, 1), (0, 1, 2), (4, 1, 1)])
    for ridge, tolerance in ((1e-6, 0.3), (1e-10, 1e-4)):
        energies = reference_energies(data, ridge)
        assert list(energies) == [1, 6, 8]
        for z, e in energies.items():
            assert e == pytest.approx(ATOMIC[z], abs=tolerance)


def test_one_composition_gives_the_mean_energy_per_atom():
    data = mixture([(4, 1, 0)] * 6, noise=0.1)
    mean = np.mean(np.asarray(data.energy) / 5)
    energies = reference_energies(data)
    assert energies[1] == pytest.approx(mean, rel=1e-9)
    assert energies[6] == pytest.approx(mean, rel=1e-9)


def test_frames_without_energy_do_not_count():
    data = mixture([(4, 1, 0), (2, 0, 1), (4, 1, 0)], missing=(1,))
    energies = reference_energies(data)
    mean = sum(ATOMIC[z] * n for z, n in ((1, 4), (6, 1))) / 5
    assert energies == pytest.approx({1: mean, 6: mean, 8: mean}, rel=1e-9)  # oxygen is unknown: the mean
    with pytest.raises(ValueError, match="frames with an energy"):
        reference_energies(data[1:2])
    with pytest.raises(ValueError, match="ridge must be positive"):
        reference_energies(data, 0.0)


@pytest.fixture
def small():
    """Two atoms 1.5 Å apart, then one atom; the second frame has no forces, the third no label."""
    systems = [
        system([[0, 0, 0], [0, 0, 1.5]], [14, 14], [9, 9, 9]),
        system([[0, 0, 0]], [32]),
        system([[0, 0, 0]], [32]),
    ]
    return dataset(
        systems,
        2.0,
        energy=[-10.0, -4.0, None],
        forces=[np.array([[3.0, 0, 0], [0, 4.0, 0]]), None, None],
        stress=[0.3 * np.eye(3), None, None],
        group=["pair", "atom", "atom"],
    )


def test_force_scale(small):
    assert force_scale(small) == pytest.approx(np.sqrt((9 + 16) / 6))  # six components of real, labelled atoms
    with pytest.raises(ValueError, match="frames with forces"):
        force_scale(small[1:])


def test_shortest_distance(small):
    assert shortest_distance(small) == pytest.approx(1.5)
    assert shortest_distance(small[1:]) == np.inf
    crystal = dataset([system([[0, 0, 0]], [14], [2.5, 3, 3])], 3.5)
    assert shortest_distance(crystal) == pytest.approx(2.5)  # to its own image


def test_summary(small):
    text = summary(small)
    assert "3 frames of 1–2 atoms, species 14, 32" in text
    assert "2 energies, 1 forces, 1 stresses" in text
    assert "0 / 0.5 / 1" in text
    assert "shortest distance 1.500 Å" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[-3:]}
    assert rows["pair"] == ["1", "2", "-5.0000", "—", "2.0412", "0.17321"]
    assert rows["atom"] == ["2", "2", "-4.0000", "—", "—", "—"]
    assert rows["all"] == ["3", "4", "-4.5000", "0.7071", "2.0412", "0.17321"]
