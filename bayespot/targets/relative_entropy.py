r"""Relative entropy: coarse-grained potentials with the distribution of mapped atomistic configurations.

Minimising the relative entropy between the mapped and the coarse-grained distribution is maximising the likelihood of
the mapped frames :math:`X_m` in the canonical ensemble of the coarse-grained potential,

.. math:: \frac1M \log p(X \mid \theta) = -\frac{1}{kT} \Big[ \frac1M \sum_m U_\theta(X_m) - A(\theta) \Big], \qquad
          \frac{\partial}{\partial\theta} = \frac{1}{kT} \Big[ \Big\langle \frac{\partial U}{\partial\theta}
          \Big\rangle_\theta - \Big\langle \frac{\partial U}{\partial\theta} \Big\rangle_\mathrm{mapped} \Big],

with the free energy :math:`A = -kT \ln \int e^{-U_\theta/kT}`. That the frames are data makes the rest plain Bayesian
inference: with a prior, any sampler draws from the posterior.

References:
    Shell, *J. Chem. Phys.* 129, 144108 (2008); Thaler, Stupp and Zavadlav, *J. Chem. Phys.* 157, 244103 (2022);
    Zwanzig, *J. Chem. Phys.* 22, 1420 (1954), for the free energy between one reference run and the next.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import any_together
from bayespot.inference.priors import Prior
from bayespot.inference.target import Linearised, Target
from bayespot.potentials.potential import Potential, check_compatible
from bayespot.records.dataset import Dataset
from bayespot.targets.reference_frames import (
    Frames,
    References,
    ReferenceState,
    contracted,
    frames_of,
    no_metrics,
    outdated,
    prior_precision,
    progress,
    pulled_back,
    references,
    starting,
    weights_of,
    with_prior,
)
from bayespot.targets.reference_run import ReferenceRun
from bayespot.tree import record, replace
from bayespot.typing import Array, Float, Key, Params, Scalar


@record
class EntropyState:
    """Reference frames, the parameters that drove them, and A/kT there, relative to the first reference."""

    frames: ReferenceState
    params: Params
    free_energy: Scalar


def relative_entropy(potential: Potential, run: ReferenceRun, data: Dataset, prior: Prior | None = None) -> Target:
    """The target of coarse-graining by relative entropy.

    Args:
        potential: coarse-grained potential that is learned.
        run: how its own configurations are made, ``reference_run(start, ensemble, …)`` in the box and at the
            temperature of the data.
        data: mapped frames; they need no labels. The likelihood counts each as independent: of a trajectory take
            frames a correlation time apart, or the posterior comes out too narrow.
        prior: of the potential's parameters; default flat.

    Returns:
        A target whose value is the log likelihood per frame, up to the free energy of the first reference. That
        carries the errors of all free energies since, small ones where steps change energies by about kT or less and
        frames lie a correlation time apart: compare values of one chain, not of several. Its
        ``info``: ``effective_frames``, ``simulated`` and ``simulation_status``, as of ``difftre``.

    Raises:
        ValueError: for data of another box or other atoms than the start's, or which the potential cannot treat.
    """
    kT, size = run.ensemble.kT, len(data)
    frames = frames_of(potential, run)
    ref = references(potential, run, frames)

    def check(data: Dataset) -> None:
        check_compatible(potential, data)
        _require_same_system(run, data)

    check(data)

    def init(key: Key, params: Params) -> EntropyState:
        return EntropyState(ref.init(key), params["potential"], jnp.zeros((), jnp.result_type(float)))

    def of_data(params: Params, frame) -> Scalar:
        return potential.energy(params, *frame) / -kT

    def of_reference(params: Params, position) -> Scalar:
        return frames.energy(params, position) / kT

    def value_and_grad(key: Key, params: Params, state: EntropyState, batch: Dataset):
        own, old = params["potential"], state.frames
        state, free_energy, slopes, weight = _followed(ref, frames, kT, key, own, state)
        mapped = (batch.system, batch.neighbors)
        value = jax.lax.map(lambda frame: of_data(own, frame), mapped).mean() + free_energy
        of_frames = jnp.full(len(batch), 1.0 / len(batch), value.dtype)
        slope = pulled_back(of_data, own, mapped, of_frames)
        if slopes is None:
            back = pulled_back(of_reference, own, state.frames.position, weight.astype(value.dtype))
        else:
            back = contracted(slopes, weight / kT)
        gradient = {**jax.tree.map(jnp.zeros_like, params), "potential": jax.tree.map(jnp.add, slope, back)}
        info = progress(old, state.frames, weight)
        value, gradient = with_prior(prior, params, value, gradient, size)
        return value, gradient, state, info

    return Target(
        starting(potential), init, value_and_grad, no_metrics, size, potential.spec, check,
        share=lambda params, state: ref.share(params["potential"], state.frames),
        linearise=_lineariser(ref, frames, run, of_reference, size, prior),
    )  # fmt: skip


def _lineariser(
    ref: References, frames: Frames, run: ReferenceRun, of_frame: Callable, size: int, prior: Prior | None
) -> Callable[[Key, Params, EntropyState], Linearised]:
    """``Target.linearise``: slopes, whose squares sum to the information N cov(∂U/∂θ) / kT² of N frames."""
    kT, number = run.ensemble.kT, run.replicas * run.frames

    def linearise(key: Key, params: Params, state: EntropyState) -> Linearised:
        if number < 2:
            raise ValueError("The reference run must make two frames or more, to tell how they fluctuate. Got 1.")
        own = params["potential"]
        state = replace(state, frames=outdated(state.frames, run))
        state, _, slopes, _ = _followed(ref, frames, kT, key, own, state)
        if slopes is None:
            steep = jax.lax.map(partial(jax.grad(of_frame), own), state.frames.position)
        else:
            steep = jax.tree.map(lambda s: s / kT, slopes)
        scale = jnp.where(jnp.isfinite(state.frames.energy).all(), (size / (number - 1)) ** 0.5, jnp.nan)
        rows = jax.tree.map(lambda s: (s - s.mean(0)) * scale.astype(s.dtype), steep)
        at = {**jax.tree.map(lambda x: jnp.zeros((number, *jnp.shape(x)), x.dtype), params), "potential": rows}
        return Linearised(jnp.zeros(number), at, prior_precision(prior, params), state, sample=True)

    return linearise


def _followed(
    ref: References, frames: Frames, kT: float, key: Key, params: Params, state: EntropyState
) -> tuple[EntropyState, Scalar, Params | None, Array]:
    """The state with sound reference frames, A/kT of the parameters, gradients of their energies, and their weights.

    From one reference run to the next the free energy is followed by perturbation, with the new frames alone: a step
    follows the noise of the frames that gave its gradient, and on those it looks better than it is. (Frames that are
    reused still flatter a step; that ends with the next run.)
    """
    old = state.frames
    new, energy, slopes, _ = ref.refreshed(key, params, old)
    changed = new.simulations > old.simulations

    def perturbed():
        log_mean = jax.nn.logsumexp(-(energy - new.energy) / kT) - jnp.log(len(energy))
        return state.free_energy - log_mean

    def accumulated():
        back = (frames.energies(state.params, new) - new.energy) / kT
        begin = jnp.where(jnp.isfinite(new.energy).all(), 0.0, jnp.nan)
        return jnp.where(old.simulations == 0, begin, state.free_energy - _perturbed(back))

    def either():  # some chains of a batch have new frames, and others may not
        return jnp.where(changed, accumulated(), perturbed())

    free_energy = jax.lax.cond(any_together(changed), either, perturbed)
    kept = jax.tree.map(lambda mine, theirs: jnp.where(changed, mine, theirs), params, state.params)
    at_reference = jnp.where(changed, free_energy, state.free_energy)
    weight = weights_of(energy - new.energy, kT)  # of all replicas together, as in the free energy
    return EntropyState(new, kept, at_reference), free_energy, slopes, weight


def _perturbed(difference: Float[Array, "n"]) -> Scalar:
    """A/kT of another potential minus that of the frames' own, from differences of the energy [kT].

    The logarithm of a mean of few is too low by half of the variance of the mean, which is added back. That is right
    for independent frames and differences that scatter by about 1; for larger ones the result is noise.
    """
    number, weight = len(difference), jax.nn.softmax(-difference)
    mean = jax.nn.logsumexp(-difference) - jnp.log(number)
    return -mean - 0.5 * (number * (weight**2).sum() - 1) / max(number - 1, 1)


def _require_same_system(run: ReferenceRun, data: Dataset) -> None:
    start, system = run.start, data.system
    species, box = np.asarray(system.species), np.asarray(system.box)
    if species.shape[1:] != start.species.shape or (species != np.asarray(start.species)).any():
        raise ValueError(
            "The frames must have the atoms of the start, in its order. "
            f"Got up to {species.shape[1]} in {data.source}, and {len(start.species)} in the start."
        )
    if (off := np.abs(box - np.asarray(start.box)).max()) > 1e-4 * max(np.abs(box).max(), 1.0):
        raise ValueError(
            f"The frames must have the box of the start. {data.source} has boxes that differ by {off:.3g} Å."
        )
