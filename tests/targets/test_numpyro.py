"""numpyro models as targets: against force matching, a conjugate posterior and densities by formula."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy
from scipy import stats

from bayespot import units
from bayespot.inference.blackjax import nuts
from bayespot.inference.infer import infer
from bayespot.inference.priors import normal
from bayespot.inference.schedules import constant
from bayespot.inference.sgld import sgld
from bayespot.inference.target import initial
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import energy_and_forces
from bayespot.records.posterior import as_samples
from bayespot.records.system import system
from bayespot.simulation.ensemble import nve
from bayespot.simulation.simulate import propagate
from bayespot.targets.force_matching import Noise, force_matching, residuals
from bayespot.targets.numpyro import numpyro_potential, numpyro_target, site_values
from bayespot.tree import replace, take
from bayespot.uq.predict import predict
from tests.oracles.linear_model import SIGMA, WIDTH, make
from tests.targets.test_force_matching import frames

POTENTIAL = lennard_jones(2.0, 0.1, cutoff=4.0)
PRIOR = normal(2.0, skip=())
MEANS = {"energy": 0.01, "forces": 0.2}
DATA = frames([8, 12, 5, 8, 7], stress=False)
BY_HAND = force_matching(POTENTIAL, DATA, PRIOR, Noise(**MEANS))


def model(batch):
    """As a user writes it."""
    params = numpyro_potential(POTENTIAL, PRIOR)
    energy, force = jax.vmap(energy_and_forces(POTENTIAL), (None, 0, 0))(params, batch.system, batch.neighbors)
    sigma = {k: numpyro.sample(f"noise/{k}", dist.Exponential(1 / mean)) for k, mean in MEANS.items()}
    real = batch.system.species > 0
    atoms = real.sum(1)
    with numpyro.plate("frames", len(batch)):
        numpyro.sample("energy", dist.Normal(energy / atoms, sigma["energy"]), obs=batch.energy / atoms)
    numpyro.sample("forces", dist.Normal(force, sigma["forces"]).mask(real[..., None]), obs=batch.forces)


TARGET = numpyro_target(model, DATA, start={f"noise/{k}": mean for k, mean in MEANS.items()})
VALUE_AND_GRAD = jax.jit(TARGET.value_and_grad)


def evaluate(params, batch):
    return VALUE_AND_GRAD(jax.random.key(0), params, (), batch)[:2]


def elsewhere(params, by=0.1):
    return jax.tree.map(lambda x: x + by, params)


def close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_value_and_gradient_are_those_of_force_matching(key):
    start, other = jax.jit(TARGET.initial)(key), BY_HAND.initial(jax.random.clone(key))
    close(start["noise"], other["noise"], rtol=1e-14)
    assert jax.tree.structure(start) == jax.tree.structure(other)
    by_hand = jax.jit(BY_HAND.value_and_grad)
    constant = sum(np.log(mean) for mean in MEANS.values()) / len(DATA)  # of the priors of the scales
    for by in (0.1, -0.05):
        params = elsewhere(start, by)
        value, gradient = evaluate(params, DATA)
        expected, slope, *_ = by_hand(jax.random.key(0), params, (), DATA)
        np.testing.assert_allclose(value + constant, expected, rtol=1e-10)
        close(gradient, slope, rtol=1e-10)
    found = jax.jit(TARGET.metrics)(params, DATA)["log_likelihood"]
    np.testing.assert_allclose(found, jax.jit(BY_HAND.metrics)(params, DATA)["log_likelihood"], rtol=1e-10)
    assert TARGET.spec == POTENTIAL.spec


def test_minibatches_average_to_the_whole(key):
    params = elsewhere(jax.jit(TARGET.initial)(key))
    whole, parts = evaluate(params, DATA), [evaluate(params, DATA[np.array([m])]) for m in range(5)]
    close(jax.tree.map(lambda *x: np.mean(x, 0), *parts), whole, rtol=1e-10)


def test_no_cost_at_run_time(key):
    """The same program as the hand-written one, when both take errors from the same function."""
    counts = DATA.atom_counts

    def errors(batch):
        params = numpyro_potential(POTENTIAL, PRIOR)
        found = residuals(POTENTIAL, params, batch, counts, False)
        real = (batch.system.species > 0)[..., None] & batch.has_forces[:, None, None]
        for label, mask in (("energy", batch.has_energy), ("forces", real)):
            sigma = numpyro.sample(f"noise/{label}", dist.Exponential(1 / MEANS[label]))
            numpyro.sample(label, dist.Normal(0.0, sigma).mask(mask), obs=found[label])

    params = BY_HAND.initial(key)

    def operations(target):
        lowered = jax.jit(target.value_and_grad).lower(jax.random.key(0), params, (), DATA)
        return lowered.compile().cost_analysis()["flops"]

    np.testing.assert_allclose(operations(numpyro_target(errors, DATA)), operations(BY_HAND), rtol=0.03)


@pytest.mark.slow
def test_predictions_and_values_find_their_way_back(key):
    params = elsewhere(jax.jit(lambda k: initial(k, TARGET, 2))(key), np.array([0.0, 0.2]))
    samples = as_samples(params["potential"], TARGET.spec, params["noise"])
    sigma = site_values(model, samples, DATA)
    for label, mean in MEANS.items():
        np.testing.assert_allclose(sigma["noise"][label], mean * np.exp([0.0, 0.2]), rtol=1e-12)
    close(sigma["potential"], params["potential"], rtol=0)
    start = system(2.2 * np.stack(np.meshgrid(*[np.arange(2.0)] * 3), -1).reshape(-1, 3), [18] * 8)
    options = {"steps": 4, "every": 2, "progress": False}
    runs, other = (
        propagate(jax.random.key(5), POTENTIAL, s, start, nve(dt=units.fs), **options)
        for s in (samples, as_samples(params["potential"], POTENTIAL.spec))
    )
    close(runs.frames.system.position, other.frames.system.position, rtol=0)
    assert np.abs(np.diff(runs.frames.system.position[:, 0, -1], axis=0)).max() > 1e-6  # each by its own parameters
    predicted = predict(POTENTIAL, samples, DATA)
    np.testing.assert_allclose(predicted.noise["forces"], np.sqrt((sigma["noise"]["forces"] ** 2).mean()), rtol=1e-12)


# Models without a potential


LINEAR, _, MEAN, COVARIANCE = make(rows=32)


def regression(batch):
    a = numpyro.sample("a", dist.Normal(0.0, WIDTH).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(batch["x"] @ a, SIGMA), obs=batch["y"])


def test_the_gradient_is_that_of_the_conjugate_posterior():
    target, a = numpyro_target(regression, LINEAR), jnp.array([0.3, -1.0, 0.5])
    gradient = jax.jit(target.value_and_grad)(jax.random.key(0), {"a": a}, (), LINEAR)[1]["a"]
    np.testing.assert_allclose(32 * gradient, -np.linalg.solve(COVARIANCE, a - MEAN), rtol=1e-10)


@pytest.mark.parametrize("name", ["sgld", pytest.param("nuts", marks=pytest.mark.slow)])
def test_samples_have_the_moments_of_the_conjugate_posterior(name):
    # SGLD: ελ_max = 0.06, so variances 3 % too large, and 1/ελ = 67 steps in the slowest direction; 480 draws that are
    # 80 steps apart. Error of a variance 8 %, of a mean 6 % of a deviation: both may be four of them.
    target = numpyro_target(regression, LINEAR)
    step = 0.06 * 32 / np.linalg.eigvalsh(np.linalg.inv(COVARIANCE)).max()
    algorithm = sgld(target, constant(step)) if name == "sgld" else nuts(target, LINEAR, warm_up=300)
    samples = infer(
        jax.random.key(1), algorithm, initial(jax.random.key(9), target, 16), LINEAR,
        steps=2800, burn_in=400, thin=80, batch_size=None, chains_at_once=16, progress=False,
    )  # fmt: skip
    x = np.asarray(samples.params["a"])
    np.testing.assert_allclose(x.var(0), 1.03 * np.diag(COVARIANCE), rtol=0.32)
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), 0.24 * np.sqrt(np.diag(COVARIANCE)))


def test_constraints_have_their_jacobian():
    """Positive, bounded by another site, and on a simplex: densities of z by formula, from minibatches too."""

    def bounded(batch):
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        share = numpyro.sample("share", dist.Uniform(0.0, sigma))
        numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 3.0])))
        numpyro.factor("penalty", numpyro.deterministic("negative", -share) * batch.sum())
        with handlers.scale(scale=0.5):  # a scale of the user's own counts
            numpyro.sample("y", dist.Normal(share, sigma), obs=batch)

    data = jnp.array([0.3, -1.0, 2.0, 0.7])
    target = numpyro_target(bounded, data, start={"sigma": 1.3, "share": 0.4})
    start = jax.jit(target.initial)(jax.random.key(0))
    np.testing.assert_allclose(start["sigma"], np.log(1.3), rtol=1e-12)
    np.testing.assert_allclose(start["share"], np.log(0.4 / 0.9), rtol=1e-12)
    value = jax.jit(target.value_and_grad)
    for batch in (data, data[:3]):
        p = {"sigma": jnp.asarray(0.4), "share": jnp.asarray(-0.3), "p": jnp.asarray([0.2])}
        sigma, u = np.exp(0.4), 1 / (1 + np.exp(0.3))
        share, q = sigma * u, 1 / (1 + np.exp(-0.2))  # of two, the simplex is a logistic function
        likelihood = 0.5 * stats.norm(share, sigma).logpdf(batch).sum() - share * float(batch.sum())
        prior = stats.halfnorm(scale=2.0).logpdf(sigma) + 0.4
        prior += -np.log(sigma) + np.log(sigma * u * (1 - u))
        prior += stats.beta(2.0, 3.0).logpdf(q) + np.log(q * (1 - q))
        found = value(jax.random.key(0), p, (), batch)[0]
        np.testing.assert_allclose(found, likelihood / len(batch) + prior / 4, rtol=1e-12)
    samples = replace(as_samples({"any": jnp.zeros(2)}, {}), params=jax.tree.map(lambda x: jnp.stack([x, x]), p))
    back = site_values(bounded, samples, data)
    np.testing.assert_allclose(back["share"], [share, share], rtol=1e-12)
    np.testing.assert_allclose(back["p"][0], [q, 1 - q], rtol=1e-12)


@pytest.mark.slow
def test_value_and_gradient_are_those_of_numpyro_itself(key):
    """Its ``potential_energy`` of all data, for sites of many shapes and supports, in plates, and partly masked."""

    def many(batch):
        numpyro.sample("vector", dist.Normal().expand([2, 3]).to_event(1))
        with numpyro.plate("species", 4):
            scale = numpyro.sample("scale", dist.Gamma(2.0, 3.0))
        shift = numpyro.sample("shift", dist.Uniform(-1.0, 2.0))
        numpyro.sample("correlation", dist.LKJCholesky(3, 2.0))
        numpyro.sample("truncated", dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=shift + 1.5))
        with numpyro.plate("frames", len(batch["y"])), handlers.mask(mask=batch["y"] > 0):
            numpyro.sample("y", dist.StudentT(4.0, shift + batch["x"][:, 0], scale[1]), obs=batch["y"])

    target = numpyro_target(many, LINEAR)
    params = elsewhere(jax.jit(target.initial)(key))
    found = jax.jit(target.value_and_grad)(jax.random.key(1), params, (), LINEAR)[:2]
    expected = jax.jit(jax.value_and_grad(lambda p: -potential_energy(many, (LINEAR,), {}, p) / 32))(params)
    close(found, expected, rtol=1e-9)


def test_the_prior_of_the_weights_may_have_parameters(key):
    def hierarchical(batch):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro_potential(POTENTIAL, normal(scale, skip=()))
        numpyro.factor("likelihood", 0.0 * batch.energy)

    params = {"scale": jnp.asarray(0.3), "potential": POTENTIAL.init(key)}
    value = jax.jit(numpyro_target(hierarchical, DATA).value_and_grad)(jax.random.key(0), params, (), DATA)[0]
    scale = np.exp(0.3)
    weights = sum(stats.norm(0, scale).logpdf(float(x)) for x in params["potential"].values())
    np.testing.assert_allclose(5 * value, stats.halfnorm().logpdf(scale) + 0.3 + weights, rtol=1e-12)


# What it refuses


def subsampled(batch):
    with numpyro.plate("rows", 32, subsample_size=len(batch["y"])):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal()), 1.0), obs=batch["y"])


def discrete(batch):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(k, 1.0), obs=batch["y"])


def local(batch):
    with numpyro.plate("rows", len(batch["y"])):
        numpyro.sample("y", dist.Normal(numpyro.sample("each", dist.Normal()), 1.0), obs=batch["y"])


def scaled(batch):
    a = numpyro.sample("a", dist.Normal())
    with handlers.scale(scale=32 / len(batch["y"])):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=batch["y"])


def unsampled(batch):
    numpyro.sample("y", dist.Normal(numpyro.param("a", 0.0), 1.0), obs=batch["y"])


def improper(batch):
    numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))


def fixed_plate(batch):
    with numpyro.plate("rows", 2):  # of the data, whatever the minibatch
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal()), 1.0), obs=batch["y"])


def outer_product(batch):
    a = numpyro.sample("a", dist.Normal())
    numpyro.sample("y", dist.Normal(a * batch["x"][:, 0], 1.0), obs=batch["y"][:, None])


def scaled_by_jax(batch):
    a = numpyro.sample("a", dist.Normal())
    with handlers.scale(scale=jnp.asarray(32.0) / len(batch["y"])):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=batch["y"])


def scanned(batch):
    scan(lambda carry, _: (carry, numpyro.sample("a", dist.Normal())), 0.0, None, length=3)


def in_scope(batch):
    with handlers.scope(prefix="inner"):
        numpyro_potential(POTENTIAL, PRIOR)


def in_plate(batch):
    with numpyro.plate("rows", len(batch["y"])):
        numpyro_potential(POTENTIAL, PRIOR)


def positive(batch):
    numpyro.sample("noise/forces", dist.HalfNormal(1.0))


def unknown_noise(batch):
    numpyro.sample("noise/energy/8", dist.HalfNormal(1.0))


def shifted_noise(batch):
    numpyro.sample("noise/forces", dist.Uniform(0.0, 1.0))


def two_levels(batch):
    numpyro.sample("a", dist.Normal()), numpyro.sample("a/b", dist.Normal())


@pytest.mark.parametrize(
    ("refused", "start", "message"),
    [
        (subsampled, {}, "plate rows, which takes 2 of 32.*without subsample_size"),
        (discrete, {}, "must be continuous. Got k, which is discrete"),
        (local, {}, "Got each, which are not"),
        (scaled, {}, "Got y, which are not. Leave out handlers.scale"),
        (unsampled, {}, "need a prior. Got param a"),
        (improper, {}, 'improper site a.*Give start={"a": …}'),
        (shifted_noise, {}, "one positive number, sampled as its logarithm. Got noise/forces"),
        (unknown_noise, {}, "Got noise/energy/8"),
        (two_levels, {}, "Got a and a/b"),
        (fixed_plate, {}, "a plate of frames needs the size of the batch"),
        (outer_product, {}, "same number of terms for every frame. Got more than that for y"),
        (scaled_by_jax, {}, "Got y, which are not. Leave out handlers.scale"),
        (scanned, {}, "must not lie within a scan. Got a"),
        (in_scope, {}, "Got inner/potential, within a plate, mask or scope"),
        (in_plate, {}, "Got potential, within a plate"),
        (positive, {"noise/forces": -3.0}, "σ rather than log σ. Got -3.0 for noise/forces"),
        (regression, {"b": 1.0}, r"latent sites of the model, a. Got \['b'\]"),
    ],
)
def test_models_that_are_no_target_are_refused(refused, start, message):
    for data in (LINEAR, take(LINEAR, slice(0, 2))):  # as few frames as hide what needs several sizes of them
        with pytest.raises((ValueError, TypeError), match=message):
            numpyro_target(refused, data, start=start)


def test_samples_of_another_model_are_refused():
    samples = as_samples({"sigma": jnp.ones(2)}, {}, {"forces": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"Got \['noise', 'potential'\], without a"):
        site_values(regression, samples, LINEAR)


def test_an_improper_site_may_start_from_a_value():
    start = numpyro_target(improper, LINEAR, start={"a": 0.7}).initial(jax.random.key(0))
    assert float(start["a"]) == 0.7


def test_other_data_are_refused():
    other = replace(DATA, cutoff=3.0)
    with pytest.raises(ValueError, match="cutoff"):
        TARGET.check(other)
    with pytest.raises(ValueError, match="cutoff"):
        numpyro_target(model, other)
    TARGET.check(take(DATA, np.array([0])))
