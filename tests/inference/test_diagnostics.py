"""Monte Carlo errors of chains whose correlation is known."""

import numpy as np
import pytest
from scipy import stats

from bayespot.inference.diagnostics import mcse
from tests.inference.chains import chains

DRAWS = 400


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_error_of_the_mean(memory):
    """Estimates of the squared error against its exact value, and against how far the means do lie from 0.

    One estimate scatters by some 20 % at the stronger correlation and is 2 % too large (measured); 200 are averaged,
    and 4 sigma allowed.
    """
    samples, values = chains(memory=memory, components=200)
    values = values["energy"]
    lag = np.arange(1, DRAWS)
    exact = (1 + 2 * ((1 - lag / DRAWS) * memory**lag).sum()) / (4 * DRAWS)
    found = mcse(samples, values)
    assert found.shape == (200,)
    assert (found**2).mean() == pytest.approx(exact, rel=0.08)
    assert ((values.mean(0) / found) ** 2).mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / 200))


def test_error_of_a_quantile():
    """Independent draws: √(p(1 − p)/n) over the density there.

    Taken between whole draws outside of it, the estimate is 6 % too large (measured), ± 3 % for the mean of 50.
    """
    samples, values = chains(components=50)
    for p in (0.05, 0.95):
        exact = np.sqrt(p * (1 - p) / 1600) / stats.norm.pdf(stats.norm.ppf(p))
        assert mcse(samples, values["energy"], quantile=p).mean() == pytest.approx(exact, rel=0.18)


def test_any_shape_and_what_is_refused():
    samples, values = chains(components=6)
    square = values["energy"].reshape(-1, 2, 3)
    np.testing.assert_array_equal(mcse(samples, square).ravel(), mcse(samples, values["energy"]))
    assert mcse(samples, square[:, 0, 0]).shape == ()
    with pytest.raises(ValueError, match=r"between 0 and 1\. Got 95.0"):
        mcse(samples, square, quantile=95.0)
    with pytest.raises(ValueError, match="at least 2 chains of 8 draws"):
        mcse(samples[:400], square[:400])
