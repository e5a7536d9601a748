"""A noise scale of the forces for every species: density, learned values, and all that reads them afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.inference.priors import flat
from bayespot.io import load, save
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import energy_and_forces
from bayespot.records.dataset import Dataset, dataset, single
from bayespot.records.posterior import as_samples
from bayespot.records.system import system
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.tree import replace, stack
from bayespot.uq.arviz import to_arviz
from bayespot.uq.calibration import z_scores
from bayespot.uq.conformal import Conformal, conformal_interval
from bayespot.uq.predict import predict
from bayespot.uq.recalibration import recalibration_factor
from bayespot.uq.scores import calibration
from tests.uq.held_out import empty, prediction

POTENTIAL = lennard_jones(2.0, 0.1, cutoff=4.0)
EVALUATE = jax.jit(energy_and_forces(POTENTIAL))
LEVELS = {8: 0.3, 14: 0.05}  # eV/Å, oxygen noisier than silicon; as text "14" comes before "8"


def frames(sizes, seed=0) -> Dataset:
    """Structures of both elements, whose forces are those of the potential and noise of the level of each element."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.2
    kinds = np.array([8, 14, 8, 8, 14, 8, 14, 8])
    systems = [system(grid[:n] + 0.1 * rng.normal(size=(n, 3)), kinds[:n]) for n in sizes]
    data = dataset(systems, 4.0, forces=[np.zeros((n, 3)) for n in sizes])
    force = exact(data)
    level = np.vectorize({0: 0.0, **LEVELS}.get)(data.system.species)[..., None]
    return replace(data, forces=np.asarray(force) + level * rng.normal(size=force.shape))


def exact(data: Dataset) -> np.ndarray:
    return np.stack([EVALUATE(truth(), *single(data, m))[1] for m in range(len(data))])


def truth():
    return POTENTIAL.init(jax.random.key(0))


@pytest.fixture(scope="module")
def data():
    return frames([8, 5, 8, 3] * 8)


def density(data, sigma: dict[int, float], dof: float | None) -> float:
    """Log likelihood of all labels, atom by atom, with scipy's densities."""
    error = exact(data) - np.asarray(data.forces)
    kind = stats.norm if dof is None else stats.t(dof)
    return sum(
        kind.logpdf(error[m, i] / sigma[int(z)]).sum() - 3 * np.log(sigma[int(z)])
        for m, species in enumerate(np.asarray(data.system.species))
        for i, z in enumerate(species)
        if z
    )


@pytest.mark.parametrize("dof", [4.0, pytest.param(None, marks=pytest.mark.slow)])
def test_log_posterior_is_the_sum_by_hand(data, dof):
    few, means, sigma = data[:5], {8: 0.2, 14: 0.1}, {8: 0.25, 14: 0.07}
    target = force_matching(POTENTIAL, few, flat(), Noise(None, means, dof=dof))
    start = target.initial(jax.random.key(0))
    for z, mean in means.items():
        np.testing.assert_allclose(start["noise"]["forces"][str(z)], np.log(mean))
    params = {**start, "noise": {"forces": {str(z): jnp.log(s) for z, s in sigma.items()}}}
    expected = density(few, sigma, dof)
    value, gradient, *_ = jax.jit(target.value_and_grad)(jax.random.key(0), params, (), few)
    prior = sum(stats.expon(scale=means[z]).logpdf(sigma[z]) + np.log(sigma[z]) + np.log(means[z]) for z in sigma)
    np.testing.assert_allclose(5 * value, expected + prior, rtol=1e-11)
    np.testing.assert_allclose(5 * jax.jit(target.metrics)(params, few)["log_likelihood"], expected, rtol=1e-11)
    for z in sigma:  # d/dz of the Jacobian's, the prior's and the likelihood's part
        up, down = ({**sigma, z: sigma[z] * np.exp(h)} for h in (1e-5, -1e-5))
        slope = (density(few, up, dof) - density(few, down, dof)) / 2e-5 + 1 - sigma[z] / means[z]
        np.testing.assert_allclose(5 * gradient["noise"]["forces"][str(z)], slope, rtol=1e-6)
    held = force_matching(POTENTIAL, few, flat(), Noise(None, sigma, dof=dof, learn="fixed"))
    fixed = {"potential": truth(), "noise": {}}
    np.testing.assert_allclose(jax.jit(held.metrics)(fixed, few)["log_likelihood"] * 5, expected, rtol=1e-11)


def test_standardised_errors_are_those_of_the_species(data):
    few = data[:3]
    target = force_matching(POTENTIAL, few, flat(), Noise(None, LEVELS))
    params = target.initial(jax.random.key(0))
    found = jax.jit(target.least_squares.residuals)(params, few)["forces"]
    likelihood = density(few, LEVELS, None)
    species = np.asarray(few.system.species)
    constant = sum(3 * (species == z).sum() * (np.log(s) + 0.5 * np.log(2 * np.pi)) for z, s in LEVELS.items())
    np.testing.assert_allclose(-0.5 * (np.asarray(found) ** 2).sum() - constant, likelihood, rtol=1e-11)


def test_both_levels_are_recovered(data):
    target = force_matching(POTENTIAL, data, flat(), Noise(None, dict.fromkeys(data.species, 0.1)))
    params = {**target.initial(jax.random.key(0)), "potential": truth()}
    gradient = jax.jit(lambda z: target.value_and_grad(jax.random.key(0), {**params, "noise": z}, (), data)[1]["noise"])
    species = np.asarray(data.system.species)
    labels = {str(z): 3 * (species == z).sum() for z in LEVELS}
    z = params["noise"]
    for _ in range(40):  # a Newton step with the curvature 2n, held to a step of 1/2
        slope = gradient(z)["forces"]
        step = {k: np.clip(len(data) * slope[k] / (2 * labels[k]), -0.5, 0.5) for k in labels}
        z = {"forces": {k: z["forces"][k] + step[k] for k in labels}}
    for atomic_number, level in LEVELS.items():
        k = str(atomic_number)
        assert abs(float(slope[k])) < 1e-9
        # standard deviation of the logarithm: 1/√(2n)
        assert abs(float(z["forces"][k]) - np.log(level)) < 4 / (2 * labels[k]) ** 0.5


# What reads the scales


def samples(sigmas=(LEVELS, LEVELS)):
    noise = {"forces": {str(z): jnp.log(jnp.asarray([s[z] for s in sigmas])) for z in sigmas[0]}}
    return as_samples(stack([truth()] * len(sigmas)), POTENTIAL.spec, noise)


def test_predicted_noise_is_that_of_every_atom(data):
    found = predict(POTENTIAL, samples(({8: 0.3, 14: 0.05}, {8: 0.1, 14: 0.07})), data[:3]).noise["forces"]
    mean = {0: 0.0, 8: np.sqrt((0.3**2 + 0.1**2) / 2), 14: np.sqrt((0.05**2 + 0.07**2) / 2)}
    np.testing.assert_allclose(found[..., 0], np.vectorize(mean.get)(data[:3].system.species), rtol=1e-12)


def test_errors_are_compared_with_the_noise_of_their_species(data):
    predicted = predict(POTENTIAL, samples(), data)  # samples that agree: all of the error is noise
    z, _, frame = z_scores(predicted, data, "forces")
    real = np.broadcast_to(np.asarray(data.system.species)[..., None] > 0, data.forces.shape)
    sigma = np.vectorize({0: 1.0, **LEVELS}.get)(data.system.species)[..., None]
    expected = ((np.asarray(data.forces) - np.asarray(predicted.forces)) / sigma)[real]
    np.testing.assert_allclose(z, expected, atol=1e-9)
    np.testing.assert_array_equal(frame, np.nonzero(real)[0])
    rows = calibration(jax.random.key(0), predicted, data, resamples=20)
    for row in rows:
        if row.species:
            np.testing.assert_allclose(row.sharpness.value, LEVELS[row.species], rtol=1e-10)
    assert {row.species for row in rows} == {0, 8, 14}
    lower, upper = conformal_interval(predicted, data, Conformal(2.0, 0.9, "label", "forces", None, 20))
    np.testing.assert_allclose(((upper - lower) / 4)[real], np.broadcast_to(sigma, real.shape)[real], rtol=1e-9)


def test_recalibration_leaves_the_noise_of_either_species_out():
    # spreads twice too small, beside noise that is next to nothing for one element and large for the other: the labels
    # of the first, 1800, tell the factor to 2 %; with the noise of all in common it would come out below 1
    rng, noise = np.random.default_rng(0), {8: 0.1, 14: 2.0}
    data = empty(200, 6, species=(8, 14))
    shape = data.forces.shape
    sigma = np.vectorize(noise.get)(data.system.species)[..., None]
    labels = np.sqrt((2 * 0.5) ** 2 + sigma**2) * rng.normal(size=shape)
    predicted = replace(prediction(np.zeros(shape), np.full(shape, 0.5)), noise={"forces": sigma})
    data = replace(data, forces=labels)
    for kind in ("likelihood", "coverage"):
        found = recalibration_factor(jax.random.key(0), predicted, data, "forces", kind=kind)
        np.testing.assert_allclose(found.alpha, 2.0, rtol=0.1)


def test_names_survive_files_and_arviz(data, tmp_path):
    save(samples(), tmp_path / "samples.safetensors")
    back = load(tmp_path / "samples.safetensors").params["noise"]["forces"]
    assert {k: v.tolist() for k, v in back.items()} == {str(z): [np.log(s)] * 2 for z, s in LEVELS.items()}
    assert set(to_arviz(samples()).posterior.data_vars) == {"log_noise_forces_8", "log_noise_forces_14"}


def test_other_species_are_refused(data):
    with pytest.raises(ValueError, match=r"species \(8, 14\)\. Got scales for \(8\)\. Add 14: …"):
        force_matching(POTENTIAL, data, flat(), Noise(None, {8: 0.1}))
    target = force_matching(POTENTIAL, data, flat(), Noise(None, LEVELS))
    other = replace(data, system=replace(data.system, species=np.where(data.system.species == 14, 32, 8)))
    with pytest.raises(ValueError, match="Add 32"):
        target.check(other)
    predicted = predict(POTENTIAL, samples(), other)
    assert "forces" not in predicted.noise  # rather than the noise of another element
    with pytest.raises(ValueError, match="the noise of other species was learned"):
        z_scores(predicted, other, "forces")


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Noise(None, {8: 0.1, 14: 0.0}), "must be positive"),
        (Noise({8: 0.1, 14: 0.1}, 0.1), r"Only forces .* Got one for \['energy'\]"),
    ],
)
def test_bad_scales_are_refused(data, noise, message):
    with pytest.raises(ValueError, match=message):
        force_matching(POTENTIAL, data, flat(), noise)
