r"""Labels as the posterior expects them: the prediction of every sample, the scale of its noise, labels drawn anew.

.. math:: y^\mathrm{rep}_s = y_s + \sigma_s \varepsilon_s

with the prediction :math:`y_s` and the noise scale :math:`\sigma_s` of sample *s*, and :math:`\varepsilon_s` from a
standard normal or Student's t distribution, independent from label to label. All labels of one replicate come from the
same sample: what its errors have in common within and between frames, they keep.

Reference: Gelman, Meng and Stern, *Stat. Sinica* 6, 733 (1996).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from bayespot.errors import listed
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples, weights
from bayespot.tree import record
from bayespot.typing import Array, Float, Int, Key
from bayespot.uq.predict import QUANTITIES, Prediction, check_frames
from bayespot.uq.resampling import seed

VOIGT = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}
"""The six components of a stress, in ASE's order."""

Scales = Mapping[str, float | Mapping[int, float]]
"""Standard deviation of the label noise by quantity, one or by species: ``Noise(…).scales``."""


@record
class PosteriorPredictive:
    """Labels drawn from the posterior predictive distribution, one set per sample, beside the true ones.

    Every dictionary is by quantity: ``"energy"`` of the frame [eV], ``"forces"`` [eV/Å], ``"stress"`` [eV/Å³] with its
    six components in Voigt order. Padding is NaN everywhere.

    Attributes:
        predicted: what each sample predicts, without noise: ``(S, M)``, ``(S, M, N, 3)``, ``(S, M, 6)``.
        replicated: with noise, the same shapes.
        log_likelihood: log density of every label, given the sample, the same shapes; NaN where there is no label.
        label: ``(M,)``, ``(M, N, 3)``, ``(M, 6)``; NaN where there is none.
        species: atomic numbers ``(M, N)``; 0 for padding.
        frame: number of each frame in its file, ``(M,)``.
    """

    predicted: dict[str, Float[Array, "S ..."]]
    replicated: dict[str, Float[Array, "S ..."]]
    log_likelihood: dict[str, Float[Array, "S ..."]]
    label: dict[str, Float[Array, "..."]]
    species: Int[Array, "M N"]
    frame: Int[Array, "M"]


class Expected(NamedTuple):
    """Labels of one quantity as every sample expects them; energies per atom, stresses in Voigt order (host, float64).

    Attributes:
        predicted: ``(S, …)``; NaN for padding.
        scale: of the noise, ``(S, …)`` or what broadcasts to it.
        label: ``(…)``; NaN where there is none.
    """

    predicted: np.ndarray
    scale: np.ndarray
    label: np.ndarray


def posterior_predictive(
    key: Key,
    samples: PosteriorSamples,
    prediction: Prediction,
    data: Dataset,
    noise: Scales | None = None,
    dof: float | None = None,
    quantities: Sequence[str] | None = None,
) -> PosteriorPredictive:
    """Replicated labels, one set per sample, for ArviZ (``to_arviz``) and for checks of one's own (host).

    Args:
        key: random key of the noise.
        samples: that the prediction was made with.
        prediction: for the frames of ``data``.
        data: labelled frames.
        noise: standard deviations of the label noise by quantity, in eV/atom, eV/Å and eV/Å³, e.g. ``{"energy": 0.002,
            "forces": {8: 0.1, 14: 0.05}}`` or ``Noise(…).scales``; default what the samples inferred.
        dof: degrees of freedom of Student-t noise, those of ``Noise(dof=…)``; samples do not tell. ``None`` means
            Gaussian.
        quantities: which of ``"energy"``, ``"forces"``, ``"stress"``; default all that have labels.

    Raises:
        ValueError: for samples or frames that are not those of the prediction, predictions of labels that are not
            finite, a quantity without labels, noise that neither the samples carry nor the argument tells, or scales
            and ``dof`` that are not positive.
    """
    found = expected(samples, prediction, data, noise, quantities)
    check_dof(dof)
    rng = np.random.default_rng(seed(key))
    kept: dict[str, dict] = {"predicted": {}, "replicated": {}, "log_likelihood": {}, "label": {}}
    for quantity, (predicted, scale, label) in found.items():
        check_positive(scale, quantity)
        if quantity == "energy":
            count = np.maximum(data.atom_counts, 1)
            predicted, scale, label = predicted * count, scale * count, label * count
        z = (label - predicted) / scale
        density = stats.norm.logpdf(z) if dof is None else stats.t.logpdf(z, dof)
        kept["predicted"][quantity] = predicted
        kept["replicated"][quantity] = predicted + scale * standard(rng, predicted.shape, dof)
        kept["log_likelihood"][quantity] = density - np.log(scale)
        kept["label"][quantity] = label
    return PosteriorPredictive(**kept, species=np.asarray(data.system.species), frame=np.asarray(data.frame))


def standard(rng: np.random.Generator, shape: tuple[int, ...], dof: float | None) -> np.ndarray:
    """Noise of scale 1: normal, or Student-t."""
    return rng.standard_normal(shape) if dof is None else rng.standard_t(dof, shape)


def check_dof(dof: float | None) -> None:
    """Refuse degrees of freedom that no distribution has; raises ``ValueError``."""
    if dof is not None and not dof > 0:
        raise ValueError(f"dof must be positive, or None for Gaussian noise. Got {dof}.")


def check_positive(scale: np.ndarray, quantity: str) -> None:
    """Refuse noise scales of zero; raises ``ValueError``."""
    if (scale <= 0).any():
        raise ValueError(
            f"Drawing labels of {quantity} needs a positive noise. Got {np.nanmin(scale)}. Pass the standard deviation "
            "that the target assumed as noise={…: …}."
        )


def expected(
    samples: PosteriorSamples,
    prediction: Prediction,
    data: Dataset,
    noise: Scales | None = None,
    quantities: Sequence[str] | None = None,
) -> dict[str, Expected]:
    """Predictions, noise scales and labels by quantity; arguments and errors as for ``posterior_predictive``.

    Scales of zero pass.
    """
    check_frames(prediction, data)
    if not np.array_equal(prediction.chain, samples.chain):
        raise ValueError(
            f"The prediction must be made with the samples. Got {len(prediction.chain)} and {len(samples)} of them, or "
            "other chains. Use predict(potential, samples, data)."
        )
    present = [q for q in QUANTITIES if np.asarray(getattr(data, f"has_{q}")).any()]
    chosen = present if quantities is None else list(quantities)
    if not chosen or set(chosen) - set(present):
        raise ValueError(f"Need quantities with labels in {data.source}, of {present}. Got {chosen}.")
    if lacking := [q for q in chosen if q not in prediction.members]:
        raise ValueError(f"The prediction must hold what every sample predicts. Got none of {lacking}. Use predict(…).")
    if noise is not None and (not isinstance(noise, Mapping) or set(noise) - set(QUANTITIES)):
        raise ValueError(f"noise must be given by quantity, such as {{'forces': 0.1}}, of {QUANTITIES}. Got {noise}.")
    found = {q: _expected(q, samples, prediction, data, noise or {}) for q in chosen}
    for quantity, (predicted, _, label) in found.items():
        _require_finite(quantity, predicted[:, np.isfinite(label)], np.asarray(weights(samples)) > 0)
    return found


def _require_finite(quantity: str, predicted: np.ndarray, used: np.ndarray) -> None:
    """A comparison with NaN is false, and would count as evidence."""
    if len(lost := np.flatnonzero(used & ~np.isfinite(predicted).all(1))):
        raise ValueError(
            f"Predictions of labelled {quantity} must be finite. Got NaN or infinity from {len(lost)} of {len(used)} "
            f"samples ({listed(lost)}). Leave out these samples, or the quantity with quantities=(…)."
        )


def _expected(quantity: str, samples, prediction: Prediction, data: Dataset, noise: Scales) -> Expected:
    predicted = np.asarray(prediction.members[quantity], np.float64)
    label = np.asarray(getattr(data, quantity), np.float64)
    real, has = np.asarray(data.system.species) > 0, np.asarray(getattr(data, f"has_{quantity}"))
    if quantity == "energy":
        count = np.maximum(data.atom_counts, 1)
        predicted, label = predicted / count, label / count
    elif quantity == "forces":
        predicted, label = (np.where(real[..., None], x, np.nan) for x in (predicted, label))
    else:
        row, column = np.transpose(list(VOIGT.values()))
        predicted, label = predicted[..., row, column], label[..., row, column]
    label = np.where(has.reshape(-1, *[1] * (label.ndim - 1)), label, np.nan)
    return Expected(predicted, _scale(quantity, samples, data, noise, predicted.ndim), label)


def _scale(quantity: str, samples: PosteriorSamples, data: Dataset, noise: Scales, ndim: int) -> np.ndarray:
    """Scale of the noise by sample, ``(S or 1, 1, …)``, or by atom, ``(S or 1, M, N, 1)``, NaN for padding."""
    learned = samples.params.get("noise", {}) if isinstance(samples.params, dict) else {}
    sigma = noise.get(quantity, jax.tree.map(lambda log: np.exp(np.asarray(log, np.float64)), learned.get(quantity)))
    if sigma is None:
        raise ValueError(
            f"The samples do not carry the noise of {quantity} labels (it was fixed, or they come from elsewhere). "
            f"Pass its standard deviation in noise={{{quantity!r}: …}}, or leave them out with quantities=(…)."
        )
    if not isinstance(sigma, Mapping):
        return _checked(sigma, quantity).reshape(-1, *[1] * (ndim - 1))
    if quantity != "forces":
        raise ValueError(f"Only forces can have a noise by species. Got {dict(sigma)} for {quantity}. Pass one number.")
    by_name = {str(z): _checked(x, quantity) for z, x in sigma.items()}
    if missing := [z for z in data.species if str(z) not in by_name]:
        raise ValueError(f"Got no noise of forces for species {missing}. Pass it in noise={{'forces': {{…: …}}}}.")
    species = np.asarray(data.system.species)
    table = np.stack([by_name[str(z)] for z in data.species], 1)
    by_atom = table[:, np.minimum(np.searchsorted(data.species, species), len(data.species) - 1)]
    return np.where(species > 0, by_atom, np.nan)[..., None]


def _checked(sigma, quantity: str) -> np.ndarray:
    """One scale per sample, or one for all, ``(S or 1,)``."""
    sigma = np.atleast_1d(np.asarray(sigma, np.float64))
    if not (np.isfinite(sigma).all() and (sigma >= 0).all()):
        raise ValueError(f"The noise of {quantity} must be a finite standard deviation. Got {sigma}.")
    return sigma
