"""Compressibility and thermal expansion of an ideal gas in a breathing box, whose volumes are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot import units
from bayespot.observables.fluctuations import compressibility, heat_capacity, thermal_expansion
from bayespot.observables.observable import observe
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory

KT, PRESSURE, ATOMS, FRAMES = 0.03, 2e-4, 20, 4000


def breathing(slope=0.0, frames=FRAMES):
    """Volumes of an ideal gas, Gamma(N, kT/p) distributed, and energies that are linear in the volume."""
    volumes = np.random.default_rng(4).gamma(ATOMS, KT / PRESSURE, frames)
    box = np.eye(3) * np.cbrt(volumes)[:, None, None]
    position = np.zeros((frames, ATOMS, 3))
    system = System(position, np.ones((frames, ATOMS), np.int32), box)
    energy = slope * volumes + 7.0
    frame = Frame(system, np.zeros_like(position), energy, np.zeros((frames, 3, 3)))
    return Trajectory(frame, np.arange(frames, dtype=float), np.array(0), np.array(float(frames)))


def value(observable, run):
    return float(observe(observable, run, blocks=1).value[0, 0])


# Relative standard error of the variance of T draws with excess kurtosis 6/N: sqrt((2 + 6/N)/T) = 2.4 %; 4 sigma.
TOLERANCE = 4 * np.sqrt((2 + 6 / ATOMS) / FRAMES)


def test_an_ideal_gas_is_as_compressible_as_one_over_its_pressure():
    assert value(compressibility(KT), breathing()) == pytest.approx(units.GPa / PRESSURE, rel=TOLERANCE)


def test_an_ideal_gas_expands_by_one_over_its_temperature():
    assert value(thermal_expansion(KT, PRESSURE), breathing()) == pytest.approx(units.kB / KT, rel=TOLERANCE)


def test_energies_that_covary_with_the_volume_count_like_a_pressure():
    run = breathing(slope=3 * PRESSURE)
    without = value(thermal_expansion(KT, PRESSURE), breathing())
    assert value(thermal_expansion(KT, PRESSURE), run) == pytest.approx(4 * without, rel=1e-6)


def test_weights_count():
    run, observable = breathing(frames=6), compressibility(KT)
    volumes = np.linalg.det(np.asarray(run.frames.system.box))
    values = jnp.stack([jnp.asarray(volumes), jnp.zeros(6)], 1)
    twice, weights = jnp.repeat(values, 2, 0), np.array([1, 2, 3, 4, 5, 5.0]) / 20
    mean = weights @ volumes
    expected = weights @ (volumes - mean) ** 2 / (1 - weights @ weights) / (KT * mean) * units.GPa
    assert float(observable.combine(values, weights)) == pytest.approx(expected, rel=1e-6)
    equal = np.full(12, 1 / 12)
    assert float(observable.combine(twice, equal)) == pytest.approx(
        volumes.var() / (1 - 1 / 12) / (KT * volumes.mean()) * units.GPa, rel=1e-6
    )


def test_runs_of_the_wrong_ensemble_are_refused():
    run = breathing(frames=4)
    box = np.broadcast_to(5.0 * np.eye(3), (4, 3, 3))
    still = Trajectory(
        Frame(System(run.frames.system.position, run.frames.system.species, box), *list(vars(run.frames).values())[1:]),
        run.time, run.status, run.valid_until,
    )  # fmt: skip
    for observable in (compressibility(KT), thermal_expansion(KT)):
        with pytest.raises(ValueError, match="constant pressure"):
            observe(observable, still, blocks=1)
    with pytest.raises(ValueError, match="constant volume"):
        observe(heat_capacity(KT), run, blocks=1)


@pytest.mark.parametrize("make", [compressibility, thermal_expansion])
def test_arguments_are_checked(make):
    with pytest.raises(ValueError, match="kT > 0"):
        make(0.0)
