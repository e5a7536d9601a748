"""Groups, dimensions and values of the tree that ArviZ reads; ArviZ's own numbers against a model known exactly."""

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.stress import full_3x3_to_voigt_6_stress
from scipy import stats

from bayespot.errors import Status
from bayespot.records.dataset import dataset
from bayespot.records.system import system
from bayespot.tree import replace
from bayespot.uq.arviz import to_arviz
from bayespot.uq.posterior_predictive import posterior_predictive
from tests.records.test_posterior import make
from tests.uq.linear import SIGMA, predicted, problem

CHAINS, DRAWS = 3, 400
SIZES = np.array([3, 2, 3, 1])
SPECIES = [[8, 14, 8], [14, 14], [8, 8, 8], [14]]
NOISE = {"energy": 0.02, "forces": {8: 0.3, 14: 0.05}, "stress": 0.1}


def labelled():
    """Four frames of one to three atoms; the second lacks its energy, the third its forces, the last its stress."""
    rng = np.random.default_rng(0)
    systems = [system(2.0 * np.arange(3 * len(z)).reshape(-1, 3), z, 9.0 * np.eye(3)) for z in SPECIES]
    half = rng.normal(size=(4, 3, 3))
    return dataset(
        systems,
        1.0,
        energy=[1.0, None, 3.0, 4.0],
        forces=[None if m == 2 else rng.normal(size=(n, 3)) for m, n in enumerate(SIZES)],
        stress=[*(half + half.swapaxes(1, 2))[:3], None],
    )


def sampled(noise=None):
    """Samples in a shuffled order, and predictions by them that are all the same but in their energies."""
    rng = np.random.default_rng(1)
    samples = replace(make(CHAINS, DRAWS), params={"potential": {}, "noise": noise or {}})
    data = labelled()
    found = predicted(samples, np.broadcast_to(rng.normal(size=data.forces.shape), (len(samples), *data.forces.shape)))
    half = rng.normal(size=(4, 3, 3))
    stress = np.broadcast_to(half + half.swapaxes(1, 2), (len(samples), 4, 3, 3))
    energy = np.arange(len(samples))[:, None] + np.zeros(4)
    return samples, replace(found, members={**found.members, "stress": stress, "energy": energy}), data


@pytest.fixture(scope="module")
def tree():
    """Of samples that know the noise of energies and forces, not that of stresses."""
    logs = {"energy": jnp.full(CHAINS * DRAWS, np.log(0.02))}
    logs["forces"] = {str(z): jnp.full(CHAINS * DRAWS, np.log(s)) for z, s in NOISE["forces"].items()}
    samples, prediction, data = sampled(logs)
    predictive = posterior_predictive(jax.random.key(0), samples, prediction, data, {"stress": 0.1})
    return to_arviz(samples, predictive), prediction, data


def sigma(data) -> dict[str, np.ndarray]:
    by_atom = np.vectorize({0: np.nan, **NOISE["forces"]}.get)(np.asarray(data.system.species))
    return {"energy": 0.02 * SIZES, "forces": by_atom[..., None], "stress": np.full((4, 1), 0.1)}


def test_groups_dimensions_units(tree):
    tree, _, _ = tree
    labels = {"posterior_predictive", "log_likelihood", "observed_data", "constant_data"}
    assert set(tree.children) == {"posterior", "sample_stats", *labels}
    shape = {"chain": CHAINS, "draw": DRAWS, "frame": 4, "atom": 3, "component": 3, "stress_component": 6}
    assert dict(tree["posterior_predictive"].sizes) == dict(tree["log_likelihood"].sizes) == shape
    for name in ("energy", "forces", "stress"):
        dims = tree["observed_data"][name].dims
        assert tree["posterior_predictive"][name].dims == ("chain", "draw", *dims)
        assert tree["posterior"][f"predicted_{name}"].dims == ("chain", "draw", *dims)
        unit = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}[name]
        assert tree["observed_data"][name].attrs["units"] == unit
        assert tree["posterior_predictive"][name].attrs["units"] == unit
        assert tree["posterior"][f"predicted_{name}"].attrs["units"] == unit
    assert tree["observed_data"]["forces"].dims == ("frame", "atom", "component")
    assert tree["constant_data"]["species"].values.tolist() == [[8, 14, 8], [14, 14, 0], [8, 8, 8], [14, 0, 0]]
    names = {"log_noise_energy", "log_noise_forces_8", "log_noise_forces_14"}
    assert names < set(tree["posterior"].data_vars)


def test_labels_and_their_absence(tree):
    tree, _, data = tree
    found = tree["observed_data"]
    np.testing.assert_array_equal(found["energy"], [1, np.nan, 3, 4])
    np.testing.assert_allclose(found["forces"].sel(frame=0), data.forces[0])
    assert float(found["forces"].sel(frame=1, atom=1, component="z")) == pytest.approx(float(data.forces[1, 1, 2]))
    assert found["forces"].isnull().sum() == 3 * (1 + 3 + 2)  # padding of the second and last frame, and the third
    for m in range(3):
        np.testing.assert_allclose(found["stress"].sel(frame=m), full_3x3_to_voigt_6_stress(data.stress[m]))
    assert np.isnan(found["stress"].sel(frame=3)).all()
    # of frames without a label there are predictions and replicates all the same; of padding there are none
    replicated = tree["posterior_predictive"]
    assert not replicated["energy"].isnull().any()
    assert not replicated["stress"].isnull().any()
    padding = np.broadcast_to(data.system.species[..., None] == 0, data.forces.shape)
    np.testing.assert_array_equal(replicated["forces"].isnull().all(("chain", "draw")), padding)
    assert int(replicated["forces"].isnull().sum()) == CHAINS * DRAWS * padding.sum()


def test_predictions_are_at_their_place(tree):
    tree, prediction, _ = tree
    energy = tree["posterior"]["predicted_energy"]
    assert float(energy.sel(chain=1, draw=7, frame=0)) == pytest.approx(DRAWS + 7)
    shuffled, data = np.random.default_rng(0).permutation(CHAINS * DRAWS), labelled()
    samples, prediction, _ = sampled()
    mixed = samples[shuffled]
    members = {name: np.asarray(x)[shuffled] for name, x in prediction.members.items()}
    prediction = replace(prediction, members=members, chain=mixed.chain)
    again = to_arviz(mixed, posterior_predictive(jax.random.key(0), mixed, prediction, data, NOISE))
    np.testing.assert_allclose(again["posterior"]["predicted_energy"], energy)


@pytest.mark.parametrize("dof", [None, 3.0])
def test_replicates_have_the_noise_of_their_quantity_and_species(dof):
    """Kolmogorov and Smirnov's test at 1e-5 of all labels of a quantity together, 4800 draws or more."""
    samples, prediction, data = sampled()
    found = posterior_predictive(jax.random.key(1), samples, prediction, data, NOISE, dof)
    kind = stats.norm if dof is None else stats.t(dof)
    for name, scale in sigma(data).items():
        z = ((found.replicated[name] - found.predicted[name]) / scale).reshape(CHAINS * DRAWS, -1)
        z = z[:, np.isfinite(z).all(0)]
        assert stats.kstest(z.ravel(), kind.cdf).pvalue > 1e-5
        # labels of one replicate are independent; standard error of a correlation 1/√1200, 4.5 sigma
        ranks = stats.rankdata(z, axis=0)
        off = np.corrcoef(ranks.T) - np.eye(z.shape[1])
        assert np.abs(off).max() < 4.5 / 1200**0.5
        z = (found.label[name] - found.predicted[name]) / scale
        expected = kind.logpdf(z) - np.log(scale)
        np.testing.assert_allclose(found.log_likelihood[name], expected, rtol=1e-10)
        shape = found.predicted[name].shape
        np.testing.assert_array_equal(
            np.isnan(found.log_likelihood[name]), np.broadcast_to(np.isnan(found.label[name]), shape)
        )


def test_every_sample_has_its_own_noise():
    samples, prediction, data = sampled({"energy": jnp.log(jnp.arange(1, CHAINS * DRAWS + 1.0))})
    found = posterior_predictive(jax.random.key(1), samples, prediction, data, quantities=["energy"])
    z = (found.replicated["energy"] - found.predicted["energy"]) / (np.arange(1, CHAINS * DRAWS + 1)[:, None] * SIZES)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-5


def test_what_is_refused():
    samples, prediction, data = sampled()
    keys = iter(jax.random.split(jax.random.key(0), 12))

    def refused(match, samples=samples, prediction=prediction, data=data, **options):
        with pytest.raises(ValueError, match=match):
            posterior_predictive(next(keys), samples, prediction, data, **options)

    refused(r"do not carry the noise of energy.*noise=\{'energy': …\}, or leave them out with quantities")
    refused(r"no noise of forces for species \[14\]", noise={**NOISE, "forces": {8: 0.3}})
    refused(r"Only forces can have a noise by species\. Got .* for energy", noise={"energy": {8: 0.3, 14: 0.1}})
    refused("noise of energy must be a finite standard deviation", noise={"energy": -1.0}, quantities=["energy"])
    refused("Drawing labels of energy needs a positive noise", noise={"energy": 0.0}, quantities=["energy"])
    refused("dof must be positive", noise=NOISE, dof=0.0)
    refused(r"of \['energy', 'forces', 'stress'\]\. Got \['charge'\]", quantities=["charge"])
    refused("must be made with the samples. Got 1200 and 1199 of them", samples=samples[1:], noise=NOISE)
    refused("Prediction and data need the same frames", data=data[:2], noise=NOISE)
    members = {"energy": prediction.members["energy"]}
    refused(r"none of \['forces', 'stress'\]", prediction=replace(prediction, members=members), noise=NOISE)
    few = posterior_predictive(next(keys), samples, prediction, data, NOISE)
    with pytest.raises(ValueError, match=r"those of the 400 samples\. Got \[1200\]"):
        to_arviz(samples[:400], few)


def test_arviz_leaves_labels_out_as_it_should():
    """Expected log density and PIT of left-out labels, from ArviZ's importance sampling, against the exact ones.

    The posterior without label i predicts it with the mean y_i − r_i/(1 − h_i) and the variance σ²/(1 − h_i), where
    r are the residuals of the posterior mean and h the diagonal of X Σ Xᵀ / σ².
    """
    p = problem(0, 4, 500)
    tree = to_arviz(p.samples, posterior_predictive(jax.random.key(0), p.samples, p.prediction[0], p.data[0]))
    x, y = p.x[0], p.y[0]
    covariance = np.linalg.inv(x.T @ x / SIGMA**2 + np.eye(x.shape[1]))
    lever = np.einsum("ij,jk,ik->i", x, covariance, x) / SIGMA**2
    residual = y - x @ covariance @ x.T @ y / SIGMA**2
    std = SIGMA / np.sqrt(1 - lever)
    exact = stats.norm.logpdf(residual / (1 - lever), 0, std)
    found = arviz_stats.loo(tree, var_name="forces", pointwise=True)
    # 2000 independent draws; measured: 0.07 in the sum, 0.05 at most in a term
    assert float(found.elpd) == pytest.approx(exact.sum(), abs=0.3)
    np.testing.assert_allclose(found.elpd_i.values.ravel(), exact, atol=0.1)
    pit = arviz_stats.loo_pit(tree, var_names="forces")["forces"].values.ravel()
    np.testing.assert_allclose(
        pit, stats.norm.cdf(residual / (1 - lever) / std), atol=0.06
    )  # 5/(2√2000); measured 0.027


def test_arviz_summary(tree):
    tree, _, _ = tree
    table = arviz_stats.summary(tree, var_names=["predicted_energy"], kind="stats", round_to="none")
    assert len(table) == 4
    np.testing.assert_allclose(table["mean"].astype(float), (CHAINS * DRAWS - 1) / 2)


# Without labels
def test_arviz():
    samples = replace(make(3, 50), status=jnp.zeros(150, jnp.int32).at[7].set(Status.UNSTABLE))
    shuffled = samples[np.random.default_rng(0).permutation(150)]
    data = to_arviz(shuffled)
    assert set(data.children) == {"posterior", "sample_stats"}
    assert set(data["posterior"].data_vars) == {"log_noise_energy", "log_noise_forces"}
    assert dict(data["posterior"].sizes) == {"chain": 3, "draw": 50}
    assert float(data["posterior"]["log_noise_energy"].sel(chain=2, draw=4)) == 104.5
    assert float(data["sample_stats"]["lp"].sel(chain=1, draw=0)) == 500.0
    assert np.argwhere(data["sample_stats"]["diverging"].values).tolist() == [[0, 7]]
    rank = arviz_stats.rhat(data["posterior"])["log_noise_energy"]
    assert float(rank) > 2  # the chains of this made-up posterior lie apart


def test_arviz_needs_chains_of_one_length():
    with pytest.raises(ValueError, match="3 of chain 0, 2 of chain 1"):
        to_arviz(make()[:5])


def test_arviz_of_an_ensemble_without_noise():
    samples = replace(make(4, 1), params={"potential": {"a": jnp.ones((4, 2))}})
    data = to_arviz(samples)
    assert data["sample_stats"]["lp"].shape == (4, 1)
    assert not data["posterior"].data_vars
