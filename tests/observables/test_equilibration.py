"""Detected equilibration of series whose transient and correlation time are known."""

import numpy as np
import pytest

from bayespot.errors import UncertaintyWarning
from bayespot.observables.equilibration import equilibration


def series(runs, frames, tau, jump, decay, seed=0):
    """Autoregressive noise of variance 1 and correlation time tau, on a transient; (S, R, T)."""
    rng = np.random.default_rng(seed)
    memory = np.exp(-1 / tau)
    x = np.empty((*runs, frames))
    x[..., 0] = rng.normal(size=runs)
    for t in range(1, frames):
        x[..., t] = memory * x[..., t - 1] + np.sqrt(1 - memory**2) * rng.normal(size=runs)
    return x + jump * np.exp(-np.arange(frames) / decay)


def test_a_stationary_series_keeps_nearly_everything():
    """g = (1 + m)/(1 − m) = 10.0 for m = exp(−1/5); 8 runs of 4000 frames, each g within some 10 %."""
    found = equilibration(series((4, 2), 4000, tau=5.0, jump=0.0, decay=1.0))
    assert found.discard <= 800
    memory = np.exp(-1 / 5)
    np.testing.assert_allclose(found.inefficiency.mean(), (1 + memory) / (1 - memory), rtol=0.15)
    assert found.independent.shape == (4, 2)


def test_a_transient_is_left_out_and_the_mean_is_right():
    x = series((4, 2), 4000, tau=5.0, jump=15.0, decay=100.0)
    found = equilibration(x)
    # The transient is below the noise of one frame, 1, after 100 ln 15 = 270 frames.
    assert 270 < found.discard < 1300
    error = np.sqrt(1 / found.independent.sum())
    assert abs(x[..., found.discard :].mean()) < 4 * error
    assert abs(x.mean()) > 4 * error


def test_short_runs_are_told():
    with pytest.warns(UncertaintyWarning, match="Simulate longer"):
        equilibration(series((1, 1), 60, tau=20.0, jump=0.0, decay=1.0)[0, 0])


def test_errors():
    with pytest.raises(ValueError, match="20 frames"):
        equilibration(np.zeros(5))
    with pytest.raises(ValueError, match="1 not finite"):
        equilibration(np.append(np.zeros(30), np.nan))
