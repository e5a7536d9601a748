r"""Which frames of a pool to label next: the most uncertain ones, or the most informative ones together.

The covariance of the predictions over the posterior samples is a kernel between frames,

.. math:: K_{mn} = \sum_s \omega_s\, a_{ms} \cdot a_{ns}, \qquad \omega_s = \frac{w_s}{1 - \sum_s w_s^2},

where :math:`a_{ms}` holds what sample *s* predicts for frame *m* less the posterior mean, over the standard deviation η
of the error of labels: energies per atom, force vectors (η of their three components together), or both. A label of one
frame also tells about all that its predictions are correlated with. After the frames *C* have been labelled, the
variance that is left of frame *m* is

.. math:: v_m(C) = K_{mm} - K_{mC}\,(K_{CC} + 1)^{-1} K_{Cm},

and taking the largest one again and again maximises :math:`\log\det(1 + K_{CC})`, the information gained, greedily.
That comes within the factor 1 − 1/e of the best choice of its size.

References: Krause, Singh and Guestrin, *J. Mach. Learn. Res.* 9, 235 (2008); the bound: Nemhauser, Wolsey and Fisher,
*Math. Program.* 14, 265 (1978).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from bayespot.errors import listed
from bayespot.records.dataset import Dataset
from bayespot.typing import Array, Float, Int
from bayespot.uq.predict import Prediction, atom_uncertainty, check_frames

CRITERIA = ("diverse", "max", "rms")
_EQUAL = 1e-9  # scores that differ by less than this part of the largest are equal up to rounding


class Selection(NamedTuple):
    """Frames in the order of choice.

    Attributes:
        frames: their numbers in the pool, ``(n,)``; ``pool[selection.frames]`` are the frames.
        score: of each when it was chosen, ``(n,)``: the force uncertainty [eV/Å]; for ``"diverse"`` what was left of it
            (root mean square over the atoms), of energies [eV/atom], of both quantities in units of η. It never rises.
    """

    frames: Int[Array, "n"]
    score: Float[Array, "n"]


def select(
    prediction: Prediction,
    data: Dataset,
    number: int,
    by: str = "diverse",
    *,
    quantities: tuple[str, ...] = ("forces",),
    noise: Mapping[str, float] | None = None,
) -> Selection:
    """The frames of a pool whose labels would teach the most (host, float64).

    Args:
        prediction: for the frames of ``data``, with members.
        data: the pool; labels are not used.
        number: how many frames to choose.
        by: ``"diverse"`` (default): greedily by the uncertainty that is left when those chosen before are known, so
            that of near-duplicates one is taken. ``"max"``: by the least certain atom of a frame. ``"rms"``: by the
            root mean square over its atoms. The last two may choose what is nearly the same frame many times.
        quantities: what the kernel of ``"diverse"`` compares: ``"forces"``, ``"energy"`` (per atom) or both, each in
            units of its η. Forces are compared atom by atom, where both frames
            have the same species: right for frames of one simulation, blind to frames that are alike but turned or
            in another order. Energies have no such limit, but with ``S`` samples at most S − 1 frames are independent.
        noise: standard deviation of the labels' error by quantity, ``{"forces": … [eV/Å], "energy": … [eV/atom]}``; the
            larger, the more alike frames may be chosen. Default a tenth of the pool's median uncertainty.

    Ties, also those up to rounding, go to the frame that comes first.

    Raises:
        ValueError: for a number that is not from 1 to the size of the pool, unknown criteria or quantities, noise of
            others or that is not positive, another pool, no members, no spread, or predictions that are not finite.
    """
    noise = {} if noise is None else noise
    known = bool(quantities) and set(noise) <= set(quantities) <= {"energy", "forces"}
    if by not in CRITERIA or not known or not all(x > 0 for x in noise.values()):
        raise ValueError(
            f"Need by from {CRITERIA}, quantities from ('energy', 'forces') and noise > 0 of these only. "
            f"Got {by!r}, {quantities} and {dict(noise)}."
        )
    _check_pool(prediction, data, number)
    if by != "diverse":
        score = frame_uncertainty(prediction, data, by)
        return _greedy(score**2, lambda frame: np.zeros(len(score)), number, 1.0)
    parts = [_kernel(prediction, data, name, noise.get(name)) for name in quantities]
    variance = np.mean([diagonal for diagonal, _, _ in parts], axis=0)
    found = _greedy(variance, lambda frame: np.mean([column(frame) for _, column, _ in parts], axis=0), number, 1.0)
    return found._replace(score=found.score * parts[0][2]) if len(parts) == 1 else found


def frame_uncertainty(prediction: Prediction, data: Dataset, over: str = "max") -> np.ndarray:
    r"""Uncertainty of the forces on the atoms of each frame as one number, ``(M,)`` [eV/Å] (host).

    Args:
        prediction: for the frames of ``data``.
        data: tells padding from atoms.
        over: ``"max"``, :math:`\max_i u_i`, or ``"rms"``, :math:`\sqrt{\frac1N\sum_i u_i^2}`, with the uncertainty
            :math:`u_i` of the force vector on atom *i* (``atom_uncertainty``).

    Raises:
        ValueError: for another value of ``over``.
    """
    if over not in ("max", "rms"):
        raise ValueError(f"over must be 'max' or 'rms'. Got {over!r}.")
    u = np.where(np.asarray(data.system.species) > 0, atom_uncertainty(prediction.forces_uncertainty), 0.0)
    return u.max(1) if over == "max" else np.sqrt((u**2).sum(1) / np.maximum(data.atom_counts, 1))


def _check_pool(prediction: Prediction, data: Dataset, number: int) -> None:
    """Refuse what cannot be chosen from; raises ``ValueError``."""
    check_frames(prediction, data)
    if not 1 <= number <= len(data):
        raise ValueError(f"number must be from 1 to {len(data)}, the frames of the pool. Got {number}.")
    if not {"energy", "forces"} <= set(prediction.members):
        raise ValueError(f"The prediction must hold its members. Got {sorted(prediction.members)}. Use predict(…).")
    good = np.isfinite(np.asarray(prediction.members["energy"])).all(0)
    good &= np.isfinite(np.asarray(prediction.members["forces"])).all((0, 2, 3))
    if not good.all():
        raise ValueError(
            f"Predictions must be finite. Got NaN or inf in the frames {listed(np.flatnonzero(~good))}. Leave them out."
        )


def _kernel(
    prediction: Prediction, data: Dataset, name: str, noise: float | None
) -> tuple[np.ndarray, Callable, float]:
    """Diagonal of the kernel of one quantity, the function that gives its column of a frame, and the unit η of both."""
    weight = np.exp(np.asarray(prediction.log_weight, np.float64) - np.max(prediction.log_weight))
    weight /= weight.sum()
    member = np.asarray(prediction.members[name], np.float64)
    count, species = np.maximum(data.atom_counts, 1), np.asarray(data.system.species)
    deviation = member - np.tensordot(weight, member, 1)
    deviation *= np.sqrt(weight / (1.0 - (weight**2).sum())).reshape(-1, *[1] * (member.ndim - 1))
    if name == "energy":
        deviation = (deviation / count)[:, :, None, None]  # the pool's frames as one "atom" each
        species = np.ones((len(count), 1), int)
    else:
        deviation = np.where(species[:, :, None] > 0, deviation, 0.0) / np.sqrt(count)[:, None, None]
    deviation = np.ascontiguousarray(np.moveaxis(deviation, 1, 0))  # (M, S, N, 3)
    variance = (deviation**2).sum((1, 2, 3))
    if not variance.max() > 0:
        raise ValueError(f"The samples must differ in their predictions of the {name}. Got no spread.")
    usual = np.median(variance[variance > 0])  # which a few frames from runs that blew up do not move
    scale = 0.01 * usual if noise is None else noise**2 * (3 if name == "forces" else 1)
    flat = deviation.reshape(len(variance), -1)

    def column(frame: int) -> np.ndarray:
        other = flat[frame]
        if (species == species[frame]).all():
            return flat @ other / scale
        same = (species == species[frame])[:, None, :, None]
        return (deviation * same).reshape(flat.shape) @ other / scale

    return variance / scale, column, np.sqrt(scale)


def _greedy(variance: np.ndarray, column: Callable, number: int, noise: float) -> Selection:
    """Pivoted Cholesky of K + ``noise``: each pivot is the largest conditional variance of the frames that are left."""
    left, free = variance.astype(np.float64), np.ones(len(variance), bool)
    rows, frames, score = np.zeros((number, len(left))), [], []
    for n in range(number):
        open_frames = np.where(free, left, -np.inf)
        frame = int(np.flatnonzero(open_frames >= (1 - _EQUAL) * open_frames.max())[0])
        frames.append(frame)
        score.append(np.sqrt(max(left[frame], 0.0)))
        rows[n] = (column(frame) - rows[:n, frame] @ rows[:n]) / np.sqrt(left[frame] + noise)
        left, free[frame] = left - rows[n] ** 2, False
    return Selection(np.array(frames), np.array(score))
