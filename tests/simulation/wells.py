"""Atoms in harmonic wells of their own: the canonical averages are known, and frames are drawn, not simulated."""

import jax.numpy as jnp
import numpy as np

from bayespot.potentials.potential import Potential
from bayespot.records.posterior import as_samples
from bayespot.records.system import System, system
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.tree import replace

KT, ATOMS = 0.05, 3
SITES = np.array([[1.0, 1, 1], [3.0, 1, 1], [1.0, 3, 3]])
START = system(SITES, [18] * ATOMS, [6.0, 6.0, 6.0])


def wells() -> Potential:
    r""":math:`U = \\sum_i \\frac{k}{2} |x_i - c_i|^2 - c`; per atom ``U = 3/2 kT``."""

    def atom_energies(params, system, neighbors):
        return 0.5 * params["k"] * ((system.position - SITES) ** 2).sum(-1) - params["c"]

    return Potential(lambda key: {"k": jnp.array(1.0), "c": jnp.array(0.0)}, atom_energies, 1.5, (), {"name": "wells"})


def with_stiffness(k, c=0.0):
    k = np.atleast_1d(np.asarray(k, float))
    return as_samples({"k": jnp.asarray(k), "c": jnp.full(len(k), c)}, {"name": "wells"})


def drawn(seed, k, frames, replicas=1, kT=KT) -> Trajectory:
    """Independent frames of the canonical ensembles with these spring constants, ``(J, R, T)``."""
    k = np.atleast_1d(np.asarray(k, float))
    shape = (len(k), replicas, frames)
    rng = np.random.default_rng(seed)
    away = rng.normal(size=(*shape, ATOMS, 3)) * np.sqrt(kT / k)[:, None, None, None, None]
    energy = 0.5 * k[:, None, None] * (away**2).sum((-2, -1))
    everywhere = [np.broadcast_to(np.asarray(x), (*shape, *x.shape)) for x in (START.species, START.box)]
    frame = Frame(System(SITES + away, *everywhere), rng.normal(size=away.shape), energy, np.zeros((*shape, 3, 3)))
    time = np.broadcast_to(np.arange(1.0, frames + 1), shape)
    return Trajectory(frame, time, np.zeros(shape[:2], np.int32), np.full(shape[:2], float(frames)))


def displaced(trajectory: Trajectory, energy) -> Trajectory:
    """The same frames with other recorded energies."""
    return replace(trajectory, frames=replace(trajectory.frames, energy=energy))
