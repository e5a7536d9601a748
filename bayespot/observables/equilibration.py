r"""When a simulation has forgotten its start: the part to discard.

Of a series of :math:`T` frames, discarding the first :math:`t_0` leaves

.. math:: N_\mathrm{eff}(t_0) = \frac{T - t_0}{g(t_0)}

independent frames, with the statistical inefficiency :math:`g` of the rest. A transient looks like a long correlation,
so :math:`N_\mathrm{eff}` is largest where just the transient is left out.

Reference:
    Chodera, *J. Chem. Theory Comput.* 12, 1799 (2016).
"""

import warnings
from typing import NamedTuple

import numpy as np

from bayespot.errors import UncertaintyWarning
from bayespot.observables.frame_weights import inefficiency
from bayespot.typing import Array, Float

FEW = 10.0
"""Independent frames of a run below which its averages and their errors mean little."""


class Equilibration(NamedTuple):
    """What to leave out, and what is left.

    Attributes:
        discard: frames to leave out at the start of every run, for ``observe(…, discard=…)``.
        inefficiency: frames that tell as much as one independent frame, in the rest of each run, ``(S,)``.
        independent: effective number of independent frames of each run that are left, ``(S, R)``.
    """

    discard: int
    inefficiency: np.ndarray
    independent: np.ndarray


def equilibration(series: Float[Array, "*runs T"], candidates: int = 20) -> Equilibration:
    """Detect when runs have equilibrated, from a scalar of every frame.

    One number for all runs, because they start alike: it maximises the number of independent frames of all together.

    Args:
        series: e.g. ``runs.frames.energy``, ``(S, R, T)``, or of one run ``(T,)``; best something slow.
        candidates: beginnings that are tried, evenly spaced over the first four fifths.

    Raises:
        ValueError: for fewer than 20 frames, or values that are not finite (leave unstable runs out).

    Warns:
        UncertaintyWarning: when a run is left with fewer than 10 independent frames, or half of the frames are
            discarded: too short to trust its averages or this detection.
    """
    values = np.asarray(series, np.float64)
    values = values.reshape(-1, 1, values.shape[-1]) if values.ndim < 3 else values
    frames = values.shape[-1]
    if values.ndim != 3 or frames < 20 or not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(
            "equilibration needs finite values (S, R, T) or (T,) of 20 frames or more. "
            f"Got {np.shape(series)}, {bad} not finite."
        )
    starts = np.unique(np.linspace(0, 0.8 * frames, candidates, endpoint=False).astype(int))
    slow = np.array([inefficiency(values[..., t:]) for t in starts])
    left = ((frames - starts)[:, None] / slow).sum(1)
    best = int(left.argmax())
    discard, independent = (
        int(starts[best]),
        np.repeat((frames - starts[best]) / slow[best][:, None], values.shape[1], 1),
    )
    if independent.min() < FEW or discard > frames / 2:
        warnings.warn(
            f"The runs are short for what they shall tell: {discard} of {frames} frames look like equilibration, and a "
            f"run keeps {independent.min():.1f} independent frames. Simulate longer.",
            UncertaintyWarning,
            stacklevel=2,
        )
    return Equilibration(discard, slow[best], independent)
