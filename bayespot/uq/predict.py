r"""Posterior predictive energies, forces and stresses of configurations, and their errors against data.

.. math:: \bar y = \sum_s w_s\, y_s, \qquad
          \sigma^2_\mathrm{epistemic} = \frac{\sum_s w_s (y_s - \bar y)^2}{1 - \sum_s w_s^2}, \qquad
          \sigma^2_\mathrm{noise} = \sum_s w_s\, \sigma_s^2

The first spread is what more data would remove; the second is the scatter of the labels that the samples infer.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import default_batch_size, over_batches, within_memory
from bayespot.errors import FailedSamples, Status, listed
from bayespot.potentials.potential import Potential, check_compatible, energy_forces_stress, species_index
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples, check_spec, weights
from bayespot.tree import concatenate, length, record, take
from bayespot.typing import Array, Float, Int

QUANTITIES = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}
"""What is predicted, and the unit in which errors are reported."""

FRAMES_AT_ONCE = 16


@record
class Prediction:
    """Predictions for ``M`` frames by ``S`` posterior samples.

    Attributes:
        energy: posterior mean of the total energy ``(M,)`` [eV].
        forces: ``(M, N, 3)`` [eV/Å]; 0 for padding.
        stress: ``(M, 3, 3)`` [eV/Å³]; NaN for frames with an open box.
        energy_uncertainty, forces_uncertainty, stress_uncertainty: epistemic standard deviations between the samples
            (``ddof=1``), same shapes and units as the means. All samples count alike, also those of one chain;
            ``z_scores`` and all that builds on it compare different chains.
        noise: standard deviation of the label noise, root mean square over the samples, by name: ``"energy"``
            [eV/atom], ``"forces"`` [eV/Å], ``"stress"`` [eV/Å³]; only what the samples carry. Forces whose noise
            differs between species have it by atom, ``(M, N, 1)``, 0 for padding.
        members: the predictions of each sample by name, ``"energy" (S, M)`` and so on.
        log_weight: of the samples, ``(S,)``.
        chain: of the samples, ``(S,)``.
    """

    energy: Float[Array, "M"]
    forces: Float[Array, "M N 3"]
    stress: Float[Array, "M 3 3"]
    energy_uncertainty: Float[Array, "M"]
    forces_uncertainty: Float[Array, "M N 3"]
    stress_uncertainty: Float[Array, "M 3 3"]
    noise: dict[str, Float[Array, "..."]]
    members: dict[str, Float[Array, "S ..."]]
    log_weight: Float[Array, "S"]
    chain: Int[Array, "S"]


def predict(
    potential: Potential, samples: PosteriorSamples, data: Dataset, batch_size: int | None = None
) -> Prediction:
    """Posterior predictive energies, forces and stresses with their uncertainties.

    Args:
        potential: that the samples belong to.
        samples: at least two, all sound (``healthy``).
        data: frames with neighbours; labels are not used.
        batch_size: samples evaluated at once; default 1 on a CPU, as many as its memory holds on an accelerator.

    Raises:
        FailedSamples: when a sample's status is not OK.
        ValueError: for fewer than two samples, samples of another potential, or data that it cannot treat.
    """
    check_samples(samples, potential)
    check_compatible(potential, data)
    size = default_batch_size(len(samples)) if batch_size is None else batch_size
    evaluate = partial(_members, samples.params["potential"], data, potential)
    energy, force, stress = within_memory(evaluate, size)
    members = {"energy": energy, "forces": force, "stress": stress}
    weight = weights(samples)
    moments = {name: _moments(y, weight) for name, y in members.items()}
    noise = {k: _noise(x, weight, data) for k, x in samples.params.get("noise", {}).items()}
    return Prediction(
        **{name: mean for name, (mean, _) in moments.items()},
        **{f"{name}_uncertainty": std for name, (_, std) in moments.items()},
        noise={name: sigma for name, sigma in noise.items() if sigma is not None},
        members=members,
        log_weight=samples.log_weight,
        chain=samples.chain,
    )


def _noise(log_scales, weight: Float[Array, "S"], data: Dataset) -> Array | None:
    """Root mean square of a noise scale, one or by atom ``(M, N, 1)``; ``None`` if a species of ``data`` has none."""
    w = np.asarray(weight)
    sigma = jax.tree.map(lambda log: jnp.asarray(np.sqrt(w @ np.exp(2 * np.asarray(log)))), log_scales)
    if not isinstance(sigma, dict):
        return sigma
    if not {str(z) for z in data.species} <= set(sigma):
        return None
    index = species_index(data.system.species, tuple(int(z) for z in sigma))
    by_atom = jnp.stack(list(sigma.values()))[index]
    return jnp.where(data.system.species > 0, by_atom, 0.0)[..., None]


def check_samples(samples: PosteriorSamples, potential: Potential) -> None:
    """Refuse samples that give no uncertainty of this potential's predictions (host).

    Raises:
        FailedSamples: when a sample's status is not OK.
        ValueError: for fewer than two samples, or samples of another potential.
    """
    check_spec(samples, potential.spec)
    if bad := tuple(np.flatnonzero(np.asarray(samples.status) != Status.OK).tolist()):
        raise FailedSamples(
            f"{len(bad)} of {len(samples)} samples failed ({listed(bad)}). Predict with healthy(samples).", bad
        )
    if len(samples) < 2:
        raise ValueError(f"An uncertainty needs at least two posterior samples. Got {len(samples)}.")


def _members(params, data: Dataset, potential: Potential, batch_size: int):
    """Energies ``(S, M)``, forces ``(S, M, N, 3)`` and stresses ``(S, M, 3, 3)``, some samples at a time."""
    at_once, number = batch_size * jax.device_count(), length(params)
    evaluate = _evaluator(potential.atom_energies, batch_size, min(FRAMES_AT_ONCE, len(data)))
    params, parts = jax.tree.map(np.asarray, params), []  # sliced on the host, where every shape need not be compiled
    for first in range(0, number, at_once):
        index = np.minimum(np.arange(first, first + at_once), number - 1)
        found = evaluate(take(params, index), data.system, data.neighbors)
        parts.append(take(found, slice(0, number - first)))
    return concatenate(parts)


@lru_cache(maxsize=8)
def _evaluator(atom_energies: Callable, batch_size: int, frames_at_once: int) -> Callable:
    """Compiled energies, forces and stresses of stacked parameters; the same for any number of samples."""
    single = energy_forces_stress(Potential(lambda key: {}, atom_energies, 0.0, (), {}))

    def sample(params, system, neighbors):
        return jax.lax.map(lambda frame: single(params, *frame), (system, neighbors), batch_size=frames_at_once)

    def evaluate(params, system, neighbors):
        return over_batches(jax.vmap(sample, in_axes=(0, None, None)), params, system, neighbors, batch_size=batch_size)

    return jax.jit(evaluate)


@jax.jit
def _moments(members: Float[Array, "S *shape"], weight: Float[Array, "S"]):
    """Weighted mean and standard deviation over the samples, with ``ddof=1`` for equal weights.

    An accelerator's short mantissa would spoil the mean of large total energies.
    """
    mean = jnp.tensordot(weight, members, 1, precision="highest")
    variance = jnp.tensordot(weight, (members - mean) ** 2, 1, precision="highest") / (1.0 - (weight**2).sum())
    return mean, jnp.sqrt(variance)


def atom_uncertainty(forces_uncertainty: Float[Array, "*shape 3"]) -> np.ndarray:
    r"""Standard deviation of the force vector on each atom, ``(...)`` [eV/Å] (host).

    .. math:: u_i = \sqrt{\sigma_{ix}^2 + \sigma_{iy}^2 + \sigma_{iz}^2}

    The root of the trace of the covariance of :math:`F_i`; unlike the largest component it does not change when the
    configuration is turned.
    """
    return np.sqrt((np.asarray(forces_uncertainty, np.float64) ** 2).sum(-1))


class Error(NamedTuple):
    """Errors of one quantity in one group of frames.

    Attributes:
        group: name of the group, or ``"all"``.
        quantity: ``"energy"``, ``"forces"`` or ``"stress"``.
        count: number of labels compared.
        rmse, mae: root-mean-square and mean absolute error.
        unit: of both.
    """

    group: str
    quantity: str
    count: int
    rmse: float
    mae: float
    unit: str


def check_frames(prediction: Prediction, data: Dataset) -> None:
    """Refuse a prediction for other frames; raises ``ValueError``."""
    if prediction.forces.shape != data.forces.shape:
        raise ValueError(
            f"Prediction and data need the same frames. Got {prediction.forces.shape}, {data.forces.shape}."
        )


def residuals(prediction: Prediction, data: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prediction minus label, and the mask of what can be compared, by quantity (host, float64).

    Energies are per atom [eV/atom], ``(M,)``; forces ``(M, N, 3)`` without padding; of the symmetric stress the six
    independent components count, ``(M, 3, 3)`` with the lower triangle masked.
    """
    real = np.asarray(data.system.species) > 0
    has = {name: np.asarray(getattr(data, f"has_{name}")) for name in QUANTITIES}
    upper = np.triu(np.ones((3, 3), bool))
    masks = {
        "energy": has["energy"],
        "forces": np.broadcast_to((has["forces"][:, None] & real)[..., None], data.forces.shape),
        "stress": np.broadcast_to(has["stress"][:, None, None] & upper, data.stress.shape),
    }
    out = {}
    for name, mask in masks.items():
        difference = np.asarray(getattr(prediction, name), np.float64) - np.asarray(getattr(data, name), np.float64)
        if name == "energy":
            difference = difference / np.maximum(data.atom_counts, 1)
        out[name] = (np.where(mask, difference, 0.0), mask)
    return out


def prediction_errors(prediction: Prediction, data: Dataset) -> list[Error]:
    """Errors of the posterior mean: overall first, then for every group of frames; only quantities with labels.

    Raises:
        ValueError: when prediction and data do not have the same frames.
    """
    check_frames(prediction, data)
    group = np.asarray(data.group)
    choices = [("all", np.ones(len(data), bool))]
    if len(data.group_names) > 1:
        choices += [(name, group == g) for g, name in enumerate(data.group_names)]
    rows = []
    for quantity, (difference, mask) in residuals(prediction, data).items():
        for name, frames in choices:
            values = difference[frames][mask[frames]]
            if values.size:
                rmse, mae = np.sqrt((values**2).mean()), np.abs(values).mean()
                rows.append(Error(name, quantity, values.size, float(rmse), float(mae), QUANTITIES[quantity]))
    return rows


def error_table(rows: list[Error]) -> str:
    """Errors as an aligned text table."""
    head = f"{'group':<24}{'quantity':<10}{'labels':>9}{'RMSE':>12}{'MAE':>12}  unit"
    body = [f"{r.group:<24}{r.quantity:<10}{r.count:>9}{r.rmse:>12.4g}{r.mae:>12.4g}  {r.unit}" for r in rows]
    return "\n".join([head, "-" * len(head), *body])
