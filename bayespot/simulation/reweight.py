r"""Existing simulations reweighted to every sample of a posterior, with a verdict for each."""

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import numpy as np

from bayespot.batching import default_batch_size, over_batches, within_memory
from bayespot.errors import FailedSamples, Status, listed
from bayespot.observables.frame_weights import (
    KINDS,
    inefficiency,
    kish_size,
    log_mixture,
    nonlinearity,
    pareto_k,
    perplexity,
    weigh,
)
from bayespot.potentials.neighbor_list import larger, neighbor_list
from bayespot.potentials.potential import Potential, energy_forces_stress
from bayespot.records.posterior import PosteriorSamples, check_spec
from bayespot.records.reweighted import Reweighted
from bayespot.records.system import System
from bayespot.records.trajectory import Trajectory
from bayespot.simulation.loop import Plan
from bayespot.tree import concatenate, length, replace, take
from bayespot.typing import Params

FEWEST, FEWEST_OF_A_RUN = 25, 8
"""Frames that the tail of weights can be fitted to, and that show how fast a run forgets."""

EVEN = 0.5
"""Kish's number over the perplexity that weights must keep; exp(−s²/2) of log weights with the standard deviation s.

Below it few frames have much of the weight, and where these are missing by chance all numbers look good. Of Gaussian
log weights, 400 to 6400 of them, that pass with s = 1, the 95 % interval of their own average covers in 93 to 95 %;
hardly any with s = 1.6 pass. Without this limit those do, and cover in 73 to 87 %.
"""

NEGLECTED = 0.2
"""Share of the response that the first order may neglect."""


def reweight(
    potential: Potential,
    samples: PosteriorSamples,
    references: PosteriorSamples,
    trajectory: Trajectory,
    kT: float,
    *,
    kind: str = "full",
    min_frames: float = 50.0,
    max_k: float = 0.7,
    batch_size: int | None = None,
) -> Reweighted:
    r"""Reweight simulations of a few parameters to every sample of a posterior.

    .. math:: \langle a \rangle_s = \sum_n w_{sn}\, a_s(x_n), \qquad
              w_{sn} \propto \frac{e^{-U_s(x_n)/kT}}{\sum_j T_j e^{(F_j - U_j(x_n))/kT}}

    It costs one evaluation of energy and stress per frame and sample, no dynamics. ``status`` tells for each sample
    whether that can be trusted; ``propagate(…, reuse=…)`` runs those for which it cannot.

    Args:
        potential: of samples and references.
        samples: posterior samples, all of status OK.
        references: the parameters that drove the runs: the posterior's mean, or some of its samples; ``as_samples``.
        trajectory: from ``propagate`` with ``references`` and a thermostat at ``kT`` in a constant box, equilibrated.
        kT: temperature [eV]; the samples' averages are at the same.
        kind: ``"full"``, or ``"first_order"`` for systems so large that the full weights rest on a few frames; with
            one reference, :math:`\langle a_s \rangle_s \approx \langle a_s \rangle - \mathrm{cov}(a_s, U_s - U_1)/kT`.
        min_frames: effective number of independent frames (Kish's over the statistical inefficiency) that a sample
            needs. Its Kish's number must also be at least half of its perplexity, or few frames have the weight.
        max_k: largest Pareto k that a sample may have. The first order has no tail; there :math:`\frac12 |\kappa_3| /
            \kappa_2` of the log weights must be below 0.2, its standard error included.
        batch_size: samples evaluated at once; default 1 on a CPU, as many as its memory holds on an
            accelerator.

    Raises:
        FailedSamples: when a sample failed in the inference, or a reference run is not sound.
        ValueError: for references that are not those of the trajectory, several of them with ``"first_order"``, fewer
            than 25 frames or 8 of a run, boxes that differ, or an unknown kind.

    References: Zwanzig, *J. Chem. Phys.* 22, 1420 (1954); Shirts and Chodera, *J. Chem. Phys.* 129, 124105 (2008); for
    the first order Ceriotti, Brain, Riordan and Manolopoulos, *Proc. R. Soc. A* 468, 2 (2012).
    """
    _check(potential, samples, references, trajectory, kT, kind)
    shape = trajectory.frames.energy.shape
    frames = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[3:]), trajectory.frames.system)
    params = concatenate([references.params["potential"], samples.params["potential"]])
    size = default_batch_size(length(params)) if batch_size is None else batch_size
    base, difference, stress = within_memory(partial(_evaluated, potential, params, frames), size)
    _check_energies(base + difference[: shape[0]], np.asarray(trajectory.frames.energy, np.float64), kT)
    seen = {"energy": base + difference[shape[0] :], "stress": stress[shape[0] :]}
    judged = _judged(trajectory, seen, -difference / kT, kT, kind, (min_frames, max_k))
    return replace(judged, mark=_mark(samples))


def _judged(trajectory: Trajectory, seen: dict, logs: np.ndarray, kT: float, kind: str, limits: tuple) -> Reweighted:
    """Weights and verdicts; ``logs`` are −U/kT of references and samples, less that in the first reference."""
    shape = trajectory.frames.energy.shape
    # A sample that knows no energy for some frame cannot be served; it must not spoil what is common to all.
    finite = np.isfinite(logs).all(1)[:, None]
    references, log_boltzmann = np.split(np.where(finite, logs, 0.0), [shape[0]])
    finite = finite[shape[0] :]
    log_ratio = log_boltzmann - log_mixture(references, np.repeat(np.arange(shape[0]), shape[1] * shape[2]))[0]
    weight, entropy = weigh(log_ratio, kind), perplexity(weigh(log_ratio, "full"))
    energy = np.where(finite, seen["energy"], 0.0)
    runs = (len(log_ratio), shape[0] * shape[1], shape[2])
    slow = np.maximum(inefficiency(log_ratio.reshape(runs)), inefficiency(energy.reshape(runs)))
    kish, k = kish_size(weight), pareto_k(log_ratio, slow)
    bounded = (k <= limits[1]) & (kish >= EVEN * entropy)  # False for NaN
    good = finite[:, 0] & (bounded if kind == "full" else nonlinearity(log_ratio, slow) <= NEGLECTED)
    return Reweighted(
        reference=trajectory,
        energy=seen["energy"].reshape(-1, *shape),
        stress=seen["stress"].reshape(-1, *shape, 3, 3),
        log_boltzmann=log_boltzmann.reshape(-1, *shape),
        reference_log_boltzmann=references.reshape(-1, *shape),
        weight=weight.reshape(-1, *shape),
        inefficiency=slow,
        kish=kish,
        perplexity=entropy,
        pareto_k=k,
        status=np.where((kish / slow >= limits[0]) & good, Status.OK, Status.LOW_ESS).astype(np.int32),
        own=np.full(len(log_ratio), -1, np.int32),
        runs=None,
        kT=float(kT),
        kind=kind,
        mark="",
        steps=0,
        steps_of_all=0,
    )


def refuse_failed(samples: PosteriorSamples, what: str) -> None:
    """Raise ``FailedSamples`` when the status of a sample is not OK; ``what`` cannot be done with it."""
    if (bad := np.flatnonzero(np.asarray(samples.status) != Status.OK)).size:
        raise FailedSamples(
            f"Only sound samples can be {what}. {bad.size} of {len(samples)} samples ({listed(bad)}) failed in the "
            "inference. Leave them out with healthy(samples).",
            tuple(bad.tolist()),
        )


def _mark(samples: PosteriorSamples) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(samples.params["potential"]):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def unserved(reweighted: Reweighted, samples: PosteriorSamples, start: System, kT: float) -> np.ndarray:
    """Numbers of the samples that need runs of their own.

    Raises:
        ValueError: unless the runs will be of the same samples, atoms, box and temperature.
    """
    frames = reweighted.reference.frames.system
    real = np.asarray(start.species)[np.asarray(start.species) > 0]
    box = np.asarray(frames.box[0, 0, 0])
    alike = "" if reweighted.mark == _mark(samples) else " of other parameters"
    if (
        alike
        or not np.array_equal(real, frames.species[0, 0, 0])
        or not np.allclose(start.box, box, rtol=1e-6)
        or not np.isclose(reweighted.kT, kT, rtol=1e-6)
    ):
        raise ValueError(
            "`reuse` must be of the same samples, atoms, box and temperature as the new runs. Got "
            f"{len(reweighted.status)} and {len(samples)} samples{alike}, {frames.species.shape[-1]} and {len(real)} "
            f"atoms, boxes {box.tolist()} and {np.asarray(start.box).tolist()}, kT={reweighted.kT} and {kT}."
        )
    return np.flatnonzero(reweighted.status == Status.LOW_ESS)


def with_runs(reweighted: Reweighted, chosen: np.ndarray, runs: Trajectory | None, plan: Plan) -> Reweighted:
    """The same with runs of the chosen samples, whose status is then that of the runs."""
    steps = plan.replicas * (plan.steps + plan.equilibration)
    own, status = reweighted.own.copy(), reweighted.status.copy()
    if runs is not None:
        own[chosen], status[chosen] = np.arange(len(chosen)), np.asarray(runs.status).max(1)
    made = len(chosen) * steps
    return replace(reweighted, own=own, status=status, runs=runs, steps=made, steps_of_all=len(own) * steps)


def _check(potential, samples, references, trajectory: Trajectory, kT: float, kind: str) -> None:
    check_spec(samples, potential.spec)
    check_spec(references, potential.spec)
    refuse_failed(samples, "reweighted to")
    shape = trajectory.frames.energy.shape
    if len(shape) != 3 or shape[0] != len(references):
        raise ValueError(
            "The trajectory must have the axes (J, R, T) of the references that drove it, as propagate leaves it. "
            f"Got {shape} and {len(references)} references."
        )
    if (bad := np.flatnonzero((np.asarray(trajectory.status) != Status.OK).any(1))).size:
        raise FailedSamples(
            f"Only sound runs can be reused. {bad.size} of {shape[0]} references ({listed(bad)}) became unstable. "
            "Take others.",
            tuple(bad.tolist()),
        )
    if kind not in KINDS or not kT > 0 or (kind == "first_order" and shape[0] > 1):
        raise ValueError(
            f"reweight needs kT > 0, a kind of {KINDS}, and a single reference for 'first_order'. "
            f"Got kT={kT}, {kind!r}, {shape[0]} references."
        )
    if np.prod(shape) < FEWEST or shape[2] < FEWEST_OF_A_RUN:
        raise ValueError(
            f"reweight needs {FEWEST} frames or more, {FEWEST_OF_A_RUN} of each run. Got {np.prod(shape)}, {shape[2]} "
            "of each run. Simulate longer, or record frames more often."
        )
    box = np.asarray(trajectory.frames.system.box)
    if np.ptp(box.reshape(-1, 9), axis=0).any():
        raise ValueError("All frames must have the same box. Got boxes that differ. Reuse runs of constant volume.")


def _check_energies(own: np.ndarray, recorded: np.ndarray, kT: float) -> None:
    """Whether the frames carry the energies that their references give; ``own (J, n)``, ``recorded (J, R, T)``."""
    number = len(recorded)
    ours = own.reshape(number, *recorded.shape)[np.arange(number), np.arange(number)]
    off = np.abs(ours - recorded) - 3e-6 * np.abs(recorded)  # totals in float32 have no more digits
    if not np.median(off) <= 0.1 * kT:
        raise ValueError(
            "`references` must be the parameters that drove the trajectory. Got energies that differ from the recorded "
            f"ones by {np.median(off) / kT:.3g} kT."
        )


def _evaluated(potential: Potential, params: Params, frames: System, batch_size: int) -> tuple:
    """Energies of all frames ``(n,)`` for the first parameters, and for all parameters what they differ by
    ``(P, n)`` and the stresses ``(P, n, 3, 3)``; float64."""
    first = take(frames, 0)
    box = tuple(map(tuple, np.asarray(first.box).tolist()))
    capacity = neighbor_list(first, potential.cutoff, 0.0).capacity
    while True:
        facts = (len(first.species), box, capacity)
        program = _program(potential.atom_energies, potential.cutoff, facts, batch_size)
        *found, needed = jax.tree.map(np.asarray, program(frames, params))
        if (needed.max(0) <= capacity).all():
            base, difference, stress = (np.asarray(x, np.float64) for x in found)
            return base, difference.T, stress.swapaxes(0, 1)
        capacity = larger(capacity, needed.max(0))


@lru_cache(maxsize=8)
def _program(atom_energies: Callable, cutoff: float, facts: tuple, batch_size: int) -> Callable:
    """Compiled evaluation: one frame after the other, whose neighbours all parameters share."""
    atoms, box, capacity = facts
    shape = System(np.zeros((atoms, 3)), np.ones(atoms, np.int32), np.asarray(box))
    neighbors = neighbor_list(shape, cutoff, 0.0, capacity)

    def frame(system: System, params: Params):
        near, needed = neighbors.update(system)
        base = atom_energies(take(params, 0), system, near)

        # Atom by atom: the difference of two large total energies would have lost its digits in float32.
        def change(p, system, near):
            return atom_energies(p, system, near) - base

        evaluate = energy_forces_stress(Potential(lambda key: {}, change, cutoff, (), {}))

        def of(p):
            energy, _, stress = evaluate(p, system, near)
            return energy, stress

        return base.sum(), *jax.lax.map(of, params, batch_size=batch_size), needed

    return jax.jit(lambda frames, params: over_batches(jax.vmap(frame, (0, None)), frames, params, batch_size=1))
