"""The pair potential of splines against SciPy's."""

import jax
import numpy as np
import pytest
from scipy.interpolate import BSpline

from bayespot.potentials.pair_spline import pair_spline
from bayespot.potentials.potential import energy_and_forces
from bayespot.records.neighbors import neighbors
from bayespot.records.system import system

COEFFICIENTS = [0.7, -1.2, 0.4, 2.0]


def test_a_pair_has_the_energy_and_the_force_of_the_spline():
    potential = pair_spline(1.5, 5.0, 7, scale=0.2, initial=COEFFICIENTS)
    params = potential.init(jax.random.key(0))
    # SciPy's basic interval begins at its fourth knot and ends at its fourth but last
    spline = BSpline(np.arange(0.0, 7.0, 0.5), np.pad(COEFFICIENTS, 3), 3)
    evaluate = jax.jit(energy_and_forces(potential))
    for r in (1.0, 1.49, 1.62, 2.0, 3.3, 4.0, 4.51, 4.97, 5.02):
        sys = system([[0.0, 0.0, 0.0], [0.0, 0.0, r]], [6, 8])
        energy, force = evaluate(params, sys, neighbors(sys, 6.0))
        expected = (spline(r), spline(r, 1)) if 1.5 < r < 5.0 else (0.0, 0.0)
        np.testing.assert_allclose(energy, 0.2 * expected[0], atol=1e-12)
        np.testing.assert_allclose(force, [[0, 0, 0.2 * expected[1]], [0, 0, -0.2 * expected[1]]], atol=1e-12)


@pytest.mark.parametrize("wrong", [{"start": -1.0}, {"start": 5.0}, {"intervals": 3}, {"scale": 0.0}])
def test_impossible_grids_are_refused(wrong):
    with pytest.raises(ValueError, match="Need 0 ≤ start < cutoff, intervals ≥ 4 and scale > 0"):
        pair_spline(**{"start": 2.0, "cutoff": 5.0, "intervals": 10} | wrong)


def test_another_number_of_coefficients_is_refused():
    with pytest.raises(ValueError, match="initial must hold intervals - 3 = 7 coefficients"):
        pair_spline(2.0, 5.0, 10, initial=[0.1, 0.2])
