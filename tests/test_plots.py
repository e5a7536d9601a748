"""Figures: what is on the axes."""

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from bayespot.plots import plot_interval, plot_learning, plot_parity, plot_reliability
from bayespot.records.dataset import dataset
from bayespot.records.interval import Interval
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.system import system
from bayespot.uq.calibration import Reliability
from bayespot.uq.predict import Prediction

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
    none = PosteriorSamples({}, jnp.zeros(4), zero, zero, jnp.zeros(4), zero, {}, "{}")
    with pytest.raises(ValueError, match="history"):
        plot_learning(none)


def test_parity():
    rng = np.random.default_rng(0)
    systems = [system(rng.uniform(0, 6, (5, 3)), [14] * 5) for _ in range(4)]
    force = rng.normal(size=(4, 5, 3))
    data = dataset(systems, 3.0, forces=list(force))
    error, spread = 0.1 * rng.normal(size=(4, 5, 3)), 0.1 * rng.uniform(size=(4, 5, 3))
    energy, stress = jnp.zeros(4), jnp.zeros((4, 3, 3))
    arrays = (energy, jnp.asarray(force + error), stress, energy, jnp.asarray(spread), stress)
    prediction = Prediction(*arrays, {}, {}, jnp.zeros(2))
    ax = plot_parity(prediction, data)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("label: forces [eV/Å]", "prediction: forces [eV/Å]")
    assert f"RMSE {np.sqrt((error**2).mean()):.3g} eV/Å, 60 labels" in ax.get_title()
    with pytest.raises(ValueError, match="with labels"):
        plot_parity(prediction, data, "stress")
