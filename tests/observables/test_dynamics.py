"""MSD against ballistic motion and a random walk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot import units
from bayespot.observables.dynamics import msd
from bayespot.observables.observable import observe
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace


def run_of(position, species, every=1.0) -> Trajectory:
    t, n = position.shape[:2]
    system = System(jnp.asarray(position), jnp.tile(jnp.asarray(species, jnp.int32), (t, 1)), jnp.zeros((t, 3, 3)))
    frames = Frame(system, jnp.zeros((t, n, 3)), jnp.zeros(t), jnp.full((t, 3, 3), jnp.nan))
    return Trajectory(frames, every * jnp.arange(t), jnp.array(0), jnp.array(every * t))


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


def test_weights_are_refused():
    observable = msd(2.0, 1.0)
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
