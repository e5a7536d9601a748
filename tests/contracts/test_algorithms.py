"""What every algorithm promises; a new member is one line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bayespot.inference.control_variates import control_variates
from bayespot.inference.infer import infer
from bayespot.inference.mh_corrected import amagold, sggmc
from bayespot.inference.optimise import optimise
from bayespot.inference.preconditioner import rms
from bayespot.inference.replica_exchange import replica_exchange
from bayespot.inference.schedules import constant
from bayespot.inference.sghmc import sghmc
from bayespot.inference.sgld import sgld
from bayespot.inference.sgnht import sgnht
from bayespot.inference.target import initial
from tests.oracles.linear_model import make

DATA, TARGET, MEAN, COVARIANCE = make()

ALGORITHMS = {
    "sgld": sgld(TARGET, constant(1e-2)),
    "psgld": sgld(TARGET, constant(1e-2), preconditioner=rms(freeze_after=100)),
    "sghmc": sghmc(TARGET, constant(0.2), friction=1.0),
    "sghmc, control variates": sghmc(control_variates(TARGET, DATA), constant(0.2), friction=1.0),
    "sgnht": sgnht(TARGET, constant(0.2), friction=1.0, relaxation=2.0, thermostats="leaf"),
    "sggmc": sggmc(TARGET, DATA, constant(0.2), friction=1.0, length=4),
    "amagold": amagold(TARGET, DATA, constant(0.2), friction=1.0, length=4),
    "replica exchange": replica_exchange(
        lambda t: sgld(TARGET, constant(1e-2), temperature=t), TARGET, (1.0, 2.0), every=4
    ),
    "adam": optimise(TARGET, optax.adam(1e-2)),
    "adam with validation": optimise(TARGET, optax.adam(1e-2), validation=DATA, every=10),
}


# Run with the slow tests only: their parts are all in others.
ALIKE = ("psgld", "sghmc, control variates")


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in ALGORITHMS], name="algorithm"
)
def _algorithm(request):
    return ALGORITHMS[request.param]


def test_step_keeps_structure_and_reports(algorithm, key):
    state = algorithm.init(jax.random.key(8), TARGET.initial(jax.random.key(9)))
    after, info = jax.jit(algorithm.step)(key, state, DATA)
    form = jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state)
    assert form == jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), after)
    assert np.shape(info["log_density"]) == ()
    assert jax.tree.structure(algorithm.params(after)) == jax.tree.structure(TARGET.initial(jax.random.key(9)))
    assert algorithm.spec == TARGET.spec


def test_step_is_a_function_of_its_key(algorithm):
    state = algorithm.init(jax.random.key(8), TARGET.initial(jax.random.key(9)))
    step = jax.jit(algorithm.step)
    one, two = (step(jax.random.key(7), state, DATA)[0] for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_batched_chains_equal_sequential_ones(algorithm, key):
    params = initial(jax.random.key(9), TARGET, 3)
    runs = [
        infer(key, algorithm, params, DATA, steps=40, batch_size=8, chains_at_once=n, progress=False) for n in (1, 3)
    ]
    np.testing.assert_allclose(runs[0].params["a"], runs[1].params["a"], rtol=1e-9)


def test_one_diverged_chain_leaves_the_others_bit_identical(algorithm, key):
    params = initial(jax.random.key(9), TARGET, 3)
    broken = {"a": np.where(np.arange(3)[:, None] == 1, np.nan, params["a"])}
    good = infer(key, algorithm, params, DATA, steps=40, batch_size=8, progress=False)
    with pytest.warns(RuntimeWarning, match=r"1 of 3 chains \(1\) diverged"):
        bad = infer(key, algorithm, broken, DATA, steps=40, batch_size=8, progress=False)
    assert bad.status.tolist() == [0, 2, 0]
    for chain in (0, 2):
        assert np.array_equal(good.params["a"][chain], bad.params["a"][chain])


STEPPED = {
    "sgld": lambda h: sgld(TARGET, h),
    "sghmc": lambda h: sghmc(TARGET, h, friction=1.0),
    "sgnht": lambda h: sgnht(TARGET, h, friction=1.0, relaxation=2.0),
    "sggmc": lambda h: sggmc(TARGET, DATA, h, friction=1.0, length=4),
    "amagold": lambda h: amagold(TARGET, DATA, h, friction=1.0, length=4),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("sggmc", "amagold") else n for n in STEPPED]
)
def test_a_step_size_may_be_a_number(name):
    for wrong in (0.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="step size must be positive"):
            STEPPED[name](wrong)
    start = TARGET.initial(jax.random.key(9))

    def after_one_step(h):
        algorithm = STEPPED[name](h)
        return jax.jit(algorithm.step)(jax.random.key(7), algorithm.init(jax.random.key(8), start), DATA)[0]

    def same(one, two):
        return jax.tree.all(jax.tree.map(np.array_equal, one, two))

    assert same(after_one_step(0.1), after_one_step(constant(0.1)))
    assert not same(after_one_step(0.1), after_one_step(0.05))


@pytest.mark.parametrize(
    ("name", "thin"),
    [
        ("sgld", 1),
        ("sghmc", 12),
        *(pytest.param(n, t, marks=pytest.mark.slow) for n, t in (("psgld", 1), ("amagold", 12))),
    ],
)
def test_samplers_share_no_noise_between_chains(name, thin, key):
    # 149 increments of 20 chains started alike: for each of the 190 pairs correlation 0 with standard error 1/√447 =
    # 0.047, below 5.3 of them with probability 1 − 2e-5; their mean within 5 of 0.047/√190. Minibatches differ between
    # the chains too, so all of their randomness is seen. Momenta persist for some 5 steps, hence thin.
    same = {"a": jnp.zeros((20, 3)) + jnp.asarray(MEAN)}
    options = {"steps": 150 * thin, "thin": thin, "burn_in": 0, "batch_size": 8, "progress": False}
    samples = infer(key, ALGORITHMS[name], same, DATA, **options)
    steps = np.diff(np.asarray(samples.params["a"]).reshape(20, 150, 3), axis=1)
    correlation = np.corrcoef(steps.reshape(20, -1))[np.triu_indices(20, 1)]
    assert np.abs(correlation).max() < 0.25
    assert abs(correlation.mean()) < 0.017


@pytest.mark.parametrize("name", ["adam", "adam with validation"])
def test_optimisers_reach_the_mode(name, key):
    samples = infer(
        key, ALGORITHMS[name], initial(jax.random.key(9), TARGET, 2), DATA, steps=4000, batch_size=None, progress=False
    )
    # the validation score is the likelihood, whose maximum differs from the posterior's by prior / data ≈ 1/256
    np.testing.assert_allclose(samples.params["a"], np.stack([MEAN, MEAN]), atol=1e-3 if name == "adam" else 2e-2)
