"""Conformal intervals: guaranteed coverage by simulation with dependent labels, and the quantiles by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.tree import replace
from bayespot.uq.conformal import conformal_factor, conformal_interval
from tests.uq.held_out import empty, prediction

ATOMS = 3


def drawn(rng, frames):
    """Heavy-tailed errors, nearly alike within a frame, and uncertainties that have nothing to do with them."""
    error = rng.standard_t(3, size=(frames, 1, 1)) + 0.1 * rng.normal(size=(frames, ATOMS, 3))
    scale = np.exp(0.1 * rng.normal(size=error.shape))
    data = replace(empty(frames, ATOMS), forces=jnp.asarray(error))
    return prediction(np.zeros(error.shape), scale), data, np.abs(error) / scale


def test_coverage_of_new_frames_is_as_promised():
    """31 frames of calibration, 40 new ones, 150 repetitions; 4 standard errors, from the repetitions themselves."""
    rng = np.random.default_rng(0)
    level, n = 0.9, 31
    found = {"label": [], "frame": [], "pooled": []}
    for _ in range(150):
        pred, data, score = drawn(rng, n)
        new = drawn(rng, 40)[2]
        label = conformal_factor(pred, data, "forces", level, "label", noise=0.0).factor
        frame = conformal_factor(pred, data, "forces", level, "frame", noise=0.0).factor
        found["label"].append((new <= label).mean())
        found["frame"].append((new <= frame).all((1, 2)).mean())
        pooled = np.sort(score.ravel())[int(np.ceil((score.size + 1) * level)) - 1]  # as if all were independent
        found["pooled"].append((new <= pooled).mean())
    mean = {name: np.mean(shares) for name, shares in found.items()}
    error = {name: np.std(shares) / np.sqrt(150) for name, shares in found.items()}
    assert abs(mean["frame"] - 29 / 32) < 4 * error["frame"]  # ⌈32 · 0.9⌉ = 29, exact for continuous scores
    assert level - 4 * error["label"] < mean["label"] < level + 1 / 32 + 4 * error["label"]
    gap = np.subtract(found["label"], found["pooled"])  # the control: 28 of 32 for labels that are all alike
    assert gap.mean() > 4 * gap.std() / np.sqrt(150)
    assert mean["pooled"] < level


@pytest.mark.parametrize(("frames", "level", "place"), [(19, 0.95, 19), (39, 0.95, 38), (9, 0.5, 5), (99, 0.9, 90)])
@pytest.mark.parametrize("cover", ["label", "frame"])
def test_one_label_per_frame_gives_the_order_statistic(frames, level, place, cover):
    rng = np.random.default_rng(1)
    energy = rng.normal(size=frames)
    data = replace(empty(frames, ATOMS), energy=jnp.asarray(ATOMS * energy))
    pred = prediction(np.zeros((frames, ATOMS, 3)), np.ones((frames, ATOMS, 3)))
    got = conformal_factor(pred, data, "energy", level, cover, noise=0.5)
    assert got.factor == pytest.approx(np.sort(np.abs(energy))[place - 1] / 0.5, rel=1e-12)
    assert (got.frames, got.level, got.cover, got.noise) == (frames, level, cover, 0.5)


def test_frames_count_equally_whatever_their_size():
    """One frame of many labels must not prevail: of 3 frames the level 0.5 is reached by two of them."""
    data = empty(3, 4)
    species = np.array(data.system.species)
    species[1:, 1:] = 0
    force = np.zeros((3, 4, 3))
    force[0], force[1, 0], force[2, 0] = 1.0, 2.0, 3.0
    data = replace(data, system=replace(data.system, species=jnp.asarray(species)), forces=jnp.asarray(force))
    got = conformal_factor(prediction(0 * force, np.ones((3, 4, 3))), data, "forces", 0.5, noise=0.0)
    assert got.factor == pytest.approx(2.0, rel=1e-3)  # 12 of 18 labels lie at 1; (1 + 1/10000)^½ of the scale


def test_intervals_hold_the_labels_whose_scores_are_below_the_factor():
    pred, data, _ = drawn(np.random.default_rng(2), 50)
    got = conformal_factor(pred, data, "forces", 0.8, noise=0.1)
    lower, upper = conformal_interval(pred, data, got)
    inside = (lower <= np.asarray(data.forces)) & (np.asarray(data.forces) <= upper)
    spread = np.asarray(pred.forces_uncertainty) ** 2 + 0.01
    np.testing.assert_array_equal(inside, np.abs(data.forces) <= got.factor * np.sqrt(spread) * (1 + 1e-12))
    assert 0.8 <= inside.mean() < 0.9
    pred = replace(pred, energy=jnp.full(50, 6.0), energy_uncertainty=jnp.full(50, 0.3))
    lower, upper = conformal_interval(pred, data, got._replace(quantity="energy", factor=2.0, noise=0.0))
    np.testing.assert_allclose(lower, 6 / ATOMS - 0.2, rtol=1e-4)
    np.testing.assert_allclose(upper - lower, 0.4, rtol=1e-3)


def test_too_few_frames_and_unknown_arguments_are_refused():
    pred, data, _ = drawn(np.random.default_rng(3), 18)
    with pytest.raises(ValueError, match=r"at least 19 frames with forces. Got 18.*ask for 0.947"):
        conformal_factor(pred, data, "forces", 0.95, noise=0.0)
    conformal_factor(pred, data, "forces", 18 / 19, noise=0.0)
    with pytest.raises(ValueError, match="cover 'label' or 'frame'"):
        conformal_factor(pred, data, "forces", cover="atom", noise=0.0)
    with pytest.raises(ValueError, match="0 < level < 1"):
        conformal_factor(pred, data, "forces", 1.0, noise=0.0)
    good = conformal_factor(pred, data, "forces", 0.8, noise=0.0)
    with pytest.raises(ValueError, match="quantity from"):
        conformal_interval(pred, data, good._replace(quantity="dipole"))
    energies = good._replace(quantity="energy")
    with pytest.raises(ValueError, match=r"same frames. Got \(18, 3, 3\), \(1, 3, 3\)"):
        conformal_interval(pred, data[:1], energies)  # one number of atoms would otherwise do for all frames
