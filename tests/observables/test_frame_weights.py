"""Weights of frames and their effective numbers, against values by hand and exact distributions."""

import numpy as np
import pytest

from bayespot.observables.frame_weights import (
    inefficiency,
    kish_size,
    log_mixture,
    mbar,
    nonlinearity,
    pareto_k,
    perplexity,
    weigh,
)
from bayespot.observables.free_energy import bar


def oscillators(seed, stiffness, counts, kT=1.0):
    """Energies (J, n) of frames of one-dimensional oscillators in all of them."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([np.sqrt(kT / k) * rng.normal(size=n) for k, n in zip(stiffness, counts, strict=True)])
    return 0.5 * np.asarray(stiffness)[:, None] * x**2


def test_effective_numbers_by_hand():
    weight = np.array([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(kish_size(weight), [1 / 0.375, 4, 1], rtol=1e-14)
    np.testing.assert_allclose(perplexity(weight), [2**1.5, 4, 1], rtol=1e-14)


def test_effective_numbers_of_gaussian_logs():
    # exp(−s²) and exp(−s²/2) of the frames. Scatter over 30 seeds: 1.5 % and 0.25 %; the bounds are 4 of these.
    s, n = 1.2, 1_000_000
    weight = weigh(s * np.random.default_rng(0).normal(size=(1, n)), "full")
    assert kish_size(weight)[0] / n == pytest.approx(np.exp(-(s**2)), rel=0.06)
    assert perplexity(weight)[0] / n == pytest.approx(np.exp(-(s**2) / 2), rel=0.01)


@pytest.mark.parametrize("kind", ["full", "first_order"])
def test_weights_do_not_know_a_constant_and_sum_to_one(kind):
    log = np.random.default_rng(1).normal(size=(3, 50))
    weight = weigh(log, kind)
    np.testing.assert_allclose(weight.sum(1), 1.0, rtol=1e-13)
    np.testing.assert_allclose(weigh(log + 800.0, kind), weight, rtol=1e-10, atol=1e-14)
    assert np.array_equal(weigh(np.full((1, 50), -7.0), kind), np.full((1, 50), 1 / 50))


def test_frames_with_the_log_minus_infinity_are_left_out():
    log = np.random.default_rng(2).normal(size=(2, 40))
    cut = np.where(np.arange(40) < 10, -np.inf, log)
    for kind in ("full", "first_order"):
        weight = weigh(cut, kind)
        assert not weight[:, :10].any()
        np.testing.assert_allclose(weight[:, 10:], weigh(log[:, 10:], kind), rtol=1e-12)


def test_the_first_order_is_the_mean_less_the_covariance():
    rng = np.random.default_rng(3)
    log, a = rng.normal(size=(1, 200)), rng.normal(size=200)
    expected = a.mean() + np.cov(a, log[0], ddof=0)[0, 1]
    assert (weigh(log, "first_order") @ a)[0] == pytest.approx(expected, rel=1e-12)


def test_mbar_of_two_is_bar():
    u = oscillators(4, [1.0, 4.0], [300, 900])
    expected = bar(u[1, :300] - u[0, :300], u[0, 300:] - u[1, 300:], 1.0)
    np.testing.assert_allclose(mbar(u, [300, 900], 1.0), [0.0, expected.value], atol=1e-8)


def test_mbar_of_oscillators_is_exact():
    # ΔF = kT/2 ln(k/k₁), with 4 standard errors as scattered over 50 seeds. The last potential was not simulated.
    stiffness, kT = np.array([1.0, 2.0, 5.0, 14.0, 1.5]), 0.3
    counts = [2000, 1000, 3000, 2000, 0]
    got = mbar(oscillators(5, stiffness, counts, kT), counts, kT)
    expected = 0.5 * kT * np.log(stiffness)
    np.testing.assert_array_less(np.abs(got - expected)[1:] / kT, 4 * np.array([0.0066, 0.0106, 0.0140, 0.0045]))


def test_mbar_does_not_know_the_zero_of_each_frame_and_shifts_with_that_of_a_potential():
    u = oscillators(6, [1.0, 2.0, 3.0], [50, 60, 70])
    moved = u + np.array([[0.0], [400.0], [-3e3]]) + 1e3 * np.random.default_rng(0).normal(size=180)
    np.testing.assert_allclose(mbar(moved, [50, 60, 70], 1.0) - mbar(u, [50, 60, 70], 1.0), [0, 400, -3e3], atol=1e-7)


@pytest.mark.parametrize(
    ("energies", "counts", "kT", "message"),
    [
        (np.zeros((2, 5)), [2, 2], 1.0, "add up to n"),
        (np.zeros((2, 5)), [2, 3], 0.0, "kT > 0"),
        (np.full((2, 5), np.nan), [2, 3], 1.0, "10 that are not"),
    ],
)
def test_mbar_refuses(energies, counts, kT, message):
    with pytest.raises(ValueError, match=message):
        mbar(energies, counts, kT)


def test_the_density_of_the_mixture_makes_weights_of_an_average():
    # ⟨x²⟩ = 1/k for a potential between two that were simulated. Scatter over 50 seeds: 1.4 %; 4 of these.
    u = oscillators(7, [1.0, 3.0, 2.0], [2500, 2500, 0])
    origin = np.repeat([0, 1], 2500)
    weight = weigh(-u[2:] - log_mixture(-u[:2], origin)[0], "full")
    assert (weight @ (u[0] * 2))[0] == pytest.approx(0.5, rel=4 * 0.014)
    alone = weigh(-u[2:, :2500] + u[0, :2500], "full")
    assert kish_size(weight)[0] / 5000 > kish_size(alone)[0] / 2500  # both sides of it are covered


def test_pareto_k_of_pareto_tails():
    # u^(−k) has the tail index k. The fit to the 3·sqrt(4000) = 190 largest is drawn to 0.5 by 10 in 200, and scatters
    # by (1 + k)/sqrt(190) = 0.09 to 0.14; the mean of 40 by 0.02: 4 of these.
    u = np.random.default_rng(8).uniform(size=(40, 4000))
    for k in (0.3, 0.9):
        got = pareto_k(-k * np.log(u), np.ones(40)).mean()
        assert got == pytest.approx((190 * k + 10 * 0.5) / 200, abs=0.08)


def test_pareto_k_without_a_tail():
    assert pareto_k(np.zeros((1, 100)), np.ones(1))[0] == -np.inf
    one = np.zeros((1, 100))
    one[0, 3] = 500.0  # a single frame has all the weight: never a small number
    assert not pareto_k(one, np.ones(1))[0] <= 0.7


def test_inefficiency_of_an_autoregressive_series():
    # (1 + ρ)/(1 − ρ) = 9 for ρ = 0.8. Geyer's estimate for 4 × 4000 frames scatters by 6 %; 4 of these.
    rng = np.random.default_rng(9)
    x = rng.normal(size=(2, 4, 4000))
    for t in range(1, 4000):
        x[0, :, t] = 0.8 * x[0, :, t - 1] + 0.6 * x[0, :, t]
    slow, fast = inefficiency(x)
    assert slow == pytest.approx(9.0, rel=0.25)
    assert fast == pytest.approx(1.0, abs=0.1)
    assert inefficiency(np.full((1, 2, 50), 3.0))[0] == 1.0


def test_nonlinearity_of_gaussian_and_skewed_logs():
    # A Gaussian has none but the standard error of its estimate; −x² with x normal: κ₂ = 2, κ₃ = −8.
    x = np.random.default_rng(10).normal(size=(1, 100_000))
    assert nonlinearity(x, np.ones(1))[0] < 2 * 0.5 * 4 * np.sqrt(6 / 100_000)
    assert nonlinearity(-(x**2), np.ones(1))[0] == pytest.approx(2.0, abs=4 * 0.026)
    assert nonlinearity(np.zeros((1, 9)), np.ones(1))[0] == 0
