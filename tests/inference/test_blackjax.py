"""blackjax's kernels under the library's contract, against the exact posterior."""

from functools import partial

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.inference.blackjax import from_blackjax, hmc, mclmc, nuts
from bayespot.inference.full_data import full_log_density
from bayespot.inference.infer import infer
from bayespot.inference.target import initial
from tests.oracles.linear_model import make

DATA, TARGET, MEAN, COVARIANCE = make(rows=32)


def draws(algorithm, chains=8, steps=1000, batch_size=None, **options):
    samples = infer(
        jax.random.key(1), algorithm, initial(jax.random.key(9), TARGET, chains), DATA, steps=steps,
        burn_in=options.pop("burn_in", 0), thin=options.pop("thin", 10), batch_size=batch_size,
        chains_at_once=chains, progress=False,
    )  # fmt: skip
    assert (np.asarray(samples.status) == 0).all()
    return samples


@pytest.mark.parametrize(
    "name", ["nuts", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nuts, dense", "hmc", "mclmc"))]
)
def test_full_batch_references_sample_the_cold_posterior(name):
    # 8 chains × 100 draws, 10 steps apart: independent, or nearly so for MCLMC, whose discretisation adds some bias.
    # Error of a variance 5 %: 20 % are four of them.
    makes = {"nuts": nuts, "nuts, dense": partial(nuts, dense=True), "hmc": hmc, "mclmc": mclmc}
    samples = draws(makes[name](TARGET, DATA, warm_up=300, temperature=0.25))
    x = np.asarray(samples.params["a"])
    np.testing.assert_allclose(x.var(0), 0.25 * np.diag(COVARIANCE), rtol=0.2)
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), 5 * np.sqrt(0.25 * np.diag(COVARIANCE) / 800))
    per_datum = TARGET.value_and_grad(jax.random.key(0), {"a": jnp.asarray(x[-1])}, (), DATA)[0]
    np.testing.assert_allclose(samples.log_density[-1], per_datum, rtol=1e-9)


@pytest.mark.slow
def test_any_kernel_of_blackjax():
    precise = blackjax.hmc(full_log_density(TARGET, DATA), 0.1, jnp.ones(3) * 0.1, num_integration_steps=10)
    samples = draws(from_blackjax(precise, TARGET.spec), steps=1100, burn_in=100)
    np.testing.assert_allclose(np.asarray(samples.params["a"]).var(0), np.diag(COVARIANCE), rtol=0.2)
    assert 0.5 < float(samples.history["acceptance"].mean()) <= 1.0

    def gradient(params, batch):  # of the full log posterior, which is blackjax's convention
        return jax.tree.map(lambda g: 32 * g, TARGET.value_and_grad(jax.random.key(0), params, (), batch)[1])

    kernel = from_blackjax(blackjax.sgld(gradient), TARGET.spec, step_size=2e-4)
    samples = draws(kernel, chains=32, steps=2400, burn_in=400, thin=20, batch_size=32)
    # ελ_max = 2e-4 × 128 = 0.026, slowest 1/ελ = 150 steps: some 32 × 13 independent draws, 7 % each
    np.testing.assert_allclose(np.asarray(samples.params["a"]).var(0), np.diag(COVARIANCE), rtol=0.3)
