r"""Bonded terms from a simulation, by Boltzmann inversion of the distribution of every bond, angle and dihedral alone.

.. math:: r_0 = \langle r \rangle_w, \quad k = \frac{kT}{\langle r^2 \rangle_w - \langle r \rangle_w^2}, \qquad
          \sum_n [c_n \cos n\varphi + s_n \sin n\varphi] \approx -kT \ln p(\varphi) + \text{const}

Boltzmann's distribution of a bond is r² exp(−U/kT), that of an angle sin θ exp(−U/kT): the averages have the weights
w = 1/r² and 1/sin θ, which leave the Gaussian exp(−U/kT). The inversion takes terms for independent of each other and
of everything else: a prior for a network to correct, or a start for learning.
"""

import jax.numpy as jnp
import numpy as np

from bayespot.potentials.bonded import COORDINATES, Topology, bonded, kinds
from bayespot.potentials.potential import Potential
from bayespot.records.dataset import Dataset

_RIGID = 1e-5
_WIDEST = 10.0
_THINNEST = 0.02
"""The smallest volume that counts, r² or sin θ, as a part of the largest: no datum gets all of the weight."""


def bonded_from_data(data, terms: Topology, kT: float, orders: int = 3, bins: int = 72) -> Potential:
    r"""``bonded`` with the initial parameters that the fluctuations in data suggest.

    Bonds and angles get the harmonic term whose Gaussian exp(−U/kT) has the mean and the variance of the data, which
    are weighted with 1/r² and 1/sin θ. That is right where the Gaussian ends before 0 and π. Near-straight angles are
    only approximate: they come out too stiff, with θ0 short of π; give them values by hand.
    Dihedrals get the Fourier series that fits :math:`-kT \ln p` in the bins that the data visit, by least squares with
    the counts as weights. Of coefficients that these bins leave open it takes small ones: each counts as known to be
    0 ± 10 kT.

    Args:
        data: a ``Dataset`` of all atoms of the molecules at equilibrium, or positions ``(M, N, 3)`` [Å] in open space.
            In a box atoms may be wrapped one by one; bonds must be shorter than half of it, as for ``bonded``.
        terms: of the molecule, e.g. from ``topology``.
        kT: temperature of the data [eV].
        orders: of the series of each dihedral, from 1.
        bins: of the circle, for dihedrals.

    Raises:
        ValueError: for kT that is not positive, frames that are not whole molecules, fewer than two molecules in all,
            bonds or angles that do not fluctuate, or more orders than the bins can tell apart.

    Reference: Tschöp, Kremer, Batoulis, Bürger and Hahn, *Acta Polym.* 49, 61 (1998).
    """
    if not kT > 0 or orders < 1 or bins <= 2 * orders:
        raise ValueError(
            f"Need kT > 0 [eV], orders ≥ 1, and more than 2 × orders bins. Got kT={kT}, orders={orders}, bins={bins}."
        )
    position, box = _copies(data, terms.atoms)
    initial = {}
    for kind, rows in kinds(terms).items():
        x = np.asarray(COORDINATES[kind](position, box, np.asarray(rows, int)), np.float64)
        if kind == "dihedral":
            cosine, sine = kT * np.stack([_series(column, orders, bins) for column in x.T], 1)
            initial[kind] = {"cosine": cosine, "sine": sine}
        else:
            initial[kind] = _harmonic(kind, rows, x, kT)
    return bonded(*terms, initial=initial)


def _copies(data, atoms: int):
    """Positions of all molecules ``(m, atoms, 3)``, each about its first atom, and their boxes ``(m, 1, 3, 3)``."""
    if isinstance(data, Dataset):
        frames = np.asarray(data.system.position, np.float64)
        counts, boxes = data.atom_counts, np.asarray(data.system.box, np.float64)
    else:
        frames = np.asarray(data, np.float64)
        if frames.ndim != 3 or frames.shape[-1] != 3:
            raise ValueError(f"Positions must have the shape (M, N, 3). Got {frames.shape}.")
        counts, boxes = np.full(len(frames), frames.shape[1]), np.zeros((len(frames), 3, 3))
    if (counts % atoms).any() or counts.sum() < 2 * atoms:
        raise ValueError(
            f"Need two or more copies of the molecule of {atoms} atoms, and frames of whole ones. "
            f"Got frames of {sorted(set(counts.tolist()))} atoms."
        )
    found = np.concatenate([x[:n].reshape(-1, atoms, 3) for x, n in zip(frames, counts, strict=True)])
    boxes = np.repeat(boxes, counts // atoms, axis=0)[:, None]
    return jnp.asarray(found - found[:, :1]), jnp.asarray(boxes)  # far from the origin float32 has too few digits


def _harmonic(kind: str, rows: tuple, x: np.ndarray, kT: float) -> dict:
    mean, variance = _moments(x, x**2 if kind == "bond" else np.sin(x))
    rigid = np.flatnonzero(~(variance > (_RIGID * mean) ** 2))
    if rigid.size:
        raise ValueError(
            f"Every {kind} must fluctuate. Got one of constant {mean[rigid[0]]:.5g} for the atoms {rows[rigid[0]]}. "
            "Constraints have no finite stiffness: leave it out and give it one by hand."
        )
    return {"k": kT / variance, ("r0" if kind == "bond" else "theta0"): mean}


def _moments(x: np.ndarray, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of the columns of ``x``, weighted with one over their volume."""
    weight = 1 / np.maximum(volume, _THINNEST * volume.max(0) + np.finfo(float).eps)
    weight = weight / weight.sum(0)
    mean = (weight * x).sum(0)
    return mean, (weight * (x - mean) ** 2).sum(0) / (1 - (weight**2).sum(0))


def _series(phi: np.ndarray, orders: int, bins: int) -> np.ndarray:
    """Coefficients [kT] of cosines and sines, ``(2, orders)``, of the series that fits −ln p in the visited bins."""
    count, edges = np.histogram(phi, bins, (-np.pi, np.pi))
    seen = count > 0
    angle = np.arange(1, orders + 1) * (0.5 * (edges[1:] + edges[:-1]))[seen, None]
    design = np.hstack([np.ones((len(angle), 1)), np.cos(angle), np.sin(angle)])
    weight = np.sqrt(count[seen])  # the logarithm of a count scatters by one over its root
    bound = np.eye(2 * orders + 1)[1:] / _WIDEST
    rows = np.vstack([weight[:, None] * design, bound])
    wanted = np.concatenate([-weight * np.log(count[seen] / len(phi)), np.zeros(2 * orders)])
    return np.linalg.lstsq(rows, wanted)[0][1:].reshape(2, orders)
