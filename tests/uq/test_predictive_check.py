"""Predictive checks of a linear Gaussian model, whose posterior is known, with the right noise and with wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayespot.uq.predictive_check as module
from bayespot.tree import replace
from bayespot.uq.predictive_check import MEANINGS, STRIKING, _discrepancies, _without, held_out_check, predictive_check
from tests.uq.linear import SIGMA, heavy, labelled, predicted, problem

CHECK = {"training": (predictive_check, 0), "held-out": (held_out_check, 1)}


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch):
    """Enough for p-values, which average over them."""
    monkeypatch.setattr(module, "REPLICATES", 200)


def run(kind, seeds, chains=40, dof=None, **options):
    """p-values ``(seeds, 5)``, above and below, by discrepancy."""
    function, which = CHECK[kind]
    above, below = [], []
    for seed in range(seeds):
        p = problem(seed, chains, **options)
        found = function(jax.random.key(seed), p.samples, p.prediction[which], p.data[which], dof=dof)
        above.append([float(r.above) for r in found.rows])
        below.append([float(r.below) for r in found.rows])
    return (dict(zip(MEANINGS, np.transpose(x), strict=True)) for x in (above, below))


# On training labels


def test_right_model_is_not_blamed_on_training_labels():
    """150 data sets: at the level 5 % at most 5 % are striking, on either side (binomial bound at 1e-4: 19)."""
    seeds = 150
    most = stats.binom.isf(1e-4, seeds, 0.05)
    for shares in run("training", seeds):
        for name, p in shares.items():
            assert (p <= 0.05).sum() <= most, name
            # labels used twice: nearer to 1/2 than uniform, or as near. Standard deviation of a uniform p is 0.289,
            # known from 150 to 0.289·√(0.8/600) = 0.011; 4 sigma
            assert p.std() < 0.289 + 0.044, name


@pytest.mark.parametrize("kind", CHECK)
def test_wrong_noise_scale_is_seen(kind):
    """Errors of 60 labels scatter by 1/√120 = 9 %: a factor of 4 in ⟨z²⟩ is never missed."""
    above, below = run(kind, 20, assumed=SIGMA / 2)
    assert max(above["square"]) <= STRIKING
    assert np.median(above["largest"]) <= STRIKING
    assert min(below["square"]) > 0.5
    above, below = run(kind, 20, assumed=2 * SIGMA)
    assert max(below["square"]) <= STRIKING
    assert min(above["square"]) > 0.5


@pytest.mark.parametrize("kind", CHECK)
def test_bias_is_seen(kind):
    above, _ = run(kind, 20, bias=1.0)  # of one σ: √60 = 8 standard errors
    assert max(above["mean"]) <= STRIKING


@pytest.mark.parametrize("kind", CHECK)
def test_heavy_tails_are_seen_and_student_replicates_have_them(kind):
    """240 labels with Student-t noise of 3 degrees of freedom; the assumed noise has their standard deviation, √3 σ."""
    above, _ = run(kind, 20, frames=20, noise=heavy, assumed=3**0.5 * SIGMA)
    assert np.median(above["kurtosis"]) <= STRIKING
    assert (above["kurtosis"] <= 0.1).sum() >= 16
    above, below = run(kind, 20, frames=20, noise=heavy, dof=3.0)
    for name, p in above.items():  # right up to the approximate posterior: a share of 5 %, binomial bound at 1e-4
        assert (np.minimum(p, below[name]) <= STRIKING).sum() <= stats.binom.isf(1e-4, 20, 0.05), name


def test_too_weak_a_slope_is_seen():
    """Predictions that are 20 % too small: z grows with the prediction, the mean error stays zero."""
    p = problem(0, 50, frames=20)
    forces = p.prediction[1].members["forces"]
    soft = predicted(p.samples, 0.8 * forces + 0.2 * forces.mean())
    for function in (predictive_check, held_out_check):
        rows = {r.name: r for r in function(jax.random.key(0), p.samples, soft, p.data[1]).rows}
        assert rows["slope"].above <= STRIKING
        assert rows["slope"].remark.startswith("differences between predictions")
        assert rows["mean"].above > 0.05


# On held-out labels


def test_held_out_p_values_are_uniform():
    """150 data sets, half of the predictive variance epistemic: Kolmogorov and Smirnov's bound at α = 0.001 for each of
    the five numbers, widened by the smallest p-value, 1/41."""
    seeds = 150
    above, below = run("held-out", seeds, parameters=30)
    bound = stats.kstwo.isf(0.001, seeds) + 1 / 41
    for name in MEANINGS:
        assert stats.kstest(above[name], "uniform").statistic < bound, name
        assert stats.kstest(below[name], "uniform").statistic < bound, name
    assert np.allclose(above["square"] + below["square"], 42 / 41)  # no ties


def test_held_out_p_values_see_a_spread_that_is_too_small():
    """The same with samples whose distance from the mean is 0.2 times what it should be: rejected by the same bound."""
    above, _ = run("held-out", 60, parameters=30, spread=0.2)
    assert stats.kstest(above["square"], "uniform").statistic > stats.kstwo.isf(0.001, 60) + 1 / 41
    assert np.median(above["square"]) <= STRIKING


@pytest.mark.parametrize("chains", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_few_members_are_compared_with_the_others_only(chains, monkeypatch):
    """Exact labels that are one more draw, at 200 data sets: p lies on k/(C + 1), and below 1/2 no more often than it
    should (the theorem allows twice as often). Predictions of the 60 labels are independent, so that a chain that were
    part of its own reference would hardly ever lie as far out as the truth, and p nearly always be 1/(C + 1)."""
    monkeypatch.setattr(module, "REPLICATES", 1)  # without noise they are all alike
    seeds, rng = 200, np.random.default_rng(chains)
    found = []
    for seed in range(seeds):
        p = problem(seed, chains)
        draws = rng.normal(size=(chains + 1, *p.data[1].forces.shape))
        check = held_out_check(
            jax.random.key(seed), p.samples, predicted(p.samples, draws[1:]), labelled(draws[0]), {"forces": 0.0}
        )
        found.append([float(r.above) for r in check.rows])
    found = np.array(found) * (chains + 1)
    np.testing.assert_allclose(found, np.round(found), atol=1e-9)
    assert found.min() == pytest.approx(1)
    for k in range(1, chains // 2 + 2):
        share = k / (chains + 1)
        assert ((found <= k + 0.5).sum(0) <= stats.binom.isf(1e-4, seeds, share)).all()
    assert found[:, 2].mean() == pytest.approx(1 + chains / 2, abs=0.1 + 4 * chains / np.sqrt(12 * seeds))


def test_reference_is_that_of_the_other_chains():
    rng = np.random.default_rng(0)
    value, scale = rng.normal(size=(7, 4)), rng.uniform(0.1, 1, (7, 4))
    group, weight = np.array([0, 0, 1, 1, 2, 3, 3]), rng.dirichlet(np.ones(7))
    mean, std = _without(value, scale, weight, group)
    for c in range(4):
        rest = group != c
        w = weight[rest] / weight[rest].sum()
        np.testing.assert_allclose(mean[c], w @ value[rest])
        spread = w @ (value[rest] - mean[c]) ** 2 * 3 / 2  # three chains are left
        np.testing.assert_allclose(std[c] ** 2, spread * 4 / 3 + w @ scale[rest] ** 2)


def test_weights_count():
    """A sample without weight is not there; weights that are all alike change nothing."""
    p = problem(1, 9)
    for kind, (function, which) in CHECK.items():
        prediction, data = p.prediction[which], p.data[which]
        few = p.samples[1:]
        alone = function(jax.random.key(2), few, predicted(few, np.asarray(prediction.members["forces"])[1:]), data)
        log_weight = jnp.full(9, 3.0).at[0].set(-jnp.inf)
        weighted = replace(p.samples, log_weight=log_weight)
        both = function(jax.random.key(2), weighted, replace(prediction, log_weight=log_weight), data)
        for one, other in zip(alone.rows, both.rows, strict=True):
            # different replicates, at least 200 of them: 4 standard errors
            assert float(one.above) == pytest.approx(float(other.above), abs=4 * (2 * 0.25 / 200) ** 0.5)
        assert both.resolution == (0 if kind == "training" else pytest.approx(1 / 9))


# The rest


def test_discrepancies_by_hand():
    z = np.array([[1.0, -2.0, 0.5, 0.1], [0.0, 0.0, 0.0, 3.0]])
    centre = np.array([[7.0, 3.0, 7.0, 3.0]]) * np.array([[1.0], [-2.0]])
    u = np.array([1.0, -1.0, 1.0, -1.0])
    found = _discrepancies(z, centre)
    for row, numbers in zip(found, z, strict=True):
        kurtosis = stats.kurtosis(np.r_[numbers, -numbers], fisher=False)  # about zero
        expected = [abs(numbers.mean()), abs((numbers * u).mean()), (numbers**2).mean(), abs(numbers).max(), kurtosis]
        np.testing.assert_allclose(row, expected)


def test_table_and_words():
    p = problem(0, 8, assumed=SIGMA / 2)
    training = predictive_check(jax.random.key(0), p.samples, p.prediction[0], p.data[0])
    text = str(training)
    assert text.startswith("predictive check, training labels")
    assert "errors larger than expected" in text
    assert "So few chains" not in text
    assert len(training.rows[0].replicated) == len(training.rows[0].observed) >= 200
    held_out = held_out_check(jax.random.key(1), p.samples, p.prediction[1], p.data[1])
    assert held_out.resolution == pytest.approx(1 / 9)
    assert "So few chains give no p-value below 0.11: compare" in str(held_out)
    jax.tree.map(lambda x: x, held_out)  # a pytree


def test_a_single_label():
    """One label has no tails and no slope: nothing is striking about it, whatever it is."""
    p = problem(0, 20)
    data = replace(labelled(np.zeros((5, 4, 3))), energy=np.full(5, 0.1), has_energy=np.arange(5) == 2)
    energies = np.random.default_rng(0).normal(size=(20, 5))
    members = {**p.prediction[1].members, "energy": energies}
    only = held_out_check(
        jax.random.key(0), p.samples, replace(p.prediction[1], members=members), data, {"energy": 0.1}, None, ["energy"]
    )
    rows = {r.name: r for r in only.rows}
    assert {r.count for r in only.rows} == {1}
    assert float(rows["kurtosis"].above) == float(rows["slope"].above) == pytest.approx(1)
    assert 0.05 < float(rows["square"].above) < 1


def test_what_is_refused():
    p, keys = problem(0, 8), iter(jax.random.split(jax.random.key(0), 9))
    arguments = p.samples, p.prediction[0], p.data[0]
    with pytest.raises(ValueError, match=r"positive noise\. Got 0\.0\. Pass the standard deviation that the target"):
        predictive_check(next(keys), *arguments, {"forces": 0.0})
    with pytest.raises(ValueError, match=r"dof must be positive, or None .* Got -1\.0"):
        held_out_check(next(keys), *arguments, dof=-1.0)
    with pytest.raises(ValueError, match=r"at least three chains\. Got 2"):
        held_out_check(
            next(keys), p.samples[:2], predicted(p.samples[:2], p.prediction[0].members["forces"][:2]), p.data[0]
        )
    same = predicted(p.samples, np.ones((8, 5, 4, 3)))
    with pytest.raises(ValueError, match="standard deviation of forces must be positive"):
        held_out_check(next(keys), p.samples, same, p.data[0], {"forces": 0.0})
    single = replace(p.samples, chain=jnp.zeros(8, int))
    with pytest.raises(ValueError, match=r"at least three chains\. Got 1"):  # its draws may be correlated
        held_out_check(next(keys), single, replace(p.prediction[0], chain=single.chain), p.data[0])
    with pytest.raises(ValueError, match=r"noise must be given by quantity, .* Got {'force': 0\.1}"):
        predictive_check(next(keys), *arguments, {"force": 0.1})


@pytest.mark.parametrize("function", [predictive_check, held_out_check])
def test_predictions_that_are_not_finite_are_no_evidence(function):
    p = problem(0, 8)
    forces = np.array(p.prediction[0].members["forces"])
    forces[3, 2, 1, 0] = np.nan
    forces[5, 0, 0, 0] = np.nan
    lost = predicted(p.samples, forces)
    with pytest.raises(ValueError, match=r"forces must be finite\. Got NaN or infinity from 2 of 8 samples \(3, 5\)"):
        function(jax.random.key(0), p.samples, lost, p.data[0])
    log_weight = jnp.zeros(8).at[jnp.array([3, 5])].set(-jnp.inf)  # samples without weight may be anything
    found = function(
        jax.random.key(0), replace(p.samples, log_weight=log_weight), replace(lost, log_weight=log_weight), p.data[0]
    )
    assert all(np.isfinite(r.observed).all() and 0 <= float(r.above) <= 1 for r in found.rows)
