"""Inference on a part of the parameters while the others keep their values: a read-out layer, the noise scales."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.inference.target import Linearised, Target, TargetState
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import name_of, replace
from bayespot.typing import Key, Params

Free = Callable[[str], bool] | Iterable[str]
"""Which leaves are free: names, or a function of the leaf's path such as ``"potential/1/kernel_2"``."""


class Subset(NamedTuple):
    """A target over a part of the parameters, and the way back.

    Attributes:
        target: over the free leaves, for any algorithm.
        params: their values, a nested dictionary of the free leaves alone.
        complete: ``samples of the free leaves → samples of all parameters``, the others repeated, so that ``predict``
            and ``propagate`` take them.
    """

    target: Target
    params: Params
    complete: Callable[[PosteriorSamples], PosteriorSamples]


def subset(target: Target, params: Params, free: Free) -> Subset:
    """A target over a part of the parameters; the others are held at given values.

    The posterior of the part, given the values of the rest, is narrower than that of all parameters: what the rest
    would leave open is not in it. It suits samplers that need few parameters (NUTS on the read-out of a network), and
    predictions that are linear in them.

    Args:
        target: over all parameters.
        params: one set of them, e.g. ``jax.tree.map(lambda x: x[0], trained.params)``.
        free: names of what is free, e.g. ``("kernel_2", "bias_2")`` or ``"noise"`` (any part of a leaf's path), or
            a function of the path, e.g. ``lambda path: path.startswith("potential/1")``.

    Raises:
        ValueError: when no leaf matches, or ``params`` has not the shapes of one set of the target's parameters.

    Example::

        part = bp.subset(target, jax.tree.map(lambda x: x[0], trained.params), ("kernel_2", "bias_2"))
        start = jax.tree.map(lambda x: x[None], part.params)
        samples = part.complete(bp.infer(key, bp.sgld(part.target, schedule), start, data, steps=5_000, thin=50))
    """
    names = chosen(params, free)
    check_shapes(target, params, stacked=False)
    held = jax.tree.map(jnp.asarray, params)

    def whole(part: Params) -> Params:
        return overlay(held, part)

    least = target.least_squares
    if least is not None:
        residuals, log_prior = least.residuals, least.log_prior
        least = least._replace(
            residuals=lambda part, batch: residuals(whole(part), batch), log_prior=lambda part: log_prior(whole(part))
        )
    linearise = target.linearise
    if linearise is not None:
        linearise = partial(_linearised, linearise, whole, names)
    inner = through(target, whole, lambda gradient: select(gradient, names))._replace(
        initial=lambda key: select(target.initial(key), names), least_squares=least, linearise=linearise
    )

    def complete(samples: PosteriorSamples) -> PosteriorSamples:
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(samples), *x.shape)), held)
        return replace(samples, params=overlay(repeated, samples.params))

    return Subset(inner, select(held, names), complete)


def through(target: Target, whole: Callable[[Params], Params], pull: Callable[[Params], Params]) -> Target:
    """The target in other coordinates; ``initial``, ``least_squares`` and ``linearise`` remain to be given.

    Args:
        target: over all parameters.
        whole: ``coordinates → parameters``, linear up to a constant.
        pull: its transpose, ``gradient by the parameters → gradient by the coordinates``.
    """

    def value_and_grad(key, z, state, batch):
        value, gradient, state, info = target.value_and_grad(key, whole(z), state, batch)
        return value, pull(gradient), state, info

    share = target.share
    return target._replace(
        init=lambda key, z: target.init(key, whole(z)),
        value_and_grad=value_and_grad,
        metrics=lambda z, batch: target.metrics(whole(z), batch),
        share=None if share is None else lambda z, state: share(whole(z), state),
    )


def _linearised(
    linearise: Callable, whole: Callable, names: tuple[str, ...], key: Key, part: Params, state: TargetState
):
    found: Linearised = linearise(key, whole(part), state)
    return found._replace(slopes=select(found.slopes, names), precision=select(found.precision, names))


def chosen(params: Params, free: Free) -> tuple[str, ...]:
    """Paths of the free leaves, in the order of the tree (host).

    Raises:
        ValueError: when there is none, or a name matches no leaf.
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if callable(free):
        found, unknown = tuple(p for p in paths if free(p)), []
    else:
        names = {free} if isinstance(free, str) else set(free)
        hits = {p: names & {p, *p.split("/")} for p in paths}
        found, unknown = tuple(p for p in paths if hits[p]), sorted(names - set().union(*hits.values()))
    if not found or unknown:
        wanted = f"no leaf for {unknown}" if unknown else "none"
        raise ValueError(f"free must choose leaves of the parameters. Got {wanted}. They are {', '.join(paths)}.")
    return found


def select(params: Params, names: tuple[str, ...]) -> Params:
    """The leaves with these paths, as a nested dictionary of them alone."""
    out: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if (name := name_of(path)) in names:
            *above, last = name.split("/")
            node = out
            for part in above:
                node = node.setdefault(part, {})
            node[last] = leaf
    return out


def overlay(params: Params, part: Params) -> Params:
    """``params`` with the leaves of ``part``, a selection of them, in their places."""
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(part)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(name_of(path), leaf), params)


def check_shapes(target: Target, params: Params, stacked: bool) -> None:
    """Refuse parameters of other shapes than the target's, one set of them or several along a leading axis (host)."""
    expected = jax.eval_shape(target.initial, jax.random.key(0))
    shapes = {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, shape = name_of(path), np.shape(leaf)
        if name in shapes and (shape[1:] != shapes[name] or not shape if stacked else shape != shapes[name]):
            wanted = "sets stacked along a leading axis, each" if stacked else "one set of parameters,"
            way = "Stack one with x[None]" if stacked else "Take one with x[0]"
            raise ValueError(
                f"params must be {wanted} with {name} of the shape {shapes[name]}. Got {shape}. {way} for every "
                "leaf x, by jax.tree.map."
            )
