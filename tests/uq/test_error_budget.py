"""Parts of the error add up, and the advice follows them."""

import numpy as np
import pytest

from bayespot.records.interval import Interval
from bayespot.uq.error_budget import error_budget


def interval(model, sampling, resolved=True, coordinate=()):
    model, sampling = np.asarray(model, float), np.asarray(sampling, float)
    return Interval(
        mean=model, lower=model, upper=model, std_model=model, std_sampling=sampling,
        resolved=np.broadcast_to(np.asarray(resolved), model.shape), coordinate=np.asarray(coordinate, float),
        level=0.95, kind="student_t", samples=8, sampling="blocks", dropped=(), name="pressure", unit="GPa", axis="",
    )  # fmt: skip


def test_parts_add_up_in_squares():
    budget = error_budget(interval([0.3, 0.1, 0.0], [0.4, 0.01, 0.0], coordinate=[1, 2, 3]))
    np.testing.assert_allclose(budget.total, [0.5, np.hypot(0.1, 0.01), 0.0])
    np.testing.assert_allclose(budget.longer, [16.0, 1.0, 1.0])
    assert error_budget(interval(0.0, 0.1)).longer == np.inf


@pytest.mark.parametrize(
    ("model", "sampling", "resolved", "advice"),
    [
        (0.1, 0.01, True, "more data"),
        (0.1, 0.2, True, "longer runs (36 times)"),
        (0.1, 0.05, True, "more data, or longer runs (2.3 times)"),
        (0.1, 0.2, False, "longer runs: the parametric part is hidden"),
        (0.0, 0.0, True, "(constant)"),
    ],
)
def test_advice(model, sampling, resolved, advice):
    last = str(error_budget(interval(model, sampling, resolved))).splitlines()[-1]
    assert last.startswith("pressure [GPa]")
    assert last.endswith(advice)


def test_a_curve_shows_some_of_its_points():
    budget = error_budget(interval(np.full(60, 0.1), np.full(60, 0.1), coordinate=np.arange(60)))
    lines = str(budget).splitlines()
    assert len(lines) == 2 + 12
    assert "50%" in lines[-1]
    assert "pressure(57) [GPa]" in lines[-1]
