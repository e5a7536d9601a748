"""The samples, what they predict and the labels as an ``xarray.DataTree``, in the groups and names of ArviZ."""

import jax
import numpy as np

from bayespot.errors import Status
from bayespot.records.posterior import PosteriorSamples
from bayespot.uq.posterior_predictive import VOIGT, PosteriorPredictive

UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}

DIMS = {"energy": ["frame"], "forces": ["frame", "atom", "component"], "stress": ["frame", "stress_component"]}


def to_arviz(samples: PosteriorSamples, predictive: PosteriorPredictive | None = None):
    """The samples as an ``xarray.DataTree`` that ArviZ reads, with the dimensions ``chain`` and ``draw``.

    The group ``posterior`` holds the noise scales as the sampler sees them, ``log_noise_energy`` etc. (weights of a
    network have no meaning one by one); ``sample_stats`` holds ``lp`` (log density per datum), ``log_weight``,
    ``status`` and ``diverging``. With labels there are further

    - in ``posterior``: ``predicted_energy``, ``predicted_forces``, ``predicted_stress``, without noise;
    - ``posterior_predictive``: ``energy`` of the frame [eV], ``forces`` [eV/Å], ``stress`` [eV/Å³], with noise;
    - ``log_likelihood``: log density of every label under the same names;
    - ``observed_data``: the labels under the same names;
    - ``constant_data``: ``species``, atomic numbers with 0 for padding.

    Their dimensions are ``frame`` (numbers in the file, or counted from 0 where these repeat), ``atom``, ``component``
    (x, y, z) and ``stress_component`` (xx, yy, zz, yz, xz, xy); the unit is in ``attrs["units"]``. Padding and missing
    labels are NaN, which most functions of ArviZ do not skip: leave them out first, e.g.
    ``forces.stack(label=("frame", "atom", "component")).dropna("label")``.

    ``arviz_stats.loo`` asks what the other labels say about a left-out one; it is meant for the training frames, and
    a force left out among those of its own frame is an easy question. To leave out frames, add up ``log_likelihood``
    of all quantities over their components (``sum(…, min_count=1)``, or missing labels become zeros). It needs draws
    from a posterior; members of an ensemble or recalibrated samples are none. ArviZ does not heed log weights.

    Args:
        samples: chains with equally many draws.
        predictive: of these samples, from ``posterior_predictive``.

    Raises:
        ValueError: when chains have different numbers of draws, or the replicates are not those of the samples.
    """
    from arviz_base import from_dict

    chains, draws, grid = _by_chain(samples)
    noise = samples.params.get("noise", {}) if isinstance(samples.params, dict) else {}
    names = jax.tree_util.tree_leaves_with_path(noise)
    status = grid(samples.status)
    stats = {"lp": grid(samples.log_density), "log_weight": grid(samples.log_weight), "status": status}
    groups = {
        "posterior": {"_".join(["log_noise", *(str(k.key) for k in path)]): grid(x) for path, x in names},
        "sample_stats": {**stats, "diverging": status == Status.UNSTABLE},
    }
    coords = {"chain": chains, "draw": draws}
    if predictive is not None:
        _add_labels(groups, coords, samples, predictive, grid)
    tree = from_dict(
        groups,
        coords=coords,
        dims={**DIMS, **{f"predicted_{name}": dims for name, dims in DIMS.items()}, "species": ["frame", "atom"]},
        check_conventions=False,  # it warns where there are more chains than draws, as in every deep ensemble
    )
    return _with_units(tree)


def _by_chain(samples: PosteriorSamples):
    """Names of the chains and draws, and the function that arranges values ``(S, ...)`` as ``(C, D, ...)``."""
    chain, draw = np.asarray(samples.chain), np.asarray(samples.draw)
    chains, counts = np.unique(chain, return_counts=True)
    if len(set(counts.tolist())) != 1:
        found = ", ".join(f"{n} of chain {c}" for c, n in zip(chains, counts, strict=True))
        raise ValueError(
            f"ArviZ needs the same number of draws of every chain. Got {found or 'none'}. Keep whole chains, "
            "e.g. samples[np.isin(samples.chain, [0, 1])]."
        )
    order = np.lexsort((draw, chain))
    shape = (len(chains), int(counts[0]))

    def grid(x):
        x = np.asarray(x)[order]
        return x.reshape(*shape, *x.shape[1:])

    draws = grid(draw)
    return chains, draws[0] if (draws == draws[0]).all() else np.arange(shape[1]), grid


def _add_labels(groups: dict, coords: dict, samples: PosteriorSamples, predictive: PosteriorPredictive, grid) -> None:
    lengths = {len(x) for x in predictive.replicated.values()}
    if lengths != {len(samples)}:
        raise ValueError(
            f"The replicates must be those of the {len(samples)} samples. Got {sorted(lengths)} of them. "
            "Use posterior_predictive(key, samples, …)."
        )
    groups["posterior"] |= {f"predicted_{name}": grid(x) for name, x in predictive.predicted.items()}
    groups["posterior_predictive"] = {name: grid(x) for name, x in predictive.replicated.items()}
    groups["log_likelihood"] = {name: grid(x) for name, x in predictive.log_likelihood.items()}
    groups["observed_data"] = {name: np.asarray(x) for name, x in predictive.label.items()}
    groups["constant_data"] = {"species": np.asarray(predictive.species)}
    frame, (frames, atoms) = np.asarray(predictive.frame), predictive.species.shape
    coords["frame"] = frame if len(np.unique(frame)) == frames else np.arange(frames)
    coords |= {"atom": np.arange(atoms), "component": list("xyz"), "stress_component": list(VOIGT)}


def _with_units(tree):
    for name in ("posterior", "posterior_predictive", "observed_data"):
        if name in tree.children:
            found = tree[name].to_dataset()
            for variable, values in found.data_vars.items():
                if unit := UNITS.get(str(variable).removeprefix("predicted_")):
                    values.attrs["units"] = unit
            tree[name].dataset = found
    return tree
