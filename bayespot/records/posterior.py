"""Posterior samples of the parameters: the result of every inference, and the input of everything after it."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bayespot import tree
from bayespot.errors import FailedSamples, Status
from bayespot.tree import record, replace, take
from bayespot.typing import Array, Float, Int, Params, PyTree, Spec


@record(static=("spec",))
class PosteriorSamples:
    """``S`` samples of the parameters; every array has the leading axis ``S``, so slicing and ``vmap`` just work.

    Deep ensembles (``C`` chains of one draw) and MCMC (``C`` chains × ``D`` draws) have the same form.

    Attributes:
        params: ``{"potential": ..., "noise": {...}}``, every leaf with the leading axis ``S``.
        log_weight: unnormalised log weights ``(S,)``; all equal for MCMC and ensembles.
        chain: that the sample comes from, ``(S,)``.
        draw: number of the draw within its chain, ``(S,)``.
        log_density: log posterior density per datum, up to a constant, ``(S,)``, as the last step before the draw
            estimated it: from its minibatch, at the parameters that the step started from.
        status: a ``Status``, one number per sample, ``(S,)``.
        history: curves of the chain that the draw comes from, e.g. its loss, name → ``(S, n)``.
        spec: the potential's specification as JSON, from which ``bayespot.build`` makes it again.
    """

    params: Params
    log_weight: Float[Array, "S"]
    chain: Int[Array, "S"]
    draw: Int[Array, "S"]
    log_density: Float[Array, "S"]
    status: Int[Array, "S"]
    history: PyTree
    spec: str

    def __len__(self) -> int:
        return self.log_weight.shape[0]

    def __getitem__(self, index) -> PosteriorSamples:
        """Samples by slice, integer array or mask; an integer gives one sample, still with its axis ``S``."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"There are {len(self)} samples. Got number {index}.")
            index = slice(index % len(self), index % len(self) + 1)
        return take(self, index)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        if not all(isinstance(x, jax.Array | np.ndarray) and x.ndim > 0 for x in [self.log_weight, *leaves]):
            return f"PosteriorSamples(params={self.params!r}, …)"  # a tree of axes or shapes in the form of samples
        chains = "" if isinstance(self.chain, Tracer) else f" from {len(np.unique(self.chain))} chains"
        number = sum(x.size // max(len(x), 1) for x in leaves)
        return f"PosteriorSamples({len(self)} samples{chains}, {number} parameters each{_status_text(self)})"


def _status_text(samples: PosteriorSamples) -> str:
    if isinstance(samples.status, Tracer):
        return ""
    counts = {s: int((np.asarray(samples.status) == s).sum()) for s in Status}
    return "".join(f", {n} {s.name}" for s, n in counts.items() if n)


def as_samples(params: Params, spec, noise: Params | None = None) -> PosteriorSamples:
    """Parameter sets from elsewhere, stacked along a leading axis ``S``, as equally weighted samples.

    Args:
        params: of the potential: a committee trained by other means, or one known set to run as a reference.
        spec: the potential's ``spec``.
        noise: logarithms of the noise scales, each ``(S,)``, if they are known.

    Raises:
        ValueError: if the leading axes differ.
    """
    number = tree.length((params, noise or {}))
    return PosteriorSamples(
        params={"potential": params, "noise": noise or {}},
        log_weight=jax.device_put(np.zeros(number)),
        chain=jax.device_put(np.arange(number)),
        draw=jax.device_put(np.zeros(number, np.int32)),
        log_density=jax.device_put(np.full(number, np.nan)),
        status=jax.device_put(np.zeros(number, np.int32)),
        history={},
        spec=json.dumps(spec),
    )


def weights(samples: PosteriorSamples) -> Float[Array, "S"]:
    r"""Normalised weights, :math:`w_s = e^{\ell_s} / \sum_{s'} e^{\ell_{s'}}` (host).

    Raises:
        ValueError: when a log weight is NaN or +inf, or all are −inf.
    """
    log_weight = np.asarray(samples.log_weight)
    if not len(log_weight) or np.isnan(log_weight).any() or not np.isfinite(log_weight.max()):
        raise ValueError(
            f"Log weights must be numbers below +inf, at least one above −inf. Got {log_weight}. "
            "Leave the failed samples out with healthy(samples)."
        )
    weight = np.exp(log_weight - log_weight.max())
    return jnp.asarray(weight / weight.sum())


def healthy(samples: PosteriorSamples) -> PosteriorSamples:
    """The samples whose status is OK (host).

    Raises:
        FailedSamples: when none is.
    """
    good = np.asarray(samples.status) == Status.OK
    if not good.any():
        raise FailedSamples(
            f"No sample is sound ({len(samples)} samples{_status_text(samples)}). Lower the step size.",
            tuple(range(len(samples))),
        )
    return samples if good.all() else samples[np.flatnonzero(good)]


def check_spec(samples: PosteriorSamples, spec: Spec) -> None:
    """Refuse samples of another potential (host); samples without a specification fit every one.

    Raises:
        ValueError: naming the first difference between the specifications, or for a shallow ensemble in one piece.
    """
    own = json.loads(samples.spec or "{}")
    if own.get("name") == "shallow_ensemble":
        raise ValueError("Heads of a shallow ensemble must be apart from each other. Use split_heads(samples).")
    if own and (difference := _difference(own, json.loads(json.dumps(spec)))):
        raise ValueError(
            f"The samples must belong to the potential. Got specifications that differ: {difference}. "
            "Make the potential of the samples with build(samples.spec)."
        )


def concatenate(parts: list[PosteriorSamples]) -> PosteriorSamples:
    """Samples of several runs as one; the chains are renumbered, since those of different runs are different.

    Raises:
        ValueError: when there is none, or the potentials, parameters or lengths of the histories differ.
    """
    if not parts:
        raise ValueError("concatenate needs at least one set of samples. Got none.")
    if len({p.spec for p in parts}) > 1:
        raise ValueError(f"Samples must be of the same potential. Got the specifications {[p.spec for p in parts]}.")
    forms = [jax.tree.map(lambda x: (x.shape[1:], x.dtype.name), p) for p in parts]
    for form in forms[1:]:
        if difference := _difference(forms[0], form):
            raise ValueError(
                f"Samples must agree in everything but their number. Got {difference}. Histories of different "
                "length can be left out with replace(samples, history={})."
            )
    first, chains = 0, []
    for p in parts:
        numbers, renumbered = np.unique(np.asarray(p.chain), return_inverse=True)
        chains.append(replace(p, chain=jnp.asarray(first + renumbered, p.chain.dtype)))
        first += len(numbers)
    return tree.concatenate(chains)


def _difference(one: PyTree, other: PyTree) -> str:
    """First difference of two trees of shapes, as text; empty where there is none."""
    left, right = (dict(jax.tree_util.tree_leaves_with_path(t, is_leaf=_is_shape)) for t in (one, other))
    for path in [*left, *right]:
        if left.get(path) != right.get(path):
            return f"{left.get(path)} and {right.get(path)} for {jax.tree_util.keystr(path)}"
    return ""


def _is_shape(x) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)
