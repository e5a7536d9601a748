"""The factor is found in data of known factor; recalibrated potentials against means and draws combined by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.errors import FailedSamples
from bayespot.io import load, save
from bayespot.potentials.build import build
from bayespot.potentials.classical import lennard_jones
from bayespot.records.dataset import dataset
from bayespot.records.posterior import as_samples
from bayespot.records.system import masses, system
from bayespot.simulation.ensemble import nve
from bayespot.simulation.simulate import propagate
from bayespot.tree import replace, take
from bayespot.uq.calibration import z_scores
from bayespot.uq.predict import predict
from bayespot.uq.recalibration import recalibrate, recalibrate_prediction, recalibration_factor
from tests.uq.held_out import MANY, empty, exchangeable, prediction

KINDS = ["likelihood", "coverage", "moments"]
SHAPE = (300, 4, 3)


def labelled(samples, promised=1.0, noise=0.0, spread=None, seed=0):
    rng = np.random.default_rng(seed)
    mean, std, label = exchangeable(rng, SHAPE, samples, spread)
    data = replace(empty(*SHAPE[:2]), forces=jnp.asarray(label + noise * rng.normal(size=SHAPE)))
    return prediction(mean, promised * std, samples), data


def error_of_scale(kind, freedom, labels=3600):
    """Standard error of ln(scale) of Student's t from independent labels: Fisher's, or that of the 95 % quantile."""
    if kind == "likelihood":
        return np.sqrt((freedom + 3) / (2 * freedom * labels))
    q = stats.t.ppf(0.975, freedom)
    return np.sqrt(0.95 * 0.05 / labels) / (2 * q * stats.t.pdf(q, freedom))


@pytest.mark.parametrize("samples", [5, 8, 20])
def test_the_factor_of_exchangeable_members_is_one(samples):
    pred, data = labelled(samples)
    errors = (np.asarray(data.forces - pred.forces) / np.asarray(pred.forces_uncertainty)) ** 2
    got = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, "moments")
    closed = -1 / samples + (samples - 3) / (samples - 1) * errors.mean()
    assert got.alpha**2 == pytest.approx(closed, rel=1e-10)
    # E[α²] = 1 exactly; its standard error from the 3600 labels themselves, 4 sigma
    assert abs(closed - 1) < 4 * (samples - 3) / (samples - 1) * errors.std() / 60
    for kind in ("likelihood", "coverage"):
        got = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, kind)
        error = error_of_scale(kind, samples - 1)
        assert abs(got.alpha - 1) < 4 * error
        # percentiles of 400 replicates know a width to 5 %, 300 frames to 4 %: 4 sigma
        assert got.upper - got.lower == pytest.approx(3.92 * error, rel=0.25)
        assert (got.clipped, got.kind, got.count, got.frames) == (False, kind, 3600, 300)


@pytest.mark.parametrize("kind", KINDS)
def test_over_confidence_by_two_is_undone(kind):
    pred, data = labelled(MANY, promised=0.5)
    got = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, kind)
    # standard errors with 3600 Gaussian labels: 1/√7200 = 1.2 % of a scale, 1.6 % from a 95 % quantile; 4 sigma
    assert got.alpha == pytest.approx(2.0, rel=0.065 if kind == "coverage" else 0.048)
    assert got.lower < 2 < got.upper
    z = z_scores(recalibrate_prediction(pred, got.alpha), data, "forces", 0.0)[0]
    if kind == "coverage":
        share = (np.abs(z) <= stats.t.ppf(0.975, MANY - 1) * (1 + 1e-6)).mean()
        assert share == pytest.approx(0.95, abs=1.01 / 3600)
    else:  # for a Gaussian scale the likelihood is largest where the mean square is right
        assert (z**2).mean() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [8, MANY])
def test_known_noise_is_not_scaled(kind, samples):
    pred, data = labelled(samples, promised=0.4, noise=0.6, spread=1.0)
    got = recalibration_factor(jax.random.key(1), pred, data, "forces", 0.6, kind)
    true = 2.5 if kind != "moments" else np.sqrt(6.25 + 5.25 / samples)  # which leaves the mean's error unscaled
    # the scale is √(1 + 0.36), of which α moves the 1; moments of Gaussian labels are as good as their likelihood.
    # The spread of eight draws is itself uncertain: ν = 7 in place of ∞ widens by √(10/7) at most
    error = true * 1.36 * error_of_scale("coverage" if kind == "coverage" else "likelihood", 1e6)
    error *= 1.0 if samples == MANY else np.sqrt(10 / 7)
    assert abs(got.alpha - true) < 4 * error
    assert (0.75 if samples == MANY else 0.6) < (got.upper - got.lower) / (3.92 * error) < 1.25


def test_the_interval_covers_with_dependent_labels():
    """40 sets of 40 frames whose labels are alike; at 93 %, which so few frames give, 4 binomial sigma are 16 %."""
    rng = np.random.default_rng(3)
    covered = 0
    for key in jax.random.split(jax.random.key(2), 40):
        common = rng.normal(size=(40, 1, 1))
        data = replace(empty(40, 2), forces=jnp.asarray(np.broadcast_to(common, (40, 2, 3))))
        pred = prediction(np.zeros((40, 2, 3)), np.full((40, 2, 3), 1 / 3))
        got = recalibration_factor(key, pred, data, "forces", 0.0)
        covered += got.lower <= 3 <= got.upper
    assert covered >= 40 * 0.77


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_is_reported(kind):
    pred, data = labelled(MANY, spread=0.1)
    with pytest.warns(RuntimeWarning, match="clipped to 0: the noise alone"):
        got = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.5, kind)
    assert got.clipped
    assert got.alpha == 0
    if kind != "moments":
        far = replace(data, forces=1000 * data.forces)
        with pytest.warns(RuntimeWarning, match="clipped to 32: the best lies beyond"):
            assert recalibration_factor(jax.random.key(0), pred, far, "forces", 0.0, kind).alpha == pytest.approx(32)


def test_the_moments_of_few_draws_much_too_far_apart_are_clipped_for_another_reason():
    """Spread three times too large: α² = 1/9 < 1/(S + 1), expectation −1/5 + 6/5 · 1/9 = −0.07; without any noise."""
    pred, data = labelled(5, promised=3.0, spread=1.0)
    with pytest.warns(RuntimeWarning, match="clipped to 0: the spread over 5, .*use kind='likelihood'") as caught:
        got = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, "moments")
    assert (got.alpha, got.clipped, len(caught)) == (0.0, True, 1)
    assert "noise" not in str(caught[0].message)
    # √((ν + 3)/(2ν · 3600)) = 1.6 % of Student's t with ν = 4; 4 sigma
    likely = recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0)
    assert likely.alpha == pytest.approx(1 / 3, rel=0.063)


def test_arguments_are_checked():
    pred, data = labelled(3)
    with pytest.raises(ValueError, match="more than three effective samples"):
        recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, "moments")
    with pytest.raises(ValueError, match="kind from"):
        recalibration_factor(jax.random.key(0), pred, data, "forces", 0.0, "isotonic")
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha must be 0 or positive"):
            recalibrate_prediction(pred, wrong)
        with pytest.raises(ValueError, match="alpha must be 0 or positive"):
            recalibrate(POTENTIAL, posterior(), wrong)
    with pytest.raises(ValueError, match="at least two"):
        recalibrate(POTENTIAL, posterior()[:1], 2.0)
    with pytest.raises(FailedSamples, match=r"1 of 3 samples failed \(1\)"):
        recalibrate(POTENTIAL, replace(posterior(), status=jnp.array([0, 2, 0])), 2.0)
    with pytest.raises(ValueError, match="belong to the potential"):
        recalibrate(lennard_jones(2.0, 0.4, 5.0), posterior(), 2.0)


# Recalibrated potentials

POTENTIAL = lennard_jones(2.2, 0.4, 4.5)


def posterior(weighted=True):
    params = {"sigma": jnp.array([2.1, 2.2, 2.35]), "epsilon": jnp.array([0.4, 0.3, 0.5])}
    samples = as_samples(params, POTENTIAL.spec, noise={"forces": jnp.log(jnp.array([0.1, 0.2, 0.1]))})
    return replace(samples, log_weight=jnp.log(jnp.array([0.5, 0.3, 0.2]))) if weighted else samples


MOVED, STEP = [(0, 0), (3, 1), (6, 2)], 1e-4


@pytest.fixture(scope="module")
def frames():
    """A crystal, and the same with one coordinate of three atoms a little larger and smaller."""
    rng = np.random.default_rng(4)
    grid = 2.5 * np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)
    positions = [grid + rng.uniform(-0.1, 0.1, grid.shape)]
    for place in MOVED:
        for sign in (1, -1):
            positions.append(positions[0].copy())
            positions[-1][place] += sign * STEP
    box = np.array([[5, 0, 0], [0.6, 5.1, 0], [0, -0.4, 4.9]])
    return dataset([system(x, [14] * 8, box) for x in positions], 5.0)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.5])
def test_recalibrated_members_are_mean_plus_scaled_deviation(frames, alpha):
    samples = posterior()
    old = predict(POTENTIAL, samples, frames)
    potential, recalibrated = recalibrate(POTENTIAL, samples, alpha)
    new = predict(potential, recalibrated, frames)
    w = np.array([0.5, 0.3, 0.2])
    for name in ("energy", "forces", "stress"):
        members = np.asarray(old.members[name])
        mean = np.tensordot(w, members, 1)
        size = np.abs(members).max()
        assert size > 1e-3
        np.testing.assert_allclose(new.members[name], mean + alpha * (members - mean), atol=1e-12 * size)
        np.testing.assert_allclose(getattr(new, name), mean, atol=1e-12 * size)
        spread = getattr(old, f"{name}_uncertainty")
        np.testing.assert_allclose(getattr(new, f"{name}_uncertainty"), alpha * spread, atol=1e-12 * size)
    assert float(new.noise["forces"]) == float(old.noise["forces"])
    shortcut = recalibrate_prediction(old, alpha)
    for a, b in zip(jax.tree.leaves(shortcut), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12 * max(1.0, np.abs(b).max()))


def test_recalibrated_forces_are_minus_the_gradient_of_recalibrated_energies(frames):
    potential, recalibrated = recalibrate(POTENTIAL, posterior(), 2.5)
    members = predict(potential, recalibrated, frames).members
    energy, force = (np.asarray(members[name]) for name in ("energy", "forces"))
    expected = -(energy[:, 1::2] - energy[:, 2::2]) / (2 * STEP)
    found = np.stack([force[:, 0, atom, axis] for atom, axis in MOVED], 1)
    # central differences: h²/6 times the third derivative, some 10 to 100 eV/Å³ times the amplification
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 0.1
    assert np.ptp(found, axis=0).max() > 0.1  # the members differ


def test_recalibrated_samples_are_saved_and_rebuilt(frames, tmp_path):
    potential, recalibrated = recalibrate(POTENTIAL, posterior(), 2.5)
    save(recalibrated, tmp_path / "samples.safetensors")
    loaded = load(tmp_path / "samples.safetensors")
    again = build(loaded.spec)
    assert again.spec == potential.spec
    expected = predict(potential, recalibrated, frames)
    got = predict(again, loaded[np.array([2, 0])], frames)
    np.testing.assert_array_equal(got.members["forces"], np.asarray(expected.members["forces"])[[2, 0]])


def test_members_take_the_memory_of_the_host_once():
    _, recalibrated = recalibrate(POTENTIAL, posterior(), 2.0)
    leaves = jax.tree.leaves(recalibrated.params["potential"]["members"])
    assert [(x.shape, x.strides[0]) for x in leaves] == [((3, 3), 0), ((3, 3), 0)]
    assert recalibrated.params["potential"]["coefficient"].shape == (3, 3)
    np.testing.assert_allclose(np.sum(recalibrated.params["potential"]["coefficient"], 1), 1.0, rtol=1e-14)


@pytest.mark.slow
def test_recalibrated_samples_drive_dynamics(frames):
    """The sum of recalibrated and kinetic energy stays, for every sample on its own trajectory."""
    start = take(frames.system, 0)
    potential, recalibrated = recalibrate(POTENTIAL, posterior(), 1.5)
    fast = nve(dt=0.05, kT=0.05)
    runs = propagate(
        jax.random.key(3), potential, recalibrated, start, fast, steps=40, every=4, max_kT=5.0, progress=False
    ).frames
    kinetic = 0.5 * (masses(start)[:, None] * runs.velocity**2).sum((-1, -2))[:, 0]
    change = np.ptp(kinetic, axis=1)
    assert (change > 5e-3).all()
    # velocity Verlet errs by about (ω dt)²/8 of what is exchanged; ω dt is below 0.1 with steps of half a fs
    assert (np.ptp(kinetic + runs.energy[:, 0], axis=1) < 1e-2 * change).all()
    assert np.ptp(runs.system.position[:, 0, -1], axis=0).max() > 1e-3
