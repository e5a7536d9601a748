"""Reweight or rerun: exact averages of harmonic wells, verdicts, mixtures, refusals, and runs of what fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.errors import FailedSamples, Status
from bayespot.observables.dynamics import msd
from bayespot.observables.fluctuations import heat_capacity
from bayespot.observables.observable import Observable, average, observe
from bayespot.observables.thermodynamics import energy_per_atom, kinetic_energy
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.simulation.reweight import reweight
from bayespot.simulation.simulate import propagate
from bayespot.tree import replace, take
from bayespot.uq.intervals import interval
from tests.simulation.wells import ATOMS, KT, SITES, START, drawn, wells, with_stiffness

POTENTIAL = wells()
SPREAD = Observable(lambda frame: ((frame.system.position - SITES) ** 2).mean(), average, "spread", "Å²")
STIFFNESS = np.array([0.85, 0.95, 1.0, 1.1, 1.25])
ENSEMBLE = nvt_langevin(kT=KT, dt=0.2, gamma=0.3)
OPTIONS = {"steps": 400, "every": 10, "equilibration": 100, "replicas": 3, "progress": False, "max_kT": 10.0}


@pytest.fixture(scope="module")
def reweighted():
    run = drawn(0, 1.0, 2000, replicas=2)
    return reweight(POTENTIAL, with_stiffness(STIFFNESS), with_stiffness(1.0), run, KT)


def test_at_the_reference_all_weights_are_equal(reweighted):
    at = 2
    assert np.array_equal(reweighted.weight[at], np.full((1, 2, 2000), 1 / 4000))
    assert reweighted.kish[at] == pytest.approx(4000, rel=1e-12)
    assert reweighted.perplexity[at] == pytest.approx(4000, rel=1e-12)
    assert reweighted.pareto_k[at] == -np.inf
    np.testing.assert_allclose(reweighted.energy[at], reweighted.reference.frames.energy, rtol=1e-12)


def test_reweighted_averages_are_those_of_the_other_potentials(reweighted):
    # ⟨x²⟩ = kT/k and ⟨U⟩ = 3/2 kT per atom. 4000 frames of 9 coordinates: relative error sqrt(2/36000) = 0.75 %, over
    # the square root of Kish's share; 4 of these.
    error = 4 * np.sqrt(2 / (9 * reweighted.kish))
    spread = np.asarray(observe(SPREAD, reweighted).value[:, 0])
    np.testing.assert_array_less(np.abs(spread * STIFFNESS / KT - 1), error)
    energy = np.asarray(observe(energy_per_atom(), reweighted).value[:, 0])
    np.testing.assert_array_less(np.abs(energy / (1.5 * KT) - 1), error)
    # Each differs from the reference by far more than its error: the weights were needed.
    assert (np.abs(STIFFNESS - 1)[[0, 4]] > 2 * error[[0, 4]]).all()


def test_weights_and_sizes_are_the_textbook_formulas(reweighted):
    change = (STIFFNESS[0] - 1.0) * np.asarray(reweighted.reference.frames.energy).ravel()
    weight = np.exp(-change / KT)
    weight /= weight.sum()
    np.testing.assert_allclose(reweighted.weight[0].ravel(), weight, rtol=1e-10)
    assert reweighted.kish[0] == pytest.approx(1 / (weight**2).sum(), rel=1e-10)


def test_heat_capacity_sees_the_energies_of_each_sample(reweighted):
    # 3 k_B per atom for every spring; the variance of the 4000 energies has an error of about sqrt(2/4000)·1.3 = 3 % at
    # equal weights, 1.5 k_B of it are kinetic: 0.05, and up to 0.1 with weights; 4 of these.
    value = np.asarray(observe(heat_capacity(KT), reweighted).value[:, 0])
    np.testing.assert_allclose(value, 3.0, atol=0.4)
    assert np.ptp(value) > 1e-3


def test_an_energy_that_all_atoms_gain_changes_no_weight():
    run = drawn(1, 1.0, 1000)
    plain = reweight(POTENTIAL, with_stiffness(STIFFNESS[:4]), with_stiffness(1.0), run, KT)
    moved = reweight(POTENTIAL, with_stiffness(STIFFNESS[:4], c=1e4), with_stiffness(1.0), run, KT)
    np.testing.assert_allclose(moved.weight, plain.weight, rtol=1e-6)
    np.testing.assert_allclose(moved.energy, plain.energy - ATOMS * 1e4, rtol=1e-12)


def test_far_samples_have_low_effective_numbers():
    result = reweight(POTENTIAL, with_stiffness([1.0, 1.1, 0.3, 6.0]), with_stiffness(1.0), drawn(2, 1.0, 1000), KT)
    assert result.status.tolist() == [Status.OK, Status.OK, Status.LOW_ESS, Status.LOW_ESS]
    # For k < 1/2 the weights have no variance: exp((1 − k) U/kT) of U/kT with 9 degrees of freedom has the tail index
    # 1 − k = 0.7 (to a logarithm), which the verdict must see whatever the number of frames.
    assert result.pareto_k[2] > 0.7
    with pytest.raises(FailedSamples, match=r"2 of 4 samples failed \(2, 3\)"):
        interval(observe(SPREAD, result))
    assert interval(observe(SPREAD, result), failed="drop").dropped == (2, 3)
    samples = with_stiffness([1.0, 1.1, 0.3, 6.0])
    strict = reweight(POTENTIAL, samples, with_stiffness(1.0), drawn(2, 1.0, 1000), KT, min_frames=1001.0)
    assert strict.status.tolist() == [Status.LOW_ESS] * 4


def test_a_sample_without_energies_fails_alone():
    run, others = drawn(2, 1.0, 1000), [0, 2, 3]
    result = reweight(POTENTIAL, with_stiffness([1.0, np.nan, 1.1, 1.2]), with_stiffness(1.0), run, KT)
    assert result.status.tolist() == [Status.OK, Status.LOW_ESS, Status.OK, Status.OK]
    sound = reweight(POTENTIAL, with_stiffness([1.0, 1.3, 1.1, 1.2]), with_stiffness(1.0), run, KT)
    np.testing.assert_allclose(result.weight[others], sound.weight[others], rtol=1e-12)
    with pytest.raises(ValueError, match="differ from the recorded ones by nan kT"):
        reweight(POTENTIAL, with_stiffness([1.0] * 4), with_stiffness(np.nan), run, KT)


def test_a_mixture_serves_what_its_parts_do_not():
    # Springs from 0.5 to 3.5 from the frames of 0.6, 1.5 and 3: averages within 4 standard errors by Kish's number.
    stiffness = np.array([0.5, 0.8, 1.2, 2.0, 3.0, 3.5])
    references = with_stiffness([0.6, 1.5, 3.0])
    both = reweight(POTENTIAL, with_stiffness(stiffness), references, drawn(3, [0.6, 1.5, 3.0], 1500), KT)
    assert (both.status == Status.OK).all()
    squares = ((both.reference.frames.system.position - SITES) ** 2).mean((-2, -1))
    spread = (both.weight * squares).sum((1, 2, 3))
    np.testing.assert_array_less(np.abs(spread * stiffness / KT - 1), 4 * np.sqrt(2 / (9 * both.kish)))
    alone = reweight(POTENTIAL, with_stiffness(stiffness), with_stiffness(1.5), drawn(3, 1.5, 4500), KT)
    assert alone.status.tolist() == [Status.LOW_ESS] * 2 + [Status.OK] * 4  # a narrow well does not see wide ones


def test_the_first_order_where_the_full_weights_fail():
    # ⟨x²⟩ + cov(x², ln w) = kT (2 − k) exactly. The 36000 squares give their mean to 0.75 %, and the covariance to
    # about 4 % of (k − 1): 4 of both in squares.
    run = drawn(4, 1.0, 2000, replicas=2)
    stiffness = np.array([0.95, 1.0, 1.05, 1.1, 1.4])
    result = reweight(POTENTIAL, with_stiffness(stiffness), with_stiffness(1.0), run, KT, kind="first_order")
    spread = np.asarray(observe(SPREAD, result).value[:, 0])
    error = np.hypot(0.0075, 0.04 * (stiffness - 1))
    np.testing.assert_array_less(np.abs(spread / KT - (2 - stiffness)), 4 * error)
    # ln w = −(k − 1) U/kT with U/kT ~ Γ(9/2): κ₃/2κ₂ = (k − 1), beyond the limit of 0.2 for the last.
    assert result.status.tolist() == [Status.OK] * 4 + [Status.LOW_ESS]


def test_only_samples_that_fail_are_run():
    stiffness = [1.0, 6.0, 1.1, 0.3]
    samples = with_stiffness(stiffness)
    run = drawn(5, 1.0, 1000)
    first = reweight(POTENTIAL, samples, with_stiffness(1.0), run, KT)
    both = propagate(jax.random.key(1), POTENTIAL, samples, START, ENSEMBLE, reuse=first, **OPTIONS)
    assert both.own.tolist() == [-1, 0, -1, 1]
    assert (both.status == Status.OK).all()
    assert (both.steps, both.steps_of_all) == (2 * 3 * 500, 4 * 3 * 500)
    assert "2 with own runs" in str(both)
    assert "3000 MD steps instead of 6000" in str(both)
    alone = propagate(jax.random.key(1), POTENTIAL, samples[np.array([1, 3])], START, ENSEMBLE, **OPTIONS)
    np.testing.assert_array_equal(both.runs.frames.energy, alone.frames.energy)
    # in their places, and nothing of the reference in them
    observed, expected = observe(SPREAD, both), observe(SPREAD, alone)
    np.testing.assert_allclose(observed.value[np.array([1, 3])], expected.value, rtol=1e-12)
    np.testing.assert_allclose(observed.blocks[np.array([1, 3])], expected.blocks, rtol=1e-12)
    assert not np.asarray(observed.shared)[[1, 3]].any()
    assert np.asarray(observed.shared)[[0, 2]].any()
    np.testing.assert_allclose(observed.value[0], SPREAD.combine(_spread(run), np.full(1000, 1e-3)), rtol=1e-12)
    assert interval(observed).sampling == "shared frames, replicas and blocks"
    # a second call has nothing left to run, and keeps what was run
    assert propagate(jax.random.key(2), POTENTIAL, samples, START, ENSEMBLE, reuse=both, **OPTIONS) is both
    with pytest.raises(ValueError, match="two blocks of each reference"):
        observe(SPREAD, both, blocks=1)
    with pytest.raises(ValueError, match="parameters of its own"):
        observe(SPREAD._replace(spec={"name": "of another"}), both)


def _spread(run):
    return jnp.asarray(((run.frames.system.position[0, 0] - SITES) ** 2).mean((1, 2)))


@pytest.mark.slow
def test_reuse_reproduces_the_intervals_of_runs_of_all():
    # θ_s = kT/k_s is known: the spread of both must be its spread within a fifth, their means its mean within 4 of
    # their errors. 16 runs of 6000 steps, or two of 8000 and one run of the stiffest, which lies far away.
    stiffness = np.append(1.0 + 0.12 * np.random.default_rng(0).normal(size=15), 2.5)
    samples, mode = with_stiffness(stiffness), with_stiffness(1.0)
    ensemble = nvt_langevin(kT=KT, dt=0.4, gamma=1.0)
    options = {"every": 10, "equilibration": 200, "progress": False, "max_kT": 10.0}
    reference = propagate(jax.random.key(1), POTENTIAL, mode, START, ensemble, steps=8000, replicas=2, **options)
    first = reweight(POTENTIAL, samples, mode, reference, KT)
    reused = propagate(jax.random.key(2), POTENTIAL, samples, START, ensemble, steps=6000, reuse=first, **options)
    rerun = propagate(jax.random.key(3), POTENTIAL, samples, START, ensemble, steps=6000, **options)
    assert reused.own.tolist() == [-1] * 15 + [0]
    assert 2 * 8200 + reused.steps <= 0.25 * reused.steps_of_all
    exact = KT / stiffness
    for runs in (reused, rerun):
        it = interval(observe(SPREAD, runs))
        assert float(it.mean) == pytest.approx(exact.mean(), abs=4 * float(it.std_sampling))
        assert float(it.std_model) == pytest.approx(exact.std(ddof=1), rel=0.2)
        assert float(it.std_sampling) < 0.3 * float(it.std_model)


def test_nothing_is_run_where_nothing_fails(reweighted):
    same = propagate(
        jax.random.key(0), POTENTIAL, with_stiffness(STIFFNESS), START, ENSEMBLE, steps=500, reuse=reweighted
    )
    assert (same.runs, same.steps, same.steps_of_all) == (None, 0, 2500)
    for others in ([1.0], STIFFNESS[::-1]):
        with pytest.raises(ValueError, match=f"5 and {len(others)} samples of other parameters, 3 and 3 atoms"):
            propagate(
                jax.random.key(0), POTENTIAL, with_stiffness(others), START, ENSEMBLE, steps=500, reuse=reweighted
            )
    hotter = nvt_langevin(kT=1.1 * KT, dt=0.2)
    with pytest.raises(ValueError, match=r"kT=0\.05 and 0\.055"):
        propagate(jax.random.key(0), POTENTIAL, with_stiffness(STIFFNESS), START, hotter, steps=500, reuse=reweighted)


def test_an_unstable_own_run_is_reported():
    samples = with_stiffness([1.0, 6.0, 1.1, 1e6])  # the last oscillates in far less than a time step
    first = reweight(POTENTIAL, samples, with_stiffness(1.0), drawn(6, 1.0, 1000), KT)
    arguments = (jax.random.key(2), POTENTIAL, samples, START, ENSEMBLE)
    with pytest.raises(FailedSamples, match=r"1 of 4 samples \(3\) became unstable") as caught:
        propagate(*arguments, reuse=first, **OPTIONS)
    assert caught.value.samples == (3,)
    status = propagate(*arguments, reuse=first, throw=False, **OPTIONS).status
    assert status.tolist() == [Status.OK, Status.OK, Status.OK, Status.UNSTABLE]


def test_dynamics_are_refused(reweighted):
    with pytest.raises(ValueError, match="property of the dynamics"):
        observe(msd(2.0, 1.0), reweighted)


def test_momenta_are_those_of_the_frames(reweighted):
    value = np.asarray(observe(kinetic_energy(), reweighted).value[:, 0])
    plain = float(observe(kinetic_energy(), reweighted.reference).value.mean())
    assert value[2] == pytest.approx(plain, rel=1e-12)
    # Independent of the positions: 4 · sqrt(2/9) of the mean over the square root of Kish's number.
    np.testing.assert_array_less(np.abs(value / plain - 1), 4 * np.sqrt(2 / (9 * reweighted.kish)))


def test_references_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="must be the parameters that drove the trajectory"):
        reweight(POTENTIAL, with_stiffness([1.0] * 4), with_stiffness(1.3), drawn(7, 1.0, 1000), KT)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kT": 0.0}, ValueError, "needs kT > 0"),
        ({"kind": "second"}, ValueError, "'second'"),
        ({"references": with_stiffness([1.0, 1.0])}, ValueError, r"Got \(1, 1, 100\) and 2 references"),
        ({"trajectory": drawn(0, 1.0, 20)}, ValueError, "25 frames or more.*Got 20"),
        ({"trajectory": drawn(0, 1.0, 5, replicas=20)}, ValueError, "8 of each run. Got 100, 5 of each"),
        ({"samples": replace(with_stiffness(1.0), status=jnp.array([2]))}, FailedSamples, "Only sound samples"),
        (
            {"trajectory": replace(drawn(0, 1.0, 100), status=np.array([[Status.UNSTABLE]]))},
            FailedSamples,
            "Only sound runs can be reused",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    arguments = {"samples": with_stiffness(1.0), "references": with_stiffness(1.0), "trajectory": drawn(0, 1.0, 100)}
    with pytest.raises(error, match=message):
        reweight(POTENTIAL, **({"kT": KT} | arguments | changes))


def test_frames_of_other_boxes_are_refused():
    run = drawn(0, 1.0, 100)
    box = np.array(run.frames.system.box)
    box[0, 0, 50:] *= 1.01
    frames = replace(run.frames, system=replace(run.frames.system, box=box))
    with pytest.raises(ValueError, match="same box"):
        reweight(POTENTIAL, with_stiffness(1.0), with_stiffness(1.0), replace(run, frames=frames), KT)


def test_results_do_not_depend_on_batches():
    run = drawn(8, 1.0, 100)
    one, many = (
        reweight(POTENTIAL, with_stiffness(STIFFNESS), with_stiffness(1.0), run, KT, batch_size=size) for size in (1, 4)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_float32_keeps_the_digits_of_differences():
    run = drawn(9, 1.0, 200)
    exact = reweight(POTENTIAL, with_stiffness([0.9], c=100.0), with_stiffness(1.0, c=100.0), _lower(run, 300.0), KT)
    half = jax.tree.map(lambda x: np.asarray(x, np.float32) if x.dtype == np.float64 else x, _lower(run, 300.0))
    params = jax.tree.map(lambda x: x.astype(jnp.float32), take(with_stiffness([0.9, 1.0], c=100.0), np.arange(2)))
    got = reweight(POTENTIAL, params[0], params[1], half, KT)
    np.testing.assert_allclose(got.weight, exact.weight, rtol=1e-3)


def _lower(run, energy):
    return replace(run, frames=replace(run.frames, energy=run.frames.energy - energy))
