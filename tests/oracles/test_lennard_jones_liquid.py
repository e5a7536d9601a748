r"""The Lennard-Jones liquid against published Monte Carlo results: energy, pressure and density.

NIST Standard Reference Simulation Website (Standard Reference Database 173), Lennard-Jones fluid, Monte Carlo in the
NVT ensemble: 500 atoms at :math:`kT = 0.85\,\epsilon`, cutoff 3 σ, corrections for what is beyond. Everything in units
of ε and σ. The potential here fades between 2.95 and 3 σ; what it lacks is added as there, with :math:`g(r) = 1`.

Error budget: four times the standard error of the runs and the published one, added in squares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_masses
from scipy.integrate import quad

import bayespot as bp
from bayespot import units

SIGMA, EPSILON, KT = 3.4, 0.0104, 0.85 * 0.0104
ONSET, CUTOFF = 2.95, 3.0
DENSITY, STEP = 0.82, 0.04
ENERGY, ENERGY_ERROR = -5.7947, 0.0007  # of an atom, without kinetic energy
PRESSURE, PRESSURE_ERROR = (0.047924, 0.55355, 1.2660), 0.0032  # at 0.78, 0.82 and 0.86
POTENTIAL = bp.lennard_jones(SIGMA, EPSILON, cutoff=CUTOFF * SIGMA, onset=ONSET * SIGMA)


def lacking(density: float) -> float:
    """Energy of an atom beyond what the potential sees; times the density it is the pressure, by parts."""

    def pair(r):
        x = np.clip((r - ONSET) / (CUTOFF - ONSET), 0.0, 1.0)
        return 4 * (r**-12 - r**-6) * (10 * x**3 - 15 * x**4 + 6 * x**5)

    pieces = quad(lambda r: r**2 * pair(r), ONSET, CUTOFF)[0] + quad(lambda r: r**2 * pair(r), CUTOFF, np.inf)[0]
    return 2 * np.pi * density * pieces


def liquid(density: float, cells: int) -> bp.System:
    """4 cells³ atoms, molten at constant volume: at constant pressure the crystal would stay for long."""
    atoms = bulk("Ar", "fcc", a=SIGMA * (4 / density) ** (1 / 3), cubic=True) * (cells, cells, cells)
    atoms.rattle(0.3, seed=0)
    hot = bp.nvt_langevin(2 * KT, 8 * units.fs, gamma=0.02)
    run = bp.simulate(
        jax.random.key(2), POTENTIAL, POTENTIAL.init(jax.random.key(0)), bp.from_ase(atoms), hot,
        steps=2000, every=2000, skin=1.2, progress=False,
    )  # fmt: skip
    return jax.tree.map(lambda x: jnp.asarray(x[-1]), run.frames.system)


def simulated(ensemble, start: bp.System, steps: int, replicas: int):
    params = jax.tree.map(lambda x: np.asarray(x)[None], POTENTIAL.init(jax.random.key(0)))
    return bp.propagate(
        jax.random.key(1), POTENTIAL, bp.as_samples(params, POTENTIAL.spec), start, ensemble,
        steps=steps, every=50, equilibration=2000, replicas=replicas, skin=1.2, progress=False,
    )  # fmt: skip


def averages(observable, runs) -> tuple[float, float]:
    """Mean over the runs and its standard error, from their blocks."""
    found = bp.observe(observable, runs, blocks=8)
    assert not np.asarray(found.status).any()
    blocks = np.asarray(found.blocks, np.float64).ravel()
    return float(np.mean(found.value)), blocks.std(ddof=1) / len(blocks) ** 0.5


@pytest.mark.slow
def test_energy_and_pressure():
    runs = simulated(bp.nvt_langevin(KT, 8 * units.fs, gamma=0.02), liquid(DENSITY, 5), 4000, 2)
    unit = EPSILON / SIGMA**3 / units.GPa
    energy, energy_error = (x / EPSILON for x in averages(bp.energy_per_atom(), runs))
    pressure, pressure_error = (x / unit for x in averages(bp.pressure(), runs))
    assert energy_error < 0.005
    assert abs(energy + lacking(DENSITY) - ENERGY) < 4 * np.hypot(energy_error, ENERGY_ERROR)
    assert pressure_error < 0.03
    assert abs(pressure + DENSITY * lacking(DENSITY) - PRESSURE[1]) < 4 * np.hypot(pressure_error, PRESSURE_ERROR)


@pytest.mark.slow
def test_density():
    """At the published pressure it is the one that the pressure was published for, from a start 5 % below it."""
    unit = EPSILON / SIGMA**3
    pressure = unit * (PRESSURE[1] - DENSITY * lacking(DENSITY))
    slope = (PRESSURE[2] - PRESSURE[0]) / (2 * STEP) - 2 * lacking(DENSITY)
    ensemble = bp.npt_langevin(KT, pressure, 8 * units.fs, 0.02, tau_box=0.5 * units.ps, modulus=13 * unit)
    runs = simulated(ensemble, liquid(0.95 * DENSITY, 4), 5000, 4)
    atoms = SIGMA**3 * units.g_per_cm3 / atomic_masses[18]
    density, error = (x * atoms for x in averages(bp.density(), runs))
    assert error < 0.002
    assert abs(density - DENSITY) < 4 * np.hypot(error, PRESSURE_ERROR / slope)
