"""Every ensemble: its temperature, its distribution of energies, and what it conserves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot import units
from bayespot.observables.fluctuations import compressibility, thermal_expansion
from bayespot.observables.observable import observe
from bayespot.observables.thermodynamics import pressure
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import Potential
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.system import from_ase, masses, system, volume
from bayespot.simulation.ensemble import momenta, npt_nose_hoover, nve, nvt_langevin, nvt_nose_hoover
from bayespot.simulation.npt_langevin import npt_langevin
from bayespot.simulation.simulate import propagate, simulate
from bayespot.tree import stack

FS, kB = units.fs, units.kB
ARGON = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0)
PARAMS = {"sigma": jnp.array(3.4), "epsilon": jnp.array(0.0104)}
START = from_ase(bulk("Ar", cubic=True, a=5.3) * (2, 2, 2))
N = 32
COLD, HOT = 40 * kB, 48 * kB
BOX = {"box": "flexible", "tau_box": 500 * FS, "modulus": 2.0 * units.GPa}
CANONICAL = {
    "langevin": lambda kT: nvt_langevin(kT, 10 * FS, gamma=0.1),
    "nose-hoover": lambda kT: nvt_nose_hoover(kT, 10 * FS, tau=200 * FS),
    # under no pressure the weight of a configuration is exp(−U/kT), too
    "npt": lambda kT: npt_nose_hoover(kT, 0.0, 10 * FS, tau=200 * FS, tau_box=1000 * FS),
    "npt-langevin": lambda kT: npt_langevin(kT, 0.0, 10 * FS, **BOX),
}


def one_sample(params):
    zero = jnp.zeros(1)
    params = {"potential": stack([params]), "noise": {}}
    return PosteriorSamples(params, zero, jnp.zeros(1, int), jnp.zeros(1, int), zero, jnp.zeros(1, int), {}, "")


def replicas(ensemble, seed):
    """Eight independent runs of 100 ps of solid argon; their kinetic and potential energies, (8, frames).

    Where the box moves, 200 ps: the energy follows the volume, whose fluctuations are slower.
    """
    steps = 10_000 if ensemble.box is None else 20_000
    runs = propagate(
        jax.random.key(seed), ARGON, one_sample(PARAMS), START, ensemble, steps=steps, every=20, equilibration=1000,
        replicas=8, batch_size=1, chunk=5000, skin=0.8, progress=False,
    )  # fmt: skip
    mass = np.asarray(masses(START))[:, None]
    return runs, 0.5 * (mass * runs.frames.velocity[0] ** 2).sum((-1, -2)), runs.frames.energy[0]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in CANONICAL])
def canonical(request, optimised):
    make = CANONICAL[request.param]
    return make(COLD), make(HOT), replicas(make(COLD), 1), replicas(make(HOT), 2)


def test_kinetic_temperature(canonical):
    # Error from the spread of 8 independent runs (5 standard errors: p = 0.002 for 7 degrees of freedom), plus 0.5 %
    # for the time step: (ω dt)²/8 with ω dt = 0.13 is 0.2 %. Counting 3N for 3N − 3 would be off by 3.2 %.
    for ensemble, (_, kinetic, _) in zip(canonical[:2], canonical[2:], strict=True):
        kT = 2 * kinetic.mean(1) / ensemble.degrees(N)
        error = kT.std(ddof=1) / np.sqrt(8)
        assert error < 0.005 * ensemble.kT
        assert abs(kT.mean() - ensemble.kT) < 5 * error + 0.005 * ensemble.kT


def test_kinetic_energy_has_canonical_fluctuations(canonical):
    # var K = degrees/2 kT²; the relative error of a variance from some 3000 independent frames is sqrt(2/3000) = 3 %.
    for ensemble, (_, kinetic, _) in zip(canonical[:2], canonical[2:], strict=True):
        expected = 0.5 * ensemble.degrees(N) * ensemble.kT**2
        np.testing.assert_allclose(kinetic.var(ddof=1), expected, rtol=0.1)


def test_boltzmann_slope_of_the_potential_energy(canonical):
    # ln p_hot(U)/p_cold(U) = const + (1/kT_cold − 1/kT_hot) U, by logistic regression (Shirts, JCTC 9, 909 (2013)).
    # Each of 8 independent pairs of runs gives one slope; 5 standard errors of their mean, which is below 4 %.
    slopes = np.array([slope(cold, hot) for cold, hot in zip(canonical[2][2], canonical[3][2], strict=True)])
    expected, error = 1 / COLD - 1 / HOT, slopes.std(ddof=1) / np.sqrt(8)
    assert error < 0.04 * expected
    assert abs(slopes.mean() - expected) < 5 * error


def test_thermal_expansion_is_the_slope_of_the_volume(canonical):
    # Between two temperatures a fifth apart: fluctuations at both against the difference of the mean volumes, by eight
    # pairs of runs; 5 standard errors of their mean (1 and 5 %), plus 1 % for the curve between the temperatures and
    # the length of the runs, which fluctuations lack by one correlation time in a hundred or more.
    cold, hot, *found = canonical
    if cold.box is None:
        pytest.skip("the box does not move")
    runs = [runs for runs, *_ in found]
    fluctuations = [
        np.asarray(observe(thermal_expansion(e.kT), r).value)[0] for e, r in zip((cold, hot), runs, strict=True)
    ]
    mean = [np.asarray(volume(r.frames.system.box))[0].mean(1) for r in runs]
    difference = np.log(mean[1] / mean[0]) * kB / (hot.kT - cold.kT)
    apart = 0.5 * (fluctuations[0] + fluctuations[1]) - difference
    error = apart.std(ddof=1) / np.sqrt(8)
    assert error < 0.07 * difference.mean()
    assert abs(apart.mean()) < 5 * error + 0.01 * difference.mean()


def slope(cold, hot) -> float:
    """Maximum-likelihood slope of the log odds hot : cold, by Newton's method."""
    u = np.concatenate([cold, hot])
    label = np.repeat([0.0, 1.0], [len(cold), len(hot)])
    centre, scale = u.mean(), u.std()
    x = np.stack([np.ones_like(u), (u - centre) / scale], 1)
    w = np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        w = w + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (label - p))
    return w[1] / scale


@pytest.mark.slow
@pytest.mark.parametrize(
    "ensemble",
    [
        lambda p: npt_nose_hoover(COLD, p, 10 * FS, tau=200 * FS, tau_box=1000 * FS),
        lambda p: npt_langevin(COLD, p, 10 * FS, **BOX),
    ],
    ids=["nose-hoover", "langevin"],
)
def test_pressure_and_fluctuations_of_the_volume(ensemble):
    # ln p_a(V)/p_b(V) = const − (P_a − P_b) V/kT: exact, whatever the equation of state. Eight pairs of runs of 50 ps;
    # a slope scatters by some 10 %. The mean of the virial pressure is P. The compressibility by var V/(kT V) is that
    # by the difference of the mean volumes, up to the 1 % by which it does not fall linearly between the pressures.
    pressures, volumes, fluctuations = (0.0, 0.05 * units.GPa), [], []
    for number, p in enumerate(pressures):
        runs = propagate(
            jax.random.key(number), ARGON, one_sample(PARAMS), START,
            ensemble(p), steps=5000, every=20, equilibration=1000, replicas=8, batch_size=1, chunk=5000, skin=0.8,
            progress=False,
        )  # fmt: skip
        virial = np.asarray(observe(pressure(), runs).value[0]) * units.GPa
        assert abs(virial.mean() - p) < 5 * virial.std(ddof=1) / np.sqrt(8) < 0.01 * units.GPa
        volumes.append(np.asarray(volume(runs.frames.system.box))[0])
        fluctuations.append(np.asarray(observe(compressibility(COLD), runs).value)[0] / units.GPa)
    slopes = np.array([slope(a, b) for a, b in zip(*volumes, strict=True)])
    expected, error = -(pressures[1] - pressures[0]) / COLD, slopes.std(ddof=1) / np.sqrt(8)
    assert error < 0.07 * abs(expected)
    assert abs(slopes.mean() - expected) < 5 * error
    mean = np.array([v.mean(1) for v in volumes])
    difference = (mean[0] - mean[1]) / (pressures[1] - pressures[0]) / mean.mean(0)
    apart = np.mean(fluctuations, 0) - difference
    error = apart.std(ddof=1) / np.sqrt(8)
    assert error < 0.07 * difference.mean()
    assert abs(apart.mean()) < 5 * error + 0.01 * difference.mean()


def einstein(sites, stiffness):
    """Atoms tethered to their sites: every average is known in closed form."""

    def energies(params, sys, neighbors):
        return 0.5 * params["k"] * ((sys.position - sites) ** 2).sum(-1)

    return Potential(lambda key: {"k": jnp.array(stiffness)}, energies, 1.0, (), {"name": "einstein"})


@pytest.mark.slow
def test_langevin_knows_the_masses():
    # 100 hydrogen and 100 lead atoms on springs. BAOAB samples harmonic positions without time-step error.
    # 300 frames, 50 fs apart, and friction 1/(50 fs): > 2000 independent values of each average over 300 coordinates,
    # standard errors about sqrt(2/(300 · 100)) = 0.8 % for 100 independent frames; the bound is 4 %.
    kT, k = 0.05, 5.0
    sites = jnp.asarray(10.0 * np.arange(200)[:, None] * np.array([1.0, 0, 0]))
    start = system(sites, np.repeat([1, 82], 100))
    potential = einstein(sites, k)
    run = simulate(
        jax.random.key(0), potential, {"k": jnp.array(k)}, start, nvt_langevin(kT, 0.5 * FS, gamma=0.2), steps=60_000,
        every=200, equilibration=2000, chunk=20_000, progress=False,
    )  # fmt: skip
    mass = np.asarray(masses(start))[:, None]
    away, kinetic = np.asarray(run.frames.system.position) - sites, mass * run.frames.velocity**2
    for kind in (slice(0, 100), slice(100, 200)):
        np.testing.assert_allclose((away[:, kind] ** 2).mean(), kT / k, rtol=0.04)
        np.testing.assert_allclose(kinetic[:, kind].mean(), kT, rtol=0.04)


def test_langevin_friction():
    # Free atoms forget their velocity as exp(−γt). 2000 atoms × 3: the standard error of a correlation is 0.013.
    dt, gamma = 2 * FS, 0.3
    start = system(np.arange(2000)[:, None] * np.array([10.0, 0, 0]), np.full(2000, 18))
    run = simulate(
        jax.random.key(0), einstein(start.position, 0.0), {"k": jnp.array(0.0)}, start, nvt_langevin(0.03, dt, gamma),
        steps=20, every=1, chunk=20, progress=False,
    )  # fmt: skip
    v = run.frames.velocity.reshape(20, -1)
    correlation = (v[0] * v).mean(1) / (v[0] ** 2).mean()
    np.testing.assert_allclose(correlation, np.exp(-gamma * dt * np.arange(20)), atol=0.06)


def test_nve_energy_error_falls_with_the_square_of_the_step():
    # The same 2 ps twice; velocity Verlet's energy oscillates with amplitude ∝ dt².
    error = []
    for dt, steps in ((20 * FS, 100), (10 * FS, 200)):
        run = simulate(
            jax.random.key(0),
            ARGON,
            PARAMS,
            START,
            nve(dt, kT=80 * kB),
            steps=steps,
            every=steps // 100,
            progress=False,
        )
        total = 0.5 * (39.948 * run.frames.velocity**2).sum((1, 2)) + run.frames.energy
        np.testing.assert_allclose((39.948 * run.frames.velocity).sum(1), 0, atol=1e-10)
        error.append(total.std())
    assert 3.5 < error[0] / error[1] < 4.5


def test_nve_follows_newton():
    # Two argon atoms start at rest; their distance against Störmer's rule, written out with the force of the
    # Lennard-Jones formula (inside the onset of the switch).
    start = system([[0, 0, 0], [3.6, 0, 0]], [18, 18])
    dt, steps = 5 * FS, 60
    wide = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=9.0, onset=8.0)
    run = simulate(jax.random.key(0), wide, PARAMS, start, nve(dt), steps=steps, every=1, progress=False)

    def acceleration(r):
        s = (3.4 / r) ** 6
        return 2 * 24 * 0.0104 * (2 * s * s - s) / r / 39.948

    r = [3.6, 3.6 + 0.5 * dt**2 * acceleration(3.6)]
    for _ in range(steps - 1):
        r.append(2 * r[-1] - r[-2] + dt**2 * acceleration(r[-1]))
    x = np.asarray(run.frames.system.position)
    # jax-md rounds the step to float32, which is 6e-8 of it.
    np.testing.assert_allclose(x[:, 1, 0] - x[:, 0, 0], r[1:], rtol=1e-7)


def test_initial_momenta():
    # 4000 draws of p with total momentum removed: var p = m kT (1 − m/M). Relative error of a variance over
    # 12000 numbers: sqrt(2/12000) = 1.3 %; the bound is 5 of them.
    mass = jnp.array([[1.0], [16.0], [40.0]])
    p = jax.vmap(lambda k: momenta(k, mass, 0.03))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(p.sum(1), 0, atol=1e-12)
    expected = mass[:, 0] * 0.03 * (1 - mass[:, 0] / 57.0)
    np.testing.assert_allclose((p**2).mean((0, 2)), expected, rtol=0.065)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nve(0.0), "dt must be positive"),
        (lambda: nve(1.0, kT=-1.0), "kT of the initial velocities"),
        (lambda: nvt_langevin(0.0, 1.0), "kT must be positive"),
        (lambda: nvt_langevin(1.0, 1.0, gamma=0.0), "gamma must be positive"),
        (lambda: nvt_nose_hoover(1.0, float("nan")), "dt"),
        (lambda: nvt_nose_hoover(1.0, 1.0, chain_length=1), "chain_length must be at least 2"),
    ],
)
def test_refuses_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
