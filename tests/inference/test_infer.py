"""The driver: bookkeeping of draws, minibatches, checkpoints, messages."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bayespot.inference.infer as module
from bayespot.inference.diagnostics import ess, rhat
from bayespot.inference.infer import infer
from bayespot.inference.minibatches import bootstrap, minibatches
from bayespot.inference.optimise import optimise
from bayespot.inference.schedules import constant, cosine, cyclical, polynomial
from bayespot.inference.sgld import sgld
from bayespot.inference.target import initial
from tests.oracles.linear_model import SIGMA, WIDTH, make

DATA, TARGET, MEAN, COVARIANCE = make()


def started(chains: int):
    """Starting points from a key that nothing else uses."""
    return initial(jax.random.key(9), TARGET, chains)


def test_draws_come_at_the_right_steps(key):
    samples = infer(
        key, sgld(TARGET, constant(1e-3)), started(2), DATA, steps=50, burn_in=20,
        thin=10, batch_size=8, progress=False,
    )  # fmt: skip
    assert samples.chain.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.draw.tolist() == [0, 1, 2, 0, 1, 2]
    one = infer(
        key,
        sgld(TARGET, constant(1e-3)),
        started(2),
        DATA,
        steps=30,
        batch_size=8,
        progress=False,
    )
    # a run of 30 steps ends where the longer one had its first draw
    np.testing.assert_array_equal(one.params["a"], samples.params["a"][np.array([0, 3])])


def test_a_rule_chooses_among_the_draws(key, tmp_path):
    options = {"steps": 60, "burn_in": 0, "thin": 5, "batch_size": 8, "progress": False}
    algorithm = sgld(TARGET, constant(1e-3))
    every = infer(key, algorithm, started(2), DATA, **options)
    cycle = cyclical(1e-3, 1e-3, length=20, explore=0.5)
    folder = str(tmp_path / "run")
    some = infer(key, algorithm, started(2), DATA, keep=cycle.sampling, checkpoint=folder, **options)
    chosen = [n for n in range(24) if n % 4 in (2, 3)]  # after 15, 20, 35, 40, 55, 60 steps
    np.testing.assert_array_equal(some.params["a"], every.params["a"][np.array(chosen)])
    with pytest.raises(ValueError, match="at least one of the draws after 5, … 60 steps"):
        infer(key, algorithm, started(2), DATA, keep=lambda done: False, **options)
    with pytest.raises(ValueError, match="belongs to one run"):
        infer(key, algorithm, started(2), DATA, keep=lambda done: done == 60, checkpoint=folder, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"steps": 2000, "burn_in": 1000, "thin": 300},
            r"`thin` must divide steps − burn_in = 1000. Got 300. Use 250.",
        ),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10, "burn_in": 10}, "burn_in must lie between 0 and steps − 1 = 9. Got 10."),
        ({"steps": 10, "batch_size": 65}, "number of frames, 64. Got 65."),
    ],
)
def test_arguments_that_do_not_fit_are_refused(key, arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        infer(key, sgld(TARGET, constant(1e-3)), started(1), DATA, progress=False, **arguments)


def test_minibatches_are_permutations_of_every_epoch(key):
    order = minibatches(key, np.broadcast_to(np.arange(20), (2, 20)), 4)
    indices = np.asarray(order(3, 12, 16))
    assert indices.shape == (2, 16, 4)
    assert (indices[:, 9:] == 0).all()
    for chain in indices:
        assert sorted(chain[2:7].ravel()) == list(range(20))  # steps 5 … 9 are the second epoch
    assert not np.array_equal(indices[0], indices[1])
    np.testing.assert_array_equal(np.asarray(order(7, 9, 2)), indices[:, 4:6])  # a function of the step alone


def test_independent_minibatches_repeat_frames_within_an_epoch(key):
    order = minibatches(key, np.broadcast_to(np.arange(20), (1, 20)), 5, "independent")
    indices = np.asarray(order(0, 4000, 4000))[0]
    assert all(len(set(batch)) == 5 for batch in indices)  # no frame twice in one minibatch
    # two consecutive ones share 5 · 5/20 = 1.25 frames on average, ± 0.89/√4000 · 4; those of one epoch share none
    shared = [len(set(a) & set(b)) for a, b in pairwise(indices)]
    assert abs(np.mean(shared) - 1.25) < 0.06
    np.testing.assert_array_equal(np.asarray(order(7, 9, 2))[0], indices[7:9])
    with pytest.raises(ValueError, match="batches must be one of"):
        minibatches(key, np.broadcast_to(np.arange(20), (1, 20)), 5, "bootstrap")


@pytest.mark.parametrize(("steps", "segments"), [(5, 5), (40, 10), (120, 12), (300, 12), (2000, 80), (10_000, 100)])
def test_segments_of_short_runs_are_short(steps, segments):
    """Steps that simulate take seconds: forty of them show more than two points."""
    ends = module._plan(steps, 0, steps).ends
    assert (len(ends), ends[-1]) == (segments, steps)


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", ["sgld", "adam"])
def test_a_killed_run_resumes_bit_identically(key, tmp_path, monkeypatch, name):
    algorithm = {
        "sgld": sgld(TARGET, constant(1e-3)),
        "adam": optimise(TARGET, optax.adam(1e-2), validation=DATA, every=10),
    }[name]
    params = started(2)
    options = {"steps": 300, "burn_in": 100, "thin": 50, "batch_size": 8, "progress": False}
    whole = infer(key, algorithm, params, DATA, **options)

    folder = str(tmp_path / "run")
    original, calls = module._advance, []

    def dying(*arguments, **rest):
        calls.append(1)
        if len(calls) == 8:
            raise Stop
        return original(*arguments, **rest)

    monkeypatch.setattr(module, "_advance", dying)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(Stop):
        infer(key, algorithm, params, DATA, checkpoint=folder, **options)
    done = len(calls)
    resumed = infer(key, algorithm, params, DATA, checkpoint=folder, **options)
    assert len(calls) - done == 12 - 7  # it went on after the seventh of twelve segments, it did not start again
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="belongs to one run"):
        infer(key, algorithm, params, DATA, checkpoint=folder, **{**options, "steps": 350})


def test_best_parameters_really_are_the_best(key):
    # a step size so large that the iterate jumps about: the returned parameters must have the best score of all seen
    algorithm = optimise(TARGET, optax.sgd(0.9), average=0.0, validation=DATA, every=1)
    samples = infer(key, algorithm, started(4), DATA, steps=60, batch_size=4, progress=False)
    scores = jax.vmap(lambda p: TARGET.metrics(p, DATA)["log_likelihood"])(samples.params)
    np.testing.assert_allclose(scores, samples.history["validation"][:, -1])
    plain = optimise(TARGET, optax.sgd(0.9), average=0.0)
    seen = infer(
        key,
        plain,
        started(4),
        DATA,
        steps=60,
        burn_in=0,
        thin=1,
        batch_size=4,
        progress=False,
    )
    every = jax.vmap(lambda p: TARGET.metrics(p, DATA)["log_likelihood"])(seen.params).reshape(4, 60)
    np.testing.assert_allclose(scores, every.max(1))
    assert (every.max(1) > every[:, -1]).any()


def test_without_validation_the_parameters_are_trained_ones(key):
    start = started(1)
    samples = infer(key, optimise(TARGET, optax.adam(1e-2)), start, DATA, steps=200, batch_size=8, progress=False)
    assert float(jnp.abs(samples.params["a"] - start["a"]).max()) > 0.1


def test_early_stopping_stops(key):
    algorithm = optimise(TARGET, optax.adam(1e-1), validation=DATA, every=5, patience=4)
    samples = infer(key, algorithm, started(2), DATA, steps=100_000, batch_size=8, progress=False)
    assert samples.history["validation"].shape[1] < 90
    assert len(samples) == 2


def test_a_member_that_is_done_stands_still(key):
    algorithm = optimise(TARGET, optax.adam(1e-1), validation=DATA, every=5, patience=2)
    step = jax.jit(algorithm.step)
    state, info = algorithm.init(key, jax.tree.map(lambda x: x[0], started(1))), {"done": False}
    while not info["done"]:
        state, info = step(jax.random.clone(key), state, DATA)
    after, info = step(jax.random.clone(key), state, DATA)
    assert info["done"]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="patience ≥ 1"):
        optimise(TARGET, optax.adam(1e-1), validation=DATA, patience=0)


def test_a_run_that_stopped_early_does_not_go_on_when_called_again(key, tmp_path, monkeypatch):
    algorithm = optimise(TARGET, optax.adam(1e-1), validation=DATA, every=5, patience=4)
    options = {"steps": 10_000, "batch_size": 8, "checkpoint": str(tmp_path / "run"), "progress": False}
    first = infer(key, algorithm, started(2), DATA, **options)

    def never(*_, **__):
        raise Stop

    monkeypatch.setattr(module, "_advance", never)
    again = infer(key, algorithm, started(2), DATA, **options)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_schedules_have_the_published_values():
    # values of a = 0.00976917, b = 0.00709863 (γ = 0.33), computed by hand from the two end points
    schedule = polynomial(0.05, 0.001, 1000)
    np.testing.assert_allclose(
        [schedule(k) for k in (0, 99, 499, 999)], [0.05, 0.00214431, 0.00125743, 0.001], rtol=1e-5
    )
    np.testing.assert_allclose(schedule(5000), 0.001, rtol=1e-6)
    schedule = polynomial(0.005, 0.000375, 1000)
    np.testing.assert_allclose([schedule(k) for k in (99, 499)], [8.03195e-4, 4.71475e-4], rtol=1e-5)
    wave = cosine(1.0, 100, warm_up=10)
    np.testing.assert_allclose([wave(0), wave(10), wave(55), wave(100)], [0.1, 1.0, 0.5, 0.0], atol=1e-12)
    with pytest.raises(ValueError, match="0 < last < first"):
        polynomial(0.001, 0.05, 1000)


@pytest.mark.slow
def test_diagnostics_tell_agreeing_chains_from_disagreeing_ones(key):
    samples = infer(
        key, sgld(TARGET, constant(1e-2)), started(4), DATA, steps=120, burn_in=20, thin=2,
        batch_size=None, progress=False,
    )  # fmt: skip
    independent = jax.random.normal(jax.random.key(10), (200, 3))
    # R-hat of 4 × 50 independent draws: 1 + O(1/n); ESS near 200, of order ± 30
    assert (np.abs(np.asarray(rhat(samples, independent)) - 1) < 0.03).all()
    assert (np.asarray(ess(samples, independent)) > 100).all()
    apart = independent + 3 * samples.chain[:, None]
    assert (np.asarray(rhat(samples, apart)) > 1.5).all()
    # chains that never mix tell no more than their number; 16 draws each, as in the quickstart, must not hide it
    few = np.arange(200).reshape(4, 50)[:, :16].ravel()
    assert (np.asarray(ess(samples[few], apart[few])) < 10).all()
    with pytest.raises(ValueError, match=r"at least 2 chains of 8 draws\. Got 4 of 1"):
        rhat(samples[np.arange(0, 200, 50)], independent[::50])


def test_bootstrapped_chains_see_only_their_own_frames(key):
    rows = bootstrap(jax.random.key(10), 64, 2)
    assert rows.shape == (2, 64)
    assert 30 < len(np.unique(rows[0])) < 52  # 64 (1 − 1/e) = 40 ± 2.5
    one = np.tile(np.arange(8), (2, 1))
    samples = infer(
        key, optimise(TARGET, optax.adam(1e-2)), started(2), DATA, steps=4000, batch_size=8,
        rows=one, progress=False,
    )  # fmt: skip
    x, y = np.asarray(DATA["x"])[:8], np.asarray(DATA["y"])[:8]
    precision = x.T @ x / 8 / 0.5**2 + np.eye(3) / 2.0**2 / 64
    exact = np.linalg.solve(precision, x.T @ y / 8 / 0.5**2)
    np.testing.assert_allclose(samples.params["a"], np.stack([exact, exact]), atol=1e-3)
    with pytest.raises(ValueError, match="for each of the 3 chains"):
        infer(
            key,
            sgld(TARGET, constant(1e-3)),
            started(3),
            DATA,
            steps=10,
            rows=rows,
            progress=False,
        )


def test_a_checkpoint_of_another_algorithm_or_other_data_is_refused(key, tmp_path):
    params = started(1)

    def run(algorithm, data):
        return infer(key, algorithm, params, data, steps=30, batch_size=8, checkpoint=str(tmp_path), progress=False)

    run(sgld(TARGET, constant(1e-3)), DATA)
    run(sgld(TARGET, constant(1e-3)), DATA)
    for algorithm, data in (
        (sgld(TARGET, constant(1e-3), temperature=2.0), DATA),
        (sgld(TARGET, constant(2e-3)), DATA),
        (sgld(TARGET, constant(1e-3)), {**DATA, "y": DATA["y"] + 1.0}),
    ):
        with pytest.raises(ValueError, match="belongs to one run"):
            run(algorithm, data)


def test_a_run_that_ends_before_the_first_score_returns_trained_parameters(key):
    algorithm = optimise(TARGET, optax.adam(1e-2), validation=DATA, every=100)
    start = started(1)
    samples = infer(key, algorithm, start, DATA, steps=50, batch_size=8, progress=False)
    assert float(jnp.abs(samples.params["a"] - start["a"]).max()) > 0.05


def test_other_data_than_the_targets_are_refused(key):
    fewer = jax.tree.map(lambda x: x[:32], DATA)
    with pytest.raises(ValueError, match=r"made for 64 frames\. Got 32"):
        infer(key, sgld(TARGET, constant(1e-3)), started(1), fewer, steps=10, progress=False)


def test_snapshots_are_the_iterates_at_the_ends_of_the_cycles(key):
    """Against optax by hand, all data in every step."""
    cycle = cyclical(0.2, 1e-3, length=7)
    optimiser = optax.sgd(cycle.step_size, momentum=0.9)
    options = {"steps": 21, "burn_in": 0, "thin": 7, "batch_size": None, "progress": False}
    samples = infer(key, optimise(TARGET, optimiser, average=0.0), started(2), DATA, **options)
    expected = []
    for a in started(2)["a"]:
        params, state = {"a": a}, optimiser.init({"a": a})
        for step in range(21):
            residual = DATA["y"] - DATA["x"] @ params["a"]
            gradient = (DATA["x"].T @ residual / SIGMA**2 - params["a"] / WIDTH**2) / 64
            updates, state = optimiser.update({"a": -gradient}, state, params)
            params = optax.apply_updates(params, updates)
            expected += [params["a"]] if step % 7 == 6 else []
    np.testing.assert_allclose(samples.params["a"], np.stack(expected), rtol=1e-10)
    assert np.ptp(samples.params["a"][:3], axis=0).min() > 1e-3  # not the same one three times
