"""Simulations inside a target: neighbour lists that are too short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot import units
from bayespot.batching import TOGETHER
from bayespot.errors import Status
from bayespot.observables.thermodynamics import pressure
from bayespot.potentials.classical import lennard_jones
from bayespot.records.system import from_ase
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.targets import reference_frames
from bayespot.targets.difftre import Measurement, difftre
from bayespot.targets.reference_run import reference_run


@pytest.mark.slow
def test_lists_that_are_too_short_are_replaced_by_longer_ones(key, monkeypatch):
    """With room for fewer neighbours than there are: the same frames and gradients, and longer lists from then on.

    Two chains that go together take the longer lists together.
    """
    atoms = bulk("Ar", cubic=True, a=5.4) * (2, 2, 2)
    potential = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0)
    thermostat = nvt_langevin(kT=60 * units.kB, dt=5 * units.fs, gamma=0.05)
    run = reference_run(from_ase(atoms), thermostat, steps=20, every=10, equilibration=0, replicas=2, max_age=1)
    enough = reference_frames.rooms(potential, run)[1]
    one = {"potential": potential.init(key), "noise": {}}
    params = jax.tree.map(lambda x: jnp.stack([x, 1.01 * x]), one)

    def two_updates(short, longer):
        monkeypatch.setattr(reference_frames, "rooms", lambda *_: (short, longer))
        target = difftre(potential, run, {"pressure": Measurement(pressure(), 0.0, 0.01)})
        keys = jax.random.split(jax.random.clone(key), 2)
        state = jax.vmap(target.init)(jax.random.clone(keys), params)
        update = jax.jit(jax.vmap(lambda k, p, s: target.value_and_grad(k, p, s, None)[1:3], axis_name=TOGETHER))
        for _ in range(2):
            gradient, state = update(jax.random.clone(keys), params, state)
        return gradient, state

    (gradient, state), (expected, like) = two_updates((6, 0), enough), two_updates(enough, enough)
    assert (np.asarray(state.status) == Status.OK).all()
    assert np.asarray(state.crowded).all()
    assert not np.asarray(like.crowded).any()
    assert np.asarray(state.simulations).tolist() == [2, 2]
    np.testing.assert_allclose(state.position, like.position, rtol=1e-9, atol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradient, expected)
    lost = two_updates((6, 0), (8, 0))[1]
    assert (np.asarray(lost.status) == Status.NEIGHBOR_OVERFLOW).all()
    assert not np.asarray(lost.crowded).any()
