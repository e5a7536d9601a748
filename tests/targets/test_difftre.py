"""DiffTRe: gradients against explicit formulas and differences, the rule for new frames, known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot import units
from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import normal
from bayespot.inference.sgld import sgld
from bayespot.inference.target import initial
from bayespot.observables.elasticity import elastic_constants
from bayespot.observables.observable import Observable, average
from bayespot.observables.structure import rdf
from bayespot.observables.thermodynamics import energy_per_atom, heat_capacity, pressure
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import Potential
from bayespot.records.system import system
from bayespot.simulation.ensemble import npt_nose_hoover, nvt_langevin
from bayespot.targets.difftre import Measurement, _square, difftre
from bayespot.targets.reference_run import effective, reference_run, weights_of
from tests.targets.springs import KT, SPRING, SQUARE, spring_run


def spring(**numbers):
    return {"potential": {"k": jnp.asarray(2.0), "c": jnp.asarray(0.3)} | numbers, "noise": {}}


def target_of(run, observable=SQUARE, value=0.5, uncertainty=0.1, prior=None):
    return difftre(SPRING, run, {"it": Measurement(observable, value, uncertainty)}, prior)


@pytest.mark.parametrize("observable", [SQUARE, energy_per_atom()], ids=["position", "energy"])
@pytest.mark.parametrize("k", [2.0, 2.1], ids=["reference", "reweighted"])
def test_the_gradient_is_that_of_the_ensemble_average(key, observable, k):
    run = spring_run(replicas=1, min_share=0.5)
    target = target_of(run, observable)
    evaluate = jax.jit(target.value_and_grad)
    _, _, state, _ = evaluate(key, spring(), target.init(key, spring()), None)
    params = spring(k=jnp.asarray(k))
    value, gradient, after, info = evaluate(key, params, state, None)
    x = np.asarray(after.position)[:, 0]
    r2 = ((x - 0.3) ** 2).sum(1)
    weight = np.exp(-0.5 * (k - 2.0) * r2 / KT)
    weight /= weight.sum()
    o, slope = ((x**2).mean(1), 0.0) if observable is SQUARE else (0.5 * k * r2, 0.5 * r2)
    mean = weight @ o
    change = weight @ (slope * np.ones_like(o)) - (weight @ (o * 0.5 * r2) - mean * (weight @ (0.5 * r2))) / KT
    np.testing.assert_allclose(value, -0.5 * ((mean - 0.5) / 0.1) ** 2, rtol=1e-9)
    np.testing.assert_allclose(gradient["potential"]["k"], -(mean - 0.5) / 0.1**2 * change, rtol=1e-6)
    np.testing.assert_allclose(info["effective_frames"], np.exp(-weight @ np.log(weight)) / len(x), rtol=1e-9)
    assert info["simulated"] == 0


def test_at_the_reference_all_weights_are_equal(key):
    target = target_of(spring_run(min_share=2.0))
    *_, info = target.value_and_grad(key, spring(), target.init(key, spring()), None)
    assert (info["effective_frames"], info["simulated"]) == (pytest.approx(1.0, abs=1e-12), 1)


def test_the_known_derivative_of_a_harmonic_average(key):
    # ⟨(x − c)²⟩ = kT/k: 400 frames of 4 replicas, x² decorrelates within about two frames; 5 standard errors
    target = target_of(spring_run(replicas=4, steps=4000), value=0.0, uncertainty=1.0)
    params = spring(c=jnp.asarray(0.0))
    *_, gradient, _, _ = target.value_and_grad(key, params, target.init(key, params), None)
    exact = -(KT / 2) * -(KT / 4)  # −⟨O⟩ ∂⟨O⟩/∂k for y = 0, σ = 1
    assert gradient["potential"]["k"] == pytest.approx(exact, rel=5 * np.sqrt(8 / (3 * 800)))


def crystal_target(observables, run_of):
    """Argon in a box of eight cells, 32 atoms; measured values a little off, so that the likelihood has a slope."""
    lattice = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cells = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    start = system(5.4 * (cells + lattice).reshape(-1, 3), [18] * 32, 10.8 * np.eye(3))
    potential = lennard_jones(3.4, 0.0104, cutoff=5.0)
    kT = 60 * units.kB
    run = run_of(start, nvt_langevin(kT=kT, dt=5 * units.fs, gamma=0.05))
    return potential, difftre(potential, run, observables(potential, kT))


def test_gradients_through_energy_stress_and_potential_are_those_of_differences(key):
    def observables(potential, kT):
        return {
            "rdf": Measurement(rdf(r_max=5.0, bins=10), np.ones(10), 0.3),
            "heat capacity": Measurement(heat_capacity(kT), 2.5, 0.1),
            "pressure": Measurement(pressure(), 0.1, 0.01),
            "elastic": Measurement(elastic_constants(potential, kT), [2.0, 1.0, 1.0], 0.3),
        }

    def run_of(start, ensemble):
        return reference_run(start, ensemble, steps=100, every=10, first_equilibration=20, replicas=2, min_share=1e-9)

    potential, target = crystal_target(observables, run_of)
    evaluate = jax.jit(target.value_and_grad)
    params = {"potential": potential.init(key), "noise": {}}
    _, gradient, state, _ = evaluate(key, params, target.init(key, params), None)
    # On frames of the reference, of which none are made anew
    _, gradient, _, info = evaluate(key, params, state, None)
    assert info["simulated"] == 0
    for name, step in (("sigma", 1e-5), ("epsilon", 1e-7)):
        value = params["potential"][name]
        ends = [{"potential": {**params["potential"], name: value + s * step}, "noise": {}} for s in (1, -1)]
        up, down = (evaluate(key, p, state, None)[0] for p in ends)
        np.testing.assert_allclose(gradient["potential"][name], (up - down) / (2 * step), rtol=1e-6)


def test_products_of_different_replicas(key):
    error = np.random.default_rng(0).normal(size=(3, 2))
    pairs = [error[a] * error[b] for a in range(3) for b in range(3) if a != b]
    np.testing.assert_allclose(_square(jnp.asarray(error)), np.mean(pairs, axis=0))
    np.testing.assert_allclose(_square(jnp.asarray(error[:1])), error[0] ** 2)


def test_the_square_of_a_noisy_average_is_right_on_average(key):
    """Of many short reference runs: with one replica the variance of the average is counted as an error."""

    def mean_chi2(key, replicas):
        run = spring_run(replicas=replicas, steps=40, first_equilibration=60)
        exact = KT / 2 + 0.3**2
        target = target_of(run, value=exact, uncertainty=0.1)
        one = jax.jit(lambda key: target.value_and_grad(key, spring(), target.init(key, spring()), None)[3]["chi2"])
        found = np.array([one(k) for k in jax.random.split(key, 300)])
        return found.mean(), found.std() / np.sqrt(len(found))

    one, four = jax.random.split(key)
    single, pairs = mean_chi2(one, 1), mean_chi2(four, 4)
    assert single[0] > 5 * single[1]
    assert abs(pairs[0]) < 3.5 * pairs[1]


def test_new_frames_when_the_weights_have_become_uneven(key):
    target = target_of(spring_run(min_share=0.9))
    evaluate = jax.jit(target.value_and_grad)
    state, made = target.init(key, spring()), []
    for k in (2.0, 2.05, 2.1, 6.0, 6.05):
        _, _, state, info = evaluate(key, spring(k=jnp.asarray(k)), state, None)
        made.append((int(info["simulated"]), bool(info["effective_frames"] >= 0.9)))
    assert made == [(1, True), (0, True), (0, True), (1, True), (0, True)]


def test_steps_are_shortened_to_where_the_frames_still_serve(key):
    target = target_of(spring_run(min_share=1e-9), value=0.0)
    one, two = jax.random.split(key)
    start = initial(two, target, chains=1)
    options = {"steps": 3, "burn_in": 0, "thin": 1, "progress": False}
    far = infer(jax.random.clone(one), optimise(target, optax.sgd(0.1), average=0.0), start, None, **options)
    near = infer(one, optimise(target, optax.sgd(0.1), average=0.0, min_share=0.5), start, None, **options)
    assert np.asarray(far.history["effective_frames"])[0, 1] < 0.5
    # Shorter than one more halving the steps are not: the loss falls all the way
    share = np.asarray(near.history["effective_frames"])[0]
    assert (share[1:] >= 0.5 - 1e-9).all()
    assert (share[1:] < 0.99).all()
    with pytest.raises(ValueError, match="targets that simulate"):
        optimise(target._replace(share=None), optax.sgd(1.0), min_share=0.5)


def test_gaussian_log_weights_and_the_effective_number():
    """Of −ΔU/kT with a standard deviation s the share is exp(−s²/2); by quantiles, s = 1.2."""
    from scipy import stats

    difference = 1.2 * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert effective(weights_of(jnp.asarray(difference), 1.0)) / 1e5 == pytest.approx(0.4868, abs=2e-3)


@pytest.mark.slow
def test_several_chains_batched_or_one_by_one_with_a_prior(key):
    target = target_of(spring_run(steps=200), prior=normal(1.0))
    algorithm = sgld(target, 1e-3)
    first, key = jax.random.split(key)
    start = initial(first, target, chains=3)
    options = {"steps": 4, "burn_in": 0, "thin": 1, "progress": False}
    one = infer(jax.random.clone(key), algorithm, start, None, chains_at_once=1, **options)
    three = infer(key, algorithm, start, None, chains_at_once=3, **options)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(three.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)
    assert len(np.unique(np.asarray(one.params["potential"]["k"]))) == 12


def test_a_list_too_short_makes_the_chain_unstable(key):
    run = reference_run(
        system(np.array([[0, 0, 0], [2.5, 0, 0]]), [18, 18], 12.0 * np.eye(3)),
        nvt_langevin(kT=0.01, dt=1.0), steps=20, every=10, capacity=1e-9,
    )  # fmt: skip
    potential = lennard_jones(2.4, 0.05, cutoff=5.0)
    target = difftre(potential, run._replace(capacity=-9.0), {"g": Measurement(rdf(5.0, 5), np.ones(5), 1.0)})
    start = initial(key, target, chains=1)
    with pytest.warns(RuntimeWarning, match="diverged"):
        samples = infer(key, optimise(target, optax.sgd(1e-3)), start, None, steps=1, progress=False)
    assert samples.status[0] != 0


def test_errors(key):
    run = spring_run()
    with pytest.raises(ValueError, match="at least one measurement"):
        difftre(SPRING, run, {})
    with pytest.raises(ValueError, match="positive uncertainties"):
        target_of(run, uncertainty=0.0)
    target = target_of(run, value=np.zeros(3))
    state = target.init(key, spring())
    with pytest.raises(ValueError, match=r"shape of x², \(\)"):
        target.value_and_grad(key, spring(), state, None)
    with pytest.raises(ValueError, match="periodic"):
        target_of(run, pressure())
    with pytest.raises(ValueError, match=r"every = 10 must divide steps\. Got 1005\. Use 1000"):
        spring_run(steps=1005)
    with pytest.raises(ValueError, match="constant box"):
        reference_run(run.start, npt_nose_hoover(kT=0.1, dt=0.1, pressure=0.0), steps=10, every=1)
    with pytest.raises(ValueError, match="propagate"):
        target_of(run).metrics(spring(), None)


KNOTS = np.linspace(-0.05, 1.05, 50)
GRID, WIDTH = np.linspace(0, 1, 101), 0.01
FINE = np.linspace(-0.1, 1.1, 2401)


def spline(p, x):
    t = jnp.abs((x[..., None] - KNOTS) / (KNOTS[1] - KNOTS[0]))
    basis = jnp.where(t < 1, 2 / 3 - t**2 + t**3 / 2, jnp.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    return 70 * (x - 0.5) ** 2 + (p["c"] * basis).sum(-1)


def smeared(energy):
    """Density of U/kT on the grid, by quadrature."""
    boltzmann = np.exp(-(energy - energy.min()))
    kernel = np.exp(-0.5 * ((GRID[:, None] - FINE) / WIDTH) ** 2) / (np.sqrt(2 * np.pi) * WIDTH)
    return kernel @ (boltzmann / boltzmann.sum())


@pytest.mark.slow
def test_double_well(key, optimised):
    """A 50-knot spline learns U/kT = 2500 (x − ½)⁶ − 10 (x − 0.55)² from its density, in 100 updates.

    Thaler and Zavadlav (2021) report a loss of 8e-4 after as many. Here the density of the learned potential is exact
    (quadrature); 64 independent particles in 4 replicas of 240 frames, seed 0.
    """
    potential = Potential(
        lambda key: {"c": 0.01 * jax.random.normal(key, (50,))},
        lambda p, s, n: spline(p, s.position[:, 0]), 1.0, (), {"name": "spline"},
    )  # fmt: skip
    share = np.exp(-70 * (FINE - 0.5) ** 2)
    x = np.random.default_rng(0).choice(FINE, 64, p=share / share.sum())
    start = system(np.stack([x, 1000.0 * np.arange(64), 0 * x], 1), [1] * 64, np.zeros((3, 3)))
    run = reference_run(
        start, nvt_langevin(kT=1.0, dt=0.02, gamma=5.0), steps=6000, every=25, equilibration=100, replicas=4,
        skin=50.0, min_share=0.8,
    )  # fmt: skip
    density = Observable(
        lambda f: (
            jnp.exp(-0.5 * ((GRID - f.system.position[:, :1]) / WIDTH) ** 2).mean(0) / (np.sqrt(2 * np.pi) * WIDTH)
        ),
        average, "density", "1/Å",
    )  # fmt: skip
    goal = smeared(2500 * (FINE - 0.5) ** 6 - 10 * (FINE - 0.55) ** 2)
    target = difftre(potential, run, {"density": Measurement(density, goal, 1.0)})
    rate = optax.polynomial_schedule(0.2, 0.002, 2, 100)
    algorithm = optimise(target, optax.adam(rate, b1=0.1, b2=0.4), average=0.0)
    samples = infer(key, algorithm, initial(key, target, chains=1), None, steps=100, progress=False)
    found = spline(jax.tree.map(lambda x: x[0], samples.params["potential"]), jnp.asarray(FINE))
    assert ((smeared(np.asarray(found)) - goal) ** 2).mean() < 1e-3


@pytest.mark.slow
def test_gradients_through_the_integrator_grow_exponentially(key, optimised):
    """Why nothing here differentiates trajectories: particles in the double well, noise held fixed."""

    def energy(c, x):
        return (2500 * (x - 0.5) ** 6 - 10 * (x - 0.55) ** 2 + c * jnp.sin(6 * x)).sum()

    def end(c, steps):
        def step(carry, noise):
            x, p = carry
            p = p - 0.5 * 0.02 * jax.grad(energy, 1)(c, x)
            x = x + 0.5 * 0.02 * p
            p = 0.99 * p + jnp.sqrt(1 - 0.99**2) * noise
            x = x + 0.5 * 0.02 * p
            return (x, p - 0.5 * 0.02 * jax.grad(energy, 1)(c, x)), None

        x = jnp.linspace(0.25, 0.75, 50)
        (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), jax.random.normal(jax.random.clone(key), (steps, 50)))
        return (x**2).mean()

    slope = jax.jit(jax.grad(end), static_argnums=1)
    sizes = [abs(float(slope(0.0, steps))) for steps in (100, 4000)]
    assert sizes[0] < 100
    assert sizes[1] > 1e6


@pytest.mark.slow
def test_two_particles_from_their_rdf(key, optimised):
    """Harmonic bond k = 250 kJ/mol/nm², r₀ = 3.5 Å, from its exact RDF; kT = 2.56 kJ/mol.

    The RDF of the learned bond is exact, too; the bar is a mean square deviation of 2e-3. 200 updates of 16 × 80 new
    frames, seed 0.
    """
    unit, side = 1.03643e-4, 20.0  # kJ/mol/nm² in eV/Å²

    def energies(p, system, neighbors):
        r = jnp.linalg.norm(system.position[1] - system.position[0])
        return jnp.full(2, 0.25) * jnp.exp(p["log_k"]) * (r - p["r0"]) ** 2

    potential = Potential(
        lambda key: {"log_k": jnp.log(150 * unit), "r0": jnp.asarray(3.0)}, energies, 1.0, (), {"name": "bond"}
    )
    observable = rdf(r_max=8.0, bins=80)
    r = observable.coordinate

    def exact(k, r0):
        b = k / 256
        norm = np.sqrt(np.pi / (2 * b)) * (1 + b * r0**2) / b
        return side**3 / (16 * np.pi) * np.exp(-b * (r - r0) ** 2 / 2) / norm

    start = system(np.array([[5.0, 5, 5], [8.0, 5, 5]]), [6, 6], side * np.eye(3))
    run = reference_run(
        start, nvt_langevin(kT=256 * unit, dt=5 * units.fs, gamma=0.03),
        steps=4000, every=50, replicas=16, skin=2.0, min_share=1.1, max_kT=20 * 256 * unit,
    )  # fmt: skip
    target = difftre(potential, run, {"rdf": Measurement(observable, exact(250, 3.5), 0.1)})
    optimiser = optax.adam(optax.exponential_decay(0.03, 300, 0.1))
    samples = infer(
        key, optimise(target, optimiser, average=0.98), initial(key, target, chains=1), None, steps=200, progress=False
    )
    k, r0 = float(np.exp(samples.params["potential"]["log_k"][0]) / unit), float(samples.params["potential"]["r0"][0])
    assert ((exact(k, r0) - exact(250, 3.5)) ** 2).mean() < 2e-3


@pytest.mark.slow
def test_the_posterior_of_a_measurement(key, optimised):
    """Spring constants k = eᵃ whose ⟨x²⟩ = kT/k was measured as 0.35 ± 0.1, prior a ~ N(0, 1): by quadrature.

    6 chains of 1600 steps after 400, of which every 25th or so is independent: 6 × 64 draws, standard error of the mean
    5 % and of the standard deviation 4 % of the latter; the step widens it by 4 %. Seed 0.
    """
    potential = Potential(
        lambda key: {"a": jnp.asarray(0.7)},
        lambda p, s, n: 0.5 * jnp.exp(p["a"]) * (s.position**2).sum(-1), 1.0, (), {"name": "log spring"},
    )  # fmt: skip
    run = spring_run(replicas=4, steps=1000, first_equilibration=200, min_share=0.95)
    target = difftre(potential, run, {"x²": Measurement(SQUARE, 0.35, 0.1)}, normal(1.0))
    a = np.linspace(-3, 4, 20_001)
    density = np.exp(-0.5 * a**2 - 0.5 * ((KT * np.exp(-a) - 0.35) / 0.1) ** 2)
    mean = (a * density).sum() / density.sum()
    deviation = np.sqrt(((a - mean) ** 2 * density).sum() / density.sum())
    one, two = jax.random.split(key)
    start = initial(two, target, chains=6)
    samples = infer(one, sgld(target, 5e-3), start, None, steps=2000, burn_in=400, thin=5, progress=False)
    drawn = np.asarray(samples.params["potential"]["a"])
    assert drawn.mean() == pytest.approx(mean, abs=4 * 0.05 * deviation)
    assert drawn.std() == pytest.approx(deviation, rel=0.04 + 4 * 0.04)
    assert deviation < 0.5  # the prior's is 1: the measurement informs
