"""Force labels that are linear in Gaussian parameters: posterior and predictions are known exactly."""

from functools import partial
from typing import NamedTuple

import numpy as np

from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import replace
from bayespot.uq.predict import Prediction
from tests.uq.held_out import empty

ATOMS, SIGMA = 4, 0.3


def normal(rng, size):
    return rng.normal(size=size)


def heavy(rng, size):
    """Student-t with three degrees of freedom, of unit scale."""
    return rng.standard_t(3.0, size)


class Problem(NamedTuple):
    """Samples, prediction and data of training (0) and held-out labels (1), and the numbers that they came from.

    Attributes:
        samples: drawn from the posterior, independently.
        prediction, data: for the training and the held-out labels.
        x: design ``(2, n, parameters)``.
        y: labels ``(2, n)``.
    """

    samples: PosteriorSamples
    prediction: tuple[Prediction, Prediction]
    data: tuple[Dataset, Dataset]
    x: np.ndarray
    y: np.ndarray


def problem(seed, chains, draws=1, *, frames=5, parameters=8, assumed=SIGMA, noise=normal, bias=0.0, spread=1.0):
    """Parameters from the prior N(0, 1), and noise of scale ``SIGMA`` times ``noise``.

    Args:
        seed: of all random numbers.
        chains, draws: of the samples.
        frames, parameters: of the data, 12 labels per frame, and of the model.
        assumed: scale of the normal noise in the posterior.
        noise: of the labels, function of a generator and a shape.
        bias: added to every label, in units of ``SIGMA``.
        spread: factor on the distance of the samples from the posterior mean; right is 1.
    """
    rng = np.random.default_rng(seed)
    shape = frames, ATOMS, 3
    n = frames * ATOMS * 3
    x = rng.normal(size=(2, n, parameters))
    y = x @ rng.normal(size=parameters) + SIGMA * (noise(rng, (2, n)) + bias)
    covariance = np.linalg.inv(x[0].T @ x[0] / assumed**2 + np.eye(parameters))
    mean = covariance @ x[0].T @ y[0] / assumed**2
    a = mean + spread * rng.normal(size=(chains * draws, parameters)) @ np.linalg.cholesky(covariance).T
    index, zero = np.arange(len(a)), np.zeros(len(a))
    params = {"potential": {"a": a}, "noise": {"forces": np.full(len(a), np.log(assumed))}}
    samples = PosteriorSamples(params, zero, index // draws, index % draws, zero, np.zeros_like(index), {}, "{}")
    forces = (a @ x.swapaxes(1, 2)).reshape(2, -1, *shape)
    both = tuple(predicted(samples, f) for f in forces), tuple(labelled(f) for f in y.reshape(2, *shape))
    return Problem(samples, *both, x, y)


def labelled(forces) -> Dataset:
    """Frames with these forces ``(M, N, 3)`` as their only labels."""
    return replace(empty(*forces.shape[:2]), forces=forces, has_energy=np.zeros(len(forces), bool))


def predicted(samples: PosteriorSamples, forces: np.ndarray) -> Prediction:
    """A prediction by ``(S, M, N, 3)`` forces of the samples."""
    s, m = forces.shape[:2]
    members = {"energy": np.zeros((s, m)), "forces": forces, "stress": np.zeros((s, m, 3, 3))}
    spread = partial(np.std, axis=0, ddof=1)
    return Prediction(
        **{name: x.mean(0) for name, x in members.items()},
        **{f"{name}_uncertainty": spread(x) for name, x in members.items()},
        noise={},
        members=members,
        log_weight=np.asarray(samples.log_weight),
        chain=np.asarray(samples.chain),
    )
