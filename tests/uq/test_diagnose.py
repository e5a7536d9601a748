"""Verdicts about chains whose correlation is known: AR(1) series, all of one shape, because each shape is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.records.posterior import as_samples
from bayespot.uq.diagnose import diagnose
from tests.inference.chains import chains


def test_independent_chains_are_fine():
    found = diagnose(*chains())
    (row,) = found.rows
    assert found.verdict.startswith("No sign of trouble")
    assert row.rhat < 1.01
    assert 0.2 / 400 < row.between < 3 / 400  # 1/D for independent draws, of 3 degrees of freedom
    # 1600 independent draws; an estimate of the ESS scatters by some 10 %
    assert 1200 < row.ess_bulk < 2000
    np.testing.assert_allclose(row.mcse, row.ess_bulk**-0.5)
    assert "energy" in str(found)
    assert "4 chains of 400 draws" in str(found)


def test_correlation_shows_in_the_effective_size():
    found = diagnose(*chains(memory=0.6), level=0.99)
    # n (1 − ρ)/(1 + ρ) = 1600/4 = 400; the smallest of three estimates, each ± 15 %
    assert 250 < found.rows[0].ess_bulk < 480
    assert found.verdict.startswith(("No sign", "Usable with care"))
    few = diagnose(*chains(memory=0.6), level=0.999)  # 2000 would be needed
    assert "too few for the ends of a 0.999 interval" in few.verdict


def test_what_keeps_chains_from_being_used():
    apart = diagnose(*chains(apart=3.0))
    assert apart.verdict.startswith("The chains stay apart")
    assert "of 4 independent" in apart.verdict
    assert apart.rows[0].between > 5
    slow = diagnose(*chains(memory=0.99, seed=1))  # memory of 200 steps in chains of 400
    assert slow.rows[0].rhat > 1.1
    assert slow.verdict.startswith(("Do not use", "The chains stay apart"))


def test_chains_that_stand_still_are_not_called_agreeing():
    samples, values = chains()
    stuck = {"pressure": np.repeat(np.arange(4.0), 400)[:, None] * np.ones(3)}
    assert diagnose(samples, stuck | values).verdict.startswith("Chains do not move")
    assert diagnose(samples, values | stuck).verdict.startswith("Chains do not move")
    rare = values["energy"].copy()
    rare[:, 0] = rare[:, 0] > 2.2  # a bin that is 0 in nearly all draws has no tail to be measured
    assert diagnose(samples, {"rdf": rare}).rows[0].ess_tail > 100


def test_only_what_moves_and_is_finite_counts():
    samples, values = chains()
    padded = {"energy": np.insert(values["energy"], 1, 7.0, axis=1)}
    assert diagnose(samples, padded).rows[0].components == 3
    with pytest.raises(ValueError, match="same value"):
        diagnose(samples, {"energy": np.ones(1600)})
    values["energy"][3, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        diagnose(samples, values)
    ensemble = as_samples({"a": jnp.zeros(8)}, {})
    with pytest.raises(ValueError, match="at least 2 chains of 8 draws"):
        diagnose(ensemble, {"energy": np.arange(8.0)})


def test_the_verdict_tells_what_agreement_of_chains_cannot():
    samples, values = chains()
    for inflation, said in (
        ([1.02, np.nan, 1.1], "1.10 times the posterior's at most"),
        ([1.02, 3.5], "But minibatches and step size make the variance along the worst direction 3.5 times"),
        ([1.0, np.inf], "inf times"),
        ([np.nan], "not known"),
    ):
        verdict = diagnose(samples, values, inflation=np.array(inflation)).verdict
        assert verdict.startswith("No sign of trouble")
        assert said in verdict
