"""Variance components and intervals against simulated data with known components, and exact small cases."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.errors import FailedSamples
from bayespot.records.interval import Observed, table
from bayespot.tree import replace
from bayespot.uq.intervals import interval
from bayespot.uq.variance import components
from tests.uq.experiments import REPETITIONS, binomial, experiments, observed


@pytest.mark.parametrize(("chains", "correlation"), [(8, 0.0), (4, 0.0), (4, 0.9)])
def test_components_are_unbiased(chains, correlation):
    obs, _ = experiments(0, 16 if chains == 4 else 8, 3, 1.3, 0.6, REPETITIONS, chains, correlation)
    s = obs.value.shape[0]
    got = components(obs)
    # Means of 4000 repetitions, compared with their own standard errors; 4 sigma, fixed seed.
    for found, true in [
        (got.spread - got.noise, 1.3**2),
        (got.noise, 0.6**2 / 3),
        (got.mean_noise, 0.6**2 / 3 / s),
    ]:
        assert abs(found.mean() - true) < 4 * found.std(ddof=1) / np.sqrt(REPETITIONS)


def test_ignoring_chains_or_sampling_would_be_biased():
    """The controls of the test above: the same data, the shortcut, a bias of many standard errors."""
    obs, _ = experiments(0, 16, 3, 1.3, 0.6, REPETITIONS, 4, 0.9)
    naive = np.var(np.mean(obs.value, axis=1), axis=0, ddof=1) - components(obs).noise
    assert naive.mean() < 1.3**2 - 10 * naive.std() / np.sqrt(REPETITIONS)
    assert components(obs).spread.mean() > 1.3**2 + 4 * components(obs).spread.std() / np.sqrt(REPETITIONS)


def test_weights_and_unequal_chains_are_those_of_the_pair_formula():
    rng = np.random.default_rng(1)
    y, chain, log_weight = rng.normal(size=(7, 2, 3)), np.array([0, 0, 0, 1, 1, 5, 5]), rng.normal(size=7)
    got = components(observed(y, chain=chain, log_weight=log_weight))
    w = np.exp(log_weight) / np.exp(log_weight).sum()
    m, v = y.mean(1), y.var(1, ddof=1) / 2
    spread = noise = total = 0.0
    for s in range(7):
        for t in range(7):
            if chain[s] != chain[t]:
                spread = spread + w[s] * w[t] * 0.5 * (m[s] - m[t]) ** 2
                noise = noise + w[s] * w[t] * 0.5 * (v[s] + v[t])
                total += w[s] * w[t]
    np.testing.assert_allclose(got.spread, spread / total, rtol=1e-10)
    np.testing.assert_allclose(got.noise, noise / total, rtol=1e-10)
    np.testing.assert_allclose(got.mean, w @ m, rtol=1e-10)
    np.testing.assert_allclose(got.mean_noise, w**2 @ v, rtol=1e-10)
    equal = components(observed(y))
    np.testing.assert_allclose(equal.spread, m.var(0, ddof=1), rtol=1e-10)


def test_effective_number_lies_between_chains_and_samples():
    for correlation, low, high in [(0.0, 31.0, 32.0), (1.0, 4.0, 4.3), (0.3, 8.0, 12.0)]:
        obs, _ = experiments(2, 32, 2, 1.0, 0.05, REPETITIONS, 4, correlation)
        # theory 32/(1 + 7ρ): 32, 4, 10.3
        assert low <= components(obs).number <= high


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_student_interval_without_noise_is_exactly_student(level):
    y = np.random.default_rng(0).normal(size=8)
    got = interval(observed(np.stack([y, y], axis=1)), level=level, kind="student_t")
    half = stats.t.ppf(0.5 + level / 2, 7) * y.std(ddof=1) * np.sqrt(1 + 1 / 8)
    np.testing.assert_allclose([got.lower, got.upper], [y.mean() - half, y.mean() + half], rtol=1e-12)
    assert (got.kind, got.samples, got.sampling, bool(got.resolved)) == ("student_t", 8, "replicas", True)
    np.testing.assert_allclose(got.std_model, y.std(ddof=1), rtol=1e-12)
    assert float(got.std_sampling) == 0.0


@pytest.mark.parametrize(("noise", "low", "high"), [
    (0.1, 0.95, 0.95),  # parametric part resolved: nominal
    (1.0, 0.94, 0.95),  # comparable: the measured dip to 0.943
    (4.5, 0.95, 0.98),  # sampling prevails: wide, not narrow
])  # fmt: skip
@pytest.mark.parametrize("samples", [8, 16])
def test_coverage_of_the_student_interval(noise, low, high, samples):
    obs, truth = experiments(3, samples, 2, 1.0, noise * np.sqrt(2), REPETITIONS)
    covered = np.mean(interval(obs).covers(truth))
    # A curve shares one effective number; here it is that of all repetitions, i.e. all samples. 4 sigma binomial.
    assert low - binomial(low) < covered < high + binomial(high)


def test_coverage_of_eighty_percent_where_noise_and_spread_are_of_one_size():
    """The measured dip of eight samples, 0.78; were all draws below zero counted in full, it would be 0.75."""
    seeds = [experiments(seed, 8, 2, 1.0, np.sqrt(2), REPETITIONS) for seed in range(4)]
    covered = np.mean([interval(obs, 0.8).covers(truth) for obs, truth in seeds])
    assert 0.77 < covered < 0.8  # 0.0032 is its standard error


def test_the_plain_difference_of_variances_would_cover_less():
    obs, truth = experiments(3, 16, 2, 1.0, np.sqrt(2) * 1.8, REPETITIONS)
    got = interval(obs)
    half = stats.t.ppf(0.975, 15) * np.sqrt(np.asarray(got.std_model**2 * (1 + 1 / 16) + got.std_sampling**2))
    plain = np.mean(np.abs(truth - np.asarray(got.mean)) <= half)
    assert plain < 0.95 - 2 * binomial(0.95)
    assert np.mean(got.covers(truth)) > plain + 2 * binomial(0.95)


def test_a_posterior_shrunk_fourfold_fails_to_cover():
    obs, truth = experiments(4, 8, 2, 1.0, 0.1, REPETITIONS)
    mean = np.mean(obs.value, axis=(0, 1))
    shrunk = replace(obs, value=jnp.asarray(mean + (np.asarray(obs.value) - mean) / 4))
    assert np.mean(interval(shrunk).covers(truth)) < 0.6


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_coverage_with_chains(correlation):
    obs, truth = experiments(5, 32, 2, 1.0, 0.2, REPETITIONS, 4, correlation)
    covered = np.mean(interval(obs, kind="student_t").covers(truth))
    assert abs(covered - 0.95) < binomial(0.95) + 0.005  # 0.005: chi-squared with an effective number is approximate


@pytest.mark.parametrize("kind", ["equal_tailed", "highest_density"])
def test_quantile_kinds_cover_skewed_posteriors(kind):
    rng = np.random.default_rng(6)
    theta, truth = rng.gamma(2.0, size=(200, REPETITIONS)), rng.gamma(2.0, size=REPETITIONS)
    obs = observed(theta[:, None] + 0.3 * rng.normal(size=(200, 2, REPETITIONS)))
    got = interval(obs, level=0.9, kind=kind)
    covered = np.mean(got.covers(truth))
    assert abs(covered - 0.9) < binomial(0.9)


def test_quantiles_have_predictive_coverage_at_the_smallest_number():
    obs, truth = experiments(7, 40, 2, 1.0, 1e-3, REPETITIONS)
    got = interval(obs)
    assert got.kind == "equal_tailed"
    assert abs(np.mean(got.covers(truth)) - 0.95) < binomial(0.95)
    fewer, _ = experiments(7, 39, 2, 1.0, 1e-3, 5)
    assert interval(fewer).kind == "student_t"
    with pytest.raises(ValueError, match="at least 40"):
        interval(fewer, kind="equal_tailed")


def test_noise_is_removed_from_quantiles():
    obs, _ = experiments(8, 100, 2, 1.0, 1.0, 400)
    got = interval(obs, level=0.9, kind="equal_tailed")
    width = np.mean(np.asarray(got.upper - got.lower)) / (2 * stats.norm.ppf(0.95))
    naive = np.mean(np.std(np.mean(obs.value, axis=1), axis=0))
    assert naive > 1.2  # sqrt(1.5)
    # θ given the data: sqrt(1 + 1.5/100) = 1.007; quantile positions and variances of 100 samples widen by some 3 %.
    assert 0.97 < width < 1.08


def test_highest_density_agrees_with_arviz():
    from arviz_stats.base import array_stats

    y = np.random.default_rng(0).gamma(2.0, size=5000)
    got = interval(observed(np.stack([y, y], axis=1)), level=0.9, kind="highest_density")
    # Both are order statistics, whose number differs by one in five thousand.
    np.testing.assert_allclose([got.lower, got.upper], array_stats.hdi(y, prob=0.9), atol=0.03)


def test_weights_act_like_repetition():
    y = np.random.default_rng(1).normal(size=200)
    weights = np.r_[np.full(100, 1.0), np.full(100, 3.0)]
    repeated = np.r_[y[:100], np.repeat(y[100:], 3)]
    for kind in ("equal_tailed", "highest_density"):
        weighted = interval(observed(np.stack([y, y], 1), log_weight=np.log(weights)), level=0.8, kind=kind)
        plain = interval(observed(np.stack([repeated] * 2, 1)), level=0.8, kind=kind)
        np.testing.assert_allclose(weighted.mean, plain.mean, rtol=1e-10)
        np.testing.assert_allclose([weighted.lower, weighted.upper], [plain.lower, plain.upper], atol=0.08)


def test_resolved_tells_signal_from_noise():
    loud, _ = experiments(11, 8, 2, 1.0, 0.3, 500)
    silent, _ = experiments(11, 8, 2, 0.0, 0.3, 500)
    assert np.mean(np.asarray(interval(loud).resolved)) > 0.99
    assert np.mean(np.asarray(interval(silent).resolved)) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 500)


def test_constant_values_give_a_point():
    got = interval(observed(np.full((8, 2, 3), 0.25)))
    for end in (got.mean, got.lower, got.upper):
        np.testing.assert_allclose(end, 0.25)


def test_failed_samples_raise_or_are_dropped_on_request():
    y = np.random.default_rng(2).normal(size=(9, 2))
    status = np.zeros((9, 2), int)
    status[4, 1], y[4, 1] = 2, np.nan
    obs = observed(y, status=status)
    with pytest.raises(FailedSamples, match=r"1 of 9 samples failed \(4\)") as info:
        interval(obs)
    assert info.value.samples == (4,)
    got = interval(obs, failed="drop")
    assert (got.dropped, got.samples, got.surviving) == ((4,), 8, 8 / 9)
    expected = interval(observed(np.delete(y, 4, axis=0)))
    np.testing.assert_allclose([got.mean, got.lower, got.upper], [expected.mean, expected.lower, expected.upper])
    assert "dropped as failed: samples 4" in str(got)


@pytest.mark.parametrize("failed", ["raise", "drop"])
def test_nan_of_a_sound_run_always_raises(failed):
    y = np.random.default_rng(2).normal(size=(8, 2))
    y[3, 0] = np.inf
    with pytest.raises(FailedSamples, match="NaN or inf in sound runs of the samples 3"):
        interval(observed(y), failed=failed)


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"kind": "hdi"}, {"failed": "ignore"}])
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match="Need 0 < level < 1"):
        interval(observed(np.zeros((8, 2))), **wrong)


def test_too_little_data_is_refused():
    with pytest.raises(ValueError, match="two replicas or two blocks"):
        interval(observed(np.zeros((8, 1))))
    with pytest.raises(ValueError, match="at least two posterior samples"):
        interval(observed(np.zeros((1, 2))))


def test_shapes_of_curves_and_matrices_are_kept():
    y = np.random.default_rng(0).normal(size=(60, 2, 3, 4))
    for kind in ("equal_tailed", "highest_density", "student_t"):
        got = interval(observed(y), kind=kind)
        assert got.lower.shape == got.upper.shape == got.mean.shape == (3, 4)
        alone = interval(observed(y[:, :, 1, 2]), kind=kind)
        # one point alone has its own effective number, which for independent samples is the same
        np.testing.assert_allclose([got.lower[1, 2], got.upper[1, 2]], [alone.lower, alone.upper], rtol=1e-6)


def test_table_shows_unit_level_and_unresolved_values():
    loud, _ = experiments(11, 8, 2, 1.0, 0.01, 1)
    silent, _ = experiments(12, 8, 2, 0.0, 0.3, 1)
    text = table([interval(loud), interval(silent)])
    assert "energy [eV]" in text
    assert "95% credible, student_t, 8 posterior samples, sampling from replicas" in text
    starred = [line for line in text.splitlines() if line.startswith("energy")]
    assert "*" not in starred[0]
    assert "*" in starred[1]


def test_equal_tails_are_equal_for_correlated_draws_too():
    # 800 values symmetric about 0, from 40 chains whose draws are all alike: the interval must be symmetric
    chains = np.repeat(np.arange(40), 20)
    value = np.repeat(np.linspace(-1, 1, 40), 20)[:, None]
    observed = Observed(
        value=value, blocks=np.repeat(value[:, :, None], 4, 2), coordinate=np.zeros((800, 0)),
        status=np.zeros((800, 1), int), log_weight=np.zeros(800), chain=chains, name="x", unit="", axis="",
    )  # fmt: skip
    found = interval(observed, level=0.9, kind="equal_tailed")
    np.testing.assert_allclose(found.upper, -found.lower, rtol=1e-9)


def test_weights_that_rest_on_one_sample_are_refused():
    value = np.arange(8.0)[:, None]
    observed = Observed(
        value=value, blocks=np.repeat(value[:, :, None], 4, 2), coordinate=np.zeros((8, 0)),
        status=np.zeros((8, 1), int), log_weight=np.array([0.0] + [-30.0] * 7), chain=np.arange(8), name="x", unit="",
        axis="",
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least two effective samples"):
        interval(observed)
