"""Held-out labels and predictions of known quality, made without a potential."""

from functools import cache

import numpy as np

from bayespot.records.dataset import Dataset, dataset
from bayespot.records.system import system
from bayespot.uq.predict import Prediction

MANY = 10_000  # samples whose spread is practically known


@cache
def empty(frames: int, atoms: int, species=(14,), group=None) -> Dataset:
    """Frames of equal size with forces of zero, to be replaced."""
    kinds = np.resize(species, atoms)
    place = 3.0 * np.arange(atoms)[:, None] * np.ones(3)
    force = list(np.zeros((frames, atoms, 3)))
    group = list(group) if group else None
    return dataset([system(place, kinds) for _ in range(frames)], 1.0, forces=force, energy=[0.0] * frames, group=group)


def prediction(forces, uncertainty, samples: int = MANY, energy=None, energy_uncertainty=None) -> Prediction:
    m = len(forces)
    zero = np.zeros(m)
    stress = np.zeros((m, 3, 3))
    return Prediction(
        energy=zero if energy is None else energy,
        forces=forces,
        stress=stress,
        energy_uncertainty=zero if energy_uncertainty is None else energy_uncertainty,
        forces_uncertainty=uncertainty,
        stress_uncertainty=stress,
        noise={},
        members={},
        log_weight=np.zeros(samples),
        chain=np.arange(samples),
    )


def exchangeable(rng: np.random.Generator, shape, samples: int, spread=None):
    """Mean and standard deviation of ``samples`` draws, and a label that is one more draw; of zero mean."""
    spread = np.exp(0.5 * rng.normal(size=shape)) if spread is None else np.broadcast_to(spread, shape)
    if samples == MANY:
        return np.zeros(shape), spread, spread * rng.normal(size=shape)
    draws = spread * rng.normal(size=(samples, *shape))
    return draws.mean(0), draws.std(0, ddof=1), spread * rng.normal(size=shape)
