"""Coverage over many data sets: springs whose exact posterior is known, one that is too narrow, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.observables.thermodynamics import kinetic_energy
from bayespot.records.posterior import as_samples
from bayespot.records.system import system
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.tree import replace
from bayespot.uq.coverage_study import coverage_study
from tests.targets.springs import SPRING, SQUARE

SETS, SAMPLES, STIFFNESS, ERROR, KT = 32, 6, 2.0, 0.4, 0.1
START = system(np.zeros((8, 3)), [1] * 8, np.zeros((3, 3)))
THERMOSTAT = nvt_langevin(kT=KT, dt=0.1, gamma=1.0)


def posterior(rng, width=ERROR):
    """Samples of k where a data set has told k with a Gaussian error; the spring rests at the origin."""
    centre = STIFFNESS + ERROR * rng.normal()
    k = jnp.asarray(centre + width * rng.normal(size=SAMPLES), float)
    return as_samples({"k": k, "c": jnp.zeros(SAMPLES)}, SPRING.spec)


def studied(width):
    rng = np.random.default_rng(3)
    return coverage_study(
        jax.random.key(0), SPRING, [posterior(rng, width) for _ in range(SETS)], START, THERMOSTAT,
        {"square": SQUARE}, {"square": np.asarray(KT / STIFFNESS)},
        steps=400, every=10, equilibration=50, levels=(0.5, 0.9), progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_right_posterior_is_right_as_often_as_it_says():
    study = studied(ERROR)
    # 32 independent data sets: within three standard deviations of a binomial distribution (0.27 and 0.16).
    for promised, found in zip((0.5, 0.9), np.asarray(study.curves[0].observed), strict=True):
        assert abs(found - promised) < 3 * np.sqrt(promised * (1 - promised) / SETS)
    assert study.inside["square"].shape == (SETS, 2, 1)
    assert study.parametric["square"] > 0.8  # else the simulations would be tested, not the posterior
    assert study.dropped == 0
    assert all(words in str(study) for words in ("square", "90 %", f"{SETS} data sets"))


@pytest.mark.slow
def test_a_posterior_that_is_too_narrow_is_found_out():
    study = studied(0.25 * ERROR)
    assert float(study.curves[0].observed[1]) < 0.9 - 3 * np.sqrt(0.9 * 0.1 / SETS)
    assert float(study.curves[0].zms) > 3


def options(**other):
    rng = np.random.default_rng(0)
    usual = {
        "posteriors": [posterior(rng) for _ in range(2)],
        "observables": {"square": SQUARE},
        "truth": {"square": np.asarray(0.05)},
    }
    return {**usual, **other}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"posteriors": [posterior(np.random.default_rng(0))]}, "at least two data sets"),
        ({"observables": {"square": SQUARE, "kinetic": kinetic_energy()}}, "true value of every observable"),
        ({"truth": {"square": np.zeros(3)}}, "must have the shape"),
        ({"truth": {"square": np.asarray(np.nan)}}, "must be finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(wrong, message):
    given = options(**wrong)
    with pytest.raises(ValueError, match=message):
        coverage_study(
            jax.random.key(0), SPRING, given["posteriors"], START, THERMOSTAT, given["observables"], given["truth"],
            steps=80, every=10, progress=False,
        )  # fmt: skip


def test_samples_whose_simulation_fails_are_left_out_and_counted():
    sets = options()["posteriors"]
    k = jnp.asarray(sets[0].params["potential"]["k"]).at[3].set(-50.0)  # nothing holds the particles
    params = {**sets[0].params, "potential": {**sets[0].params["potential"], "k": k}}
    study = coverage_study(
        jax.random.key(0), SPRING, [replace(sets[0], params=params), sets[1]], START, THERMOSTAT, {"square": SQUARE},
        {"square": np.asarray(0.05)}, steps=80, every=10, progress=False,
    )  # fmt: skip
    assert study.dropped == 1
    assert "1 samples" in str(study)
