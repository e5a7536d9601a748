r"""A shallow ensemble: one network with several read-outs, trained to predict its own errors.

.. math:: \bar y = \frac1H \sum_h y_h, \qquad
          s^2 = \frac{1}{H - 1} \sum_h (y_h - \bar y)^2 + \sigma^2

for every energy per atom, force component and stress component :math:`y`. The members' forces are the derivatives of
their energies, so that one spread belongs to all of them. With the error :math:`z = (y - \bar y) / s` of a label the
score of ``"nll"`` and ``"crps"`` is

.. math:: -\log p = \tfrac12 z^2 + \log s + \tfrac12 \log 2\pi, \qquad
          \mathrm{CRPS} = s\,\big[ z\,(2\Phi(z) - 1) + 2\varphi(z) - 1/\sqrt\pi \big],

summed over the labels of a frame. The second is divided by the expected scale of the label, so that energies and forces
can be added.

**What it ignores.** The members share all layers but the last, and their spread is fitted to the errors of the training
frames: it is no posterior, and knows nothing of what other features might have said.

Example::

    target = bp.shallow_ensemble(potential, data, prior, noise, readout=("kernel_2", "bias_2"), heads=16)
    fit = bp.optimise(target, optax.adam(1e-3), validation=held_out)
    samples = bp.split_heads(bp.infer(key[0], fit, bp.initial(key[1], target, chains=1), data, steps=10_000))

Reference:
    Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024), arXiv:2402.16621; Gneiting and Raftery, J. Am.
    Stat. Assoc. 102, 359 (2007), eq. 21, for the CRPS.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.inference.priors import Prior
from bayespot.inference.subset import Free, chosen, overlay, select
from bayespot.inference.target import Target
from bayespot.potentials.potential import Potential
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples
from bayespot.targets.force_matching import (
    Noise,
    check_labels,
    checked_scales,
    label_masks,
    learned,
    log_scale_prior,
    log_scales,
    residuals,
    rmse,
    scale_of,
)
from bayespot.tree import replace, take, total
from bayespot.typing import Array, Float, Key, Params, Scalar

LOSSES, NAME = ("nll", "crps"), "shallow_ensemble"


def shallow_ensemble(
    potential: Potential,
    data: Dataset,
    prior: Prior,
    noise: Noise = Noise(),  # noqa: B008
    *,
    readout: Free,
    heads: int = 16,
    loss: str = "nll",
) -> Target:
    """The target of an ensemble whose members share all parameters but the read-out.

    Parameters are those of ``force_matching``, with a leading axis ``H`` on the leaves of the read-out. Training them
    is one chain of an optimiser; ``split_heads`` makes ordinary samples of the result.

    Args:
        potential: what each member is.
        data: training frames.
        prior: of the potential's parameters, independent from array to array; each member's read-out has its own.
        noise: scales of Gaussian label errors, which the spread comes on top of.
        readout: leaves that every member has of its own, see ``subset``: ``("kernel_2", "bias_2")`` of a
            ``descriptor_mlp`` with two hidden layers.
        heads: number ``H`` of members. Energies cost the features once, forces one reverse pass per member.
        loss: ``"nll"``, the log density of the labels, or ``"crps"``, which weighs large errors less. Validation is
            by the log density in both cases.

    Raises:
        ValueError: as ``force_matching``; for fewer than two heads, another loss, Student-t errors, or no read-out.
    """
    if heads < 2 or loss not in LOSSES or noise.dof is not None:
        raise ValueError(f"Need heads ≥ 2, loss one of {LOSSES}, dof None. Got {heads=}, {loss=}, dof={noise.dof}.")
    scales = checked_scales(noise, data)
    check = partial(check_labels, potential, scales)
    check(data)
    counts, size = data.atom_counts, len(data)
    own, shared = _parted(potential, readout)

    def initial(key: Key) -> Params:
        one, several = jax.random.split(key)
        each = jax.vmap(potential.init)(jax.random.split(several, heads))
        return {"potential": overlay(potential.init(one), select(each, own)), "noise": log_scales(noise, scales)}

    log_prior = partial(_log_prior, prior, own, shared, noise, scales)
    predicted = partial(_predicted, potential, own, noise, scales)

    def value_and_grad(key: Key, params: Params, state, batch: Dataset):
        def density(params):
            units = {k: scale_of({}, k, scales, batch) for k in scales} if loss == "crps" else None
            return _score(predicted(params, batch, counts), units) / len(batch) + log_prior(params) / size

        value, gradient = jax.value_and_grad(density)(params)
        return value, gradient, state, {}

    def metrics(params: Params, batch: Dataset) -> dict[str, Scalar]:
        found = predicted(params, batch, None)
        of_labels = {f"{label}_rmse": rmse(error, mask) for label, (error, _, mask) in found.items()}
        return {"log_likelihood": _score(found) / len(batch), **of_labels}

    spec = {"name": NAME, "potential": potential.spec, "readout": list(own), "heads": heads}
    return Target(initial, lambda key, params: (), value_and_grad, metrics, size, spec, check)


def _log_prior(
    prior: Prior, own: tuple[str, ...], shared: tuple[str, ...], noise: Noise, scales, params: Params
) -> Scalar:
    of_heads = jax.vmap(prior)(select(params["potential"], own)).sum()
    return prior(select(params["potential"], shared)) + of_heads + log_scale_prior(learned(noise, params), scales)


def _predicted(
    potential: Potential, own: tuple[str, ...], noise: Noise, scales: Params, params: Params, batch: Dataset, counts
) -> dict[str, tuple[Array, Array, Array]]:
    """Error of the mean, spread and mask of every label in use."""

    def member(head: Params) -> dict[str, Array]:
        return residuals(potential, overlay(params["potential"], head), batch, counts, "stress" in scales)

    errors, masks = jax.vmap(member)(select(params["potential"], own)), label_masks(batch)
    floor = {k: scale_of(learned(noise, params), k, scales, batch).astype(errors[k].dtype) for k in scales}
    spread = {k: jnp.sqrt(errors[k].var(0, ddof=1) + floor[k] ** 2) for k in scales}
    return {k: (errors[k].mean(0), spread[k], masks[k]) for k in scales}


def _score(found: dict[str, tuple[Array, Array, Array]], units: dict[str, Array] | None = None) -> Scalar:
    """Sum over all labels, the higher the better: log densities, or with units −CRPS in them."""

    def rule(label: str, error: Array, spread: Array) -> Array:
        if units is None:
            return jax.scipy.stats.norm.logpdf(error, 0.0, spread)
        return negative_crps(error, spread) / units[label]

    return total(jnp.where(mask, rule(k, e, s), 0.0).sum() for k, (e, s, mask) in found.items())


def _parted(potential: Potential, readout: Free) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths, within the potential, of the leaves that are each member's own, and of those that are shared."""
    form = {"potential": jax.eval_shape(potential.init, jax.random.key(0))}
    own = chosen(form, readout)
    shared = tuple(path for path in chosen(form, lambda path: True) if path not in own)
    one, other = (tuple(path.removeprefix("potential/") for path in paths) for paths in (own, shared))
    return one, other


def negative_crps(error: Float[Array, "*n"], spread: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """−CRPS of a Gaussian with this standard deviation, in the unit of the error."""
    z = error / spread
    normal = jax.scipy.stats.norm
    return -spread * (z * (2 * normal.cdf(z) - 1) + 2 * normal.pdf(z) - np.pi**-0.5)


def split_heads(samples: PosteriorSamples) -> PosteriorSamples:
    """The members of trained shallow ensembles as samples of the ordinary potential, for all that takes samples.

    Args:
        samples: ``S``, from ``infer`` with a target made by ``shallow_ensemble``.

    Returns:
        ``S × H`` samples, each a full set of the potential's parameters; every member counts as a chain of its own.

    Raises:
        ValueError: for samples of anything else, and for heads that are all alike.
    """
    spec = json.loads(samples.spec or "{}")
    if spec.get("name") != NAME:
        raise ValueError(f"The samples must be those of a shallow_ensemble. Got those of {spec.get('name')!r}.")
    heads, number = spec["heads"], len(samples)
    own = select(samples.params["potential"], tuple(spec["readout"]))
    differ = [np.ptp(np.asarray(x), axis=1).reshape(number, -1).any(1) for x in jax.tree.leaves(own)]
    if not np.any(differ, axis=0).all():
        raise ValueError(
            "The heads of a shallow ensemble must differ. Got some that are all alike: their read-out starts from the "
            f"same values, whatever the key. Choose other leaves than {', '.join(spec['readout'])}."
        )
    repeated = take(samples, np.repeat(np.arange(number), heads))
    apart = jax.tree.map(lambda x: x.reshape(number * heads, *x.shape[2:]), own)
    params = {**repeated.params, "potential": overlay(repeated.params["potential"], apart)}
    chain = heads * repeated.chain + jnp.tile(jnp.arange(heads), number)
    return replace(repeated, params=params, chain=chain, spec=json.dumps(spec["potential"]))
