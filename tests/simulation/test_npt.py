"""A box that moves: neighbour lists, failures, resuming, and what the equations of motion conserve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot import units
from bayespot.errors import Status
from bayespot.observables.observable import observe
from bayespot.observables.thermodynamics import density
from bayespot.potentials.classical import lennard_jones
from bayespot.potentials.neighbor_list import heights_of, inverse_of, neighbor_list
from bayespot.potentials.potential import energy_forces_stress
from bayespot.records.neighbors import displacements, neighbors
from bayespot.records.posterior import as_samples
from bayespot.records.system import from_ase, heights, volume
from bayespot.simulation import loop
from bayespot.simulation.chunk import departure
from bayespot.simulation.ensemble import _integrators, npt_nose_hoover
from bayespot.simulation.npt_langevin import npt_langevin
from bayespot.simulation.simulate import propagate, simulate
from bayespot.tree import replace, take

FS, kB, GPa = units.fs, units.kB, units.GPa
POTENTIAL = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0)
PARAMS = POTENTIAL.init(jax.random.key(0))
FAST = npt_nose_hoover(40 * kB, 0.1 * GPa, 5 * FS, tau_box=600 * FS)
NOISY = npt_langevin(40 * kB, 0.1 * GPa, 5 * FS, box="flexible", tau_box=600 * FS, modulus=1.0 * GPa)
evaluate = jax.jit(energy_forces_stress(POTENTIAL))


def argon(a=5.3):
    return from_ase(bulk("Ar", cubic=True, a=a) * (2, 2, 2))


def squeezed(params=PARAMS, ensemble=FAST, **options):
    """300 steps of argon that starts much too wide."""
    options = {"steps": 300, "every": 60, "chunk": 120, "skin": 0.4, "progress": False} | options
    return simulate(jax.random.key(0), POTENTIAL, params, argon(6.6), ensemble, **options)


@pytest.fixture(scope="module")
def squeezed_run():
    return squeezed()


@pytest.mark.slow
def test_frames_hold_the_energy_and_stress_of_their_box(squeezed_run):
    """Far from the first box: lists for 13.2 Å look at one image per direction, below 10.8 Å two are needed."""
    frames = squeezed_run.frames
    assert frames.system.box.shape == (5, 3, 3)
    edges = np.cbrt(volume(frames.system.box))
    assert edges[-1] < 10.8
    np.testing.assert_allclose(frames.system.box, edges[:, None, None] * np.eye(3), atol=1e-9)
    for t in range(5):
        sys = jax.tree.map(jnp.asarray, take(frames.system, t))
        energy, _, stress = evaluate(PARAMS, sys, neighbors(sys, POTENTIAL.cutoff, capacity=110))
        np.testing.assert_allclose(frames.energy[t], energy, rtol=1e-10)
        np.testing.assert_allclose(frames.stress[t], stress, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        observe(density(), squeezed_run, blocks=5).blocks[0, 0], 32 * 39.948 / edges**3 / units.g_per_cm3, rtol=1e-12
    )


@pytest.mark.slow
def test_chunks_and_skins_do_not_change_the_path(squeezed_run):
    """Three chunks or one, lists remade often or rarely: rounding differences grow, but not to 1e-7 of the path."""
    other = squeezed(chunk=300, skin=0.2)
    np.testing.assert_allclose(other.frames.system.position, squeezed_run.frames.system.position, rtol=0, atol=1e-6)
    np.testing.assert_allclose(other.frames.system.box, squeezed_run.frames.system.box, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", [FAST, NOISY], ids=["nose-hoover", "langevin"])
def test_resumes_with_the_box_of_the_checkpoint(ensemble, tmp_path, monkeypatch):
    whole = squeezed(ensemble=ensemble)
    original, calls = loop._repaired, []
    opened = loop.open_checkpoint
    monkeypatch.setattr(loop, "open_checkpoint", lambda folder, mark: opened(folder, mark, seconds_between=0.0))

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "_repaired", interrupted)
    with pytest.raises(KeyboardInterrupt):
        squeezed(ensemble=ensemble, checkpoint=tmp_path)
    resumed = squeezed(ensemble=ensemble, checkpoint=tmp_path)
    assert len(calls) == 4
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_runs_that_are_stepped_together_have_their_own_boxes():
    samples = as_samples({"sigma": jnp.array([3.3, 3.4]), "epsilon": jnp.array([0.0104, 0.0104])}, POTENTIAL.spec)
    options = {"steps": 100, "every": 50, "progress": False}
    one, both = (
        propagate(jax.random.key(0), POTENTIAL, samples, argon(5.6), FAST, batch_size=size, **options)
        for size in (1, 2)
    )
    edges = np.cbrt(volume(both.frames.system.box))
    np.testing.assert_allclose(edges, np.cbrt(volume(one.frames.system.box)), rtol=1e-9)
    assert abs(edges[0, 0, -1] - edges[1, 0, -1]) > 1e-3


@pytest.mark.slow
def test_a_box_that_collapses_is_unstable():
    """No repulsion is left to hold the box where σ is 0.1 Å."""
    weak = {"sigma": jnp.array(0.1), "epsilon": jnp.array(0.0104)}
    ensemble = npt_nose_hoover(40 * kB, 0.5 * GPa, 5 * FS, tau_box=1000 * FS)
    options = {"steps": 200, "every": 10, "chunk": 200, "progress": False, "throw": False}
    run = simulate(jax.random.key(0), POTENTIAL, weak, argon(), ensemble, **options)
    assert int(run.status) == Status.UNSTABLE
    valid = run.time <= run.valid_until
    edges = np.cbrt(volume(run.frames.system.box[valid]))
    assert 2 < valid.sum() < 20
    assert (edges > 0.5 * 10.6).all()
    assert edges[-1] < 0.7 * 10.6


@pytest.mark.slow
def test_a_list_holds_all_pairs_while_what_is_gone_is_below_half_the_skin():
    """Random deformations and displacements up to that limit, in a skewed cell of random atoms."""
    rng, cutoff, skin = np.random.default_rng(0), 4.0, 0.6
    box = np.array([[9.0, 0.5, 0.0], [-1.0, 8.0, 0.7], [0.4, 0.0, 8.5]])
    sys = replace(argon(), position=jnp.asarray(rng.uniform(size=(32, 3)) @ box), box=jnp.asarray(box))
    made = neighbor_list(sys, cutoff, skin, thinnest=tuple(0.9 * heights(box)))
    listed, _ = made.update(sys)
    gone = departure(npt_nose_hoover(0.01, 0.0, 1.0), made.cutoff)
    reference = {"position": sys.position[None], "box": sys.box[None]}
    for share in (0.0, 0.3, 0.7, 0.99):
        strain = rng.normal(size=(3, 3))
        strain *= share * skin / made.cutoff / np.linalg.norm(strain)
        step = rng.normal(size=(32, 3))
        step *= 0.5 * skin * (1 - share) * 0.999 / np.linalg.norm(step, axis=1, keepdims=True)
        moved = replace(sys, position=sys.position @ (np.eye(3) + strain) + step, box=sys.box @ (np.eye(3) + strain))
        away = gone({"position": moved.position[None], "box": moved.box[None]}, reference)
        np.testing.assert_allclose(away, 0.5 * skin, rtol=2e-3)
        vectors, mask = displacements(moved, listed)
        inside = np.asarray(mask & (jnp.linalg.norm(vectors, axis=-1) < cutoff)).sum()
        assert inside == int((neighbors(moved, cutoff).index < 32).sum())


def test_a_list_for_moving_boxes_agrees_with_vesin_in_each():
    box = np.array([[9.0, 0.5, 0.0], [-1.0, 8.0, 0.7], [0.4, 0.0, 8.5]])
    sys = replace(argon(), position=jnp.asarray(np.random.default_rng(1).uniform(size=(32, 3)) @ box), box=box)
    made = neighbor_list(sys, 3.5, 0.3, (100, 0), thinnest=tuple(0.95 * heights(box)))
    update, smallest = jax.jit(made.update), max(np.array(made.thinnest) / heights(box))
    assert smallest < 0.95
    for size in (smallest, 1.0, 1.3):
        one = replace(sys, position=size * sys.position, box=jnp.asarray(size * box))
        listed, needed = update(one)
        reference = neighbors(one, 3.8)
        assert int(needed[0]) == int((reference.index < 32).sum(1).max())
        assert (listed.index < 32).sum() == (reference.index < 32).sum()
    assert neighbor_list(sys, 3.5, 0.3, thinnest=made.thinnest).thinnest == pytest.approx(made.thinnest, rel=1e-8)
    np.testing.assert_allclose(inverse_of(jnp.asarray(box)) @ box, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(heights_of(jnp.asarray(box)), heights(box), rtol=1e-12)


def extended_energy(dt, time):
    """Spread, along a path of this length, of what the equations conserve by jax-md's formula."""
    kT, pressure, start, steps = 40 * kB, 0.05 * GPa, argon(), round(time / dt)
    ensemble = npt_nose_hoover(kT, pressure, dt, tau=100 * FS, tau_box=400 * FS)

    def energy(position, box):  # a lattice of wells that moves with the box, and a resistance of the volume
        angle = 4 * jnp.pi * position @ inverse_of(box)
        return 0.02 * (1 - jnp.cos(angle)).sum() + 0.5 * 0.02 * (jnp.linalg.det(box) - 1100) ** 2 / 1100

    def conserved(state):
        def potential(position, box):  # with the power of the volume that jax-md lacks
            return energy(position, box) - kT / 32 * jnp.log(jnp.linalg.det(box))

        found = _integrators().npt_nose_hoover_invariant(potential, state, pressure, kT)
        return found - 3 * kT * state.thermostat.position[0]  # jax-md counts 3N degrees of freedom, here 3N − 3 move

    @jax.jit
    def path(state):
        def step(state, _):
            state = ensemble.step(energy, state)
            return state, (conserved(state), volume(ensemble.box(state)))

        return jax.lax.scan(step, state, length=steps)[1]

    state = ensemble.init(jax.random.key(1), start)
    values, volumes = path(replace(state, force=-jax.grad(energy)(start.position, start.box)))
    assert volumes.max() - volumes.min() > 10  # Å³: the box moves
    return values.max() - values.min()


@pytest.mark.slow
def test_the_extended_energy_is_conserved_to_second_order():
    error = [extended_energy(dt * FS, 500 * FS) for dt in (5, 2.5)]
    assert 3.5 < error[0] / error[1] < 4.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: npt_nose_hoover(0.0, 0.0, 1.0), "kT must be positive"),
        (lambda: npt_nose_hoover(1.0, float("nan"), 1.0), "pressure must be a finite number"),
        (lambda: npt_nose_hoover(1.0, 0.0, 1.0, tau_box=0.0), "tau_box must be positive"),
    ],
)
def test_refuses_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("ensemble", [FAST, NOISY], ids=["nose-hoover", "langevin"])
@pytest.mark.parametrize("turn", [np.diag([1.0, 1.0, 0.0]), np.diag([1.0, 1.0, -1.0])])
def test_refuses_open_and_left_handed_boxes(turn, ensemble):
    start = replace(argon(), box=argon().box @ turn)
    with pytest.raises(ValueError, match="periodic in all three directions and right-handed"):
        simulate(jax.random.key(0), POTENTIAL, PARAMS, start, ensemble, steps=10, every=10)
