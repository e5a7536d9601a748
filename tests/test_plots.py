"""Figures: what is on the axes."""

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from bayespot.plots import (
    plot_binned_errors,
    plot_check,
    plot_interval,
    plot_learning,
    plot_parity,
    plot_pit,
    plot_rank,
    plot_reliability,
)
from bayespot.records.dataset import dataset
from bayespot.records.interval import Interval
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.system import system
from bayespot.tree import replace
from bayespot.uq.calibration import Reliability
from bayespot.uq.predict import Prediction
from bayespot.uq.predictive_check import Discrepancy, PredictiveCheck
from tests.inference.chains import chains
from tests.uq.held_out import empty, prediction

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def band(shape=(30,)) -> Interval:
    r = jnp.linspace(0.1, 6.0, shape[0]) if shape else jnp.zeros(0)
    mean = jnp.exp(-((r - 2.4) ** 2) * 4) * 3 + 1 / (1 + jnp.exp(-4 * (r - 3))) if shape else jnp.array(1.5)
    width, noise = 0.1 + 0.1 * mean, 0.03 + 0.0 * mean
    return Interval(
        mean, mean - width, mean + width, width / 2, noise, width > 0, r, 0.95, "student_t", 8, "replicas", (),
        "g(r)" if shape else "pressure", "" if shape else "GPa", "r [Å]" if shape else "",
    )  # fmt: skip


def test_interval_of_a_curve():
    it = band()
    ax = plot_interval(it, truth=it.mean + 0.05)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("r [Å]", "g(r)")
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert {"95% credible interval", "posterior mean", "truth"} <= set(labels)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["truth"].get_ydata(), it.mean + 0.05)
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(float(it.upper.max()))
    difference = plot_interval(it, truth=it.mean + 0.05, centred=True)
    lines = {line.get_label(): line for line in difference.get_lines()}
    np.testing.assert_allclose(lines["truth"].get_ydata(), 0.05, atol=1e-6)
    assert difference.get_ylabel() == "g(r) − mean"


def test_interval_of_a_scalar_on_given_axes():
    _, ax = plt.subplots()
    assert plot_interval(band(()), truth=1.4, ax=ax) is ax
    assert ax.get_ylabel() == "pressure [GPa]"
    matrix = jnp.zeros((2, 2))
    field = Interval(*[matrix] * 5, matrix == 0, jnp.zeros(0), 0.9, "", 2, "", (), "x", "", "")
    with pytest.raises(ValueError, match="scalars and curves"):
        plot_interval(field)


def test_reliability():
    level = jnp.linspace(0.1, 0.9, 9)
    curves = [
        Reliability(level, level**p, 0.02 + 0 * level, jnp.array(1.3), q, 90) for q, p in (("energy", 1), ("forces", 2))
    ]
    ax = plot_reliability(curves)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("promised probability", "observed coverage")
    assert any("forces, ⟨z²⟩ = 1.30" in t.get_text() for t in ax.get_legend().get_texts())


def test_learning_curves_of_every_chain():
    fit = -jnp.exp(-jnp.linspace(0, 30, 20)) * jnp.array([[100.0], [100.0], [150.0], [150.0]])
    zero = jnp.zeros(4, int)
    samples = PosteriorSamples(
        {},
        jnp.zeros(4),
        jnp.array([0, 0, 1, 1]),
        zero,
        jnp.zeros(4),
        zero,
        {"log_density": fit, "validation": fit - 1, "step_size": -fit},
        "{}",
    )
    ax = plot_learning(samples)
    assert len(ax.get_lines()) == 4  # two chains × two curves
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["log_density", "validation"]
    assert -1.5 < ax.get_ylim()[0] < -1 < 0 < ax.get_ylim()[1] < 0.5  # the steep beginning is cut
    with pytest.raises(ValueError, match=r"log_density or validation.*Got no history\."):
        plot_learning(replace(samples, history={}))
    with pytest.raises(ValueError, match=r"Got \['distance'\]\."):  # what laplace records
        plot_learning(replace(samples, history={"distance": jnp.zeros((4, 1))}))


def test_parity():
    rng = np.random.default_rng(0)
    systems = [system(rng.uniform(0, 6, (5, 3)), [14] * 5) for _ in range(4)]
    force = rng.normal(size=(4, 5, 3))
    data = dataset(systems, 3.0, forces=list(force))
    error, spread = 0.1 * rng.normal(size=(4, 5, 3)), 0.1 * rng.uniform(size=(4, 5, 3))
    energy, stress = jnp.zeros(4), jnp.zeros((4, 3, 3))
    arrays = (energy, jnp.asarray(force + error), stress, energy, jnp.asarray(spread), stress)
    prediction = Prediction(*arrays, {}, {}, jnp.zeros(2), jnp.arange(2))
    ax = plot_parity(prediction, data)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("label: forces [eV/Å]", "prediction: forces [eV/Å]")
    assert f"RMSE {np.sqrt((error**2).mean()):.3g} eV/Å, 60 labels" in ax.get_title()
    with pytest.raises(ValueError, match="with labels"):
        plot_parity(prediction, data, "stress")


def held_out(samples=10_000):
    """40 frames of 5 atoms, predicted with twice the right uncertainty."""
    rng = np.random.default_rng(1)
    spread = np.exp(0.5 * rng.normal(size=(40, 5, 3)))
    data = replace(empty(40, 5), forces=jnp.asarray(spread * rng.normal(size=spread.shape)))
    return prediction(np.zeros(spread.shape), 2 * spread, samples), data


def test_pit():
    pred, data = held_out()
    ax = plot_pit(pred, data, noise=0.0, bins=5)
    z = np.asarray(data.forces / pred.forces_uncertainty).ravel()
    expected = np.histogram(stats.t.cdf(z / np.sqrt(1 + 1e-4), 9999), 5, (0, 1), density=True)[0]
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], expected, rtol=1e-12)
    assert expected[2] > 1.5 > 0.5 > expected[0]  # a hill: the uncertainties are too large
    # one standard error of a share: labels are independent, so it is the binomial one, known to 1/√(2·39) = 11 %
    bars = ax.containers[1][2][0].get_segments()
    found = np.array([(top[1] - bottom[1]) / 2 for bottom, top in bars]) / 5
    np.testing.assert_allclose(found, np.sqrt(expected / 5 * (1 - expected / 5) / 600), rtol=0.45)
    assert ax.get_xlabel() == "predictive distribution function at the label"
    with pytest.raises(ValueError, match="two bins"):
        plot_pit(pred, data, noise=0.0, bins=1)


def test_binned_errors():
    pred, data = held_out()
    ax = plot_binned_errors(pred, data, noise=0.0, bins=6)
    std, error = np.asarray(pred.forces_uncertainty).ravel(), np.asarray(data.forces).ravel()
    order = np.argsort(std).reshape(6, 100)
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(x, np.sqrt((std[order] ** 2).mean(1)), rtol=3e-4)  # the factor of Student's t
    np.testing.assert_allclose(y, np.sqrt((error[order] ** 2).mean(1)), rtol=1e-12)
    assert (y < x).all()
    assert ax.get_ylabel() == "root-mean-square error [eV/Å]"
    # relative standard error of a root mean square of 100 labels: 7 %, itself known to 11 %; 4 sigma
    bars = ax.containers[0][2][0].get_segments()
    np.testing.assert_allclose([(b[1, 1] - b[0, 1]) / 2 for b in bars] / y, 1 / np.sqrt(200), rtol=0.45)


def test_predictive_check():
    replicated, observed = np.linspace(0, 1, 500), np.linspace(1.5, 1.7, 500)
    row = Discrepancy(observed, replicated, np.asarray(0.004), np.asarray(1.0), "forces", "square", 60)
    check = PredictiveCheck((row,), "training", 0.0)
    ax = plot_check(check)
    assert ax.get_xlabel() == "square of standardised errors: forces"
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert set(labels) == {"replicated labels", "training labels, p above = 0.004"}
    assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(1.6)
    bars = [p for p in ax.patches if p.get_height() > 0 and p.get_width() < 0.05]
    assert sum(bar.get_width() * bar.get_height() for bar in bars) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"\('forces', 'square'\)\]\. Got \('energy', 'square'\)"):
        plot_check(check, "energy")


def curves_of(ax):
    """Distance of every chain from 0 and half the width of the band, at the inner points."""
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "-"]
    corners = ax.collections[0].get_paths()[0].vertices
    upper = {x: y for x, y in corners if y > 0}
    at = lines[0].get_xdata()[1:-1]
    return np.abs([line.get_ydata()[1:-1] for line in lines]), np.array([upper[x] for x in at])


def test_ranks_of_chains_that_disagree():
    samples, values = chains(components=6)
    moved = values["energy"].reshape(-1, 2, 3).copy()
    moved[400:800, 1, 0] += 0.5  # of the second chain
    ax = plot_rank(samples, moved, "energy")
    curves, band = curves_of(ax)
    assert [bool((curve > band).any()) for curve in curves] == [False, True, False, False]
    assert ax.get_title().startswith("energy[1, 0]: R-hat 1.0")
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == ["95% band", "chain 0"]
    with pytest.raises(ValueError, match=r"that vary between samples\. Got energy"):
        plot_rank(samples, np.ones(1600), "energy")
    with pytest.raises(ValueError, match=r"that vary between samples\. Got energy"):
        plot_rank(samples, np.append(moved[:-1, 0, 0], np.nan), "energy")


def test_of_many_chains_those_that_leave_the_band_are_named():
    samples, values = chains(8, components=1)
    wide = values["energy"][:, 0].copy()
    wide[:400] *= 2
    ax = plot_rank(samples, wide)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["95% band", "chain 0"]
    assert ax.get_title().startswith("R-hat 1.0")
