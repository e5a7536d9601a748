"""DiffTRe: gradients against explicit formulas and differences, the rule for new frames, known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot import units
from bayespot.errors import Status
from bayespot.inference.control_variates import control_variates
from bayespot.inference.infer import infer
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import normal
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.sgld import sgld
from bayespot.inference.target import initial
from bayespot.observables.elasticity import elastic_constants
from bayespot.observables.fluctuations import heat_capacity
from bayespot.observables.observable import Observable, average
from bayespot.observables.structure import rdf
from bayespot.observables.thermodynamics import energy_per_atom, pressure
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import Potential
from bayespot.records.system import system
from bayespot.simulation.ensemble import npt_nose_hoover, nve, nvt_langevin
from bayespot.targets.difftre import Measurement, _square, difftre
from bayespot.targets.reference_frames import _reseeded, share_of, weights_of
from bayespot.targets.reference_run import reference_run
from tests.targets.springs import KT, SPRING, SQUARE, spring_run


def spring(**numbers):
    return {"potential": {"k": jnp.asarray(2.0), "c": jnp.asarray(0.3)} | numbers, "noise": {}}


def target_of(run, observable=SQUARE, value=0.5, uncertainty=0.1, prior=None):
    return difftre(SPRING, run, {"it": Measurement(observable, value, uncertainty)}, prior)


ASKING = Observable(  # the potential for its parameters
    SQUARE.frame, average, "k x²", "eV",
    parametric=lambda frame, params: params["k"] * (frame.system.position**2).mean(), spec=SPRING.spec,
)  # fmt: skip


@pytest.mark.parametrize("observable", [SQUARE, energy_per_atom(), ASKING], ids=["position", "energy", "asking"])
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
    x2 = (x**2).mean(1)
    o, slope = {"x²": (x2, 0.0), "energy": (0.5 * k * r2, 0.5 * r2), "k x²": (k * x2, x2)}[observable.name]
    mean = weight @ o
    change = weight @ (slope * np.ones_like(o)) - (weight @ (o * 0.5 * r2) - mean * (weight @ (0.5 * r2))) / KT
    np.testing.assert_allclose(value, -0.5 * ((mean - 0.5) / 0.1) ** 2, rtol=1e-9)
    np.testing.assert_allclose(gradient["potential"]["k"], -(mean - 0.5) / 0.1**2 * change, rtol=1e-6)
    np.testing.assert_allclose(info["effective_frames"], np.exp(-weight @ np.log(weight)) / len(x), rtol=1e-9)
    assert info["simulated"] == 0


def test_errors_and_their_slopes_make_up_the_likelihood(key):
    """At frames that are used again the gradient is −Jᵀ r, of means over the replicas."""
    asked = {"a": SQUARE, "b": energy_per_atom(), "c": ASKING}
    measured = {name: Measurement(o, 0.5, 0.1 * n) for n, (name, o) in enumerate(asked.items(), start=1)}
    target = difftre(SPRING, spring_run(replicas=2), measured, normal(0.5, skip=()))
    linearise, state = jax.jit(target.linearise), target.init(key, spring())
    for n in range(2):
        linear = linearise(jax.random.key(n), spring(), state)
        assert linear.state.simulations == n + 1
        state = linear.state
    _, gradient, *_ = jax.jit(target.value_and_grad)(jax.random.key(2), spring(), state, None)
    for name, own in spring()["potential"].items():
        exact = -linear.errors @ linear.slopes["potential"][name] - 4.0 * own
        np.testing.assert_allclose(gradient["potential"][name], exact, rtol=1e-9)
        np.testing.assert_allclose(linear.precision["potential"][name], 4.0, rtol=1e-12)


def test_at_the_reference_all_weights_are_equal(key):
    target = target_of(spring_run(replicas=2))
    evaluate = jax.jit(target.value_and_grad)
    *_, state, first = evaluate(key, spring(), target.init(key, spring()), None)
    *_, second = evaluate(key, spring(), state, None)
    assert (first["simulated"], second["simulated"]) == (1, 0)
    np.testing.assert_allclose(second["effective_frames"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(second["chi2"], first["chi2"], rtol=1e-9)


@pytest.mark.slow
def test_the_known_derivative_of_a_harmonic_average(key):
    """⟨(x − c)²⟩ = kT/k. Over 120 seeds half as many frames gave a relative standard deviation of 0.082."""
    target = target_of(spring_run(replicas=4, steps=8000), value=0.0, uncertainty=1.0)
    params = spring(c=jnp.asarray(0.0))
    *_, gradient, _, _ = target.value_and_grad(key, params, target.init(key, params), None)
    exact = -(KT / 2) * -(KT / 4)  # −⟨O⟩ ∂⟨O⟩/∂k for y = 0, σ = 1
    assert gradient["potential"]["k"] == pytest.approx(exact, rel=4 * 0.082 / np.sqrt(2))


def crystal_target(observables, run_of):
    """Argon in a box of eight cells, 32 atoms; measured values a little off, so that the likelihood has a slope."""
    lattice = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cells = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    start = system(5.4 * (cells + lattice).reshape(-1, 3), [18] * 32, 10.8 * np.eye(3))
    potential = lennard_jones(3.4, 0.0104, cutoff=5.0)
    kT = 60 * units.kB
    run = run_of(start, nvt_langevin(kT=kT, dt=5 * units.fs, gamma=0.05))
    return potential, difftre(potential, run, observables(potential, kT))


@pytest.mark.parametrize("asking", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_through_energy_stress_and_potential_are_those_of_differences(asking, key):
    def observables(potential, kT):
        told = {
            "rdf": Measurement(rdf(r_max=5.0, bins=10), np.ones(10), 0.3),
            "heat capacity": Measurement(heat_capacity(kT), 2.5, 0.1),
            "pressure": Measurement(pressure(), 0.1, 0.01),
        }
        asked = {"elastic": Measurement(elastic_constants(potential, kT), [2.0, 1.0, 1.0], 0.3)}
        return told | asked if asking else told

    def run_of(start, ensemble):
        return reference_run(start, ensemble, steps=100, every=10, first_equilibration=20, min_share=1e-9)

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


def test_products_of_different_replicas():
    error = np.random.default_rng(0).normal(size=(3, 2))
    pairs = np.mean([error[a] * error[b] for a in range(3) for b in range(3) if a != b], axis=0)
    slopes = {
        fresh: jax.jacobian(lambda e, f=fresh: _square(e, jnp.asarray(f)))(jnp.asarray(error))
        for fresh in (True, False)
    }
    for fresh in (True, False):
        np.testing.assert_allclose(_square(jnp.asarray(error), jnp.asarray(fresh)), pairs)
    column = error[:, 0]
    np.testing.assert_allclose(slopes[True][0, :, 0], 2 * (column.sum() - column) / 6)
    np.testing.assert_allclose(slopes[False][0, :, 0], 2 * column.mean() / 3)
    np.testing.assert_allclose(_square(jnp.asarray(error[:1]), jnp.asarray(True)), error[0] ** 2)


@pytest.mark.slow
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


@pytest.mark.parametrize("age", [1, 3])
def test_new_frames_when_they_are_old(key, age):
    target = target_of(spring_run(steps=100, max_age=age))
    evaluate = jax.jit(target.value_and_grad)
    state, made = target.init(key, spring()), []
    for _ in range(7):
        _, _, state, info = evaluate(key, spring(), state, None)
        made.append(int(info["simulated"]))
    assert made == [int(n % age == 0) for n in range(7)]


def test_frames_of_a_trajectory_may_be_the_start(key):
    """They are arrays of NumPy, which traced code cannot index."""
    run = spring_run(replicas=1, steps=20)
    run = reference_run(jax.tree.map(np.asarray, run.start), run.ensemble, steps=20, every=10, skin=5.0, max_kT=100.0)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(run.start))


def test_replicas_start_anew_from_frames_drawn_by_their_weights(key):
    target = target_of(spring_run(replicas=3, steps=100, reseed=True))
    *_, state, _ = jax.jit(target.value_and_grad)(key, spring(), target.init(key, spring()), None)
    frame, reseeded = np.asarray(state.position), jax.jit(_reseeded)

    def drawn(log_weight, n):
        runs = reseeded(jax.random.key(n), state, log_weight).runs.state
        np.testing.assert_array_equal(runs.momentum, state.runs.state.momentum)
        return [int(np.flatnonzero((frame == x).all((-1, -2)))[0]) for x in np.asarray(runs.position)]

    # Half of three replicas start from the one, half from the other: one for certain from each
    log_weight = jnp.full(30, -1e3).at[14].set(0.3).at[27].set(0.3)
    starts = np.array([drawn(log_weight, n) for n in range(200)])
    assert (starts[:, 0] == 14).all()
    assert (starts[:, 2] == 27).all()
    assert np.mean(starts[:, 1] == 14) == pytest.approx(0.5, abs=4 * 0.5 / 200**0.5)
    # Of equal frames, each replica takes one of its own
    assert all([n // 10 for n in drawn(jnp.zeros(30), seed)] == [0, 1, 2] for seed in range(20))
    # What has no energy at the parameters is not drawn
    assert all(3 not in drawn(jnp.zeros(30).at[3].set(jnp.nan), seed) for seed in range(20))
    new = target.init(key, spring())
    unchanged = _reseeded(jax.random.key(2), new, jnp.full(30, jnp.nan)).runs.state
    np.testing.assert_array_equal(unchanged.position, new.runs.state.position)


@pytest.mark.slow
def test_a_reseeded_replica_forgets_where_it_was_caught(key):
    """A double well along x with a barrier of 11 kT, tilted after the first simulation."""

    def energy(p, s, n):
        x, y, z = s.position.T
        return 8.0 * ((x / 2) ** 2 - 1) ** 2 + p["tilt"] * x + y**2 + z**2

    well = Potential(lambda key: {"tilt": jnp.asarray(0.0)}, energy, 1.0, (), {"name": "well"})
    mean = Observable(lambda f: f.system.position[0, 0], average, "x", "Å")
    flat, tilted = ({"potential": {"tilt": jnp.asarray(tilt)}, "noise": {}} for tilt in (0.0, 1.5))
    for reseed in (False, True):
        run = spring_run(replicas=8, steps=200, reseed=reseed, max_age=1)
        target = difftre(well, run, {"it": Measurement(mean, 0.0, 1.0)})
        *_, first, _ = target.value_and_grad(key, flat, target.init(key, flat), None)
        *_, still, _ = target.value_and_grad(jax.random.fold_in(key, 1), flat, first, None)
        *_, second, _ = target.value_and_grad(jax.random.fold_in(key, 2), tilted, still, None)
        states = first, second, still
        left = [(np.asarray(state.position)[:, 0, 0].reshape(8, -1) < 0).mean(1) for state in states]
        assert set(left[0]) == {0.0, 1.0}  # some were caught on each side
        np.testing.assert_array_equal(left[2], left[0])  # and stay, as long as both are worth the same
        if reseed:  # on the right there remains exp(−1.5 · 4 / 0.7) = 2e-4
            assert set(left[1]) == {1.0}
        else:
            np.testing.assert_array_equal(left[1], left[0])


@pytest.mark.slow
def test_steps_are_shortened_to_where_the_frames_still_serve(key):
    target = target_of(spring_run(min_share=1e-9), value=0.0)
    one, two = jax.random.split(key)
    start = initial(two, target, chains=1)
    options = {"steps": 3, "burn_in": 0, "thin": 1, "progress": False}
    far = infer(jax.random.clone(one), optimise(target, optax.sgd(0.1), average=0.0), start, None, **options)
    near = infer(one, optimise(target, optax.sgd(0.1), average=0.0, min_share=0.5), start, None, **options)
    assert np.asarray(far.history["effective_frames"])[0, 1] < 0.5
    share = np.append(1.0, np.asarray(near.history["effective_frames"])[0, 1:])
    assert (share[1:] >= 0.5 * share[:-1] - 1e-9).all()
    assert (np.diff(np.asarray(near.history["log_density"])[0]) > 0).all()
    with pytest.raises(ValueError, match="targets that simulate"):
        optimise(target._replace(share=None), optax.sgd(1.0), min_share=0.5)


def test_gaussian_log_weights_and_the_effective_number():
    """Of −ΔU/kT with a standard deviation s the share is exp(−s²/2); by quantiles, s = 1.2."""
    from scipy import stats

    difference = 1.2 * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert share_of(weights_of(jnp.asarray(difference), 1.0)) == pytest.approx(0.4868, abs=2e-3)


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


@pytest.mark.slow
def test_a_list_too_short_makes_the_chain_unstable(key, monkeypatch):
    monkeypatch.setattr("bayespot.targets.reference_frames.rooms", lambda *_: ((1, 0), (1, 0)))
    run = reference_run(
        system(np.array([[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0]]), [18] * 3, 12.0 * np.eye(3)),
        nvt_langevin(kT=0.01, dt=1.0), steps=20, every=10,
    )  # fmt: skip
    potential = lennard_jones(2.4, 0.05, cutoff=5.0)
    target = difftre(potential, run, {"g": Measurement(rdf(5.0, 5), np.ones(5), 1.0)})
    start = initial(key, target, chains=1)
    with pytest.warns(RuntimeWarning, match="diverged.*raise the capacity"):
        samples = infer(key, optimise(target, optax.sgd(1e-3)), start, None, steps=3, thin=1, burn_in=0, progress=False)
    assert (np.asarray(samples.status) != Status.OK).all()
    # What failed is not simulated again and again
    np.testing.assert_array_equal(np.asarray(samples.history["simulated"])[0], [1, 0, 0])


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(key, tmp_path, monkeypatch):
    target = target_of(spring_run(steps=200, max_age=2))
    one, two = jax.random.split(key)
    start, algorithm = initial(two, target, chains=1), sgld(target, 1e-3)
    options = {"steps": 6, "burn_in": 0, "thin": 1, "progress": False}
    whole = infer(jax.random.clone(one), algorithm, start, None, **options)
    with monkeypatch.context() as patch:
        patch.setattr("bayespot.inference.infer.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        calls = iter(range(4))
        patch.setattr("bayespot.inference.infer._postfix", lambda run: str(next(calls)))
        with pytest.raises((StopIteration, RuntimeError)):
            infer(jax.random.clone(one), algorithm, start, None, checkpoint=str(tmp_path / "run"), **options)
    resumed = infer(one, algorithm, start, None, checkpoint=str(tmp_path / "run"), **options)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_an_observable_needs_anew():
    from bayespot.targets.difftre import _moves

    run = spring_run()
    low = Observable(lambda f: jnp.where(f.energy < 1.0, 1.0, 0.0), average, "share of low energies", "")
    assert _moves(low, run)
    assert not _moves(low, run, ("stress",))
    assert not _moves(SQUARE, run)


def test_memory_does_not_grow_with_the_length_of_the_simulation(key):
    """What the compiled update works with: the same for as many frames of longer runs; for each more, 2.4 frames."""

    def work(frames, every):
        target = target_of(spring_run(steps=frames * every, every=every, replicas=2))
        state = jax.eval_shape(target.init, key, spring())
        update = jax.jit(lambda k, p, s: target.value_and_grad(k, p, s, None))
        memory = update.lower(key, spring(), state).compile().memory_analysis()
        return memory.temp_size_in_bytes, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    (short, kept), (more, kept_then) = work(60, 10), work(600, 10)
    assert short > 0
    assert work(60, 1000) == (short, kept)
    assert more - short < 3 * (kept_then - kept)


def test_errors(key):
    run = spring_run()
    with pytest.raises(ValueError, match="at least one measurement"):
        difftre(SPRING, run, {})
    with pytest.raises(ValueError, match="positive uncertainties"):
        target_of(run, uncertainty=0.0)
    with pytest.raises(ValueError, match=r"shape of x², \(\)"):
        target_of(run, value=np.zeros(3))
    with pytest.raises(ValueError, match=r"Got \(\) ± \(4, 1\)"):
        target_of(run, uncertainty=np.ones((4, 1)))
    with pytest.raises(ValueError, match="periodic"):
        target_of(run, pressure())
    with pytest.raises(ValueError, match=r"every = 10 must divide steps\. Got 1005\. Use 1000"):
        spring_run(steps=1005)
    for ensemble in (npt_nose_hoover(kT=0.1, dt=0.1, pressure=0.0), nve(dt=0.1, kT=0.1)):
        with pytest.raises(ValueError, match="constant box"):
            reference_run(run.start, ensemble, steps=10, every=1)
    with pytest.raises(ValueError, match="propagate"):
        target_of(run).metrics(spring(), None)
    with pytest.raises(ValueError, match=r"simulates.* has no density"):
        control_variates(target_of(run), np.zeros((1, 0)))
    with pytest.raises(ValueError, match="simulates"):
        replica_exchange(lambda t: sgld(target_of(run), 1e-3, temperature=t), target_of(run), (1.0, 2.0))


def test_constants_of_another_potential_are_refused():
    potential = lennard_jones(2.4, 0.05, cutoff=5.0)
    start = system(np.array([[0, 0, 0], [2.5, 0, 0]]), [18, 18], 12.0 * np.eye(3))
    run = reference_run(start, nvt_langevin(kT=0.01, dt=1.0), steps=20, every=10)
    fixed = elastic_constants(potential, 0.01, params=potential.init(jax.random.key(0)))
    for observable in (fixed, elastic_constants(lennard_jones(2.5, 0.05, cutoff=5.0), 0.01)):
        with pytest.raises(ValueError, match="potential that is learned"):
            difftre(potential, run, {"C": Measurement(observable, np.ones(3), 1.0)})
