"""Alternation: each algorithm goes on from the other's parameters, with a state of its own."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot.inference.alternate import alternate
from bayespot.inference.blackjax import from_blackjax
from bayespot.inference.full_data import full_log_density
from bayespot.inference.infer import infer
from bayespot.inference.mh_corrected import sggmc
from bayespot.inference.optimise import optimise
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.sgld import sgld
from bayespot.inference.target import Target


def attracted(centre: float) -> Target:
    def value_and_grad(key, params, state, batch):
        away = params["x"] - centre
        return -0.5 * away**2, {"x": -away}, state, {}

    return Target(
        lambda key: {"x": jnp.asarray(0.0)}, lambda key, params: (), value_and_grad, lambda p, b: {}, 4, {"name": "a"}
    )


def run(key, *optimisers):
    centres = (1.0, -3.0)
    parts = [optimise(attracted(c), o, average=0.0) for c, o in zip(centres, optimisers, strict=False)]
    start = {"x": jnp.zeros(1)}
    algorithm = alternate(*parts) if len(parts) > 1 else parts[0]
    return infer(key, algorithm, start, np.zeros((4, 1)), steps=20, batch_size=2, progress=False)


def test_a_step_of_length_zero_changes_nothing(key):
    pure, other = (run(k, *o) for k, o in ((key, [optax.adam(0.1)]), (key, [optax.adam(0.1), optax.sgd(0.0)])))
    np.testing.assert_array_equal(pure.params["x"], other.params["x"])
    assert float(pure.params["x"][0]) != 0.0


def test_two_attractions_meet_where_one_turn_leaves_the_parameters(key):
    """x → x + a (1 − x), then x → x + b (−3 − x): fixed point after the second step."""
    a, b = 0.5, 0.25
    samples = run(key, optax.sgd(a), optax.sgd(b))
    wanted = ((1 - b) * a * 1.0 + b * -3.0) / (1 - (1 - a) * (1 - b))
    assert float(samples.params["x"][0]) == pytest.approx(wanted, abs=1e-6)
    assert set(samples.history) == {"log_density", "0/log_density", "1/log_density"}


def test_several_steps_in_turn_take_one_part_of_the_minibatch_each(key):
    """Six frames: x goes half of the way to the mean of two of them, three times, then a quarter towards −3."""

    def value_and_grad(key, params, state, batch):
        away = params["x"] - batch.mean()
        return -0.5 * away**2, {"x": -away}, state, {"frames": jnp.asarray(len(batch))}

    data, a, b = np.arange(6.0)[:, None], 0.5, 0.25
    one = optimise(attracted(0.0)._replace(value_and_grad=value_and_grad, size=6), optax.sgd(a))
    other = optimise(attracted(-3.0)._replace(size=6), optax.sgd(b))
    algorithm = alternate(one, other, steps=(3, 1))
    state, info = algorithm.step(key, start := algorithm.init(jax.random.key(1), {"x": jnp.asarray(0.0)}), data)
    x = 0.0
    for mean in (0.5, 2.5, 4.5):
        x += a * (mean - x)
    assert float(state[0].params["x"]) == pytest.approx(x, rel=1e-12)
    assert float(state[1].params["x"]) == pytest.approx(x + b * (-3 - x), rel=1e-12)
    assert int(info["0/frames"]) == 2
    with pytest.raises(ValueError, match="a multiple of it"):
        algorithm.step(jax.random.key(2), start, data[:4])
    with pytest.raises(ValueError, match="each of 2 algorithms"):
        alternate(one, other, steps=(3,))


def test_without_data_nothing_is_parted(key):
    """Twice half of the way to 1, then a quarter of that to −3."""
    parts = [
        optimise(attracted(c)._replace(frames=False), optax.sgd(a), average=0.0) for c, a in ((1.0, 0.5), (-3.0, 0.25))
    ]
    samples = infer(key, alternate(*parts, steps=(2, 1)), {"x": jnp.zeros(1)}, None, steps=1, progress=False)
    np.testing.assert_allclose(samples.params["x"], 0.75 * 0.75 + 0.25 * -3.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["sggmc", "replica_exchange", "hmc"])
def test_samplers_that_remember_are_refused(key, name):
    """Their test of acceptance would count the other's step as their own."""
    target, data = attracted(0.0), np.zeros((4, 1))
    sampler = {
        "sggmc": lambda: sggmc(target, data, 0.1, friction=1.0, length=1),
        "replica_exchange": lambda: replica_exchange(lambda t: sgld(target, 0.1, temperature=t), target, (1.0, 2.0)),
        "hmc": lambda: from_blackjax(blackjax.hmc(full_log_density(target, data), 0.1, np.ones(1), 2), target.spec),
    }[name]()
    both = alternate(optimise(attracted(1.0), optax.sgd(0.5)), sampler)
    with pytest.raises(ValueError, match="would not notice"):
        both.init(key, {"x": jnp.asarray(0.0)})


def test_nothing_to_alternate():
    with pytest.raises(ValueError, match="at least one"):
        alternate()


def test_data_are_checked_by_all(key):
    with pytest.raises(ValueError, match="made for 4 frames"):
        infer(
            key,
            alternate(optimise(attracted(1.0), optax.sgd(0.1)), optimise(attracted(0.0), optax.sgd(0.1))),
            {"x": jnp.zeros(1)}, np.zeros((3, 1)), steps=2, batch_size=None, progress=False,
        )  # fmt: skip
