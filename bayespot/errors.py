"""Failures: errors that are raised at the host boundary, and the ``Status`` that traced code returns."""

from enum import IntEnum


class Status(IntEnum):
    """What became of one simulation or one posterior sample; larger is worse for an average over it."""

    OK = 0
    NEIGHBOR_OVERFLOW = 1
    """The neighbour list was too small; repaired by re-allocation and replay, so users should not see it."""
    UNSTABLE = 2
    """A value became non-finite, the kinetic temperature went beyond the limit, or a moving box collapsed."""
    LOW_ESS = 3
    """Too few effective samples for the claim."""


class DataError(ValueError):
    """Reading data failed: the message names the file, the frame, the key and a remedy."""

    def __init__(self, source: object, frame: int | None, message: str):
        place = f"{source}" if frame is None else f"{source}, frame {frame}"
        super().__init__(f"{place}: {message}")
        self.source, self.frame = source, frame


class FailedSamples(RuntimeError):
    """Some posterior samples failed (diverged, or their simulation became unstable).

    Attributes:
        samples: numbers of the failed samples.
        trajectories: of simulations, all runs with their status; ``None`` elsewhere.
    """

    trajectories: object = None

    def __init__(self, message: str, samples: tuple[int, ...]):
        super().__init__(message)
        self.samples = samples


class UncertaintyWarning(UserWarning):
    """An uncertainty is too large (``calculator(…, warn_above=…)``), or runs are too short to tell it."""


def listed(numbers, limit: int = 10) -> str:
    """Numbers as readable text, shortened after ``limit``.

    Example:
        >>> listed([7, 12, 40])
        '7, 12, 40'
    """
    numbers = [int(n) for n in numbers]
    text = ", ".join(str(n) for n in numbers[:limit])
    return text if len(numbers) <= limit else f"{text}, … ({len(numbers)} in all)"
