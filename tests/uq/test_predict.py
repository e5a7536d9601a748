"""Posterior predictive moments, errors and calibration, with a potential that is linear in its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.errors import FailedSamples
from bayespot.potentials.potential import Potential
from bayespot.records.dataset import dataset
from bayespot.records.neighbors import displacements
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.system import system
from bayespot.tree import replace
from bayespot.uq.calibration import calibration_table, coverage, z_scores
from bayespot.uq.predict import error_table, predict, prediction_errors
from bayespot.uq.variance import chain_spread
from tests.uq.held_out import empty, prediction

CUTOFF = 3.0


def linear() -> Potential:
    """E = Σ_i [a + b Σ_j (r_c² − r_ij²)²/2]: energies, forces and stresses are linear in a and b."""

    def atom_energies(params, sys, neighbors):
        vectors, mask = displacements(sys, neighbors)
        squared = (vectors**2).sum(-1)
        pair = jnp.where(mask & (squared < CUTOFF**2), (CUTOFF**2 - jnp.where(mask, squared, 0.0)) ** 2, 0.0)
        return jnp.where(sys.species > 0, params["a"] + 0.5 * params["b"] * pair.sum(-1), 0.0)

    return Potential(
        lambda key: {"a": jnp.zeros(()), "b": jnp.zeros(())}, atom_energies, CUTOFF, (), {"name": "linear"}
    )


def posterior(a, b, noise=None, log_weight=None) -> PosteriorSamples:
    s = len(a)
    params = {"potential": {"a": jnp.asarray(a), "b": jnp.asarray(b)}, "noise": noise or {}}
    weight = jnp.zeros(s) if log_weight is None else jnp.asarray(log_weight)
    zero = jnp.zeros(s, int)
    return PosteriorSamples(params, weight, jnp.arange(s), zero, jnp.zeros(s), zero, {}, "{}")


def frames(number=6, seed=0, group=None, sizes=(4, 6)):
    """Random structures of two sizes labelled by a = 1, b = 0.02; one open box, one frame without energy."""
    rng = np.random.default_rng(seed)
    systems = [
        system(rng.uniform(0, 5, (sizes[m % 2], 3)), [14] * sizes[m % 2], None if m == 1 else 5.0 * np.eye(3))
        for m in range(number)
    ]
    data = dataset(systems, CUTOFF, group=group)
    truth = predict(linear(), posterior([1.0, 1.0], [0.02, 0.02]), data)
    return replace(
        data,
        energy=jnp.where(jnp.arange(number) == 2, 0.0, truth.energy),
        forces=truth.forces,
        stress=jnp.nan_to_num(truth.stress),
        has_energy=jnp.arange(number) != 2,
        has_forces=jnp.ones(number, bool),
        has_stress=jnp.arange(number) != 1,
    )


@pytest.fixture(scope="module")
def data():
    return frames(group=["bulk", "melt", "bulk", "melt", "bulk", "bulk"])


def test_mean_and_uncertainty_are_those_of_the_linear_model(data):
    rng = np.random.default_rng(1)
    a, b, log_weight = rng.normal(size=5), rng.normal(size=5), rng.normal(size=5)
    got = predict(linear(), posterior(a, b, log_weight=log_weight), data, batch_size=2)
    unit = predict(linear(), posterior([0.0, 0.0], [1.0, 1.0]), data)
    w = np.exp(log_weight) / np.exp(log_weight).sum()
    bar = w @ b
    spread = np.sqrt(w @ (b - bar) ** 2 / (1 - w @ w))
    np.testing.assert_allclose(got.forces, bar * unit.forces, atol=1e-10)
    np.testing.assert_allclose(got.forces_uncertainty, spread * np.abs(unit.forces), atol=1e-10)
    np.testing.assert_allclose(got.stress, bar * unit.stress, atol=1e-10)
    np.testing.assert_allclose(got.stress_uncertainty, spread * np.abs(unit.stress), atol=1e-10)
    energies = a[:, None] * data.atom_counts + b[:, None] * np.asarray(unit.energy)
    np.testing.assert_allclose(got.members["energy"], energies, rtol=1e-12)
    mean = w @ energies
    np.testing.assert_allclose(got.energy, mean, rtol=1e-11)
    np.testing.assert_allclose(got.energy_uncertainty, np.sqrt(w @ (energies - mean) ** 2 / (1 - w @ w)), rtol=1e-10)
    assert got.members["forces"].shape == (5, *data.forces.shape)
    equal = predict(linear(), posterior(a, b), data)
    np.testing.assert_allclose(equal.energy_uncertainty, energies.std(0, ddof=1), rtol=1e-10)


def test_noise_is_the_root_mean_square_over_the_samples(data):
    noise = {"energy": jnp.log(jnp.array([0.01, 0.03])), "forces": jnp.log(jnp.array([0.1, 0.1]))}
    got = predict(linear(), posterior([1.0, 1.1], [0.1, 0.2], noise), data)
    np.testing.assert_allclose(got.noise["energy"], np.sqrt((0.01**2 + 0.03**2) / 2), rtol=1e-12)
    np.testing.assert_allclose(got.noise["forces"], 0.1, rtol=1e-12)
    assert set(got.noise) == {"energy", "forces"}


def test_errors_are_masked_and_grouped(data):
    got = predict(linear(), posterior([0.9, 1.3], [0.02, 0.02]), data)  # energies wrong by 0.1 eV/atom, forces exact
    rows = {(r.group, r.quantity): r for r in prediction_errors(got, data)}
    assert set(rows) == {(g, q) for g in ("all", "bulk", "melt") for q in ("energy", "forces", "stress")}
    counts = [data.atom_counts[m] for m in range(6)]
    assert rows["all", "energy"].count == 5
    assert rows["bulk", "energy"].count == 3  # frame 2 has no energy
    assert rows["all", "forces"].count == 3 * sum(counts)
    assert rows["melt", "stress"].count == 6  # frame 1 is open; six independent components
    for group in ("all", "bulk", "melt"):
        assert rows[group, "energy"].rmse == pytest.approx(0.1, rel=1e-9)
        assert rows[group, "forces"].mae == pytest.approx(0.0, abs=1e-12)
    text = error_table(list(rows.values()))
    assert "eV/atom" in text
    assert "melt" in text


def test_wrong_input_is_refused(data):
    good = posterior([1.0, 2.0], [0.1, 0.2])
    with pytest.raises(FailedSamples, match=r"1 of 2 samples failed \(1\)"):
        predict(linear(), replace(good, status=jnp.array([0, 2])), data)
    with pytest.raises(ValueError, match="at least two"):
        predict(linear(), good[:1], data)
    with pytest.raises(ValueError, match="cutoff"):
        predict(linear()._replace(cutoff=9.0), good, data)
    with pytest.raises(ValueError, match="same frames"):
        prediction_errors(predict(linear(), good, data), data[:2])


def labelled(key_seed, sigma_model, sigma_noise, samples, promised=1.0):
    """Frames whose energies are drawn from the predictive distribution; the claim is ``promised`` × the noise."""
    rng = np.random.default_rng(key_seed)
    data = frames(400, seed=3, sizes=(1, 2))
    n = data.atom_counts
    shape = np.asarray(data.energy) / n
    members = shape + sigma_model * rng.normal(size=(samples, 400))
    truth = shape + sigma_model * rng.normal(size=400) + sigma_noise * rng.normal(size=400)
    base = predict(linear(), posterior([1.0, 1.1], [0.1, 0.2]), data)
    prediction = replace(
        base,
        energy=jnp.asarray(members.mean(0) * n),
        energy_uncertainty=jnp.asarray(members.std(0, ddof=1) * n),
        noise={"energy": jnp.asarray(promised * sigma_noise)},
        members={},
        log_weight=jnp.zeros(samples),
        chain=jnp.arange(samples),
    )
    return prediction, replace(data, energy=jnp.asarray(truth * n), has_energy=jnp.ones(400, bool))


@pytest.mark.parametrize(
    ("model", "noise"),
    [(0.02, 0.02), *(pytest.param(*x, marks=pytest.mark.slow) for x in ((0.02, 0.001), (0.001, 0.02)))],
)
def test_honest_uncertainties_are_found_honest(model, noise):
    prediction, data = labelled(5, model, noise, 8)
    got = coverage(prediction, data, "energy", [0.5, 0.8, 0.95])
    p = np.array([0.5, 0.8, 0.95])
    # 400 independent labels: 4 binomial sigma.
    assert (np.abs(np.asarray(got.observed) - p) < 4 * np.sqrt(p * (1 - p) / 400)).all()
    # one label per frame: the error between frames is the binomial one
    share = np.asarray(got.observed)
    np.testing.assert_allclose(got.error, np.sqrt(share * (1 - share) / 399), rtol=1e-9)


def test_mean_squared_z_scores():
    prediction, data = labelled(6, 1e-6, 0.02, 8)
    z, freedom, frame = z_scores(prediction, data, "energy")
    # mean of 400 squared normals: 1 ± sqrt(2/400) = 0.07; 4 sigma
    assert np.mean(z**2) == pytest.approx(1.0, abs=0.28)
    assert freedom.min() > 1e6
    np.testing.assert_array_equal(frame, np.arange(400))
    only_model, labels = labelled(6, 0.02, 1e-9, 8)
    np.testing.assert_allclose(z_scores(only_model, labels, "energy")[1], 7.0, rtol=1e-6)


def test_over_confidence_is_found():
    prediction, data = labelled(5, 1e-4, 0.02, 8, promised=0.25)
    got = coverage(prediction, data, "energy", [0.95])
    assert float(got.observed[0]) < 0.6
    assert float(got.zms) > 8
    assert "energy" in calibration_table([got], levels=(0.95,))


def chained(scatter, chains=4, draws=50):
    """Forces in 300 frames by chains that stay each in its own mode, about which draws ``scatter``; and the labels."""
    rng, shape = np.random.default_rng(8), (300, 4, 3)
    members = rng.normal(size=(chains, 1, *shape)) + scatter * rng.normal(size=(chains, draws, *shape))
    members = members.reshape(-1, *shape)
    every = prediction(members.mean(0), members.std(0, ddof=1), chains * draws)
    every = replace(every, members={"forces": members}, chain=np.repeat(np.arange(chains), draws))
    return every, replace(empty(300, 4), forces=jnp.asarray(rng.normal(size=shape)))


def test_draws_of_one_chain_are_not_independent():
    """Four modes tell as much as four members: with their spread and Student's t of 3 degrees of freedom."""
    levels = np.array([0.5, 0.8, 0.95])
    stuck, labels = chained(0.1)
    got = coverage(stuck, labels, "forces", levels, noise=0.0)
    # 3600 independent labels: 4 binomial sigma. As 200 independent draws these would cover 38, 63 and 79 %.
    assert (np.abs(np.asarray(got.observed) - levels) < 4 * np.sqrt(levels * (1 - levels) / 3600)).all()
    alone, _ = chained(0.0, draws=1)
    one, other = (z_scores(p, labels, "forces", 0.0) for p in (chained(0.0)[0], alone))
    np.testing.assert_allclose(one[1], 3.0, rtol=1e-9)
    # the same four modes: pairs of different chains are all that counts, however often each was drawn
    np.testing.assert_allclose(one[0], other[0], rtol=1e-9)
    narrow = replace(stuck, forces_uncertainty=stuck.forces_uncertainty / 4)  # a claim made by hand is judged as such
    np.testing.assert_allclose(*(z_scores(p, labels, "forces", 0.0)[0] * f for p, f in ((narrow, 1), (stuck, 4))))
    with pytest.raises(ValueError, match="4 chains of 200 draws need the members"):
        z_scores(replace(stuck, members={}), labels, "forces", 0.0)


def test_one_draw_per_chain_and_one_chain_count_as_independent():
    ensemble, labels = chained(0.0, chains=6, draws=1)
    error, spread = np.asarray(labels.forces - ensemble.forces), np.asarray(ensemble.forces_uncertainty)
    expected = (error / (spread * np.sqrt(7 / 6))).ravel()
    single = replace(ensemble, chain=np.zeros(6, int))
    for p in (ensemble, replace(ensemble, members={}), single):
        z, freedom, _ = z_scores(p, labels, "forces", 0.0)
        np.testing.assert_allclose(z, expected, rtol=1e-12)
        np.testing.assert_allclose(freedom, 5.0, rtol=1e-12)
    # weights make no difference between the two ways to the same numbers
    weighted = np.array([0.0, 0.4, -1.0, 0.3, 0.0, 0.9])
    found = chain_spread(ensemble.members["forces"], weighted, np.arange(6))
    w = np.exp(weighted) / np.exp(weighted).sum()
    assert found.number == pytest.approx(1 / (w @ w), rel=1e-12)
    centred = ensemble.members["forces"] - np.tensordot(w, ensemble.members["forces"], 1)
    np.testing.assert_allclose(found.variance, np.tensordot(w, centred**2, 1) / (1 - w @ w), rtol=1e-12)


def test_calibration_refuses_what_it_cannot_answer(data):
    prediction = predict(linear(), posterior([1.0, 1.0], [0.1, 0.1]), data)
    with pytest.raises(ValueError, match="must be positive"):
        z_scores(prediction, data, "energy", noise=0.0)
    with pytest.raises(ValueError, match=r"Pass its standard deviation as noise="):
        z_scores(prediction, data, "energy")
    with pytest.raises(ValueError, match="with labels"):
        z_scores(prediction, data, "dipole")
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage(prediction, data, "forces", [0.0])


def test_label_prediction_sign_and_tree_form(data):
    prediction = predict(linear(), posterior([0.5, 0.7], [0.02, 0.02]), data)
    z, _, frame = z_scores(prediction, data, "energy", noise=0.0)
    assert (z > 0).all()  # the labels lie above the prediction
    assert 2 not in frame
    assert len(jax.tree.leaves(prediction)) == 11
