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
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.schedules import constant, cyclical
from bayespot.inference.sghmc import sghmc
from bayespot.inference.sgld import sgld
from bayespot.inference.sgnht import sgnht
from bayespot.inference.target import Target
from tests.oracles.linear_model import make

ROWS = 32
DATA, TARGET, MEAN, COVARIANCE = make(rows=ROWS)
FASTEST = (np.linalg.eigvalsh(np.linalg.inv(COVARIANCE)).max() / ROWS) ** -0.5  # 1/√λ_max
QUIET = control_variates(TARGET, DATA)

# name: algorithm at a temperature, and batch size
SAMPLERS = {
    "sghmc": (lambda t: sghmc(TARGET, constant(0.8 * FASTEST), friction=1 / FASTEST, temperature=t), None),
    "sghmc, control variates": (
        lambda t: sghmc(QUIET, constant(0.2 * FASTEST), friction=2 / FASTEST, temperature=t), 8,
    ),
    "sgnht": (
        lambda t: sgnht(TARGET, constant(0.5 * FASTEST), friction=1 / FASTEST, relaxation=4 * FASTEST, temperature=t),
        None,
    ),
    "sggmc": (
        lambda t: sggmc(TARGET, DATA, constant(0.4 * FASTEST), friction=1 / FASTEST, length=4, temperature=t), 16,
    ),
    "amagold": (
        lambda t: amagold(TARGET, DATA, constant(0.4 * FASTEST), friction=0.5 / FASTEST, length=4, temperature=t), 16,
    ),
}  # fmt: skip


def at_mode(chains: int = 128):
    return {"a": jnp.tile(jnp.asarray(MEAN), (chains, 1))}


def draws(algorithm, batch_size, steps=2_400, **options):
    arguments = {"steps": steps, "burn_in": 400, "thin": 20, "batch_size": batch_size, "chains_at_once": 128} | options
    return infer(jax.random.key(1), algorithm, at_mode(), DATA, progress=False, **arguments)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_cold_posterior_is_exact(name):
    # at T = 1/4, where a factor of T that is missing or there twice would show
    make_algorithm, batch_size = SAMPLERS[name]
    x = np.asarray(draws(make_algorithm(0.25), batch_size).params["a"])
    exact = 0.25 * COVARIANCE
    np.testing.assert_allclose(x.var(0), np.diag(exact), rtol=0.05)
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), 5 * np.sqrt(np.diag(exact) / 10_000))
    correlation = np.corrcoef(x.T) - exact / np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs(correlation).max() < 5 / np.sqrt(10_000)


def mixture(weight: float, size: int = 32) -> tuple[Target, dict]:
    """w N(−2, ½²) + (1 − w) N(2, ½²); minibatches add noise whose mean over all data is 0."""
    import numpyro.distributions as dist

    z = np.random.default_rng(3).normal(size=size)
    data = {"z": jnp.asarray(z - z.mean())}
    parts = dist.MixtureSameFamily(
        dist.Categorical(jnp.array([weight, 1 - weight])), dist.Normal(jnp.array([-2.0, 2.0]), 0.5)
    )

    def value_and_grad(key, params, state, batch):
        def value(p):
            return parts.log_prob(p["x"]) / size + 0.02 * p["x"] * batch["z"].mean()

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
