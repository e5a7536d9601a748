"""Averages over frames that samples share: deviations of blocks against block means, and errors against exact ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.observables.observable import Observable, average, observe
from bayespot.observables.shared_frames import shared_averages
from bayespot.observables.structure import rdf
from bayespot.observables.thermodynamics import energy_per_atom
from bayespot.simulation.reweight import reweight
from bayespot.tree import take
from tests.simulation.wells import KT, SITES, drawn, wells, with_stiffness

POTENTIAL = wells()
SPREAD = Observable(lambda frame: ((frame.system.position - SITES) ** 2).mean(), average, "spread", "Å²")


def reused(seed, stiffness, reference=1.0, frames=80, replicas=1):
    run = drawn(seed, reference, frames, replicas)
    return reweight(POTENTIAL, with_stiffness(stiffness), with_stiffness(reference), run, KT)


def test_blocks_of_equal_weights_are_plain_averages():
    result = reused(0, 1.0, replicas=2)
    observed = observe(SPREAD, result, blocks=5)
    plain = observe(SPREAD, result.reference, blocks=5)
    assert observed.shared.shape == (1, 1, 10)
    np.testing.assert_allclose(observed.value[0, 0], np.mean(plain.value), rtol=1e-12)
    np.testing.assert_allclose(observed.value[0] + observed.shared[0, 0], np.ravel(plain.blocks), rtol=1e-9)


def test_discarded_frames_are_not_seen():
    result = reused(1, [1.0, 1.1])
    later = reweight(
        POTENTIAL, with_stiffness([1.0, 1.1]), with_stiffness(1.0), _without(result.reference, 30), KT, min_frames=5.0
    )
    got, expected = observe(SPREAD, result, discard=30), observe(SPREAD, later)
    np.testing.assert_allclose(got.value, expected.value, rtol=1e-12)
    np.testing.assert_allclose(got.shared, expected.shared, rtol=1e-7, atol=1e-12)


def _without(run, first):
    from jax import tree

    cut = tree.map(lambda x: x[:, :, first:], (run.frames, run.time))
    return type(run)(cut[0], cut[1], run.status, run.valid_until)


def test_samples_that_are_alike_share_their_errors():
    observed = observe(SPREAD, reused(2, [1.0, 1.001, 1.2], frames=200), blocks=8)
    one, near, far = np.asarray(observed.shared)[:, 0]
    assert np.corrcoef(one, near)[0, 1] > 0.9999
    assert np.abs(one - near).max() < 0.01 * np.abs(one).max()
    assert np.corrcoef(one, far)[0, 1] < 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "frames"), [((1.0,), 240), ((0.7, 1.4), 120)])
def test_the_error_of_an_average_is_what_it_scatters_by(reference, frames):
    # 60 repetitions: variances from blocks (14 or so degrees of freedom each: 5 % for their mean) and from the scatter
    # (sqrt(2/59) = 18 %); bound at 4 of the latter. What the means of the two references differ by is no error.
    values, variances = [], []
    for seed in range(60):
        result = reused(100 + seed, [1.25], reference=np.array(reference), frames=frames)
        value, deviation = shared_averages(SPREAD.frame, SPREAD.combine, result, (), 16 // len(reference), 0, 1)
        values.append(float(value[0]))
        variances.append(float((np.asarray(deviation) ** 2).sum()) / (16 * 15))
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=4 * 0.18)
    # The averages are right within 4 standard errors of their mean, and each bias (of the order 1/240) below that.
    assert np.mean(values) == pytest.approx(KT / 1.25, abs=4 * np.std(values) / np.sqrt(60))


def test_observables_are_evaluated_once_where_samples_do_not_differ():
    calls = []

    def frame(frame):
        calls.append(frame.energy.shape)
        return (frame.system.position**2).sum()

    result = reused(3, [0.9, 1.0, 1.1])
    observe(Observable(frame, average, "x", ""), result)
    assert len(calls) == 2  # traced to see what it depends on, and once for all samples
    value = np.asarray(observe(energy_per_atom(), result).value[:, 0])
    np.testing.assert_allclose(value * 3, (result.weight * result.energy).sum((1, 2, 3)), rtol=1e-10)


def test_curves_and_their_preparation():
    result = reused(4, [0.9, 1.1])
    observed = observe(rdf(r_max=4.0, bins=8), result)
    assert observed.value.shape == (2, 1, 8)
    assert observed.shared.shape == (2, 1, 16, 8)
    plain = observe(rdf(r_max=4.0, bins=8), result.reference).value[0, 0]
    assert np.abs(observed.value.mean((0, 1)) - plain).max() < 0.2 * np.abs(plain).max()


def test_too_few_frames_for_the_blocks_are_refused():
    with pytest.raises(ValueError, match="at least one frame per block"):
        observe(SPREAD, reused(5, [1.0]), blocks=100)
    samples = take(with_stiffness([1.0, 1.1]), np.arange(2))
    with pytest.raises(ValueError, match="Got 2 samples and runs of 1"):
        observe(SPREAD, reused(5, [1.0]), samples=samples)
    assert jnp.isfinite(observe(SPREAD, reused(5, [1.0]), blocks=2).value).all()
