"""A potential as teacher: labels for configurations, with noise of known size; the truth is then known exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.potentials.potential import Potential, energy_forces_stress
from bayespot.records.dataset import Dataset, dataset
from bayespot.records.system import System
from bayespot.tree import replace
from bayespot.typing import Key, Params


def label(potential: Potential, params: Params, systems: list[System], cutoff: float) -> Dataset:
    """A data set whose labels are what a potential says about some configurations.

    Args:
        potential, params: the teacher.
        systems: single systems of any sizes; fully periodic ones get stresses.
        cutoff: of the neighbours that the data set carries [Å]; at least the teacher's.

    Raises:
        ValueError: if ``cutoff`` is shorter than the teacher's.
    """
    if cutoff < potential.cutoff:
        raise ValueError(f"cutoff must reach the teacher's, {potential.cutoff} Å. Got {cutoff} Å.")
    data = dataset(systems, cutoff)
    evaluate = jax.jit(lambda x: jax.lax.map(lambda frame: energy_forces_stress(potential)(params, *frame), x))
    energy, forces, stress = evaluate((data.system, data.neighbors))
    every, stress = jax.device_put(np.ones(len(data), bool)), np.asarray(stress)
    periodic = np.isfinite(stress).all((1, 2))
    return replace(
        data,
        energy=energy,
        forces=forces,
        stress=jnp.asarray(np.where(periodic[:, None, None], stress, np.zeros_like(stress))),
        has_energy=every,
        has_forces=every,
        has_stress=jnp.asarray(periodic),
        source="teacher",
    )


def add_noise(key: Key, data: Dataset, energy: float = 0.0, forces: float = 0.0, stress: float = 0.0) -> Dataset:
    """The data with independent Gaussian errors on their labels.

    Args:
        key: random key.
        data: frames with exact labels.
        energy: standard deviation per atom [eV/atom].
        forces: of each component [eV/Å].
        stress: of each component [eV/Å³]; the tensor stays symmetric.
    """
    return _with_errors(key, data, energy, forces, stress)


@jax.jit
def _with_errors(key: Key, data: Dataset, energy, forces, stress) -> Dataset:
    one, two, three = jax.random.split(key, 3)
    real = (data.system.species > 0)[..., None]
    tensor = jax.random.normal(three, data.stress.shape, data.stress.dtype)
    tensor = jnp.triu(tensor) + jnp.triu(tensor, 1).swapaxes(1, 2)
    vectors = jnp.where(real, jax.random.normal(two, data.forces.shape, data.forces.dtype), 0.0)
    atoms = real.sum((1, 2))
    return replace(
        data,
        energy=data.energy + energy * atoms * jax.random.normal(one, data.energy.shape, data.energy.dtype),
        forces=data.forces + forces * vectors,
        stress=data.stress + stress * tensor,
    )
