"""Dynamics against ballistic motion, a random walk, free Langevin particles and harmonic oscillators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot import units
from bayespot.observables.dynamics import diffusion, msd, vacf, vibrational_density_of_states
from bayespot.observables.observable import observe
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace
from bayespot.uq.variance import run_means


def run_of(position, species, every=1.0, velocity=None) -> Trajectory:
    t, n = position.shape[:2]
    system = System(jnp.asarray(position), jnp.tile(jnp.asarray(species, jnp.int32), (t, 1)), jnp.zeros((t, 3, 3)))
    velocity = jnp.zeros((t, n, 3)) if velocity is None else jnp.asarray(velocity)
    frames = Frame(system, velocity, jnp.zeros(t), jnp.full((t, 3, 3), jnp.nan))
    return Trajectory(frames, every * jnp.arange(t), jnp.array(0), jnp.array(every * t))


def value(observable, run):
    return np.asarray(observe(observable, run, blocks=1).value[0, 0])


def test_ballistic_motion_is_exact_and_drift_does_not_count():
    v = np.array([0.7, -0.2, 0.4])
    every = 0.25
    times = every * np.arange(12)[:, None, None]
    drift = np.array([5.0, 3.0, -8.0])
    position = times * (np.stack([v, -v]) + drift) + np.array([[0, 0, 0], [1.0, 2.0, 3.0]])
    observable = msd(5 * every, every)
    got = observe(observable, run_of(position, [6, 6], every), blocks=1)
    lags = every * np.arange(6)
    np.testing.assert_allclose(got.value[0, 0], v @ v * lags**2, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got.coordinate[0], lags / units.ps, rtol=1e-12)


def test_the_centre_is_that_of_mass_and_species_are_told_apart():
    times = np.arange(6.0)[:, None, None]
    position = times * np.array([[[1.0, 0, 0], [-1.008 / 15.999, 0, 0]]])  # momentum zero: H and O
    run = run_of(position, [1, 8])
    np.testing.assert_allclose(observe(msd(3.0, 1.0, 1), run, blocks=1).value[0, 0], np.arange(4.0) ** 2, rtol=1e-12)
    oxygen = (1.008 / 15.999) ** 2 * np.arange(4.0) ** 2
    np.testing.assert_allclose(observe(msd(3.0, 1.0, 8), run, blocks=1).value[0, 0], oxygen, rtol=1e-9)


def test_random_walk_grows_linearly():
    rng = np.random.default_rng(0)
    n, step = 400, 0.3
    walk = np.cumsum(step * rng.normal(size=(60, n, 3)), axis=0)
    got = np.asarray(observe(msd(4.0, 1.0), run_of(walk, [18] * n), blocks=1).value[0, 0])
    # Taking out the centre removes 1/n. The error of the longest lag: about 56/4 independent spans × 400 atoms × 3
    # squared normals, relative sqrt(2/16800) = 1.1 %; 5 sigma.
    np.testing.assert_allclose(got, 3 * step**2 * np.arange(5) * (1 - 1 / n), rtol=0.055, atol=1e-12)


KT, FRICTION, EVERY, ATOMS, FRAMES = 0.025, 0.2, 0.5, 200, 500


@pytest.fixture(scope="module")
def langevin():
    """Free particles with friction and noise, by the exact transition density of position and velocity."""
    rng = np.random.default_rng(7)
    thermal, decay = KT / 39.948, np.exp(-FRICTION * EVERY)
    spread = thermal / FRICTION**2 * (2 * FRICTION * EVERY - 3 + 4 * decay - decay**2)
    common = thermal / FRICTION * (1 - decay) ** 2
    factor = np.linalg.cholesky([[spread, common], [common, thermal * (1 - decay**2)]])
    x, v = np.zeros((ATOMS, 3)), np.sqrt(thermal) * rng.normal(size=(ATOMS, 3))
    position, velocity = [x], [v]
    for _ in range(FRAMES - 1):
        noise = np.tensordot(factor, rng.normal(size=(2, ATOMS, 3)), axes=1)
        x, v = x + (1 - decay) / FRICTION * v + noise[0], decay * v + noise[1]
        position, velocity = [*position, x], [*velocity, v]
    return thermal, run_of(np.array(position), [18] * ATOMS, EVERY, np.array(velocity))


def langevin_msd(tau, thermal):
    return 6 * thermal / FRICTION * (tau - (1 - np.exp(-FRICTION * tau)) / FRICTION)


def test_msd_and_vacf_of_free_langevin_particles(langevin):
    thermal, run = langevin
    tau = EVERY * np.arange(21)
    # 3 · 200 components over 500 · 0.1 = 50 relaxation times are 30 000 independent squares, relative error
    # sqrt(2/30 000) = 0.8 %; 5 sigma. Taking out the centre costs 1/N of the MSD and cancels in the VACF. The longest
    # lags of the MSD have 10 times fewer spans of two relaxation times, but are sums of as many velocities: 2 %.
    np.testing.assert_allclose(value(vacf(20 * EVERY, EVERY), run), np.exp(-FRICTION * tau), atol=0.04)
    expected = langevin_msd(tau, thermal) * (1 - 1 / ATOMS)
    np.testing.assert_allclose(value(msd(20 * EVERY, EVERY), run), expected, rtol=0.1, atol=1e-12)


@pytest.mark.parametrize("kind", ["msd", "vacf"])
def test_blocks_have_equal_parts_of_the_time_origins_of_every_lag(kind):
    moving = np.random.default_rng(2).normal(size=(10, 3, 3)).cumsum(axis=0)
    run = run_of(moving, [18] * 3, velocity=moving)
    got = np.asarray(observe({"msd": msd, "vacf": vacf}[kind](3.0, 1.0), run, blocks=2).blocks[0, 0])
    x = moving - moving.mean(1, keepdims=True)
    first = [5, 5, 4, 4]  # of the 10, 9, 8 and 7 origins
    for b in range(2):
        plain = []
        for lag in range(4):
            origins = range(first[lag]) if b == 0 else range(first[lag], 10 - lag)
            pairs = [(x[t], x[t + lag]) for t in origins]
            plain.append(np.mean([(((p - q) ** 2 if kind == "msd" else p * q).sum(-1)).mean() for p, q in pairs]))
        plain = np.array(plain) / (1.0 if kind == "msd" else plain[0])
        np.testing.assert_allclose(got[b], plain, rtol=1e-9, atol=1e-12)


def test_sampling_error_of_a_random_walk_is_that_of_many_runs():
    """The variance of 1500 values against what each run says of itself.

    Error budget: over six seeds of 600 runs the ratio was 0.98 ± 0.03 with a scatter of 0.07, thus 0.05 here: 0.2 is 4
    standard errors. With parts of the frames for blocks it was 0.68, with a scatter of 0.03.
    """
    runs, atoms = 1500, 4
    walks = np.random.default_rng(3).normal(size=(runs, 80, atoms, 3)).cumsum(axis=1)
    together = jax.tree.map(lambda *x: np.stack(x)[:, None], *(run_of(walk, [18] * atoms) for walk in walks))
    observed = observe(diffusion(8.0, 16.0, 1.0), together, blocks=4, batch_size=runs)
    assert 0.8 < np.asarray(observed.value).var() / run_means(observed).variance.mean() < 1.2


def test_only_weights_of_a_block_are_taken():
    combine = msd(2.0, 1.0).combine
    values = jnp.ones((6, 2, 4))
    for weights in ([0, 0.5, 0, 0.5, 0, 0], [np.nan, 0.5, 0.5, 0, 0, 0], [0.2, 0.3, 0.5, 0, 0, 0]):
        with pytest.raises(ValueError, match="cannot treat"):
            combine(values, np.array(weights))
    for weights in (np.zeros(6), np.array([0.5, 0.5, 0, 0, 0, 0])):
        with pytest.raises(ValueError, match="more than 2 frames"):
            combine(values, weights)


def test_diffusion_of_free_langevin_particles(langevin):
    thermal, run = langevin
    lags = np.arange(40, 61)
    tau = lags * EVERY / units.ps
    x = np.asarray(run.frames.system.position)
    single = [((x[lag:] - x[:-lag]) ** 2).sum(-1).mean(0) for lag in lags]
    each = np.polyfit(tau, np.array(single), 1)[0] / 6  # of every particle: the spread is the error budget
    error = each.std(ddof=1) / np.sqrt(ATOMS)
    got = value(diffusion(40 * EVERY, 60 * EVERY, EVERY), run)
    # The slope between 4 and 6 relaxation times is kT/(mγ) to 0.7 %, which is calculated, not neglected.
    exact = np.polyfit(tau, langevin_msd(lags * EVERY, thermal), 1)[0] / 6
    assert exact == pytest.approx(thermal / FRICTION * units.ps, rel=0.01)
    assert error < 0.06 * exact
    assert abs(got / (1 - 1 / ATOMS) - exact) < 3 * error


def test_diffusion_of_ballistic_motion_is_the_slope_of_a_parabola():
    position = np.arange(9.0)[:, None, None] * np.array([[[0.3, 0, 0], [-0.3, 0, 0]]])
    # The least-squares line through a parabola at the lags 2, 3, 4 has the slope of the middle, 2 · 3.
    got = value(diffusion(2.0, 4.0, 1.0), run_of(position, [6, 6]))
    assert got == pytest.approx(0.3**2 * 2 * 3 / 6 * units.ps, rel=1e-12)


def oscillators(frequencies, species, amplitudes, every, frames) -> Trajectory:
    """Four atoms per kind, the phases a quarter apart: products averaged over them are exact for every time origin."""
    phase = 0.5 * np.pi * np.arange(4)
    time = every * np.arange(frames)[:, None]
    velocity = np.zeros((frames, 4 * len(species), 3))
    for n, (nu, a) in enumerate(zip(frequencies, amplitudes, strict=True)):
        velocity[:, 4 * n : 4 * n + 4, n % 3] = a * np.cos(2 * np.pi * nu * time + phase)
    return run_of(np.zeros_like(velocity), np.repeat(species, 4), every, velocity)


def test_vacf_of_harmonic_oscillators_is_the_mass_weighted_cosine():
    run = oscillators([0.05, 0.13], [1, 8], [0.3, 0.2], 1.0, 30)
    one, two = (np.cos(2 * np.pi * nu * np.arange(21)) for nu in (0.05, 0.13))
    share = 1.008 * 0.3**2 / (1.008 * 0.3**2 + 15.999 * 0.2**2)
    np.testing.assert_allclose(value(vacf(20.0, 1.0), run), share * one + (1 - share) * two, atol=1e-12)
    np.testing.assert_allclose(value(vacf(20.0, 1.0, 8), run), two, atol=1e-12)


def test_vibrational_density_of_states_of_an_oscillator_is_the_transform_of_the_window():
    every, lags, line = 0.004 * units.ps, 50, 12
    frequency = line / (2 * lags * every)
    observable = vibrational_density_of_states(lags * every, every)
    got = value(observable, oscillators([frequency], [14], [0.2], every, 80))
    expected = np.zeros(lags + 1)
    expected[line - 1 : line + 2] = lags * 0.004 * np.array([0.5, 1.0, 0.5])
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert observable.coordinate[line] == pytest.approx(30.0, rel=1e-12)  # THz: 12 half periods in 0.2 ps


def test_vibrational_density_of_states_is_normalised_and_agrees_with_a_plain_sum(langevin):
    _, run = langevin
    lags = 40
    observable = vibrational_density_of_states(lags * EVERY, EVERY)
    got, correlation = value(observable, run), value(vacf(lags * EVERY, EVERY), run)
    assert np.trapezoid(got, observable.coordinate) == pytest.approx(1.0, rel=1e-12)
    step = EVERY / units.ps
    for k in (0, 7, lags):
        total = 0.5 * correlation[0]
        for l in range(1, lags + 1):
            total += correlation[l] * 0.5 * (1 + np.cos(np.pi * l / lags)) * np.cos(np.pi * k * l / lags)
        assert got[k] == pytest.approx(4 * step * total, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("observable", [msd(2.0, 1.0), vacf(2.0, 1.0), diffusion(1.0, 2.0, 1.0)])
def test_weights_are_refused(observable):
    values = jnp.ones((4, 2, 4))
    with pytest.raises(ValueError, match="cannot treat"):
        observable.combine(values, np.array([0.1, 0.2, 0.3, 0.4]))
    with pytest.raises(ValueError, match="cannot treat"):
        jax.jit(observable.combine)(values, np.full(4, 0.25))


def test_spacing_length_species_and_arguments_are_checked():
    run = run_of(np.zeros((6, 2, 3)), [6, 8])
    with pytest.raises(ValueError, match=r"`every` = 0\.5 apart"):
        observe(msd(1.0, 0.5), run, blocks=1)
    uneven = replace(run, time=jnp.array([0, 1, 2, 4, 5, 6.0]))
    with pytest.raises(ValueError, match="from 1 to 2"):
        observe(msd(2.0, 1.0), uneven, blocks=1)
    with pytest.raises(ValueError, match="more than 3 frames"):
        observe(msd(3.0, 1.0), run, blocks=2)
    with pytest.raises(ValueError, match=r"species \[14\]"):
        observe(msd(2.0, 1.0, 14), run, blocks=1)
    with pytest.raises(ValueError, match="every ≤ duration"):
        msd(1.0, 2.0)
    with pytest.raises(ValueError, match="every ≤ duration"):
        vacf(2.0, 0.0)
    with pytest.raises(ValueError, match="at least two lags"):
        diffusion(2.0, 2.0, 1.0)
    with pytest.raises(ValueError, match=r"`every` = 0\.5 apart"):
        observe(vibrational_density_of_states(1.0, 0.5), run, blocks=1)
    with pytest.raises(ValueError, match="VACF up to 3 frames"):
        observe(vacf(3.0, 1.0), run, blocks=2)
