"""What a simulation leaves behind."""

import numpy as np

from bayespot.errors import Status
from bayespot.records.system import System
from bayespot.tree import record
from bayespot.typing import Array, Float, Int


@record
class Frame:
    """One instant of a simulation; every observable is a function of this.

    Attributes:
        system: unwrapped positions ``(N, 3)`` [Å], species ``(N,)``, box ``(3, 3)`` [Å].
        velocity: ``(N, 3)`` [Å per internal time unit, see ``units.fs``].
        energy: potential energy [eV].
        stress: potential part of the stress ``(3, 3)`` [eV/Å³], positive = tension; NaN where the box is open.
    """

    system: System
    velocity: Float[Array, "*#batch N 3"]
    energy: Float[Array, "*#batch"]
    stress: Float[Array, "*#batch 3 3"]


@record
class Trajectory:
    """``T`` frames; after ``propagate`` every leaf has the leading axes ``(S, R)``, samples × replicas.

    Attributes:
        frames: with the axis ``T``.
        time: of the frames, ``(T,)`` [internal time unit].
        status: a ``Status``, one number per run.
        valid_until: time until which the run was sound [internal time unit]; its length for a sound run.
    """

    frames: Frame
    time: Float[Array, "*#batch T"]
    status: Int[Array, "*#batch"]
    valid_until: Float[Array, "*#batch"]

    @property
    def surviving(self) -> float:
        """Share of the samples all of whose runs were sound (host); ``valid_until`` says when the others failed."""
        return float((np.asarray(self.status) == Status.OK).all(-1).mean())
