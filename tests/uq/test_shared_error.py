"""Intervals of samples that share the sampling error of their frames, against simulated truths."""

import numpy as np
import pytest

from bayespot.tree import replace
from bayespot.uq.intervals import interval
from bayespot.uq.variance import block_independence, components
from tests.uq.experiments import REPETITIONS, binomial, observed

BLOCKS = 16


def sharing(seed, samples, model, common, private=0.0, own=0, noise=0.0, number=REPETITIONS):
    """θ_s ~ N(0, model²); ``samples`` with an error that all share and one of each from the same blocks; ``own`` more
    with runs of their own. Returns what is observed, and another draw of θ."""
    rng = np.random.default_rng(seed)
    theta = model * rng.normal(size=(samples + own, number))
    blocks = common * rng.normal(size=(BLOCKS, number)) + private * rng.normal(size=(samples, BLOCKS, number))
    runs = noise * rng.normal(size=(own, 4, number))
    value = theta + np.concatenate([blocks.mean(1), runs.mean(1)])
    deviation = np.zeros((samples + own, 1, BLOCKS, number))
    deviation[:samples, 0] = blocks - blocks.mean(1, keepdims=True)
    parts = np.repeat(value[:, None, None], 4, 2)
    parts[samples:, 0] += runs - runs.mean(1, keepdims=True)
    found = observed(value[:, None], blocks=parts)
    return replace(found, shared=deviation), model * rng.normal(size=number)


@pytest.mark.parametrize("samples", [8, 40])
def test_the_common_error_stays_and_the_private_shrinks(samples):
    obs, _ = sharing(1, samples, 1.0, 0.8, 0.4)
    got = components(obs)
    # 4000 repetitions of 15 degrees of freedom: relative error sqrt(2/60000) = 0.6 %; 4 of these, and the same for the
    # difference, whose degrees of freedom are at least as many.
    assert got.mean_noise.mean() == pytest.approx((0.64 + 0.16 / samples) / BLOCKS, rel=0.025)
    assert got.noise.mean() == pytest.approx(0.16 / BLOCKS, rel=0.025)
    assert got.common.mean() == pytest.approx(0.64 / BLOCKS, rel=0.03)
    assert got.spread.mean() == pytest.approx(1.0 + 0.16 / BLOCKS, rel=0.05)
    assert (got.degrees, got.common_degrees, got.source) == (15, 15, "shared frames")
    it = interval(obs)
    np.testing.assert_allclose(it.std_sampling, np.sqrt(got.mean_noise))


# The common error as large as the spread, as a tenth of it, and alone; between 92.5 and 97 %,
# and 4 binomial standard errors.
@pytest.mark.parametrize(
    ("samples", "model", "common"), [(8, 1.0, 4.0), (8, 1.0, 0.4), (40, 1.0, 4.0), (40, 1.0, 1.0), (8, 0.0, 4.0)]
)
def test_intervals_cover(samples, model, common):
    obs, truth = sharing(2, samples, model, common, 0.3)
    share = interval(obs).covers(truth).mean()
    assert 0.925 - binomial(0.925) < share < 0.97 + binomial(0.97)


def test_intervals_cover_where_the_error_grows_with_the_distance_from_the_reference():
    # An error of the response, e_s = c θ_s with c ~ N(0, 0.2²), has one degree of freedom for all samples.
    rng = np.random.default_rng(7)
    theta = rng.normal(size=(12, REPETITIONS))
    blocks = 0.2 * 4 * rng.normal(size=(BLOCKS, REPETITIONS))
    value = theta * (1 + blocks.mean(0))
    deviation = (theta[:, None] * (blocks - blocks.mean(0)))[:, None]
    obs = replace(observed(value[:, None], blocks=np.repeat(value[:, None, None], 4, 2)), shared=deviation)
    share = interval(obs).covers(rng.normal(size=REPETITIONS)).mean()
    assert 0.925 - binomial(0.925) < share < 0.97 + binomial(0.97)


def test_intervals_without_the_common_error_would_not_cover():
    obs, truth = sharing(3, 40, 1.0, 4.0, 0.3)
    forgotten = replace(obs, shared=None, blocks=np.repeat(obs.value[:, :, None], 4, 2))
    assert interval(forgotten).covers(truth).mean() < 0.9


def test_own_runs_among_reweighted_samples():
    obs, truth = sharing(4, 6, 1.0, 0.8, 0.4, own=2, noise=1.2)
    got = components(obs)
    weight = 6 / 8
    expected = (weight**2 * 0.64 + 6 * 0.16 / 64) / BLOCKS + 2 * (1.44 / 4) / 64
    assert got.mean_noise.mean() == pytest.approx(expected, rel=0.03)
    # Pairs: 15 of 28 within the reweighted, whose common error drops out; the other 13 have it once in 12, never in 1.
    noise = (6 * (0.64 + 0.16) / BLOCKS + 2 * 1.44 / 4) / 8 - 2 * 15 * 0.64 / BLOCKS / (8 * 7)
    assert got.noise.mean() == pytest.approx(noise, rel=0.03)
    assert 6 < got.degrees < 6 + 15
    assert got.source == "shared frames, blocks"
    share = interval(obs).covers(truth).mean()
    assert 0.925 - binomial(0.925) < share < 0.97 + binomial(0.97)


def test_draws_of_a_chain_are_not_compared():
    obs, _ = sharing(5, 8, 1.0, 0.8, 0.4, number=200)
    obs = replace(obs, chain=np.repeat(np.arange(4), 2))
    got = components(obs)
    deviation = np.asarray(obs.shared)[:, 0]
    covariance = np.einsum("skn,tkn->stn", deviation, deviation) / (BLOCKS * (BLOCKS - 1))
    across = [(s, t) for s in range(8) for t in range(8) if s // 2 != t // 2]
    expected = np.mean([0.5 * (covariance[s, s] + covariance[t, t] - 2 * covariance[s, t]) for s, t in across], axis=0)
    ratio = got.noise / expected  # one factor for neighbouring blocks, see below
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    np.testing.assert_allclose(got.mean_noise / covariance.mean((0, 1)), ratio[0], rtol=1e-9)
    assert ratio[0] == pytest.approx(1.0, abs=0.1)  # 200 · 8 · 16 blocks of four independent errors: 1 %, of B/2: 2 %


def test_independence_is_that_of_the_shared_blocks():
    obs, _ = sharing(6, 8, 1.0, 0.8, 0.4, number=300)
    # 300 points of 16 blocks, mostly one common error: 1/sqrt(4800) = 1.4 %; 4 of these.
    assert np.nanmean(block_independence(obs)) == pytest.approx(1.0, abs=0.06)
    slow = np.cumsum(np.asarray(obs.shared), axis=2)
    assert np.nanmean(block_independence(replace(obs, shared=slow - slow.mean(2, keepdims=True)))) < 0.6
