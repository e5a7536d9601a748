"""Every sampler against the exact posterior of Bayesian linear regression, and the modes of a mixture.

Error budget of the variances: 128 chains of 100 draws, 20 steps apart where correlation times are 10 steps or less,
hold more than 10 000 effective draws: relative standard error 1.4 % or less, of which 5 % are 3.5 or more.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.inference.control_variates import control_variates
from bayespot.inference.diagnostics import rhat
from bayespot.inference.infer import infer
from bayespot.inference.mh_corrected import amagold, sggmc
from bayespot.inference.preconditioner import fixed
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.schedules import constant, cyclical
from bayespot.inference.sghmc import sghmc
from bayespot.inference.sgld import sgld
from bayespot.inference.sgnht import sgnht
from bayespot.inference.target import Target
from tests.oracles.linear_model import in_two_leaves, make

pytestmark = pytest.mark.usefixtures("optimised")
ROWS = 32
DATA, ONE_LEAF, MEAN, COVARIANCE = make(rows=ROWS)
TARGET = in_two_leaves(ONE_LEAF)
FASTEST = (np.linalg.eigvalsh(np.linalg.inv(COVARIANCE)).max() / ROWS) ** -0.5  # 1/√λ_max
QUIET = control_variates(TARGET, DATA)


def thermostatted(kind: str, temperature: float = 1.0, friction: float = 1.0):
    return sgnht(
        TARGET, constant(0.5 * FASTEST), friction=friction / FASTEST, relaxation=4 * FASTEST, temperature=temperature,
        thermostats=kind,
    )  # fmt: skip


# name: algorithm at a temperature, and batch size
SAMPLERS = {
    "sghmc": (lambda t: sghmc(TARGET, constant(0.8 * FASTEST), friction=1 / FASTEST, temperature=t), None),
    "sghmc, control variates": (
        lambda t: sghmc(QUIET, constant(0.4 * FASTEST), friction=1 / FASTEST, temperature=t), 16,
    ),
    "sgnht": (lambda t: thermostatted("global", t), None),
    "sgnht per leaf": (lambda t: thermostatted("leaf", t), None),
    "sggmc": (
        lambda t: sggmc(TARGET, DATA, constant(0.4 * FASTEST), friction=1 / FASTEST, length=4, temperature=t), 16,
    ),
    "amagold": (
        lambda t: amagold(TARGET, DATA, constant(0.4 * FASTEST), friction=1 / FASTEST, length=4, temperature=t), 16,
    ),
}  # fmt: skip


def at_mode(chains: int = 128):
    mode = jnp.tile(jnp.asarray(MEAN), (chains, 1))
    return {"first": mode[:, :1], "rest": mode[:, 1:]}


def joined(samples) -> np.ndarray:
    return np.concatenate([samples.params["first"], samples.params["rest"]], 1)


def draws(algorithm, batch_size, steps=2_400, **options):
    arguments = {"steps": steps, "burn_in": 400, "thin": 20, "batch_size": batch_size, "chains_at_once": 128} | options
    return infer(jax.random.key(1), algorithm, at_mode(), DATA, progress=False, **arguments)


# Slow: the first three count a minibatch twice or more; the thermostats per leaf resemble the single one.
LONG = ("sggmc", "amagold", "sghmc, control variates", "sgnht per leaf")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SAMPLERS])
def test_the_cold_posterior_is_exact(name):
    # at T = 1/4, where a factor of T that is missing or there twice would show
    make_algorithm, batch_size = SAMPLERS[name]
    x = joined(draws(make_algorithm(0.25), batch_size))
    exact = 0.25 * COVARIANCE
    np.testing.assert_allclose(x.var(0), np.diag(exact), rtol=0.05)
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), 5 * np.sqrt(np.diag(exact) / 10_000))
    correlation = np.corrcoef(x.T) - exact / np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs(correlation).max() < 5 / np.sqrt(10_000)


@pytest.mark.slow
def test_the_thermostat_takes_up_the_heat_of_minibatches():
    # curvatures all alike, and so is the noise of the gradient in all directions: what the friction can balance
    data, target, mean, covariance = make(rows=1024, condition=1.0)
    quick = (np.linalg.eigvalsh(np.linalg.inv(covariance)).max() / 1024) ** -0.5
    start = {"a": jnp.tile(jnp.asarray(mean), (128, 1))}
    options = {"steps": 2_400, "burn_in": 400, "thin": 20, "batch_size": 64, "chains_at_once": 128, "progress": False}
    options["batches"] = "independent"
    step, friction = constant(0.1 * quick), 0.5 / quick
    hot = infer(jax.random.key(1), sghmc(target, step, friction=friction), start, data, **options)
    held = infer(
        jax.random.key(2), sgnht(target, step, friction=friction, relaxation=4 * quick), start, data, **options
    )
    ratios = [np.asarray(s.params["a"]).var(0) / np.diag(covariance) for s in (hot, held)]
    assert (ratios[0] > 1.5).all()
    np.testing.assert_allclose(ratios[1], 1.0, atol=0.1)  # some 5 % come from the size of the step
    assert float(held.history["friction"][:, -1].mean()) > 1.2 * friction


def test_a_trajectory_across_epochs_is_refused():
    with pytest.raises(ValueError, match=r"number of minibatches of an epoch, 4, or be a multiple of it\. Got 3"):
        draws(amagold(TARGET, DATA, constant(0.1), friction=1.0, length=3), 8)
    with pytest.raises(ValueError, match="batch_size must be even"):
        draws(sggmc(TARGET, DATA, constant(0.1), friction=1.0, length=1), 1)


def test_what_is_not_a_number_is_not_frozen():
    broken = {"first": jnp.ones(1), "rest": jnp.array([1.0, jnp.nan])}
    with pytest.warns(RuntimeWarning, match="diverged"):
        samples = draws(sghmc(TARGET, constant(0.1), friction=1.0, preconditioner=fixed(broken)), None, steps=420)
    assert (np.asarray(samples.status) == 2).all()


@pytest.mark.slow
def test_a_lost_hot_copy_is_a_lost_chain():
    target, data = mixture(0.7)
    make_algorithm = lambda t: sgld(target, constant(0.01 * 32), temperature=t)  # noqa: E731
    algorithm = replica_exchange(make_algorithm, target, (1.0, 2.0, 4.0), every=2)
    state = algorithm.init(jax.random.key(1), {"x": jnp.array(2.0)})
    _, info = algorithm.step(jax.random.key(2), state, data)
    assert np.isfinite(info["log_density"])
    copies = state.copies._replace(params={"x": jnp.array([2.0, 2.0, jnp.nan])})
    lost, info = algorithm.step(jax.random.key(3), state._replace(copies=copies), data)
    assert np.isnan(info["log_density"])
    assert np.isfinite(lost.copies.params["x"][0])
    assert np.isfinite(lost.variance).all()


def test_the_penalty_of_a_swap_is_the_variance_of_its_estimate():
    # two copies that stay where they are, far apart, and minibatches whose noise dwarfs everything else
    target, data = mixture(0.5, noise=2.0)
    algorithm = replica_exchange(lambda t: sgld(target, constant(1e-12), temperature=t), target, (1.0, 2.0), every=1)
    state = algorithm.init(jax.random.key(1), {"x": jnp.array(0.0)})
    far = {"x": jnp.array([-2.0, 2.0])}
    step, rng, z = jax.jit(algorithm.step), np.random.default_rng(0), np.asarray(data["z"])
    for n in range(400):
        state = state._replace(copies=state.copies._replace(params=far))  # whatever the swap did
        batch = {"z": jnp.asarray(rng.choice(z, 8, replace=False))}
        state, _ = step(jax.random.key(10 + n), state, batch)
    exact = (2.0 * 4.0) ** 2 * z.var() / 8 * (32 - 8) / 31
    # a running mean of the last 100 squares of normal numbers: ± √(2/100) = 14 %
    np.testing.assert_allclose(state.variance[0], exact, rtol=0.45)
    # log a = −½ N²Δ²s² + N Δ (noise): with s as large as this no swap is ever made
    assert float(state.made[0]) <= 2


def mixture(weight: float, size: int = 32, noise: float = 0.02) -> tuple[Target, dict]:
    """w N(−2, ½²) + (1 − w) N(2, ½²); minibatches add noise whose mean over all data is 0."""
    import numpyro.distributions as dist

    z = np.random.default_rng(3).normal(size=size)
    data = {"z": jnp.asarray(z - z.mean())}
    parts = dist.MixtureSameFamily(
        dist.Categorical(jnp.array([weight, 1 - weight])), dist.Normal(jnp.array([-2.0, 2.0]), 0.5)
    )

    def value_and_grad(key, params, state, batch):
        def value(p):
            return parts.log_prob(p["x"]) / size + noise * p["x"] * batch["z"].mean()

        return *jax.value_and_grad(value)(params), state, {}

    target = Target(
        initial=lambda key: {"x": 2.0 * jax.random.rademacher(key, (), float)},
        init=lambda key, params: (),
        value_and_grad=value_and_grad,
        metrics=lambda params, batch: {},
        size=size,
        spec={"name": "mixture"},
    )
    return target, data


def on_the_left(samples) -> np.ndarray:
    return (np.asarray(samples.params["x"]) < 0).reshape(len(np.unique(samples.chain)), -1)


def start_right(chains: int = 32):
    return {"x": jnp.full(chains, 2.0)}


@pytest.mark.slow
def test_replica_exchange_finds_both_modes_with_their_weights():
    target, data = mixture(0.7)
    algorithm = replica_exchange(
        lambda t: sgld(target, constant(0.02 * 32), temperature=t), target, (1.0, 2.5, 6.0), every=5
    )
    samples = infer(
        jax.random.key(2), algorithm, start_right(), data, steps=12_000, burn_in=2_000, thin=20, batch_size=16,
        chains_at_once=32, progress=False,
    )  # fmt: skip
    share = on_the_left(samples).mean(1)
    error = share.std(ddof=1) / np.sqrt(len(share))  # from the differences between independent chains
    assert error < 0.02
    assert abs(share.mean() - 0.7) < max(3 * error, 0.02)
    assert abs(share.mean() - 0.7) < 0.07


@pytest.mark.slow
def test_cyclical_restarts_find_both_modes_and_plain_sgld_is_flagged():
    target, data = mixture(0.5)
    cycle = cyclical(0.3 * 32, 0.01 * 32, length=200, explore=0.5, hot=8.0)
    samples = infer(
        jax.random.key(3), sgld(target, cycle.step_size, temperature=cycle.temperature), start_right(), data,
        steps=4_000, burn_in=0, thin=20, keep=cycle.sampling, batch_size=16, chains_at_once=32, progress=False,
    )  # fmt: skip
    assert len(samples) == 32 * 20 * 5  # 120, 140, … 200 of each cycle
    share = on_the_left(samples)[:, ::5].mean()  # one draw a cycle: 640 independent restarts, ± 2 %
    assert abs(share - 0.5) < 0.05
    plain = infer(
        jax.random.key(4), sgld(target, constant(0.02 * 32)), {"x": jnp.array([-2.0, -2.0, 2.0, 2.0])}, data,
        steps=1_000, burn_in=200, thin=20, batch_size=16, chains_at_once=4, progress=False,
    )  # fmt: skip
    assert float(rhat(plain, plain.params["x"])) > 1.5
    assert float(rhat(samples, samples.params["x"])) < 1.05
