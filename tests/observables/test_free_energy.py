"""Free energies of harmonic wells, in closed form, and of the double well of Thaler and Zavadlav, by quadrature."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from bayespot.observables.free_energy import bar, free_energy_profile, zwanzig
from bayespot.observables.observable import observe
from bayespot.records.system import System
from bayespot.records.trajectory import Frame, Trajectory

EXACT = 0.5 * np.log(4.0)  # two harmonic wells in one dimension, k = 1 and 4, kT = 1


def harmonic(rng, old, new, kT=1.0):
    """Energy differences of exact draws: forward from k = 1, backward from k = 4 (energies in units of kT = 1)."""
    forward = 0.5 * (4 - 1) * rng.normal(size=old) ** 2 * kT
    backward = 0.5 * (1 - 4) * rng.normal(size=new) ** 2 / 4 * kT
    return forward, backward


@pytest.mark.parametrize(("old", "new"), [(2000, 2000), (5000, 500), (400, 4000)])
def test_bar_of_harmonic_wells_and_its_standard_error(old, new):
    rng, repetitions = np.random.default_rng(old), 300
    found = np.array([bar(*harmonic(rng, old, new), 1.0) for _ in range(repetitions)])
    value, spread = found[:, 0], found[:, 0].std(ddof=1)
    # The bias is of the order of variance/2 (4e-4 here), less than the error of the mean, spread/sqrt(300); 3 sigma.
    # Without the term ln(T1/T2) the second case would miss by about 4.
    assert spread < 0.06
    assert abs(value.mean() - EXACT) < 3 * spread / np.sqrt(repetitions)
    # The spread of 300 repetitions has the relative error 1/sqrt(600) = 4 %; 4.5 sigma.
    assert found[:, 1].mean() == pytest.approx(spread, rel=0.18)


def test_bar_knows_neither_direction_nor_unit_nor_zero_of_energy():
    forward, backward = harmonic(np.random.default_rng(1), 300, 500)
    value, error = bar(forward, backward, 1.0)
    turned = bar(backward, forward, 1.0)
    assert turned.value == pytest.approx(-value, rel=1e-9)
    assert turned.standard_error == pytest.approx(error, rel=1e-9)
    scaled = bar(0.025 * (forward + 1e4), 0.025 * (backward - 1e4), 0.025)
    assert scaled.value == pytest.approx(0.025 * (value + 1e4), abs=1e-9)
    assert scaled.standard_error == pytest.approx(0.025 * error, rel=1e-6)


def test_bar_solves_the_equation_of_bennett():
    forward, backward = harmonic(np.random.default_rng(2), 30, 7)
    x, m = bar(forward, backward, 1.0).value, np.log(30 / 7)
    left = sum(1 / (1 + np.exp(m + u - x)) for u in forward)
    assert left == pytest.approx(sum(1 / (1 + np.exp(-m + u + x)) for u in backward), rel=1e-9)


def test_zwanzig_of_harmonic_wells_and_its_standard_error():
    rng, frames, repetitions = np.random.default_rng(3), 1000, 400
    found = np.array([zwanzig(0.03 * harmonic(rng, frames, 2)[0], 0.03) for _ in range(repetitions)]) / 0.03
    # x = exp(−3x²/2) under k = 1: ⟨e⟩ = 1/2, ⟨e²⟩ = 1/sqrt(7), so the relative variance of a frame is 4/sqrt(7) − 1.
    error = np.sqrt((4 / np.sqrt(7) - 1) / frames)
    bias = error**2 / 2
    assert abs(found[:, 0].mean() - EXACT - bias) < 3 * error / np.sqrt(repetitions)
    assert found[:, 0].std(ddof=1) == pytest.approx(error, rel=0.16)  # 1/sqrt(800) = 3.5 %; 4.5 sigma
    assert found[:, 1].mean() == pytest.approx(error, rel=0.02)


def test_a_constant_difference_is_found_exactly_however_large():
    for value, error in (zwanzig(np.full(5, 1e3), 0.025), bar(np.full(5, 1e3), np.full(3, -1e3), 0.025)):
        assert value == pytest.approx(1e3, rel=1e-12)
        assert error == pytest.approx(0.0, abs=1e-12)


def test_wrong_signs_no_overlap_and_wrong_energies_are_refused():
    forward, backward = harmonic(np.random.default_rng(4), 500, 500)
    with pytest.raises(ValueError, match="add up to zero or more"):
        bar(-forward, backward, 1.0)
    with pytest.raises(ValueError, match="overlap"):
        bar(forward + 1e4, backward + 1e4, 1.0)
    with pytest.raises(ValueError, match="kT=0"):
        zwanzig(forward, 0.0)
    with pytest.raises(ValueError, match="1 not finite"):
        bar(np.append(forward, np.nan), backward, 1.0)
    with pytest.raises(ValueError, match=r"`dU_backward` .* shape \(1,\)"):
        bar(forward, backward[:1], 1.0)


def double_well(x):
    """U/kT of Thaler and Zavadlav, Nat. Commun. 12, 6884 (2021)."""
    return 2500 * (x - 0.5) ** 6 - 10 * (x - 0.55) ** 2


def run_of(x) -> Trajectory:
    """One atom per frame, the variable its first coordinate."""
    t = len(x)
    position = np.zeros((t, 1, 3))
    position[:, 0, 0] = x
    system = System(position, np.full((t, 1), 18, np.int32), np.zeros((t, 3, 3)))
    frames = Frame(system, np.zeros((t, 1, 3)), np.zeros(t), np.full((t, 3, 3), np.nan))
    return Trajectory(frames, np.arange(t) * 1.0, np.array(0), np.array(float(t)))


def first_coordinate(frame: Frame):
    return frame.system.position[0, 0]


LOW, HIGH, BINS, KT = 0.22, 0.74, 13, 0.025


def quadrature():
    """Profile of the double well in the bins, and the probability of each."""
    edges = np.linspace(LOW, HIGH, BINS + 1)
    mass = [integrate.quad(lambda x: np.exp(-double_well(x)), a, b)[0] for a, b in pairwise(edges)]
    share = np.array(mass) / np.sum(mass)
    return -KT * np.log(share * BINS), share


def test_profile_of_the_double_well_from_exact_draws():
    rng, frames = np.random.default_rng(5), 40_000
    grid = np.linspace(0, 1, 20_001)
    cumulative = integrate.cumulative_trapezoid(np.exp(-double_well(grid)), grid, initial=0)
    x = np.interp(rng.uniform(size=frames), cumulative / cumulative[-1], grid)
    observable = free_energy_profile(first_coordinate, KT, LOW, HIGH, BINS)
    got = np.asarray(observe(observable, run_of(x), blocks=1).value[0, 0])
    expected, share = quadrature()
    # −ln of a count n has the standard error 1/sqrt(n), at most; 4.5 sigma in 13 bins: a chance of 1e-4.
    counted = ((x > LOW) & (x < HIGH)).sum() * share
    assert counted.min() > 400
    assert (np.abs(got - expected) < 4.5 * KT / np.sqrt(counted)).all()
    assert np.mean(np.exp(-got / KT)) == pytest.approx(1.0, rel=1e-12)


def test_profile_of_weighted_frames_is_that_of_the_other_potential():
    """Evenly spaced frames with the weights of the double well are a quadrature: no noise."""
    x = LOW + (np.arange(BINS * 100) + 0.5) * (HIGH - LOW) / (BINS * 100)
    observable = free_energy_profile(first_coordinate, KT, LOW, HIGH, BINS)
    values = jax.jit(jax.vmap(observable.frame))(run_of(x).frames)
    weights = np.exp(-double_well(x))
    got = observable.combine(values, weights / weights.sum())
    np.testing.assert_allclose(got, quadrature()[0], atol=1e-5)  # midpoint rule with 100 points per bin


def test_what_is_outside_is_left_out_and_what_is_unknown_is_not_hidden():
    observable = free_energy_profile(first_coordinate, 1.0, 0.0, 2.0, 2)
    frame = jax.jit(jax.vmap(observable.frame))
    values = frame(run_of(np.array([0.5, 1.5, 1.5, 1.5, -0.1, 2.0, 7.0])).frames)
    np.testing.assert_allclose(observable.combine(values, np.full(7, 1 / 7)), -np.log([0.5, 1.5]), rtol=1e-12)
    assert np.isposinf(observable.combine(values[:1], np.ones(1))[1])
    unknown = frame(run_of(np.array([0.5, np.nan])).frames)
    assert np.isnan(observable.combine(unknown, np.full(2, 0.5))).all()


@pytest.mark.parametrize("wrong", [{"kT": 0.0}, {"high": 0.0}, {"bins": 0}])
def test_arguments_of_the_profile_are_checked(wrong):
    with pytest.raises(ValueError, match="low < high"):
        free_energy_profile(first_coordinate, **({"kT": 1.0, "low": 0.0, "high": 1.0} | wrong))


def test_a_variable_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"scalar per frame. Got the shape \(1, 3\)"):
        observe(free_energy_profile(lambda frame: frame.system.position, 1.0, 0.0, 1.0), run_of(np.zeros(4)))


def test_profile_is_an_array_of_the_precision_of_the_run():
    run = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if x.dtype == np.float64 else x, run_of(np.arange(4.0)))
    got = observe(free_energy_profile(first_coordinate, 1.0, -0.5, 3.5, 4), run, blocks=1).value
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[0, 0], 0.0, atol=1e-6)
