"""Laplace's approximation where it is exact: models linear in their free parameters, solved by normal equations."""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from scipy import stats

import bayespot as bp
import bayespot.inference.gauss_newton as module
from bayespot.inference.gauss_newton import factorise, gauss_newton, quadratic_form
from bayespot.inference.laplace import _correlated, laplace
from bayespot.inference.priors import flat, normal, prior
from bayespot.inference.subset import subset
from bayespot.inference.target import LeastSquares
from bayespot.records.posterior import as_samples
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.tree import replace
from bayespot.uq.predict import predict
from tests.oracles.linear_model import make
from tests.uq.test_predict import frames, linear

DATA, TARGET, MEAN, COVARIANCE = make(dimension=4, condition=100.0)
SIGMA = {"energy": 0.02, "forces": 0.3, "stress": 0.01}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Of six frames the second batch is filled up; and four short ones need no second, longer graph to compile."""
    monkeypatch.setattr(module, "_FRAMES_AT_ONCE", 4)


def stacked(params):
    return jax.tree.map(lambda x: jnp.asarray(x)[None], params)


# The linear regression


def test_gauss_newton_and_laplace_are_the_posterior_of_linear_regression(key):
    start = {"a": jnp.stack([jnp.zeros(4), jnp.arange(4.0)])}
    mode = gauss_newton(TARGET, start, DATA)
    np.testing.assert_allclose(mode["a"], np.stack([MEAN, MEAN]), rtol=1e-10)
    names, quadratic = quadratic_form(TARGET, mode, DATA, None)
    local = quadratic({"a": mode["a"][0]})
    assert names == ("a",)
    np.testing.assert_allclose(local.hessian, np.linalg.inv(COVARIANCE), rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(local.gradient, 0, atol=1e-8)
    root = _correlated(factorise(local), np.eye(4))  # what draws are made with
    np.testing.assert_allclose(root.T @ root, COVARIANCE, rtol=1e-8)

    # 2 × 20 000 draws of 4 coordinates, whitened with the exact covariance: 1/√40 000 is the standard error of a mean
    # and of a covariance, √2 times that of a variance; none of 14 numbers beyond 5 of them: probability 1 − 1e-5
    samples = laplace(key, TARGET, mode, DATA, draws=20_000)
    white = (np.asarray(samples.params["a"]) - MEAN) @ np.linalg.cholesky(np.linalg.inv(COVARIANCE))
    assert np.abs(white.mean(0)).max() < 5 / 200
    assert np.abs(white.T @ white / 40_000 - np.eye(4)).max() < 5 * 2**0.5 / 200
    assert samples.chain.tolist() == [0] * 20_000 + [1] * 20_000
    assert samples.draw[:3].tolist() == samples.draw[20_000:20_003].tolist() == [0, 1, 2]
    assert not np.array_equal(samples.params["a"][:20_000], samples.params["a"][20_000:])
    np.testing.assert_allclose(samples.history["distance"], 0, atol=1e-8)
    assert bp.healthy(samples) is samples

    cold = laplace(jax.random.clone(key), TARGET, mode, DATA, draws=20_000, temperature=0.25)
    np.testing.assert_allclose(cold.params["a"] - MEAN, 0.5 * (samples.params["a"] - MEAN), atol=1e-12)


def test_parameters_that_are_no_mode_are_reported(key):
    # along one direction by three of its standard deviations: a root mean square of 3/√4 over all directions
    values, vectors = np.linalg.eigh(COVARIANCE)
    away = {"a": jnp.asarray(MEAN + 3 * values[2] ** 0.5 * vectors[:, 2])[None]}
    with pytest.warns(RuntimeWarning, match=r"1 of 1 modes lie up to 1\.5 posterior standard deviations"):
        samples = laplace(key, TARGET, away, DATA, draws=2)
    np.testing.assert_allclose(samples.history["distance"], 1.5, rtol=1e-8)
    # at the temperature 4 the draws are twice as wide, so that the same distance no longer matters; and the reverse
    warm = laplace(jax.random.clone(key), TARGET, away, DATA, draws=2, temperature=4.0)
    np.testing.assert_allclose(warm.history["distance"], 0.75, rtol=1e-8)
    near = {"a": MEAN + 0.4 * (away["a"] - MEAN)}
    with pytest.warns(RuntimeWarning, match=r"up to 1\.2 posterior"):
        laplace(jax.random.clone(key), TARGET, near, DATA, draws=2, temperature=0.25)


def test_float32_needs_no_jitter():
    # in float32 JᵀJ of singular values 1 … 1e-5 would have negative eigenvalues, which a weak prior could not mend
    rng = np.random.default_rng(0)
    x = (
        np.linalg.qr(rng.normal(size=(64, 20)))[0]
        * np.geomspace(1, 1e-5, 20)
        @ np.linalg.qr(rng.normal(size=(20, 20)))[0]
    )
    with jax.enable_x64(False):
        data = {"x": jnp.asarray(x, jnp.float32), "y": jnp.zeros(64, jnp.float32)}
        squares = LeastSquares(lambda p, b: b["x"] @ p["a"] - b["y"], lambda p: -0.5e-9 * (p["a"] ** 2).sum())
        target = TARGET._replace(initial=lambda key: {"a": jnp.zeros(20)}, least_squares=squares)
        local = quadratic_form(target, {"a": jnp.ones((1, 20))}, data, None)[1]({"a": jnp.ones(20)})
        samples = laplace(jax.random.key(1), target, {"a": jnp.zeros((1, 20))}, data, draws=4)
    assert samples.params["a"].dtype == jnp.float32
    exact = x.T @ x + 1e-9 * np.eye(20)
    assert np.linalg.eigvalsh((x.astype(np.float32).T @ x.astype(np.float32)).astype(float)).min() < -1e-9
    # float32 knows singular values to 1e-7, and so their squares near 1e-10 to a few per cent
    np.testing.assert_allclose(np.linalg.eigvalsh(local.hessian), np.linalg.eigvalsh(exact), rtol=0.05)


def test_a_step_that_overshoots_is_halved():
    # one datum, residual atan(3a): Newton's step from a = 1 goes to −3.2, farther from 0, and half of it to −1.1
    squares = LeastSquares(lambda p, b: jnp.arctan(3 * p["a"])[None] + 0 * b["x"], lambda p: -1e-6 * p["a"] ** 2)
    target = TARGET._replace(initial=lambda key: {"a": jnp.zeros(())}, size=1, least_squares=squares)
    start, data = {"a": jnp.ones(1)}, {"x": jnp.zeros(1)}
    # −log posterior ½ atan²(3a) and its derivatives by hand; a quarter of the step is the first that goes down
    step = np.arctan(3.0) * 0.3 / (0.3**2 + 2e-6) + 2e-6 / (0.3**2 + 2e-6)
    assert abs(1 - 0.5 * step) > 1 > abs(1 - 0.25 * step)
    np.testing.assert_allclose(gauss_newton(target, start, data, steps=1)["a"], 1 - 0.25 * step, rtol=1e-6)
    np.testing.assert_allclose(gauss_newton(target, start, data, steps=6)["a"], 0.0, atol=1e-6)
    # the same where the first step would leave what has a logarithm
    squares = LeastSquares(lambda p, b: jnp.log(p["a"])[None] + 0 * b["x"], lambda p: 0.0 * p["a"])
    target = target._replace(least_squares=squares)
    np.testing.assert_allclose(gauss_newton(target, {"a": jnp.full(1, 4.0)}, data, steps=8)["a"], 1.0, rtol=1e-6)
    # no step of any length leads down from where the model says nothing but NaN
    squares = LeastSquares(
        lambda p, b: jnp.where(p["a"] == 1, p["a"], jnp.nan)[None] + 0 * b["x"], lambda p: 0.0 * p["a"]
    )
    target = target._replace(least_squares=squares)
    np.testing.assert_array_equal(gauss_newton(target, start, data, steps=2)["a"], 1.0)


# Energies, forces and stresses


def labelled():
    """Frames of two sizes with noisy labels, of which a few are missing, and the design of the linear potential."""
    rng = np.random.default_rng(3)
    data = frames()
    return replace(
        data,
        energy=data.energy + rng.normal(size=6) * SIGMA["energy"] * data.atom_counts,
        forces=data.forces + SIGMA["forces"] * rng.normal(size=data.forces.shape),  # on padding, too
        stress=data.stress + SIGMA["stress"] * rng.normal(size=data.stress.shape),
        has_forces=jnp.arange(6) != 3,
    )


def normal_equations(data, columns, offset, sigma):
    """``JᵀJ``, ``Jᵀy`` and ``yᵀy`` of the likelihood, frame by frame.

    ``J`` is made of predictions per unit parameter (columns), ``y`` of labels less an offset, both over sigma.
    """
    h, b, c = 0.0, 0.0, 0.0
    upper = np.triu_indices(3)
    for m in range(len(data)):
        n = data.atom_counts[m]
        parts = {
            "energy": lambda p, m=m, n=n: np.asarray(p["energy"])[..., m, None] / n,
            "forces": lambda p, m=m, n=n: np.asarray(p["forces"])[..., m, :n, :].reshape(*p["energy"].shape[:-1], -1),
            "stress": lambda p, m=m: np.asarray(p["stress"])[..., m, :, :][..., upper[0], upper[1]],
        }
        labels = {k: np.asarray(getattr(data, k)) for k in parts}
        for k, scale in sigma.items():
            if getattr(data, f"has_{k}")[m]:
                x = parts[k](columns) / scale
                y = (parts[k](labels) - parts[k](offset)) / scale
                h, b, c = h + x @ x.T, b + x @ y, c + y @ y
    return h, b, c


@pytest.fixture(scope="module")
def fitted():
    """Data, target, parameters with noise scales of their own, and the normal equations of a and b."""
    data, potential = labelled(), linear()
    target = force_matching(potential, data, normal(0.5, skip=()), Noise(0.1, 0.1, 0.1))
    params = {"potential": {"a": jnp.asarray(0.3), "b": jnp.asarray(0.7)}}
    params["noise"] = {k: jnp.log(jnp.asarray(v)) for k, v in SIGMA.items()}
    unit = as_samples({"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 1.0])}, potential.spec)
    columns = predict(potential, unit, data).members
    nothing = {k: jnp.zeros_like(v[0]) for k, v in columns.items()}
    return data, target, params, normal_equations(data, columns, nothing, SIGMA)


def test_force_matching_of_a_linear_potential_is_the_conjugate_posterior(fitted):
    data, target, params, (h, b, c) = fitted
    precision = h + np.eye(2) / 0.5**2
    mean = np.linalg.solve(precision, b)
    mode = gauss_newton(target, stacked(params), data)
    np.testing.assert_allclose([mode["potential"][k][0] for k in "ab"], mean, rtol=1e-8)
    for label, value in params["noise"].items():
        assert mode["noise"][label].tolist() == [float(value)]
    names, quadratic = quadratic_form(target, mode, data, None)
    assert names == ("potential/a", "potential/b")
    local, x = quadratic(params), np.array([0.3, 0.7])
    np.testing.assert_allclose(local.hessian, precision, rtol=1e-10)
    np.testing.assert_allclose(local.gradient, precision @ x - b, rtol=1e-10)
    # exponential priors of mean 0.1 on the scales, with the Jacobian of their logarithms
    rest = -stats.norm(0, 0.5).logpdf(x).sum() - sum(np.log(s) - s / 0.1 for s in SIGMA.values())
    np.testing.assert_allclose(local.value, 0.5 * (x @ h @ x - 2 * b @ x + c) + rest, rtol=1e-10)


def test_both_ways_to_the_derivatives_agree(fitted):
    data, target, params, _ = fitted
    names, batch = ("potential/a", "potential/b"), data[:4]
    one, two = (module._linearised(target.least_squares.residuals, names, f)(params, batch) for f in (True, False))
    np.testing.assert_allclose(one[0], two[0], atol=1e-10)
    np.testing.assert_allclose(one[1], two[1], atol=1e-10)
    assert one[1].shape == (4, 1 + 3 * 6 + 6, 2)


def test_of_a_part_it_is_the_conditional_posterior():
    def whole(p):
        return {"a": jnp.concatenate([p["u"], p["v"]])}

    least = TARGET.least_squares
    squares = LeastSquares(lambda p, b: least.residuals(whole(p), b), lambda p: least.log_prior(whole(p)))
    target = TARGET._replace(initial=lambda key: {"u": jnp.zeros(2), "v": jnp.zeros(2)}, least_squares=squares)
    params = {"u": jnp.array([0.5, -0.5]), "v": jnp.zeros(2)}
    precision = np.linalg.inv(COVARIANCE)
    conditional = MEAN[2:] - np.linalg.solve(
        precision[2:, 2:], precision[2:, :2] @ (np.asarray(params["u"]) - MEAN[:2])
    )
    mode = gauss_newton(target, stacked(params), DATA, free="v")
    np.testing.assert_allclose(mode["v"][0], conditional, rtol=1e-9)
    np.testing.assert_array_equal(mode["u"][0], params["u"])
    # the same through a target that knows v alone
    part = subset(target, params, "v")
    np.testing.assert_allclose(gauss_newton(part.target, stacked(part.params), DATA)["v"][0], conditional, rtol=1e-9)
    samples = part.complete(laplace(jax.random.key(4), part.target, {"v": mode["v"]}, DATA, draws=3))
    again = laplace(jax.random.key(4), target, mode, DATA, free="v", draws=3)
    np.testing.assert_allclose(samples.params["v"], again.params["v"], rtol=1e-12)
    np.testing.assert_array_equal(samples.params["u"], again.params["u"])


# The read-out of a network


@pytest.fixture
def five_lines(tmp_path, monkeypatch):
    """The names that the example in the docstring of ``laplace`` defines, run as it stands there."""
    rng, systems = np.random.default_rng(0), []
    for seed in range(4):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.08, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(8, 3)))
        systems.append(atoms)
    write(tmp_path / "labels.extxyz", systems)
    constants = {"mean": (), "std": (), "shift": {"14": 0.1}, "scale": 2.0}
    form = {"species": (14,), "cutoff": 5.0, "channels": 2, "hidden": (4, 3)}
    potential = bp.build({"name": "descriptor_mlp", **form, **constants})
    shapes = jax.eval_shape(potential.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
    bp.save(as_samples(stacked(params), potential.spec), tmp_path / "trained.safetensors")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"five lines::\n\n(.*)", laplace.__doc__, re.DOTALL)
    lines = inspect.cleandoc(block)
    assert len(lines.splitlines()) == 5
    names = {"bp": bp, "json": json, "key": jax.random.key(2)}
    exec(compile(lines, "laplace", "exec"), names)  # without a warning: gauss_newton has found the mode
    return names


def read_out(params, values):
    """The network's parameters with rows of (bias, kernel) as read-out, one set for each row."""
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(values), *x.shape)), params)
    bias, kernel = values[:, :1].reshape(-1, 1, 1, 1), values[:, 1:].reshape(-1, 1, 3, 1)
    return {**repeated, "bias_2": jnp.asarray(bias), "kernel_2": jnp.asarray(kernel)}


@pytest.mark.slow
def test_last_layer_of_a_pretrained_network_is_the_conjugate_posterior_of_its_read_out(five_lines):
    data, potential, samples = (five_lines[k] for k in ("data", "potential", "samples"))
    params = bp.tree.take(five_lines["trained"].params["potential"], 0)
    values = np.concatenate([np.zeros((1, 4)), np.eye(4)])
    one = jax.tree.map(lambda *x: jnp.concatenate(x), read_out(params, values), samples.params["potential"])
    # affine in the read-out: predictions at 0 and at unit vectors tell everything
    found = predict(potential, as_samples(one, potential.spec), data).members
    columns = {k: v[1:5] - v[0] for k, v in found.items()}
    sigma = {"energy": 0.005, "forces": 0.1}
    h, b, _ = normal_equations(data, columns, {k: v[0] for k, v in found.items()}, sigma)
    precision = h + np.diag([1.0, 3.0, 3.0, 3.0])  # the kernel's prior has the standard deviation 1/√3
    mean = np.linalg.solve(precision, b)

    names, quadratic = quadratic_form(five_lines["target"], five_lines["mode"], data, ("kernel_2", "bias_2"))
    assert names == ("potential/bias_2", "potential/kernel_2")
    start = bp.tree.take(five_lines["trained"].params, 0)
    local = quadratic(start)
    np.testing.assert_allclose(local.hessian, precision, rtol=1e-8)
    first = np.concatenate([np.ravel(start["potential"][k]) for k in ("bias_2", "kernel_2")]).astype(float)
    np.testing.assert_allclose(first - np.linalg.solve(local.hessian, local.gradient), mean, rtol=1e-8)
    mode = np.concatenate([np.ravel(five_lines["mode"]["potential"][k]) for k in ("bias_2", "kernel_2")])
    np.testing.assert_allclose(mode, mean, rtol=1e-6)  # networks keep their parameters in float32

    assert len(samples) == 32
    kernel = samples.params["potential"]["kernel_1"]
    np.testing.assert_array_equal(kernel, np.broadcast_to(params["kernel_1"], kernel.shape))
    # forces of 32 draws: standard deviations within 5 × 1/√62 of the exact one, in the root mean square over components
    spread = np.asarray(found["forces"][5:]).reshape(32, -1).var(0, ddof=1)
    x = np.asarray(columns["forces"]).reshape(4, -1)
    exact = np.einsum("ia,ij,ja->a", x, np.linalg.inv(precision), x)
    assert abs(np.sqrt(spread.mean() / exact.mean()) - 1) < 5 / 62**0.5


# What it refuses


def refused(target, params, data=DATA, **options):
    return laplace(jax.random.key(5), target, params, data, **options)


def test_what_no_gaussian_can_be_made_of_is_refused(fitted):
    data, target, params, _ = fitted
    mode = {"a": jnp.asarray(MEAN)[None]}
    fewer, diverged = jax.tree.map(lambda x: x[:9], DATA), {"a": jnp.full((1, 4), jnp.nan)}
    shape, one = r"stacked along a leading axis, each with a of the shape \(4,\). Got \(4,\)", {"a": mode["a"][0]}
    leaf, several = r"no leaf for \['c'\]. They are .*potential/a, potential/b", stacked(params)
    cases = [
        (r"Use Noise\(dof=None\)", lambda: refused(TARGET._replace(least_squares=None), mode)),
        ("made for 64 frames", lambda: refused(TARGET, mode, fewer)),
        (shape, lambda: refused(TARGET, one)),
        ("draws ≥ 1", lambda: refused(TARGET, mode, draws=0)),
        ("positive temperature", lambda: refused(TARGET, mode, temperature=0.0)),
        ("Leave diverged parameters out", lambda: refused(TARGET, diverged)),
        ("held at their values.*noise/forces", lambda: refused(target, several, data, free="noise")),
        (leaf, lambda: refused(target, several, data, free=("a", "c"))),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_too_many_parameters_are_refused_with_the_memory_they_need():
    many = TARGET._replace(initial=lambda key: {"a": jnp.zeros(20_000)})
    with pytest.raises(ValueError, match=r"At most 5000 .* Got 20000, whose matrices would need 9\.6 GB"):
        refused(many, {"a": jnp.zeros((1, 20_000))})


def test_student_errors_have_no_residuals():
    noise = Noise(0.1, 0.1, dof=4.0)
    assert force_matching(linear(), frames(), flat(), noise).least_squares is None


@pytest.mark.parametrize("curvature", [0.0, -1.0])
def test_an_open_direction_is_refused(curvature):
    # three rows cannot determine four parameters, and a prior that is flat, or has its minimum there, does not help
    data = jax.tree.map(lambda x: x[:3], DATA)
    squares = TARGET.least_squares._replace(log_prior=lambda p: -0.5 * curvature * (p["a"] ** 2).sum())
    with pytest.raises(ValueError, match="determine every free parameter"):
        refused(TARGET._replace(size=3, least_squares=squares), {"a": jnp.zeros((1, 4))}, data)


def test_the_curvature_of_any_prior_counts():
    # Student-t of scale s: −log p'' = (ν + 1)(ν s² − x²)/(ν s² + x²)²
    import numpyro.distributions as dist

    heavy = prior(lambda name, leaf: dist.StudentT(3.0, 0.0, 2.0))
    target = TARGET._replace(least_squares=TARGET.least_squares._replace(log_prior=heavy))
    x = jnp.array([0.1, 0.5, 1.0, 2.0])
    likelihood = np.linalg.inv(COVARIANCE) - np.eye(4) / 2.0**2
    local = quadratic_form(target, {"a": x[None]}, DATA, None)[1]({"a": x})
    expected = likelihood + np.diag(4 * (12 - x**2) / (12 + x**2) ** 2)
    np.testing.assert_allclose(local.hessian, expected, rtol=1e-10, atol=1e-9)
