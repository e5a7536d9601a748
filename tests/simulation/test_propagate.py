"""The loop of simulations: batches, keys, repair of lists, failures, resuming."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot import units
from bayespot.errors import FailedSamples, Status
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.potential import energy_forces_stress
from bayespot.records.neighbors import neighbors
from bayespot.records.posterior import PosteriorSamples
from bayespot.records.system import from_ase, system
from bayespot.simulation import loop
from bayespot.simulation.ensemble import nve, nvt_langevin
from bayespot.simulation.simulate import propagate, simulate
from bayespot.tree import replace, take

FS = units.fs
POTENTIAL = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0)
ENSEMBLE = nvt_langevin(kT=60 * units.kB, dt=5 * FS, gamma=0.05)
OPTIONS = {"steps": 40, "every": 10, "chunk": 20, "progress": False}


def argon(dtype=None):
    return from_ase(bulk("Ar", cubic=True, a=5.3) * (2, 2, 2), dtype)


def posterior(sigma=(3.3, 3.4, 3.5), epsilon=None, status=None):
    s = len(sigma)
    zeros = jnp.zeros(s)
    params = {"sigma": jnp.array(sigma), "epsilon": jnp.array(epsilon or [0.0104] * s)}
    return PosteriorSamples(
        params={"potential": params, "noise": {}}, log_weight=zeros, chain=jnp.arange(s), draw=jnp.zeros(s, int),
        log_density=zeros, status=jnp.array(status or [0] * s), history={}, spec="",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """3 samples × 2 replicas with batches of one."""
    return propagate(jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=1, **OPTIONS)


def position(trajectory):
    return np.asarray(trajectory.frames.system.position)


def same(one, other) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_shapes_times_and_types(runs):
    assert position(runs).shape == (3, 2, 4, 32, 3)
    assert runs.frames.system.box.shape == (3, 2, 4, 3, 3)
    assert runs.frames.stress.shape == (3, 2, 4, 3, 3)
    np.testing.assert_allclose(runs.time[1, 1] / FS, [50, 100, 150, 200], rtol=1e-12)
    np.testing.assert_allclose(runs.valid_until / FS, 200, rtol=1e-12)
    assert (runs.status == Status.OK).all()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(runs))


def test_frames_hold_energy_and_stress_of_their_positions(runs):
    frame = take(runs.frames, (2, 1, 3))
    sys = jax.tree.map(jnp.asarray, frame.system)
    evaluate = jax.jit(energy_forces_stress(POTENTIAL))
    energy, _, stress = evaluate({"sigma": 3.5, "epsilon": 0.0104}, sys, neighbors(sys, POTENTIAL.cutoff))
    np.testing.assert_allclose(frame.energy, energy, rtol=1e-12)
    np.testing.assert_allclose(frame.stress, stress, rtol=1e-9, atol=1e-14)


def test_results_do_not_depend_on_batches(runs):
    # 200 fs of a crystal: rounding differences grow, but far less than to 1e-9 of an Å. The second batch is not full;
    # a single batch of all runs is tested with the unstable sample below.
    batched = propagate(
        jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=4, **OPTIONS
    )
    np.testing.assert_allclose(position(batched), position(runs), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_one_run_is_the_first_of_many(runs):
    params = take(posterior().params["potential"], 0)
    single = simulate(jax.random.key(3), POTENTIAL, params, argon(), ENSEMBLE, **OPTIONS)
    assert position(single).shape == (4, 32, 3)
    assert int(single.status) == Status.OK
    np.testing.assert_allclose(position(single), position(runs)[0, 0], rtol=0, atol=1e-9)


def test_runs_are_independent_and_repeatable(runs):
    # Correlation of two independent sets of 96 velocities: standard deviation 1/sqrt(96) = 0.10; the bound is 5.
    velocity = np.asarray(runs.frames.velocity)[:, :, 0].reshape(6, -1)
    assert np.abs(np.corrcoef(velocity) - np.eye(6)).max() < 0.5
    again = propagate(jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=1, **OPTIONS)
    assert same(again, runs)


@pytest.mark.slow
def test_chunks_and_equilibration_do_not_change_the_path(runs):
    whole = propagate(
        jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=1, steps=20, every=10,
        equilibration=20, chunk=13, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(position(whole), position(runs)[:, :, 2:], rtol=0, atol=1e-9)
    np.testing.assert_allclose(whole.time[0, 0] / FS, [50, 100], rtol=1e-12)


def test_overflow_repairs_itself(runs, monkeypatch):
    made = []
    original = loop.neighbor_list

    def too_small(start, cutoff, skin, capacity=None, thinnest=None):
        capacity = (5, 0) if capacity is None else capacity
        made.append(capacity)
        return original(start, cutoff, skin, capacity, thinnest)

    monkeypatch.setattr(loop, "neighbor_list", too_small)
    repaired = propagate(
        jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=1, **OPTIONS
    )
    assert made[0] == (5, 0)
    assert len(set(made)) > 1
    np.testing.assert_allclose(position(repaired), position(runs), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_where_some_runs_of_a_batch_overflow_all_are_repaired(runs, monkeypatch):
    """Lists end just short of the third shell, whose atoms come and go; one list serves all runs of a batch."""
    original, first, needed = loop.neighbor_list, [None], []
    repaired = loop._repaired

    def tight(start, cutoff, skin, capacity=None, thinnest=None):
        return original(start, cutoff, skin, capacity or first[0], thinnest)

    def watched(advance, arguments, limits, compiled):
        def spy(*x):
            out = advance(*x)
            needed.append(np.asarray(out[2].needed)[:, 0])
            return out

        *found, used = repaired(spy, arguments, limits, compiled)
        return *found, advance if used is spy else used

    monkeypatch.setattr(loop, "neighbor_list", tight)
    monkeypatch.setattr(loop, "_repaired", watched)
    arguments = jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE
    options = OPTIONS | {"replicas": 2, "skin": 1.2}
    propagate(*arguments, **options, batch_size=1)
    alone, calls = np.max(needed, 0), len(needed)
    first[0] = (int(alone.min()), 0)  # enough for one of the runs, and not for all
    assert alone.min() < alone.max()
    again = propagate(*arguments, **options, batch_size=6)
    assert max(n.max() for n in needed[calls:]) > first[0][0]
    np.testing.assert_allclose(position(again), position(runs), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_thin_skin_gives_the_same_path(runs):
    # A skin of 0.1 Å is left within a few steps, so that lists are made all the time.
    thin = propagate(
        jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, replicas=2, batch_size=1, skin=0.1, **OPTIONS
    )
    np.testing.assert_allclose(position(thin), position(runs), rtol=0, atol=1e-9)


def test_a_list_that_was_used_too_long_is_noticed(runs, monkeypatch):
    original, used = loop._repaired, []

    def short_sighted(advance, arguments, limits, compiled):
        if not used:
            limits = limits | {"lookahead": np.float64(1e-3)}
        result = original(advance, arguments, limits, compiled)
        used.append(float(result[2]["lookahead"]))
        return result

    monkeypatch.setattr(loop, "_repaired", short_sighted)
    params = take(posterior().params["potential"], 0)
    single = simulate(jax.random.key(3), POTENTIAL, params, argon(), ENSEMBLE, skin=0.1, **OPTIONS)
    assert used[0] > 1e-3
    np.testing.assert_allclose(position(single), position(runs)[0, 0], rtol=0, atol=1e-9)


def test_an_unstable_sample_leaves_the_others_alone(runs):
    # σ = 4.4 Å compresses argon to a repulsion of several eV per atom: it heats far beyond 600 K at once.
    bad = posterior(sigma=(3.3, 4.4, 3.5), epsilon=[0.0104, 10.0, 0.0104])
    common = {"key": jax.random.key(3), "potential": POTENTIAL, "samples": bad, "start": argon(), "replicas": 2}
    common["ensemble"] = ENSEMBLE
    for size in (1, 6):
        result = propagate(**common, batch_size=size, throw=False, **OPTIONS)
        assert (result.status == [[0, 0], [Status.UNSTABLE] * 2, [0, 0]]).all()
        assert (result.valid_until[1] < 200 * FS).all()
        assert result.surviving == pytest.approx(2 / 3)
        kept = take(result, np.array([0, 2])), take(runs, np.array([0, 2]))
        assert same(*kept) if size == 1 else np.abs(position(kept[0]) - position(kept[1])).max() < 1e-9
    with pytest.raises(FailedSamples, match=r"1 of 3 samples \(1\) became unstable; first at t = .* ps") as caught:
        propagate(**common, batch_size=1, **OPTIONS)
    assert caught.value.samples == (1,)
    assert (caught.value.trajectories.status[[0, 2]] == Status.OK).all()


@pytest.mark.parametrize("equilibration", [0, 3])
def test_a_nan_is_found_at_once(equilibration):
    params = {"sigma": jnp.array(3.4), "epsilon": jnp.array(jnp.nan)}
    options = OPTIONS | {"equilibration": equilibration}
    run = simulate(jax.random.key(0), POTENTIAL, params, argon(), ENSEMBLE, throw=False, **options)
    assert int(run.status) == Status.UNSTABLE
    assert float(run.valid_until) == 0
    with pytest.raises(FailedSamples, match="became unstable at t ="):
        simulate(jax.random.key(0), POTENTIAL, params, argon(), ENSEMBLE, **options)


def test_failed_samples_are_refused():
    with pytest.raises(FailedSamples, match=r"1 of 3 samples \(2\) failed in the inference") as caught:
        propagate(jax.random.key(0), POTENTIAL, posterior(status=[0, 0, 2]), argon(), ENSEMBLE, **OPTIONS)
    assert caught.value.samples == (2,)


def test_samples_of_another_potential_are_refused():
    other = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.5)
    samples = replace(posterior(), spec=json.dumps(other.spec))
    with pytest.raises(ValueError, match=r"must belong to the potential.*5\.5 and 5\.0 for \['cutoff'\]"):
        propagate(jax.random.key(0), POTENTIAL, samples, argon(), ENSEMBLE, **OPTIONS)


@pytest.mark.parametrize("interrupted_after", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_resumes_bit_for_bit(runs, tmp_path, monkeypatch, interrupted_after):
    options = OPTIONS | {"equilibration": 30, "replicas": 2, "batch_size": 2}
    arguments = (jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE)
    through = propagate(*arguments, **options)
    calls, original = [], loop._repaired

    def interrupted(*args):
        calls.append(1)
        if len(calls) > interrupted_after:
            raise KeyboardInterrupt
        return original(*args)

    opened = loop.open_checkpoint
    monkeypatch.setattr(loop, "open_checkpoint", lambda folder, mark: opened(folder, mark, seconds_between=0.0))
    monkeypatch.setattr(loop, "_repaired", interrupted)
    with pytest.raises(KeyboardInterrupt):
        propagate(*arguments, checkpoint=tmp_path, **options)
    calls.clear()
    monkeypatch.setattr(loop, "_repaired", lambda *args: (calls.append(1), original(*args))[1])
    resumed = propagate(*arguments, checkpoint=tmp_path, **options)
    assert len(calls) == 4 - interrupted_after  # 20 + 10 steps of equilibration and 2 × 20 recorded
    assert same(resumed, through)
    calls.clear()
    assert same(propagate(*arguments, checkpoint=tmp_path, **options), through)
    assert not calls
    with pytest.raises(ValueError, match="belongs to one run"):
        propagate(*arguments, checkpoint=tmp_path, **(options | {"equilibration": 20}))


KILLED = """
import os, signal, sys
import tests.conftest, jax
from tests.simulation.test_propagate import *

calls, original, opened = [], loop._repaired, loop.open_checkpoint

def killed(*args):
    calls.append(1)
    if len(calls) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)

loop.open_checkpoint = lambda folder, mark: opened(folder, mark, seconds_between=0.0)
loop._repaired = killed
propagate(jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE, checkpoint=sys.argv[1], **OPTIONS)
"""


@pytest.mark.slow
def test_resumes_bit_for_bit_in_a_new_process_after_a_kill(tmp_path, monkeypatch):
    found = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=Path(__file__).parents[2], check=False)
    assert found.returncode == -signal.SIGKILL
    arguments = (jax.random.key(3), POTENTIAL, posterior(), argon(), ENSEMBLE)
    through = propagate(*arguments, **OPTIONS)
    calls, original = [], loop._repaired
    monkeypatch.setattr(loop, "_repaired", lambda *args: (calls.append(1), original(*args))[1])
    assert same(propagate(*arguments, checkpoint=tmp_path, **OPTIONS), through)
    assert len(calls) == 1  # of two chunks


def test_float32_stays_float32():
    params = {"sigma": jnp.array(3.4, jnp.float32), "epsilon": jnp.array(0.0104, jnp.float32)}
    run = simulate(jax.random.key(0), POTENTIAL, params, argon(jnp.float32), ENSEMBLE, **OPTIONS)
    assert position(run).dtype == run.frames.velocity.dtype == np.float32
    assert int(run.status) == Status.OK


def test_open_cluster_and_padding():
    x = np.array([[0.0, 0, 0], [3.8, 0, 0], [1.9, 3.3, 0], [0, 0, 0]])
    cluster = system(x, [18, 18, 18, 0])
    params = {"sigma": jnp.array(3.4), "epsilon": jnp.array(0.0104)}
    run = simulate(jax.random.key(0), POTENTIAL, params, cluster, nve(5 * FS, kT=10 * units.kB), **OPTIONS)
    assert position(run).shape == (4, 3, 3)
    assert np.isnan(run.frames.stress).all()
    total = (run.frames.velocity * 39.948).sum(1)
    np.testing.assert_allclose(total, 0, atol=1e-12)


def test_atoms_may_be_given_in_any_cell():
    params = {"sigma": jnp.array(3.4), "epsilon": jnp.array(0.0104)}
    start = argon()
    cells = np.random.default_rng(0).integers(-3, 4, start.position.shape)
    away = replace(start, position=start.position + cells @ start.box)
    here, there = (simulate(jax.random.key(0), POTENTIAL, params, s, ENSEMBLE, **OPTIONS) for s in (start, away))
    np.testing.assert_allclose(position(there), position(here) + cells @ np.asarray(start.box), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 30}, "every must divide steps = 40. Got 30. Use 20"),
        ({"steps": 0}, "steps must be positive"),
        ({"replicas": 0}, "replicas must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"skin": 0.0}, "skin must be positive"),
        ({"equilibration": -1}, "equilibration must be 0 or positive"),
        ({"max_kT": -1.0}, "max_kT must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        propagate(jax.random.key(0), POTENTIAL, posterior(), argon(), ENSEMBLE, **(OPTIONS | change))


def test_unknown_species_are_refused():
    potential = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0, species=(10,))
    with pytest.raises(ValueError, match=r"knows the species \(10,\). Got also \[18\]"):
        propagate(jax.random.key(0), potential, posterior(), argon(), ENSEMBLE, **OPTIONS)
