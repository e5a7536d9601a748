"""The force-matching posterior against sums written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayespot.inference.priors import flat, normal, prior, scaled_normal, scaled_student_t
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import energy_forces_stress
from bayespot.records.dataset import dataset
from bayespot.records.system import system
from bayespot.targets.force_matching import Noise, _capacity, force_matching, residuals

POTENTIAL = lennard_jones(2.0, 0.1, cutoff=4.0)
EVALUATE = jax.jit(energy_forces_stress(POTENTIAL))


def frames(sizes, seed=0, stress=True):
    rng = np.random.default_rng(seed)
    systems, energy, forces, stresses = [], [], [], []
    for n in sizes:
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n] * 2.2
        systems.append(system(grid + 0.1 * rng.normal(size=(n, 3)), np.full(n, 18), np.diag([6.6, 6.8, 7.0])))
        energy.append(rng.normal())
        forces.append(rng.normal(size=(n, 3)))
        s = rng.normal(size=(3, 3))
        stresses.append((s + s.T) * 0.01 if stress else None)
    return dataset(systems, 4.0, energy, forces, stresses)


def by_hand(params, data, noise, weight):
    """Log posterior of all data, frame by frame, with scipy's densities."""
    total = 0.0
    sigma = {k: float(np.exp(v)) for k, v in params["noise"].items()}
    density = stats.norm if noise.dof is None else stats.t(noise.dof)
    for m in range(len(data)):
        n = data.atom_counts[m]
        e, f, s = EVALUATE(params["potential"], *jax.tree.map(lambda x, m=m: x[m], (data.system, data.neighbors)))

        def score(error, scale):
            return np.sum(density.logpdf(np.asarray(error) / scale) - np.log(scale))

        if data.has_energy[m]:
            total += score((e - data.energy[m]) / n, sigma["energy"])
        if data.has_forces[m]:
            total += score((f - data.forces[m])[:n], sigma["forces"])
        if "stress" in sigma and data.has_stress[m]:
            total += score((s - data.stress[m])[np.triu_indices(3)], sigma["stress"])
    for label, value in sigma.items():  # exponential prior of the scale, times the Jacobian of its logarithm
        total += stats.expon(scale=noise.scales[label]).logpdf(value) + np.log(value) + np.log(noise.scales[label])
    return total + weight * sum(stats.norm(0, 2.0).logpdf(float(x)) for x in params["potential"].values())


@pytest.mark.parametrize("dof", [None, 4.0])
def test_log_posterior_is_the_sum_by_hand(key, dof):
    data = frames([8, 27, 12])
    data = type(data)(
        **{**vars(data), "has_energy": jnp.array([True, False, True]), "has_forces": jnp.array([True, True, False])}
    )
    noise = Noise(0.01, 0.2, 0.05, dof=dof)
    target = force_matching(POTENTIAL, data, normal(2.0, skip=()), noise)
    params = target.initial(key)
    params["noise"] = {k: v + 0.3 for k, v in params["noise"].items()}
    value, gradient, _, _ = jax.jit(target.value_and_grad)(key, params, (), data)
    np.testing.assert_allclose(3 * value, by_hand(params, data, noise, 1.0), rtol=1e-10)
    for label in params["noise"]:
        up, down = ({**params, "noise": {**params["noise"], label: params["noise"][label] + h}} for h in (1e-5, -1e-5))
        slope = (by_hand(up, data, noise, 1.0) - by_hand(down, data, noise, 1.0)) / 2e-5
        np.testing.assert_allclose(3 * gradient["noise"][label], slope, rtol=1e-5)


def test_minibatches_average_to_the_whole(key):
    data = frames([8, 27, 12, 20, 9, 26])
    target = force_matching(POTENTIAL, data, normal(1.0, skip=()), Noise())
    params = target.initial(key)
    value_and_grad = jax.jit(target.value_and_grad)
    whole = value_and_grad(key, params, (), data)[0]
    parts = [value_and_grad(key, params, (), data[np.array(i)])[0] for i in ([0, 3], [1, 4], [2, 5])]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-12)


def test_twice_the_atoms_count_twice(key):
    # the likelihood sums over atoms: two far copies of a molecule have twice the force score of one
    one = system([[0, 0, 0], [2.3, 0, 0]], [18, 18])
    two = system([[0, 0, 0], [2.3, 0, 0], [50, 0, 0], [52.3, 0, 0]], [18] * 4)
    forces = np.array([[0.1, 0.2, 0.3], [-0.1, 0.0, 0.2]])
    score = [
        jax.jit(force_matching(POTENTIAL, d, flat(), Noise(None, 0.1, learn="fixed")).metrics)(p, d)["log_likelihood"]
        for d in (dataset([one], 4.0, forces=[forces]), dataset([two], 4.0, forces=[np.tile(forces, (2, 1))]))
        for p in [{"potential": POTENTIAL.init(key), "noise": {}}]
    ]
    np.testing.assert_allclose(score[1], 2 * score[0], rtol=1e-12)


def test_a_minibatch_longer_than_the_flat_graph_loses_nothing(key):
    counts = np.array([8] * 400 + [27] * 4)
    batch = frames([27, 8])[np.array([0, 0, 0, 1])]  # a bootstrap sample may repeat the largest frame
    assert _capacity(counts, 4, 27) < 27 * 3 + 8  # so this batch takes the padded way
    params = POTENTIAL.init(key)
    short = jax.jit(lambda p, b: residuals(POTENTIAL, p, b, counts, True))(params, batch)
    full = jax.jit(lambda p, b: residuals(POTENTIAL, p, b, None, True))(params, batch)
    for label in full:
        np.testing.assert_allclose(short[label], full[label], atol=1e-12)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Noise(-1.0), "must be positive"),
        (Noise(0.1, learn="yes"), 'learn must be "exponential" or "fixed"'),
        (Noise(None, None, None), "at least one label"),
        (Noise(0.1, 0.1, 0.1), r"memory has no stress\. Leave it out with Noise\(stress=None"),
    ],
)
def test_bad_noise_is_refused(noise, message):
    with pytest.raises(ValueError, match=message):
        force_matching(POTENTIAL, frames([8], stress=False), flat(), noise)


def test_data_that_do_not_fit_are_refused():
    data = frames([8])
    with pytest.raises(ValueError, match=r"Read them with cutoff=4\.5"):
        force_matching(lennard_jones(2.0, 0.1, cutoff=4.5), data, flat())
    with pytest.raises(ValueError, match=r"knows the species \(14,\). Got also \[18\]"):
        force_matching(lennard_jones(2.0, 0.1, cutoff=4.0, species=(14,)), data, flat())


def test_priors_score_and_skip():
    params = {"a": {"kernel": jnp.full((3, 4, 2), 0.5), "bias": jnp.ones((3, 1, 2))}, "frequencies": jnp.ones(5)}
    kernel, bias = np.full(24, 0.5), np.ones(6)
    plain = stats.norm(0, 2).logpdf(kernel).sum() + stats.norm(0, 2).logpdf(bias).sum()
    scaled = stats.norm(0, 1).logpdf(kernel).sum() + stats.norm(0, 2).logpdf(bias).sum()
    np.testing.assert_allclose(normal(2.0)(params), plain)
    np.testing.assert_allclose(scaled_normal(2.0)(params), scaled)
    molecule = {"0": {"bond": {"k": jnp.full(2, 30.0), "r0": jnp.ones(2)}}, "1": params}
    np.testing.assert_allclose(normal(2.0)(molecule), plain)
    heavy = stats.t(3, 0, 1).logpdf(kernel).sum() + stats.t(3, 0, 2).logpdf(bias).sum()
    np.testing.assert_allclose(scaled_student_t(3.0, 2.0)(params), heavy)
    assert float(flat()(params)) == 0.0
    assert (jax.grad(normal(2.0))(params)["frequencies"] == 0).all()
    import numpyro.distributions as dist

    chosen = prior(lambda name, leaf: dist.Laplace() if name == "a/bias" else None)
    np.testing.assert_allclose(chosen(params), stats.laplace.logpdf(bias).sum())
