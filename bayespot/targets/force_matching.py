r"""Force matching: the posterior of a potential given energies, forces and stresses of reference calculations.

.. math::
   \log p(\theta \mid D) = \log p(\theta)
   + \sum_m \Big[ \log p\Big(\tfrac{E_m}{N_m} \Big| \tfrac{U_\theta}{N_m}, \sigma_E\Big)
   + \sum_{i\alpha} \log p(F_{m,i\alpha} \mid F_{\theta,i\alpha}, \sigma_F)
   + \sum_{\alpha\le\beta} \log p(\sigma_{m,\alpha\beta} \mid \sigma_{\theta,\alpha\beta}, \sigma_S) \Big]

with Gaussian or Student-t errors. The scales σ are parameters, sampled as their logarithm with its Jacobian (after
Thaler, Doehner and Zavadlav, J. Chem. Theory Comput. 19, 4520 (2023)). σ_F may differ between species: it is then that
of atom *i*. The likelihood sums over atoms and components.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import any_together
from bayespot.inference.priors import Prior
from bayespot.inference.target import LeastSquares, Target
from bayespot.potentials.potential import Potential, check_compatible, species_index
from bayespot.records.dataset import Dataset, flatten
from bayespot.records.system import volume
from bayespot.tree import replace, total
from bayespot.typing import Array, Float, Key, Params, Scalar

_SIX = np.triu_indices(3)


class Noise(NamedTuple):
    """Scales of the errors of the labels, and what is known about them beforehand.

    Attributes:
        energy: expected scale σ_E [eV/atom]; ``None`` ignores energies.
        forces: σ_F of a force component [eV/Å]; ``None`` ignores forces. A mapping from atomic numbers, such as
            ``{8: 0.1, 14: 0.05}``, gives every species a scale of its own, also to be learned; with the same
            expectation for all it is ``dict.fromkeys(data.species, 0.05)``.
        stress: σ_S of a stress component [eV/Å³]; ``None`` ignores stresses.
        dof: degrees of freedom of Student-t errors; ``None`` means Gaussian.
        learn: ``"exponential"`` makes each σ a parameter with an exponential prior whose mean is the expected
            scale; ``"fixed"`` keeps it.
    """

    energy: float | None = 0.005
    forces: float | Mapping[int, float] | None = 0.05
    stress: float | None = None
    dof: float | None = None
    learn: str = "exponential"

    @property
    def scales(self) -> dict[str, float | Mapping[int, float]]:
        """The scales in use, by label."""
        return {k: v for k in ("energy", "forces", "stress") if (v := getattr(self, k)) is not None}


def force_matching(potential: Potential, data: Dataset, prior: Prior, noise: Noise = Noise()) -> Target:  # noqa: B008
    """The target of ordinary, bottom-up training.

    Parameters are ``{"potential": …, "noise": {"energy": log σ_E, …}}``; per species ``{"forces": {"8": …, "14": …}}``.

    Args:
        potential: what is learned.
        data: training frames, for their number and sizes; minibatches of them come from ``infer``.
        prior: of the potential's parameters, e.g. ``scaled_normal(1.0)``.
        noise: scales of the label errors.

    Raises:
        ValueError: if the potential does not know a species, its cutoff is longer than that of the data's neighbours, a
            scale is not positive, a label that has one does not occur, or a species has none where others have.
    """
    scales = checked_scales(noise, data)
    check = partial(check_labels, potential, scales)
    check(data)
    counts, size = data.atom_counts, len(data)

    def initial(key: Key) -> Params:
        return {"potential": potential.init(key), "noise": log_scales(noise, scales)}

    errors = partial(_errors, potential, tuple(scales))

    def log_prior(params: Params) -> Scalar:
        return prior(params["potential"]) + log_scale_prior(learned(noise, params), scales)

    def log_likelihood(params: Params, batch: Dataset, found: dict) -> Scalar:
        def score(label, error, mask):
            sigma = scale_of(learned(noise, params), label, scales, batch)
            return jnp.where(mask, _log_error(error, sigma, noise.dof), 0.0).sum()

        return total(score(label, *pair) for label, pair in found.items())

    def standardised(params: Params, batch: Dataset) -> dict[str, Array]:
        found, own = errors(params, batch, counts).items(), learned(noise, params)
        return {k: jnp.where(m, e, 0.0) / scale_of(own, k, scales, batch).astype(e.dtype) for k, (e, m) in found}

    def value_and_grad(key: Key, params: Params, state, batch: Dataset):
        def log_density(params):
            likelihood = log_likelihood(params, batch, errors(params, batch, counts))
            return likelihood / len(batch) + log_prior(params) / size

        value, gradient = jax.value_and_grad(log_density)(params)
        return value, gradient, state, {}

    def metrics(params: Params, batch: Dataset) -> dict[str, Scalar]:
        found = errors(params, batch, None)
        errors_of_labels = {f"{label}_rmse": rmse(*pair) for label, pair in found.items()}
        return {"log_likelihood": log_likelihood(params, batch, found) / len(batch), **errors_of_labels}

    squares = LeastSquares(standardised, log_prior, ("noise",)) if noise.dof is None else None
    return Target(initial, lambda key, params: (), value_and_grad, metrics, size, potential.spec, check, squares)


def check_labels(potential: Potential, scales: Params, data: Dataset) -> None:
    """Refuse data that the potential cannot treat, or that the scales do not fit; raises ``ValueError``."""
    check_compatible(potential, data)
    if not any(bool(getattr(data, f"has_{label}").any()) for label in scales):
        raise ValueError(f"{data.source} has none of the labels {list(scales)} that the target compares.")
    own = scales.get("forces")
    if isinstance(own, dict) and (missing := [z for z in data.species if str(z) not in own]):
        raise ValueError(
            f"Every species needs a scale of its forces if one has. {data.source} has the species {data.species}. "
            f"Got scales for ({', '.join(own)}). Add {', '.join(f'{z}: …' for z in missing)} to Noise(forces=…)."
        )


def log_scales(noise: Noise, scales: Params) -> Params:
    """Starting values of the scales that are parameters, as logarithms."""
    free = scales if noise.learn == "exponential" else {}
    return jax.tree.map(lambda x: jnp.log(jnp.asarray(x, jnp.result_type(float))), free)


def learned(noise: Noise, params: Params) -> Params:
    """Logarithms of the scales that are parameters. Where ``noise`` keeps its own, those of the parameters are another
    target's (``fused``)."""
    return params["noise"] if noise.learn == "exponential" else {}


def _errors(potential, labels, params: Params, batch: Dataset, counts) -> dict[str, tuple[Array, Array]]:
    """Prediction minus label, and its mask, for every label in use."""
    found, masks = residuals(potential, params["potential"], batch, counts, "stress" in labels), label_masks(batch)
    return {label: (found[label], masks[label]) for label in labels}


def label_masks(batch: Dataset) -> dict[str, Array]:
    """Where there are labels, in shapes that broadcast to those of ``residuals``."""
    real = (batch.system.species > 0)[..., None] & batch.has_forces[:, None, None]
    return {"energy": batch.has_energy, "forces": real, "stress": batch.has_stress[:, None]}


def rmse(error: Array, mask: Array) -> Scalar:
    """Root mean square of the errors where there are labels."""
    number = jnp.broadcast_to(mask, error.shape).sum()
    return jnp.sqrt(jnp.where(mask, error**2, 0.0).sum() / jnp.maximum(number, 1))


def scale_of(logarithms: Params, label: str, scales: Params, batch: Dataset) -> Array:
    """Scale of the errors of a label, a parameter or as expected: one, or ``(B, N, 1)`` where species differ."""
    known = label in logarithms
    sigma = jax.tree.map(jnp.exp, logarithms[label]) if known else jax.tree.map(jnp.asarray, scales[label])
    if not isinstance(sigma, dict):
        return sigma
    index = species_index(batch.system.species, tuple(int(z) for z in sigma))  # −1, the last, for masked padding
    return jnp.stack(list(sigma.values()))[index][..., None]


def checked_scales(noise: Noise, data: Dataset) -> Params:
    """The scales in use, those of species by atomic number as text, so that the parameters tell which is whose."""
    if noise.learn not in ("exponential", "fixed"):
        raise ValueError(f'learn must be "exponential" or "fixed". Got "{noise.learn}".')
    if mapped := [k for k, v in noise.scales.items() if isinstance(v, Mapping) and k != "forces"]:
        raise ValueError(f"Only forces belong to single atoms and can have a scale per species. Got one for {mapped}.")
    if wrong := {k: v for k, v in noise.scales.items() if not all(x > 0 for x in _numbers(v))}:
        raise ValueError(f"Noise scales must be positive. Got {wrong}.")
    if not noise.scales:
        raise ValueError("Noise needs the scale of at least one label. Got none.")
    if missing := [k for k in noise.scales if not bool(getattr(data, f"has_{k}").any())]:
        raise ValueError(
            f"The data must have every label that noise has a scale for. {data.source} has no {', no '.join(missing)}. "
            f"Leave it out with Noise({missing[0]}=None, …), or tell read its name with {missing[0]}_key=…."
        )
    return {k: {str(z): v[z] for z in sorted(v)} if isinstance(v, Mapping) else v for k, v in noise.scales.items()}


def _numbers(scale: float | Mapping[int, float]) -> tuple[float, ...]:
    return tuple(scale.values()) if isinstance(scale, Mapping) else (scale,)


def log_scale_prior(logarithms: Params, means: Params) -> Scalar:
    """Exponential densities of the scales σ with these means, times the Jacobian dσ/d(log σ) = σ."""
    shared = means.keys() & logarithms.keys()
    terms = [jax.tree.map(lambda z, mean: z - jnp.exp(z) / mean, logarithms[k], means[k]) for k in sorted(shared)]
    return sum(jax.tree.leaves(terms), jnp.zeros(()))


def _log_error(error: Array, sigma: Array, dof: float | None) -> Array:
    """Log density of errors: normal, or Student-t with ``dof`` degrees of freedom."""
    import numpyro.distributions as dist

    sigma = sigma.astype(error.dtype)
    density = dist.Normal(0.0, sigma) if dof is None else dist.StudentT(dof, 0.0, sigma)
    return density.log_prob(error)


def _capacity(counts: np.ndarray | None, frames: int, atoms: int) -> int:
    """Atoms that nearly every minibatch stays below (mean + 5 standard deviations), in steps of 32."""
    if counts is None or frames > len(counts):
        return frames * atoms
    typical = counts.mean() * frames + 5 * counts.std() * frames**0.5
    return min(int(-(-typical // 32) * 32), frames * atoms)


def residuals(
    potential: Potential, params: Params, batch: Dataset, counts: np.ndarray | None, with_stress: bool
) -> dict[str, Float[Array, "..."]]:
    """Prediction minus label: energy per atom ``(B,)``, forces ``(B, N, 3)``, stress ``(B, 6)``, from one flat graph.

    Args:
        potential, params: of the prediction.
        batch: stacked frames.
        counts: atoms of every frame that minibatches are drawn from. They give the length of the flat graph; the rare
            minibatch that is longer goes through a second, fully padded one. ``None`` means full padding.
        with_stress: whether ``"stress"`` is needed.
    """
    frames, atoms = batch.system.species.shape
    capacity = _capacity(counts, frames, atoms)

    def at(capacity):
        return lambda batch: _flat_residuals(potential, params, batch, capacity, with_stress)

    if capacity == frames * atoms:
        return at(capacity)(batch)
    too_long = any_together((batch.system.species > 0).sum() > capacity)
    return jax.lax.cond(too_long, at(frames * atoms), at(capacity), batch)


def _flat_residuals(potential, params, batch: Dataset, capacity: int, with_stress: bool) -> dict[str, Array]:
    frames, atoms = batch.system.species.shape
    graph = flatten(batch, capacity)
    of_structure = jnp.minimum(graph.structure, frames - 1)

    def summed(position, strain):
        system = replace(graph.system, position=position)
        if with_stress:
            symmetric = 0.5 * (strain + strain.swapaxes(1, 2))[of_structure]
            system = replace(
                system,
                position=position + jnp.einsum("ax,axy->ay", position, symmetric, precision="highest"),
                box=system.box + jnp.matmul(system.box, symmetric, precision="highest"),
            )
        energies = potential.atom_energies(params, system, graph.neighbors)
        return energies.sum(), energies

    position, strain = graph.system.position, jnp.zeros((frames, 3, 3), graph.system.position.dtype)
    (gradient, virial), energies = jax.grad(summed, argnums=(0, 1), has_aux=True)(position, strain)
    number = (batch.system.species > 0).sum(1)
    energy = jax.ops.segment_sum(energies, graph.structure, frames)
    forces = jnp.zeros((frames * atoms, 3), gradient.dtype).at[graph.atom].set(-gradient, mode="drop")
    out = {
        "energy": (energy - batch.energy) / jnp.maximum(number, 1),
        "forces": forces.reshape(frames, atoms, 3) - batch.forces,
    }
    if with_stress:
        v = volume(batch.system.box)
        stress = virial / jnp.where(v > 0, v, 1.0)[:, None, None]
        out["stress"] = (stress - batch.stress)[:, _SIX[0], _SIX[1]]
    return out
