"""Langevin dynamics of the box: known volumes of an ideal gas, elastic constants from strains, and how it moves."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot import units
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.potential import energy_forces_stress
from bayespot.records.neighbors import neighbors
from bayespot.records.system import from_ase, system
from bayespot.simulation.npt_langevin import npt_langevin
from bayespot.simulation.simulate import simulate
from bayespot.tree import replace, take

FS, kB, GPa = units.fs, units.kB, units.GPa


def argon(a=5.3):
    return from_ase(bulk("Ar", cubic=True, a=a) * (2, 2, 2))


def path(ensemble, energy, start, key, frames: int, every: int):
    """Positions and boxes, ``(frames, …)``."""

    def frame(state, _):
        state = jax.lax.fori_loop(0, every, lambda n, s: ensemble.step(energy, s), state)
        return state, (state.position, state.box)

    states = jax.jit(lambda k: jax.lax.scan(frame, ensemble.init(k, start), None, length=frames)[1])(key)
    return tuple(np.asarray(x) for x in states)


@pytest.mark.parametrize(
    ("box", "steps"),
    [
        pytest.param("isotropic", 400, marks=pytest.mark.slow),
        pytest.param("orthorhombic", 400, marks=pytest.mark.slow),
        ("flexible", 200),
    ],
)
def test_volumes_of_an_ideal_gas(box, steps):
    """V p/kT has the density of Gamma(N + 1): 3000 runs that start with it keep it, for up to four relaxation times.

    Nothing holds the shape, so the runs are short. Four standard errors of mean and variance, and 1 % of the mean and
    2 % of the variance for the time step (τ/100); one kT/V more or less in the drift would change both by a quarter.
    """
    n, kT, p, runs = 3, 0.02, 0.001, 3000
    ensemble = npt_langevin(kT, p, 2 * FS, box=box, tau_box=200 * FS, modulus=p)
    first = np.random.default_rng(0).gamma(n + 1, kT / p, runs)
    start = system(np.random.default_rng(1).uniform(0, 4, (n, 3)), [18] * n, np.eye(3))

    def last(key, volume):
        state = ensemble.init(key, replace(start, box=start.box * jnp.cbrt(volume)))
        free = partial(ensemble.step, lambda position, box: 0.0 * position.sum())
        return jnp.linalg.det(jax.lax.fori_loop(0, steps, lambda _, s: free(s), state).box)

    x = np.asarray(jax.jit(jax.vmap(last))(jax.random.split(jax.random.key(0), runs), jnp.asarray(first))) * p / kT
    assert abs(np.corrcoef(x, first)[0, 1]) < (0.2 if steps == 400 else 0.4)  # exp(−4), exp(−2): they have moved
    for values, error in ((x, 0.01), ((x - n - 1) ** 2, 0.02)):
        assert abs(values.mean() - (n + 1)) < 4 * values.std(ddof=1) / runs**0.5 + error * (n + 1)


@pytest.mark.slow
def test_strains_of_a_crystal_tell_its_elastic_constants():
    """Silicon at 20 K, eight runs: C = kT/V · cov(strain)⁻¹; at T → 0 it is 151.4, 76.4 and 56.4 GPa. Four standard
    errors from the spread of the runs, and 1 % for temperature and time step."""
    potential = stillinger_weber(14)
    params = potential.init(jax.random.key(0))
    start = from_ase(bulk("Si", "diamond", a=5.43095, cubic=True))
    listed, kT = neighbors(start, 4.3), 20 * kB

    def energy(position, box):
        return potential.energy(params, replace(start, position=position, box=box), listed)

    ensemble = npt_langevin(kT, 0.0, 2 * FS, 0.05, box="flexible", tau_box=50 * FS, modulus=100 * GPa)
    found = []
    for number in range(8):
        box = path(ensemble, energy, start, jax.random.key(number), 3000, 20)[1][100:]
        strain = np.linalg.inv(np.asarray(start.box)) @ box - np.eye(3)
        six = [strain[:, 0, 0], strain[:, 1, 1], strain[:, 2, 2]]
        six += [strain[:, a, b] + strain[:, b, a] for a, b in ((1, 2), (0, 2), (0, 1))]
        c = np.linalg.inv(np.cov(six)) * kT / np.linalg.det(box).mean() / GPa
        found.append([c[[0, 1, 2], [0, 1, 2]].mean(), c[[0, 0, 1], [1, 2, 2]].mean(), c[[3, 4, 5], [3, 4, 5]].mean()])
    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / 8**0.5
    assert (error < [3.0, 3.0, 1.0]).all()
    np.testing.assert_array_less(abs(mean - [151.4, 76.4, 56.4]), 4 * error + 0.01 * mean)


@pytest.mark.parametrize(("box", "free"), [("isotropic", 1), ("orthorhombic", 3), ("flexible", 6)])
def test_the_box_moves_as_far_as_it_may_and_takes_the_atoms_along(box, free):
    """Without forces and with next to no motion fractional coordinates stay; strains have so many directions."""
    h = np.array([[6.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 7.0]])
    start = system(np.random.default_rng(0).uniform(0, 1, (4, 3)) @ h, [18] * 4, h)
    ensemble = npt_langevin(1e-8, 0.0, 2 * FS, box=box, modulus=1e-7)
    position, boxes = path(ensemble, lambda position, box: 0.0 * position.sum(), start, jax.random.key(0), 12, 1)
    fraction = position @ np.linalg.inv(boxes)
    np.testing.assert_allclose(fraction, np.broadcast_to(fraction[0], fraction.shape), atol=1e-4)
    assert (abs(np.diff(np.log(np.linalg.det(boxes)))) > 1e-6).all()
    strain = np.linalg.inv(boxes[:-1]) @ boxes[1:] - np.eye(3)
    np.testing.assert_allclose(strain, np.swapaxes(strain, 1, 2), atol=1e-12)
    assert np.linalg.matrix_rank(strain.reshape(-1, 9), tol=1e-3 * abs(strain).max()) == free


def test_numbers_of_numpy_do_not_widen_a_state():
    start = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, argon())
    ensemble = npt_langevin(*np.array([0.01, 0.0, 0.1]), tau_box=np.float64(50.0), modulus=np.float64(0.1))
    before = ensemble.init(jax.random.key(0), start)
    after = ensemble.step(lambda position, box: 0.0 * position.sum(), before)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(before)]
    assert before.box.dtype == jnp.float32
    json.dumps(ensemble.spec)


@pytest.mark.slow
def test_frames_hold_the_energy_and_stress_of_their_box():
    """Argon that starts too wide, in public: neighbour lists follow a box that shears."""
    potential = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0)
    params, start = potential.init(jax.random.key(0)), argon(5.8)
    ensemble = npt_langevin(60 * kB, 0.1 * GPa, 5 * FS, box="flexible", tau_box=600 * FS, modulus=1.0 * GPa)
    options = {"steps": 200, "every": 50, "chunk": 100, "skin": 0.4, "progress": False}
    frames = simulate(jax.random.key(0), potential, params, start, ensemble, **options).frames
    box = np.asarray(frames.system.box)
    assert np.linalg.det(box[-1]) < 0.9 * np.linalg.det(start.box)
    assert abs(box[:, 0, 1]).min() > 1e-4
    evaluate = jax.jit(energy_forces_stress(potential))
    for t in range(4):
        sys = jax.tree.map(jnp.asarray, take(frames.system, t))
        energy, _, stress = evaluate(params, sys, neighbors(sys, 5.0, capacity=110))
        np.testing.assert_allclose(frames.energy[t], energy, rtol=1e-10)
        np.testing.assert_allclose(frames.stress[t], stress, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kT": 0.0}, "kT"), ({"pressure": float("nan")}, "pressure"), ({"box": "cubic"}, "isotropic, orthorhombic"),
     ({"tau_box": -1.0}, "tau_box"), ({"modulus": 0.0}, "modulus")],
)  # fmt: skip
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        npt_langevin(**({"kT": 0.01, "pressure": 0.0, "dt": 0.1} | change))
