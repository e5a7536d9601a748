"""The sampling error of simulations from their replicas and blocks, against exact variances."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.errors import UncertaintyWarning
from bayespot.tree import replace
from bayespot.uq.intervals import interval
from bayespot.uq.variance import alike, block_independence, components, run_means
from tests.uq.experiments import REPETITIONS, binomial, observed, with_blocks


def autoregressive(rng, shape, frames, rho):
    x = np.empty((*shape, frames))
    x[..., 0] = rng.normal(size=shape)
    for t in range(1, frames):
        x[..., t] = rho * x[..., t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=shape)
    return x


def test_blocks_give_the_sampling_error_of_correlated_runs():
    rng = np.random.default_rng(9)
    frames, rho, points, s, b = 1600, 0.8, 300, 8, 4
    x = autoregressive(rng, (s, points), frames, rho)
    blocks = x.reshape(s, points, b, -1).mean(-1).transpose(0, 2, 1)[:, None]
    obs = observed(blocks.mean(2), blocks=blocks)
    exact = (1 + rho) / (1 - rho) / frames * (1 - 2 * rho * (1 - rho**frames) / (frames * (1 - rho**2)))
    got = run_means(obs).variance
    # 300 × 8 estimates of 3 degrees of freedom each: relative error sqrt(2/7200) = 1.7 %, 4 sigma; blocks of 400 frames
    # with a correlation time of 4.5 underestimate by (B + 1)·τ/frames, about 1 %.
    assert np.mean(got) == pytest.approx(exact, rel=0.08)
    # von Neumann's ratio over 300 × 8 runs: error 1/sqrt(2400·4) = 1 %, 4 sigma plus the same 1 % of correlation.
    assert np.nanmean(block_independence(obs)) == pytest.approx(1.0, abs=0.05)
    it = interval(obs)
    assert it.sampling == "blocks"
    np.testing.assert_allclose(it.std_sampling, np.sqrt(got.mean(0) / s), rtol=1e-6)
    assert np.mean(np.asarray(it.resolved)) < 0.1  # there is no parametric part; the F-test errs in 5 % of the points


def test_blocks_shorter_than_the_correlation_time_are_noticed():
    x = autoregressive(np.random.default_rng(10), (8, 300), 64, 0.98)
    blocks = x.reshape(8, 300, 4, -1).mean(-1).transpose(0, 2, 1)[:, None]
    obs = observed(blocks.mean(2), blocks=blocks)
    assert np.nanmean(block_independence(obs)) < 0.6
    with pytest.warns(UncertaintyWarning, match=r"too short for .*replicas=2"):
        interval(obs)


def test_independent_blocks_are_rarely_called_too_short():
    """Of 4 samples × 4 blocks of one number von Neumann's ratio is below 0.529 in 1.2 % of all cases, by chance."""
    blocks = np.random.default_rng(11).normal(size=(2000, 4, 1, 4))
    found = np.mean([alike(observed(b.mean(2), blocks=b)) for b in blocks])
    assert found == pytest.approx(0.012, abs=4 * np.sqrt(0.012 / 2000))


def test_what_is_called_too_short():
    drift = np.tile(np.arange(4.0), (8, 1, 1))
    assert alike(observed(drift.mean(2), blocks=drift))
    assert not alike(observed(drift[:, :, :2].mean(2), blocks=drift[:, :, :2]))  # two blocks tell nothing
    twice = np.repeat(drift, 2, axis=1)
    assert not alike(observed(twice.mean(2), blocks=twice))  # replicas show it themselves
    many = np.tile(np.arange(16.0) - 7.5, (8, 2, 1))
    assert alike(replace(observed(drift.mean(2), blocks=drift), shared=many))  # of the same frames
    assert not alike(replace(observed(drift.mean(2), blocks=drift), shared=many * (-1.0) ** np.arange(16)))


def test_replicas_and_blocks_together_give_the_sampling_error():
    obs, _ = with_blocks(13, 1.0, 0.5, REPETITIONS)
    got = run_means(obs)
    assert (got.source, got.degrees) == ("replicas and blocks", 7)
    # 4000 × 8 estimates of 7 degrees of freedom: relative error sqrt(2/224000) = 0.3 %, 4 sigma
    assert got.variance.mean() == pytest.approx(0.5**2 / 8, rel=0.012)
    assert components(obs).degrees == 56


@pytest.mark.parametrize("noise", [0.3, 2.8, 12.0])  # of a sample's mean: a tenth, one, four times the spread
def test_coverage_with_replicas_and_blocks(noise):
    obs, truth = with_blocks(14, 1.0, noise, REPETITIONS)
    covered = np.mean(interval(obs).covers(truth))
    assert 0.92 - binomial(0.92) < covered < 0.98 + binomial(0.98)


def test_blocks_resolve_what_two_replicas_cannot():
    obs, _ = with_blocks(15, 1.0, 2.0, REPETITIONS)  # noise of a sample's mean: 0.7 of the spread between samples
    alone = replace(obs, blocks=obs.value[:, :, None])
    both, few = (np.mean(np.asarray(interval(o).resolved)) for o in (obs, alone))
    # noncentral F: P(F > limit · 0.5/1.5) with (7, 56) and (7, 8) degrees of freedom
    for found, degrees in ((both, 56), (few, 8)):
        limit = stats.f.ppf(0.95, 7, degrees)
        expected = stats.f.sf(limit * 0.5 / 1.5, 7, degrees)
        assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / REPETITIONS))


def of_correlated_blocks(correlation, blocks=4):
    """Blocks of which each is correlated with the next one only, and the exact variance of a run's mean."""
    e = np.random.default_rng(17).normal(size=(8, 2, blocks + 1, REPETITIONS))
    a = (1 - np.sqrt(1 - 4 * correlation**2)) / (2 * correlation)  # moving average: ρ = a / (1 + a²)
    x = (e[:, :, 1:] + a * e[:, :, :-1]) / np.sqrt(1 + a * a)
    return observed(x.mean(2), blocks=x), (1 + 2 * correlation * (1 - 1 / blocks)) / blocks


def test_common_parts_of_neighbouring_blocks_are_corrected_for():
    obs, exact = of_correlated_blocks(0.2)
    got = run_means(obs)
    assert got.source == "replicas and blocks"
    # 4000 × 8 estimates: 0.4 %; the mean of von Neumann's ratios is not the ratio of means, about 2 %
    assert got.variance.mean() == pytest.approx(exact / 2, rel=0.04)
    uncorrected = np.asarray(obs.blocks).reshape(8, 8, -1).var(1, ddof=1).mean() / 8
    assert uncorrected < 0.8 * exact / 2
    single = run_means(observed(obs.value[:, :1], blocks=obs.blocks[:, :1])).variance
    assert single.mean() == pytest.approx(exact, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [1e-9, 0.25])
def test_the_sampling_error_of_a_scalar_is_right_on_average(correlation):
    """The correlation of blocks is known to 1/8 only; an estimate that may only be positive gave 16 % too much."""
    obs, exact = of_correlated_blocks(correlation)
    number = 1000
    scalars = [observed(obs.value[..., k], blocks=obs.blocks[..., k]) for k in range(number)]
    got = np.mean([run_means(one).variance.mean() for one in scalars])
    # one estimate scatters by about 40 %: 1.3 % for 1000 of them; the formula's own bias is up to 3 %, which leaves
    # 2.3 sigma
    assert got == pytest.approx(exact / 2, rel=0.06)


def test_where_blocks_cannot_be_trusted_the_error_comes_from_the_replicas():
    trapped, _ = with_blocks(16, 1.0, 0.5, 50, trapped=1.0)
    frozen = np.random.default_rng(18).normal(size=(8, 2, 50))
    nonlinear, _ = with_blocks(19, 1.0, 0.5, 50)
    cases = {
        "trapped": trapped,
        "frozen": observed(frozen, blocks=np.repeat(frozen[:, :, None], 4, 2)),
        "strongly correlated": of_correlated_blocks(0.45)[0],
        "not a time average": replace(nonlinear, value=nonlinear.value**2),
        "undefined blocks": replace(nonlinear, blocks=nonlinear.blocks.at[0, 0, 0, 3].set(jnp.nan)),
    }
    for name, obs in cases.items():
        got = run_means(obs)
        assert (got.source, got.degrees) == ("replicas", 1), name
        np.testing.assert_allclose(got.variance, np.var(obs.value, axis=1, ddof=1) / 2, rtol=1e-6)
    assert interval(trapped).sampling == "replicas"
