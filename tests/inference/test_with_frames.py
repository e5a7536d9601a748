"""Targets with frames of their own: joined, several sets are one; minibatches are right on average and never exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot.inference.full_data import full_log_density
from bayespot.inference.infer import infer
from bayespot.inference.mh_corrected import amagold, sggmc
from bayespot.inference.optimise import optimise
from bayespot.inference.priors import flat, normal
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.schedules import constant, cosine
from bayespot.inference.sgld import sgld
from bayespot.inference.subset import subset
from bayespot.inference.target import frames_scored, initial
from bayespot.inference.with_frames import with_frames
from bayespot.potentials.teacher import label
from bayespot.records.system import system
from bayespot.targets.difftre import Measurement, difftre
from bayespot.targets.force_matching import Noise, force_matching
from bayespot.targets.fused import fused
from bayespot.targets.relative_entropy import relative_entropy
from bayespot.tree import replace
from tests.targets.springs import SPRING, SQUARE, spring_run

NOISE = Noise(energy=0.4, forces=0.5, learn="fixed")


@pytest.fixture(scope="module")
def sets():
    """Nine labelled frames, and the target of the first six and of the other three."""
    rng = np.random.default_rng(0)
    frames = [system(rng.normal(size=(1, 3)), [1], np.zeros((3, 3))) for _ in range(9)]
    data = label(SPRING, {"k": jnp.asarray(1.5), "c": jnp.asarray(0.1)}, frames, 1.0)
    first = force_matching(SPRING, data[:6], normal(1.0), NOISE)
    return data, first, force_matching(SPRING, data[6:], flat(), NOISE)


def chains(key, target, number):
    """Different starting points."""
    params = initial(key, target, number)
    params["potential"]["k"] *= 1 + 0.1 * jnp.arange(number)
    return params


def test_two_sets_are_one_joint_density(key, sets):
    """The oracle is the target of the merged data."""
    data, first, second = sets
    merged = force_matching(SPRING, data, normal(1.0), NOISE)
    joined = fused(first, with_frames(second, data[6:]))
    assert joined.size == 6
    params = jax.tree.map(lambda x: x[0], initial(key, merged, 1))
    state = joined.init(jax.random.clone(key), params)
    value, gradient, *_ = jax.jit(joined.value_and_grad)(jax.random.key(3), params, state, data[:6])
    whole, slope, *_ = jax.jit(merged.value_and_grad)(jax.random.key(4), params, (), data)
    np.testing.assert_allclose(6 * value, 9 * whole, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(6 * a, 9 * b, rtol=1e-11)
    of_joined = full_log_density(joined, data[:6])(params)
    np.testing.assert_allclose(of_joined, full_log_density(merged, data)(params), rtol=1e-12)


@pytest.mark.slow
def test_descent_on_two_sets_is_that_on_their_union(key, sets):
    data, first, second = sets
    merged = force_matching(SPRING, data, normal(1.0), NOISE)
    found = []
    for target, rows, rate in (
        (merged, data, 9e-4),
        (fused(first, with_frames(second, data[6:])), data[:6], 6e-4),
        (fused(with_frames(first, data[:6]), with_frames(second, data[6:])), None, 1e-4),  # its "datum" is everything
    ):
        descent = optimise(target, optax.sgd(rate))
        start = chains(jax.random.clone(key), target, 2)
        found.append(infer(
            jax.random.key(1), descent, start, rows, steps=20, batch_size=None, progress=False
        ).params)  # fmt: skip
    assert np.ptp(np.asarray(found[0]["potential"]["k"])) > 1e-3
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_minibatches_are_right_on_average_and_without_repetition(key, sets):
    """Pairs of three frames: each of the three possible gradients, equally often within four standard errors."""
    data, _, second = sets
    few = with_frames(second, data[6:], batch_size=2)
    assert few.size == 3
    params = jax.tree.map(lambda x: x[0], initial(key, second, 1))

    def both(key, target, batch):
        value, gradient, *_ = target.value_and_grad(key, params, (), batch)
        return jnp.stack([value, gradient["potential"]["k"]])

    of_two = jax.jit(lambda rows: both(jax.random.key(5), second, rows))
    pairs = np.array([of_two(data[np.array(p)]) for p in ((6, 7), (6, 8), (7, 8))])
    drawn = np.array(jax.jit(jax.vmap(lambda k: both(k, few, None)))(jax.random.split(jax.random.key(6), 3000)))
    which = np.abs(drawn[:, None, 0] - pairs[:, 0]).argmin(1)
    np.testing.assert_allclose(drawn, pairs[which], rtol=1e-12)
    assert np.abs(np.bincount(which, minlength=3) - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)


def test_estimates_are_refused_where_a_value_must_be_exact(sets):
    data, first, second = sets
    noisy = fused(first, with_frames(second, data[6:], 2))
    with pytest.raises(ValueError, match="minibatches of its own"):
        full_log_density(noisy, data[:6])
    with pytest.raises(ValueError, match="minibatches of its own"):
        replica_exchange(lambda t: sgld(noisy, constant(1e-3), temperature=t), noisy, (1.0, 2.0))
    with pytest.raises(ValueError, match="min_share is for targets that simulate"):
        optimise(noisy, optax.sgd(1e-3), min_share=0.5)


def test_frames_that_count_are_those_inside(sets):
    data, first, second = sets
    assert frames_scored(first, data[:2]) == 2
    assert frames_scored(with_frames(second, data[6:]), None) == 3
    assert frames_scored(fused(first, with_frames(second, data[6:])), data[:6]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sggmc", "amagold", "replica_exchange"])
def test_samplers_that_compare_values_take_all_frames(key, sets, name):
    """Draws are those on the same data from outside."""
    data, first, _ = sets
    make = {
        "sggmc": lambda target, own: sggmc(target, own, 0.01, friction=1.0, length=3),
        "amagold": lambda target, own: amagold(target, own, 0.01, friction=1.0, length=4),
        "replica_exchange": lambda target, own: replica_exchange(
            lambda t: sgld(target, constant(1e-3), temperature=t), target, (1.0, 2.0), every=2
        ),
    }[name]
    found = []
    for target, own in ((first, data[:6]), (with_frames(first, data[:6]), None)):
        start = chains(jax.random.clone(key), target, 2)
        samples = infer(jax.random.key(1), make(target, own), start, own, steps=12, batch_size=None, progress=False)
        found.append(np.asarray(samples.params["potential"]["k"]))
    assert np.abs(np.unique(found[0]) - np.asarray(start["potential"]["k"])[:, None]).min() > 1e-4  # all have moved
    np.testing.assert_allclose(*found, rtol=1e-10)


def test_validation_is_by_the_first_that_scores_and_does_not_simulate(key, sets):
    data, first, second = sets
    alone = fused(with_frames(first, data[:6]), with_frames(second, data[6:]))
    optimise(alone, optax.sgd(1e-3), validation=data[6:])
    nothing = {f"has_{k}": np.zeros(9, bool) for k in ("energy", "forces", "stress")}
    with pytest.raises(ValueError, match="has none of the labels"):
        optimise(alone, optax.sgd(1e-3), validation=replace(data, **nothing))
    beside = fused(with_frames(first, data[:6]), relative_entropy(SPRING, spring_run(steps=60), data[6:]))
    params = jax.tree.map(lambda x: x[0], initial(key, beside, 1))
    with pytest.raises(ValueError, match="simulates cannot be scored"):
        beside.metrics(params, data)
    parts = full_log_density(first, data[:6])(params) + full_log_density(second, data[6:])(params)
    np.testing.assert_allclose(full_log_density(alone, None)(params), parts, rtol=1e-12)


def test_parts_of_the_parameters_are_joined_too(sets):
    """Targets of ``subset`` have no entry for the noise."""
    data, first, second = sets
    params = {"potential": {"k": jnp.asarray(2.0), "c": jnp.asarray(0.3)}, "noise": {}}
    merged = force_matching(SPRING, data, normal(1.0), NOISE)
    one, other, whole = (subset(t, params, ("k",)) for t in (first, second, merged))
    joined = fused(one.target, with_frames(other.target, data[6:]))
    start = initial(jax.random.key(0), joined, chains=1)
    assert jax.tree.structure(start) == jax.tree.structure(one.params)
    found = full_log_density(joined, data[:6])(one.params)
    np.testing.assert_allclose(found, full_log_density(whole.target, data)(whole.params), rtol=1e-12)


@pytest.mark.slow
def test_frames_of_two_temperatures_teach_one_spring(key):
    """Relative entropy of springs: the optimum of k is where n₁(⟨x²⟩₁ β₁/2 − 3/(2k)) and the other's sum to zero."""
    rng, sizes, temperatures, centre = np.random.default_rng(1), (60, 30), (0.7, 1.4), 0.3
    positions = [rng.normal(centre, np.sqrt(kT / 3.0), (n, 1, 3)) for n, kT in zip(sizes, temperatures, strict=True)]
    many = [
        label(
            SPRING,
            {"k": jnp.asarray(3.0), "c": jnp.asarray(centre)},
            [system(x, [1], np.zeros((3, 3))) for x in p],
            1.0,
        )
        for p in positions
    ]
    warm, hot = (
        relative_entropy(SPRING, spring_run(steps=2000, replicas=8, kT=kT, max_age=1), frames)
        for kT, frames in zip(temperatures, many, strict=True)
    )
    target = fused(warm, with_frames(hot, many[1], batch_size=10))
    start = chains(key, target, 8)
    found = infer(
        jax.random.key(2), optimise(target, optax.adam(cosine(0.1, 100)), average=0.9), start, many[0],
        steps=100, batch_size=20, progress=False,
    ).params["potential"]  # fmt: skip
    n, beta = np.array(sizes), 1 / np.array(temperatures)
    weight = n * beta
    c = sum(w * p.mean((0, 1)) for w, p in zip(weight, positions, strict=True)).mean() / weight.sum()
    square = np.array([((p - c) ** 2).sum((1, 2)).mean() for p in positions])
    k = 3 * n.sum() / (weight * square).sum()
    told = np.asarray(found["k"])
    assert told.std(ddof=1) < 0.1  # 0.07 measured; a wider one would make the next line say nothing
    assert abs(told.mean() - k) < 4 * told.std(ddof=1) / 8**0.5  # eight members: by chance once in 200
    assert abs(told.mean() - 3.82) > 0.1  # of the first temperature alone; 3.40 of the second


def test_errors(sets):
    data, first, second = sets
    with pytest.raises(ValueError, match=r"between 1 and the number of frames, 3\. Got 4"):
        with_frames(second, data[6:], 4)
    with pytest.raises(ValueError, match=r"made for 3 frames\. Got 6"):
        with_frames(second, data[:6])
    alone = difftre(SPRING, spring_run(steps=60, replicas=2), {"x²": Measurement(SQUARE, 0.4, 0.1)})
    with pytest.raises(ValueError, match="scores none"):
        with_frames(alone, data)
    with pytest.raises(ValueError, match="with_frames"):
        fused(first, second)
