"""Scores against definitions, quadrature, SciPy and brute-force resampling; calibration of data of known quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from bayespot.tree import replace
from bayespot.uq.calibration import coverage, pit
from bayespot.uq.ence import bin_numbers, binned_errors, ence
from bayespot.uq.proper_scores import crps, interval_score, log_density
from bayespot.uq.resampling import estimate, frame_weights, median, rank_correlation
from bayespot.uq.scores import calibration, calibration_report, compare_calibration
from tests.uq.held_out import MANY, empty, exchangeable, prediction

Z = np.array([-2.5, -0.3, 0.0, 1.0, 6.0])


@pytest.mark.parametrize("freedom", [0.8, 1.0, 2.5, 7.0, 200.0])
def test_crps_is_its_integral(freedom):
    below = [integrate.quad(lambda x: stats.t.cdf(x, freedom) ** 2, -np.inf, z, limit=200)[0] for z in Z]
    above = [integrate.quad(lambda x: stats.t.sf(x, freedom) ** 2, z, np.inf, limit=200)[0] for z in Z]
    # at ν = 1 the formula is taken 1e-6 beside its removable pole
    np.testing.assert_allclose(crps(Z, np.full(5, freedom)), np.add(below, above), rtol=3e-6)


def test_crps_of_a_gaussian_and_where_there_is_none():
    closed = Z * (2 * stats.norm.cdf(Z) - 1) + 2 * stats.norm.pdf(Z) - 1 / np.sqrt(np.pi)  # Gneiting & Raftery, eq. 21
    for freedom in (1e10, 1e24):
        np.testing.assert_allclose(crps(Z, np.full(5, freedom)), closed, atol=1e-9)
    assert np.isnan(crps(Z, np.full(5, 0.5))).all()


def test_log_density():
    for freedom in (0.7, 3.0, 1e4):
        np.testing.assert_allclose(log_density(Z, np.full(5, freedom)), stats.t.logpdf(Z, freedom), rtol=1e-10)
    np.testing.assert_allclose(log_density(Z, np.full(5, 1e24)), stats.norm.logpdf(Z), rtol=1e-12)


def test_interval_score_by_definition():
    mean, scale, freedom, level = 1.3, 0.4, np.full(5, 6.0), 0.9
    label = mean + scale * Z
    lower, upper = stats.t.interval(level, 6.0, mean, scale)
    expected = [(upper - lower) + 20 * max(lower - y, 0) + 20 * max(y - upper, 0) for y in label]
    np.testing.assert_allclose(scale * interval_score(Z, freedom, level), expected, rtol=1e-10)


def drawn_again(place, row):
    """Labels of a replicate, every one as often as its frame was drawn."""
    return np.repeat(np.arange(len(place)), row[place].astype(int))


@pytest.mark.parametrize("decimals", [12, 0])
def test_rank_correlation_and_its_replicates(decimals):
    """The value is SciPy's, with and without ties; the replicates are those of full resampling, to first order."""
    rng = np.random.default_rng(0)
    frames, size = 50, 6
    place = np.repeat(np.arange(frames), size)
    common = rng.normal(size=frames)[place]
    x = np.round(common + rng.normal(size=len(place)), decimals)
    y = np.round(0.6 * x + 0.7 * common**2 + rng.normal(size=len(place)), decimals)
    weights = frame_weights(rng, frames, 300)
    got = rank_correlation(x, y, place, weights)
    assert got[0] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    brute = [stats.spearmanr(*(v[drawn_again(place, row)] for v in (x, y))).statistic for row in weights[1:]]
    # the same replicates, so the difference is of second order, 1/frames; measured 0.98 and 2 %
    assert np.corrcoef(got[1:], brute)[0, 1] > 0.95
    assert np.std(got[1:]) == pytest.approx(np.std(brute), rel=0.1)
    assert np.isnan(rank_correlation(x, np.ones_like(x), place, weights)).all()


def test_median_of_replicates():
    rng = np.random.default_rng(1)
    place = rng.integers(0, 9, 40)
    x = rng.normal(size=40)
    weights = frame_weights(rng, 9, 20)
    expected = [np.median(x[drawn_again(place, row)]) for row in weights]
    np.testing.assert_allclose(median(x, place, weights), expected, rtol=1e-14)


def test_ence_of_calibrated_data_does_not_depend_on_the_bins():
    """Plain values grow as √(K/πn); the intercept is zero. 200 data sets, 4 standard errors of their mean.

    Bins must be narrow: in one where the standard deviations differ much, few labels make up most of the mean square.
    """
    rng = np.random.default_rng(2)
    n, sets = 2400, 200
    place, ones = np.arange(n), np.ones((1, n))
    choices = {"default": bin_numbers(n), "few": (6, 10, 16), "many": (20, 40, 80, 120)}
    found: dict = {name: [] for name in choices}
    for _ in range(sets):
        std = np.exp(0.3 * rng.normal(size=n))
        error = std * rng.normal(size=n)
        for name, bins in choices.items():
            zero, plain = ence(error, std, place, ones, bins)
            found[name].append([zero[0], *plain[0]])
    for name, bins in choices.items():
        mean, spread = np.mean(found[name], 0), np.std(found[name], 0, ddof=1) / np.sqrt(sets)
        assert abs(mean[0]) < 4 * spread[0], name
        theory = np.sqrt(np.array(bins) / (np.pi * n))
        # the expansion is in 1/(labels per bin): a root mean square of b labels lies 1/(4b) below, of 20: 1 %
        np.testing.assert_allclose(mean[1:], theory, atol=4 * spread[1:].max() + 0.02 * theory.max())
        assert mean[-1] > 5 * abs(mean[0])


def test_ence_of_half_the_right_uncertainties_is_one():
    rng = np.random.default_rng(3)
    std = np.exp(0.5 * rng.normal(size=5000))
    zero, plain = ence(2 * std * rng.normal(size=5000), std, np.arange(5000), np.ones((1, 5000)))
    # root mean square of 5000 errors: 1 % of 2, over the lever of the extrapolation about twice that; 4 sigma
    assert zero[0] == pytest.approx(1.0, abs=0.16)
    np.testing.assert_allclose(plain, 1.0, atol=0.1)


def test_ence_needs_sixty_labels():
    assert [len(bin_numbers(n)) for n in (59, 60, 10**6)] == [0, 3, 6]
    assert all(n // max(bin_numbers(n)) >= 10 for n in (60, 120, 240, 480, 10**6))
    assert np.isnan(ence(Z, np.ones(5), np.arange(5), np.ones((1, 5)))[0]).all()


SHAPE = (300, 4, 3)


def scored(promised=1.0, samples=MANY, noise=0.0, seed=4, **arguments):
    rng = np.random.default_rng(seed)
    mean, spread, label = exchangeable(rng, SHAPE, samples)
    data = replace(empty(*SHAPE[:2], **arguments), forces=jnp.asarray(label + noise * rng.normal(size=SHAPE)))
    return prediction(mean, promised * spread, samples), data


@pytest.mark.parametrize(("samples", "noise"), [(MANY, 0.0), (8, 0.0), (8, 0.7)])
def test_honest_uncertainties(samples, noise):
    row = calibration(jax.random.key(0), *scored(samples=samples, noise=noise), {"forces": noise}, ["forces"])[0]
    share = {0.5: row.coverage_50, 0.8: row.coverage_80, 0.95: row.coverage_95}
    for level, got in share.items():
        assert abs(got.value - level) < 4 * np.sqrt(level * (1 - level) / 3600)  # independent labels, 4 sigma
    # z² of Student's t_7 has the variance 147/15 − 1.4² = 7.84, less with noise: 4 sigma of 3600 labels; 2 without t
    assert row.zms.value == pytest.approx(row.zms_honest, abs=4 * np.sqrt((2 if samples == MANY else 7.84) / 3600))
    # ⟨e²⟩ = ⟨s²⟩ for any number of samples; 3600 labels of log-normal spread: the mean square to
    # sqrt((3·e^1 − 1)/3600) = 4.5 %, a root mean square to 2.2 %; 4 sigma
    assert row.rmse.value == pytest.approx(row.sharpness.value, rel=0.09)
    if samples == MANY:
        assert abs(row.ence.value) < 0.05  # 4 × 1/√(2·3600) of a mean, times the lever of the extrapolation
    elif noise == 0:
        assert row.zms_honest == pytest.approx(7 / 5, rel=1e-12)
        assert row.ence.value == pytest.approx(0.17, abs=0.05)  # as documented for eight samples; 4 sigma


@pytest.mark.parametrize("samples", [3, 8])
def test_sharpness_of_a_small_ensemble_is_its_error(samples):
    """Draws and label of equal spread: their squares and s² average to 1 + 1/S each."""
    rng = np.random.default_rng(10)
    mean, spread, label = exchangeable(rng, SHAPE, samples, spread=1.0)
    data = replace(empty(*SHAPE[:2]), forces=jnp.asarray(label))
    pred = prediction(mean, spread, samples)
    row = calibration(jax.random.key(0), pred, data, {"forces": 0.0}, ["forces"], 20)[0]
    # relative standard errors of root mean squares: 1/√7200 of the errors, 1/√(7200 (S − 1)) of s; 4 sigma
    assert row.rmse.value == pytest.approx(np.sqrt(1 + 1 / samples), rel=4 / np.sqrt(7200))
    assert row.sharpness.value == pytest.approx(np.sqrt(1 + 1 / samples), rel=4 / np.sqrt(7200 * (samples - 1)))
    binned = binned_errors(pred, data, "forces", 0.0, bins=1)
    assert binned.std[0] == pytest.approx(row.sharpness.value, rel=1e-12)


def test_over_confidence_by_two():
    pred, data = scored(promised=0.5)
    row = calibration(jax.random.key(0), pred, data, {"forces": 0.0}, ["forces"])[0]
    assert row.zms.value == pytest.approx(4.0, abs=4 * 4 * np.sqrt(2 / 3600))
    assert row.zms.lower < 4 < row.zms.upper
    assert row.zms_honest == pytest.approx(1.0, abs=1e-3)
    assert row.rmse.value / row.sharpness.value == pytest.approx(2.0, rel=0.09)
    assert row.ence.value == pytest.approx(1.0, abs=0.2)
    assert row.coverage_95.value == pytest.approx(2 * stats.norm.cdf(1.96 / 2) - 1, abs=4 * np.sqrt(0.22 / 3600))
    honest = calibration(jax.random.key(0), *scored(), {"forces": 0.0}, ["forces"])[0]
    for name in ("nll", "crps", "interval_score"):  # strictly proper: the honest claim has the better score
        assert getattr(honest, name).upper < getattr(row, name).lower
    assert honest.spearman.value == pytest.approx(row.spearman.value, abs=1e-12)


def test_scores_are_means_of_the_definitions():
    pred, data = scored(samples=8)
    row = calibration(jax.random.key(0), pred, data, {"forces": 0.5}, ["forces"])[0]
    error = (np.asarray(data.forces) - np.asarray(pred.forces)).ravel()
    spread = np.asarray(pred.forces_uncertainty).ravel() ** 2 * 9 / 8
    scale, freedom = np.sqrt(spread + 0.25), 7 * ((spread + 0.25) / spread) ** 2
    student = stats.t(freedom, 0, scale)
    assert row.nll.value == pytest.approx(-student.logpdf(error).mean(), rel=1e-10)
    half = student.ppf(0.975)
    outside = np.maximum(np.abs(error) - half, 0)
    assert row.interval_score.value == pytest.approx((2 * half + 40 * outside).mean(), rel=1e-9)
    assert row.sharpness.value == pytest.approx(np.sqrt((scale**2).mean()), rel=1e-10)
    assert row.median_std.value == pytest.approx(np.median(scale), rel=1e-10)
    assert row.zms_honest == pytest.approx((student.var() / scale**2).mean(), rel=1e-10)
    assert row.spearman.value == pytest.approx(stats.spearmanr(np.abs(error), scale).statistic, abs=1e-10)
    vectors = [np.linalg.norm(x.reshape(-1, 3), axis=1) for x in (error, scale)]
    assert row.spearman_vector.value == pytest.approx(stats.spearmanr(*vectors).statistic, abs=1e-10)
    value, frame = pit(pred, data, "forces", 0.5)
    np.testing.assert_allclose(value, student.cdf(error), rtol=1e-10)
    np.testing.assert_array_equal(frame, np.repeat(np.arange(300), 12))


def test_intervals_come_from_the_differences_between_frames():
    """Labels that are all alike within a frame count once: the interval is that of ``coverage``, √12 times wider."""
    rng = np.random.default_rng(5)
    label = np.broadcast_to(rng.normal(size=(300, 1, 1)), SHAPE)
    data = replace(empty(*SHAPE[:2]), forces=jnp.asarray(label))
    pred = prediction(np.zeros(SHAPE), np.ones(SHAPE))
    row = calibration(jax.random.key(0), pred, data, {"forces": 0.0}, ["forces"])[0]
    curve = coverage(pred, data, "forces", [0.5, 0.8, 0.95], noise=0.0)
    for got, value, error in zip((row.coverage_50, row.coverage_80), curve.observed, curve.error, strict=False):
        assert got.value == pytest.approx(float(value), abs=1e-12)
        # percentiles of 400 replicates know the width to about 6 %; 4 sigma
        assert got.upper - got.lower == pytest.approx(2 * 1.96 * float(error), rel=0.25)
    width = row.coverage_80.upper - row.coverage_80.lower
    assert width > 2.5 * 2 * 1.96 * np.sqrt(0.16 / 3600)


def test_rows_by_quantity_group_and_species():
    names = ("cold", "hot") * 150
    pred, data = scored(species=(1, 8, 8, 8), group=names)
    energy = np.random.default_rng(6).normal(size=300)
    pred = replace(pred, energy_uncertainty=jnp.full(300, 4.0))
    data = replace(data, energy=jnp.asarray(4 * energy), has_energy=jnp.arange(300) != 7)
    rows = calibration(jax.random.key(0), pred, data, {"forces": 0.0, "energy": 0.0}, resamples=50)
    assert [(r.quantity, r.group, r.species, r.count, r.frames) for r in rows] == [
        ("energy", "all", 0, 299, 299), ("energy", "cold", 0, 150, 150), ("energy", "hot", 0, 149, 149),
        ("forces", "all", 0, 3600, 300), ("forces", "all", 1, 900, 300), ("forces", "all", 8, 2700, 300),
        ("forces", "cold", 0, 1800, 150), ("forces", "cold", 1, 450, 150), ("forces", "cold", 8, 1350, 150),
        ("forces", "hot", 0, 1800, 150), ("forces", "hot", 1, 450, 150), ("forces", "hot", 8, 1350, 150),
    ]  # fmt: skip
    assert rows[0].rmse.value == pytest.approx(np.sqrt((np.delete(energy, 7) ** 2).mean()), rel=1e-12)
    assert np.isnan(rows[0].spearman.value)  # all predicted alike
    hydrogen = np.asarray(data.forces)[::2, 0]
    assert rows[7].rmse.value == pytest.approx(np.sqrt((hydrogen**2).mean()), rel=1e-12)
    again = calibration(jax.random.key(0), pred, data, {"forces": 0.0, "energy": 0.0}, resamples=50)
    assert repr(again) == repr(rows)  # as text, in which NaN equals NaN
    text = calibration_report(rows)
    assert "forces on O [eV/Å]" in text
    assert "Spearman" not in text.split("forces")[0]  # undefined everywhere in its block
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_shifted_set_stands_beside():
    first, shifted = scored(), scored(promised=0.5, seed=7, group=("a", "b") * 150)
    rows = compare_calibration(jax.random.key(0), {"300 K": first, "1200 K": shifted}, {"forces": 0.0}, ["forces"], 50)
    assert [(r.group, r.species) for r in rows] == [("300 K", 0), ("1200 K", 0)]
    assert rows[0].zms.upper < 1.3 < 3 < rows[1].zms.lower
    text = calibration_report(rows)
    head = text.splitlines()[0]
    assert head.index("300 K") < head.index("1200 K")
    assert len([line for line in text.splitlines() if line.startswith("RMSE")]) == 1


def test_what_does_not_exist_is_nan_and_what_is_not_known_is_refused():
    pred, data = scored(samples=3)
    row = calibration(jax.random.key(0), pred, data, {"forces": 0.0}, ["forces"], 20)[0]
    assert np.isnan(row.zms_honest)
    assert np.isfinite([row.sharpness.value, row.median_std.value, row.ence.value, row.rmse.value]).all()
    assert np.isfinite([row.crps.value, row.nll.value, row.spearman.value]).all()
    single = calibration(jax.random.key(0), *scored_single(), {"forces": 0.0}, ["forces"], 20)[0]
    assert np.isnan(single.rmse.lower)
    assert single.rmse.value > 0
    with pytest.raises(ValueError, match=r"\['energy', 'forces'\].*noise="):
        calibration(jax.random.key(0), pred, data)
    with pytest.raises(ValueError, match="resamples must be positive"):
        calibration(jax.random.key(0), pred, data, {"forces": 0.0}, ["forces"], 0)
    with pytest.raises(ValueError, match="same frames"):
        calibration(jax.random.key(0), pred, data[:5], {"forces": 0.0}, ["forces"])
    with pytest.raises(ValueError, match="bins must lie"):
        binned_errors(*scored(), "forces", 0.0, bins=0)


def scored_single():
    pred, data = scored()
    return jax.tree.map(lambda x: x if x.shape == (MANY,) else x[:1], pred), data[:1]


def test_estimates():
    got = estimate(np.arange(-1.0, 1001.0))
    assert got.value == -1
    np.testing.assert_allclose([got.lower, got.upper], [25, 975])
    assert np.isnan(estimate(np.array([3.0, np.nan, 1.0])).upper)
