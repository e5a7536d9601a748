"""Simulations of some parameters as the samples of a posterior see them."""

import numpy as np

from bayespot.errors import Status
from bayespot.records.trajectory import Trajectory
from bayespot.tree import record
from bayespot.typing import Array, Float, Int


@record(static=("kT", "kind", "mark", "steps", "steps_of_all"))
class Reweighted:
    """Frames of ``J`` references, weighted for ``S`` posterior samples, and own runs of those that they cannot serve.

    ``R`` and ``T`` are the replicas and frames of the references.

    Attributes:
        reference: the simulations that all samples share, ``(J, R, T)``.
        energy: potential energy of their frames with the parameters of each sample [eV], ``(S, J, R, T)``.
        stress: the potential part likewise [eV/Å³], ``(S, J, R, T, 3, 3)``.
        log_boltzmann: −U/kT of the frames in each sample, less that in the first reference, ``(S, J, R, T)``, float64.
        reference_log_boltzmann: the same in each reference, ``(J, J, R, T)``.
        weight: of the frames for each sample, all together 1, ``(S, J, R, T)``.
        inefficiency: number of successive frames that tell as much as an independent one, ``(S,)``.
        kish: Kish's effective number of frames, as if they were independent, ``(S,)``.
        perplexity: the effective number from the entropy of the exponential weights, likewise, ``(S,)``.
        pareto_k: shape of the tail of the exponential weights, ``(S,)``.
        status: ``OK`` for samples that the frames serve, or that have a sound run of their own; ``LOW_ESS`` for others,
            and what became of the own run, ``(S,)``.
        own: place of each sample in ``runs``, −1 for one without runs of its own, ``(S,)``.
        runs: simulations of the samples that were run, ``(n, R', T')``; ``None`` where there are none.
        kT: temperature [eV].
        kind: of the weights, ``"full"`` or ``"first_order"``.
        mark: fingerprint of the samples' parameters.
        steps: of molecular dynamics that were made for ``runs``.
        steps_of_all: that all samples would have taken; 0 before ``propagate``.
    """

    reference: Trajectory
    energy: Float[Array, "S J R T"]
    stress: Float[Array, "S J R T 3 3"]
    log_boltzmann: Float[Array, "S J R T"]
    reference_log_boltzmann: Float[Array, "J J R T"]
    weight: Float[Array, "S J R T"]
    inefficiency: Float[Array, "S"]
    kish: Float[Array, "S"]
    perplexity: Float[Array, "S"]
    pareto_k: Float[Array, "S"]
    status: Int[Array, "S"]
    own: Int[Array, "S"]
    runs: Trajectory | None
    kT: float
    kind: str
    mark: str
    steps: int
    steps_of_all: int

    def __str__(self) -> str:
        return report(self)


def report(reweighted: Reweighted, limit: int = 20) -> str:
    """Which samples were reweighted and which run, by which numbers, as text; the worst ``limit`` of them."""
    independent = reweighted.kish / reweighted.inefficiency
    frames = reweighted.weight[0].size
    head = f"{'sample':>8}{'Kish':>9}{'perplexity':>12}{'independent':>13}{'Pareto k':>10}  result"
    lines = [head, "-" * len(head)]
    for s in np.argsort(independent, kind="stable")[:limit]:
        result = "own run" if reweighted.own[s] >= 0 else "reweighted"
        result += "" if reweighted.status[s] == Status.OK else f", {Status(int(reweighted.status[s])).name}"
        numbers = f"{reweighted.kish[s]:>9.4g}{reweighted.perplexity[s]:>12.4g}{independent[s]:>13.4g}"
        lines.append(f"{s:>8}{numbers}{reweighted.pareto_k[s]:>10.2f}  {result}")
    if (more := len(independent) - limit) > 0:
        lines.append(f"… and {more} samples with larger effective numbers")
    ran, failed = int((reweighted.own >= 0).sum()), int((reweighted.status == Status.LOW_ESS).sum())
    lines.append(f"{len(independent)} samples on {frames} frames ({reweighted.kind} weights): {ran} with own runs, "
                 f"{failed} with too few effective frames")  # fmt: skip
    if reweighted.steps_of_all:
        lines.append(f"{reweighted.steps} MD steps instead of {reweighted.steps_of_all}")
    return "\n".join(lines)
