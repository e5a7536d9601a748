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
    Bennett, *J. Comput. Phys.* 22, 245 (1976), for the free energy between one reference run and the next.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import any_together
from bayespot.inference.priors import Prior
from bayespot.inference.target import Target
from bayespot.potentials.potential import Potential, check_compatible
from bayespot.records.dataset import Dataset
from bayespot.targets.reference_frames import (
    Frames,
    References,
    ReferenceState,
    contracted,
    frames_of,
    no_metrics,
    progress,
    pulled_back,
    references,
    starting,
    weights_of,
    with_prior,
)
from bayespot.targets.reference_run import ReferenceRun
from bayespot.tree import record
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
        A target whose value is the log likelihood per frame, up to the free energy of the first reference. Its
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
        system = frames.system(position)
        return potential.energy(params, system, frames.neighbors(system)) / kT

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

    def share(params: Params, state: EntropyState) -> Scalar:
        return ref.share(params["potential"], state.frames)

    return Target(starting(potential), init, value_and_grad, no_metrics, size, potential.spec, check, share=share)


def _followed(
    ref: References, frames: Frames, kT: float, key: Key, params: Params, state: EntropyState
) -> tuple[EntropyState, Scalar, Params | None, Array]:
    """The state with sound reference frames, A/kT of the parameters, gradients of their energies, and their weights.

    From one reference run to the next the free energy is followed by Bennett's acceptance ratio.
    """
    old = state.frames
    new, energy, slopes, _ = ref.refreshed(key, params, old)
    changed = new.simulations > old.simulations

    def perturbed():
        log_mean = jax.nn.logsumexp(-(energy - new.energy) / kT) - jnp.log(len(energy))
        return state.free_energy - log_mean

    def accumulated():
        there = (frames.energies(params, old) - old.energy) / kT
        back = (frames.energies(state.params, new) - new.energy) / kT
        return jnp.where(old.simulations == 0, 0.0, state.free_energy + _bennett(there, back))

    def either():  # some chains of a batch have new frames, and others may not
        return jnp.where(changed, accumulated(), perturbed())

    free_energy = jax.lax.cond(any_together(changed), either, perturbed)
    kept = jax.tree.map(lambda mine, theirs: jnp.where(changed, mine, theirs), params, state.params)
    at_reference = jnp.where(changed, free_energy, state.free_energy)
    weight = weights_of(energy - new.energy, kT)  # of all replicas together, as in the free energy
    return EntropyState(new, kept, at_reference), free_energy, slopes, weight


def _bennett(there: Float[Array, "n"], back: Float[Array, "n"]) -> Scalar:
    """Difference of A/kT, from energy differences [kT] of as many frames of both potentials; by bisection."""

    def halved(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        excess = jax.nn.sigmoid(middle - there).sum() - jax.nn.sigmoid(-back - middle).sum()  # rises with middle
        return jnp.where(excess < 0, middle, low), jnp.where(excess < 0, high, middle)

    ends = jnp.minimum(there.min(), -back.max()) - 50.0, jnp.maximum(there.max(), -back.min()) + 50.0
    low, high = jax.lax.fori_loop(0, 60, halved, ends)
    return jnp.where(jnp.isfinite(there).all() & jnp.isfinite(back).all(), 0.5 * (low + high), jnp.nan)


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
