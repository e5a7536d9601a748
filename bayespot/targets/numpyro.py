r"""A numpyro model as a target: any priors and likelihoods around a potential, for every sampler of the library.

.. math::
   \frac1N \log p(z \mid D) \approx \frac1n \sum_{\text{observed}} \log p(y \mid x)
   + \frac1N \Big[ \sum_{\text{latent}} \log p(x) + \log\Big|\frac{\partial x}{\partial z}\Big| \Big]

for a minibatch of *n* out of *N* frames. The parameters :math:`z` live in numpyro's unconstrained space: a positive
site is sampled as its logarithm, with its Jacobian (Phan, Pradhan and Jankowiak, arXiv:1912.11554 (2019)).
"""

import re
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro import handlers

from bayespot.inference.priors import Prior
from bayespot.inference.target import Batch, Target
from bayespot.potentials.potential import Potential, check_compatible
from bayespot.records.dataset import Dataset
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import length, take
from bayespot.typing import Key, Params, PyTree, Scalar

Model = Callable[[Any], Any]
"""``batch → anything``, with numpyro's statements inside."""

_NOISE = r"noise/(energy|forces(/\d+)?|stress)"
_Sites = dict[str, dict[str, Any]]


def numpyro_potential(potential: Potential, prior: Prior) -> Params:
    """Inside a numpyro model: the parameters of a potential, as the latent site ``"potential"``.

    The site's value is the whole tree of parameters, which ``predict`` and ``propagate`` then find in the samples.
    numpyro's own samplers, whose sites are arrays, do not take it.

    Args:
        potential: its ``init`` makes starting points.
        prior: of its parameters; a function that may use other sites, e.g. ``normal(scale)`` with
            ``scale = numpyro.sample("scale", dist.HalfNormal(1.0))``.
    """
    return numpyro.sample("potential", _Weights(potential, prior))  # pyright: ignore[reportReturnType]


class _Weights(dist.Distribution):
    """A prior of all parameters of a potential together, drawn from by the potential's own initialisation."""

    support = dist.constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(self, potential: Potential, prior: Prior):
        self.potential, self.prior = potential, prior
        super().__init__(validate_args=False)

    def sample(self, key: Any, sample_shape: Any = ()) -> Any:
        return self.potential.init(key)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        return self.prior(value)


def numpyro_target(model: Model, data: Batch, *, start: Mapping[str, PyTree] | None = None) -> Target:
    """The posterior of a numpyro model.

    Parameters are a nested dictionary of the latent sites, without constraints; a slash in a site's name opens a
    level. Sites ``"noise/energy"``, ``"noise/forces"`` (or, by species, ``"noise/forces/8"``, …) and ``"noise/stress"``
    are the scales of label noise that ``predict`` reads [eV/atom, eV/Å, eV/Å³]: positive, sampled as log σ.

    **What is scaled.** Observed sites and ``numpyro.factor`` count as likelihood of the batch, latent sites as prior;
    the first get the factor N/n. So the model says nothing of N: no ``handlers.scale`` and no subsampling plate, whose
    indices would need a random key. A ``factor`` that depends on parameters alone is *not* a prior; a function of the
    weights is, as the prior of ``numpyro_potential``.

    Args:
        model: ``model(batch)``, for any number of frames; its latent sites must not depend on that number, nor lie
            within ``numpyro.contrib.control_flow``.
        data: training data, a ``Dataset`` or any tree with frames as its leading axis; ``infer`` draws the minibatches.
        start: values of sites, by name and with their constraints, that chains start from, e.g.
            ``{"noise/forces": 0.05}``. Other sites start from a draw of their prior, the potential from its ``init``.

    Raises:
        ValueError: for discrete latent sites, ``numpyro.param`` (also within ``random_flax_module``), subsampling,
            sites or scales that depend on the number of frames, terms that grow faster than it, an unknown name
            or a forbidden value in ``start`` or an improper site that is not in it, a scale under ``noise`` that is not
            one positive number, or data unfit for the potential. Other errors of the model itself pass, with a note.

    Example::

        def model(batch):
            params = bp.numpyro_potential(potential, bp.scaled_normal(1.0))
            sigma = numpyro.sample("noise/forces", dist.HalfNormal(0.1))
            evaluate = jax.vmap(bp.energy_and_forces(potential), (None, 0, 0))
            _, forces = evaluate(params, batch.system, batch.neighbors)
            real = (batch.system.species > 0)[..., None] & batch.has_forces[:, None, None]
            numpyro.sample("forces", dist.Normal(forces, sigma).mask(real), obs=batch.forces)

        target = bp.numpyro_target(model, data, start={"noise/forces": 0.05})
    """
    start, size = dict(start or {}), length(data)
    potential = _checked(model, data, start)
    one = _some(data, 1)

    def initial(key: Key) -> Params:
        latent = _latent(_drawn(model, key, start, one))
        return _nested({name: _unconstrained(site) for name, site in latent.items()})

    def value_and_grad(key: Key, params: Params, state, batch: Batch):
        def log_density(params):
            likelihood, prior = _log_densities(model, params, batch)
            return likelihood / length(batch) + prior / size

        value, gradient = jax.value_and_grad(log_density)(params)
        return value, gradient, state, {}

    def metrics(params: Params, batch: Batch) -> dict[str, Scalar]:
        return {"log_likelihood": _log_densities(model, params, batch)[0] / length(batch)}

    check = partial(_check_data, potential)
    check(data)
    spec = {} if potential is None else potential.spec
    return Target(initial, lambda key, params: (), value_and_grad, metrics, size, spec, check)


def _check_data(potential: Potential | None, data: Batch) -> None:
    if potential is not None and isinstance(data, Dataset):
        check_compatible(potential, data)


def site_values(model: Model, samples: PosteriorSamples, data: Batch) -> dict[str, Any]:
    """Samples of a numpyro model's latent sites with their constraints: σ where the samples hold log σ.

    Args:
        model: that the samples belong to.
        samples: ``S`` of them, from the model's target.
        data: any that the model takes; one frame of it goes through the model.

    Returns:
        Nested like ``samples.params``, every array with the leading axis ``S``.

    Raises:
        ValueError: for samples that lack a site of the model.
    """

    def values(params: Params, batch: Batch) -> dict[str, Any]:
        latent = _latent(_substituted(model, params, batch)[0])
        return _nested({name: site["value"] for name, site in latent.items()})

    return jax.jit(jax.vmap(values, (0, None)))(samples.params, _some(data, 1))


def _log_densities(model: Model, params: Params, batch: Batch) -> tuple[Scalar, Scalar]:
    """Log likelihood of the batch, and log prior with the Jacobians."""
    sites, prior = _substituted(model, params, batch)
    likelihood = jnp.zeros((), jnp.result_type(float))
    for site in sites.values():
        if site["type"] == "sample":
            log = site["fn"].log_prob(site["value"])
            log = jnp.sum(log if site["scale"] is None else site["scale"] * log)
            likelihood, prior = (likelihood + log, prior) if site["is_observed"] else (likelihood, prior + log)
    return likelihood, prior


def _substituted(model: Model, params: Params, batch: Batch) -> tuple[_Sites, Scalar]:
    """The model's sites at these parameters, and log|∂x/∂z|.

    Not by numpyro's own ``potential_energy``: it adds the Jacobians as factors, which look like a likelihood.
    """
    jacobians = []

    def value(site: dict[str, Any]) -> PyTree:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        z = _at(params, site["name"])
        if isinstance(site["fn"], _Weights):
            return z
        transform = dist.biject_to(site["fn"].support)
        x = transform(z)
        jacobians.append(jnp.sum(transform.log_abs_det_jacobian(z, x)))
        return x

    sites = handlers.trace(handlers.substitute(model, substitute_fn=value)).get_trace(batch)
    return sites, sum(jacobians, jnp.zeros((), jnp.result_type(float)))


def _at(params: Params, name: str) -> PyTree:
    """The parameters of a site."""
    try:
        return reduce(lambda tree, level: tree[level], name.split("/"), params)
    except KeyError:
        raise ValueError(
            f"Parameters must hold every latent site of the model. Got {sorted(params)}, without {name}. "
            "Take those of its own target: initial(key, target, chains=…), or samples drawn from it."
        ) from None


def _drawn(model: Model, key: Key, start: dict[str, PyTree], batch: Batch) -> _Sites:
    """The model's sites, at ``start`` where it has a value and drawn from their priors elsewhere."""

    def value(site: dict[str, Any]) -> PyTree:
        _check_site(site["name"], site)  # here, before numpyro draws indices or discrete values
        if site["type"] != "sample" or site["is_observed"]:
            return None
        _check_start(site["name"], site["fn"], start)
        return start.get(site["name"])

    return handlers.trace(handlers.seed(handlers.substitute(model, substitute_fn=value), key)).get_trace(batch)


def _latent(sites: _Sites) -> _Sites:
    return {name: x for name, x in sites.items() if x["type"] == "sample" and not x["is_observed"]}


def _unconstrained(site: dict[str, Any]) -> PyTree:
    if isinstance(site["fn"], _Weights):
        return jax.tree.map(jnp.asarray, site["value"])
    value = jnp.broadcast_to(jnp.asarray(site["value"], jnp.result_type(float)), site["fn"].shape())
    return dist.biject_to(site["fn"].support).inv(value)


def _nested(values: dict[str, PyTree]) -> dict[str, Any]:
    """``{"a/b": …}`` as ``{"a": {"b": …}}``."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split("/")
        reduce(lambda node, level: node.setdefault(level, {}), above, out)[last] = value
    return out


def _some(data: Batch, frames: int) -> Batch:
    """So many frames, again from the first one on where there are fewer; on the host, where nothing is compiled."""
    return take(jax.tree.map(np.asarray, data), np.arange(frames) % length(data))


# What is refused, from runs of the model on shapes alone


def _checked(model: Model, data: Batch, start: dict[str, PyTree]) -> Potential | None:
    """The potential inside a model that can be a target."""
    two, three = (_shapes(model, _some(data, n), start) for n in (2, 3))  # not one, which would broadcast
    latent = _latent(two)
    if unknown := sorted(set(start) - set(latent)):
        raise ValueError(f"start must name latent sites of the model, {', '.join(latent)}. Got {unknown}.")
    if (facts := _facts(two)) != (others := _facts(three)):
        changed = sorted(n for n in {*facts, *others} if facts.get(n) != others.get(n))
        raise ValueError(
            "Shapes of latent sites and scales must be constants, whatever the number of frames: minibatches share all "
            f"parameters, and the target itself scales the likelihood by N/n. Got {', '.join(changed)}, which are not. "
            "Leave out handlers.scale, and move latent sites out of the plate of the frames."
        )
    if wrong := [n for n, x in two.items() if "terms" in x and 2 * three[n]["terms"] > 3 * x["terms"]]:
        raise ValueError(
            "Observed sites must have the same number of terms for every frame. Got more than that for "
            f"{', '.join(wrong)}, as if labels (n, 1) met predictions (n,). Give both the same shape."
        )
    for name in latent:  # "a" beside "a/b" would be an array and a level at once
        if inside := [other for other in latent if other.startswith(f"{name}/")]:
            raise ValueError(f"A site must not have the name of a level. Got {name} and {inside[0]}. Rename one.")
    found = latent.get("potential")
    return found["fn"].potential if found and isinstance(found["fn"], _Weights) else None


def _shapes(model: Model, batch: Batch, start: dict[str, PyTree]) -> _Sites:
    """The model's sites without numbers; observed ones with their number of terms."""
    sites: _Sites = {}

    def run(key, batch):
        for name, site in _drawn(model, key, start, batch).items():
            seen = site["type"] == "sample" and site["is_observed"]
            sites[name] = {**site, "terms": jnp.size(site["fn"].log_prob(site["value"]))} if seen else site

    try:
        jax.eval_shape(run, jax.random.key(0), batch)
    except Exception as error:
        error.add_note(
            f"This came from a run of the model with {length(batch)} frames. It must take any number of them, so that "
            "a plate of frames needs the size of the batch."
        )
        raise
    return sites


def _facts(sites: _Sites) -> dict[str, Any]:
    """Shape of every latent site, and scale of every site; one that JAX has computed could depend on anything."""
    shapes = {name: site["fn"].shape() for name, site in _latent(sites).items()}
    scales = {n: x["scale"] for n, x in sites.items() if x["type"] == "sample"}
    return {n: (shapes.get(n), object() if isinstance(x, Tracer) else str(x)) for n, x in scales.items()}


def _check_site(name: str, site: dict[str, Any]) -> None:
    kind = site["type"]
    if kind in ("param", "mutable"):
        raise ValueError(f"Parameters need a prior. Got {kind} {name}. Use numpyro.sample, or numpyro_potential.")
    if kind == "plate" and site["args"][1] not in (None, site["args"][0]):
        raise ValueError(
            f"Minibatches come from infer. Got the plate {name}, which takes {site['args'][1]} of {site['args'][0]}. "
            f'Use numpyro.plate("{name}", …) of the size of the batch, without subsample_size.'
        )
    if kind != "sample" or site["is_observed"]:
        return
    potential = getattr(site["fn"], "base_dist", site["fn"])
    if isinstance(potential, _Weights) and (name != "potential" or potential is not site["fn"]):
        raise ValueError(
            f"predict and propagate look for the site potential. Got {name}, within a plate, mask or scope. "
            "Call numpyro_potential outside of them."
        )
    support = site["fn"].support
    if "_scan_current_index" in site["infer"]:
        raise ValueError(f"Latent sites must not lie within a scan. Got {name}. Sample it before, for all steps.")
    if support.is_discrete:
        raise ValueError(f"Latent sites must be continuous. Got {name}, which is discrete. Sum over its values.")
    if name.split("/")[0] == "noise":
        positive = isinstance(dist.biject_to(support), dist.transforms.ExpTransform)
        if not re.fullmatch(_NOISE, name) or not positive or site["fn"].shape():
            raise ValueError(
                "Sites noise/energy, noise/forces, noise/forces/8 (by species) and noise/stress hold label noise: each "
                f"one positive number, sampled as its logarithm. Got {name}. "
                "Give it another name, or a distribution such as HalfNormal, Exponential or LogNormal."
            )


def _check_start(name: str, distribution: Any, start: dict[str, PyTree]) -> None:
    """Refuse an improper site without a value, and a value outside of the support, where that is a constant."""
    base = getattr(distribution, "base_dist", distribution)
    if name not in start and isinstance(base, dist.ImproperUniform):
        raise ValueError(
            f"Chains need a starting point. Got the improper site {name}, which cannot be drawn. "
            f'Give start={{"{name}": …}}.'
        )
    if name not in start or isinstance(base, _Weights):
        return
    inside = distribution.support(np.asarray(start[name], float))
    if not isinstance(inside, Tracer) and not np.all(inside):
        raise ValueError(
            f"start holds values with their constraints, σ rather than log σ. Got {start[name]} for {name}, whose "
            f"support is {distribution.support}."
        )
