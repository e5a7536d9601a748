r"""The joint density of several targets: what reference calculations and experiments say together.

.. math:: \log p(\theta \mid D_1, D_2, \dots) = \sum_i N_i\, v_i(\theta)

with the values per datum :math:`v_i` and numbers of data :math:`N_i` of the targets. What the parts weigh is in their
likelihoods (the noise of labels, the uncertainty of measurements); there are no numbers to be tuned.
"""

from functools import reduce

import jax
import jax.numpy as jnp

from bayespot.inference.target import Batch, Target
from bayespot.tree import total
from bayespot.typing import Key, Params


def fused(*targets: Target) -> Target:
    """One target from several that share a potential.

    Args:
        targets: e.g. ``force_matching(…)`` and ``difftre(…)``, in any number; those that score frames score the same
            (``with_frames`` lets one score others; equal numbers of different frames are not noticed, nor subsets that
            hold different values). The prior of the potential belongs into one of them only. Two that learn a σ of the
            same name share it, and its own prior counts twice; what one holds fixed stays so.

    Returns:
        A target with the data of those that have any; where none has, its size is 1 and its value the whole log density
        in place of that per datum. Validation frames are scored by the first that scores the frames of ``infer`` and
        does not simulate; where none scores these, by the first that does not simulate; otherwise by none. ``info``
        holds the log density per datum of each, ``"0/log_density"``, ``"1/log_density"``, …, and what they tell.

    Raises:
        ValueError: for no target, different potentials, or different numbers of data; at the start (``initial``), for
            one σ of all species in one target and several in another; in the first step, for a ``subset`` beside a
            whole target.
    """
    size = _size(targets)
    scoring = [t for t in targets if t.frames]
    judges = scoring or list(targets)
    judge = ([t for t in judges if t.share is None] or judges)[0]

    def initial(key: Key) -> Params:
        keys = jax.random.split(key, len(targets))
        return _joined([t.initial(k) for t, k in zip(targets, keys, strict=True)])

    def init(key: Key, params: Params):
        keys = jax.random.split(key, len(targets))
        return tuple(t.init(k, params) for t, k in zip(targets, keys, strict=True))

    def value_and_grad(key: Key, params: Params, state: tuple, batch: Batch):
        keys = jax.random.split(key, len(targets))
        parts = [t.value_and_grad(k, params, s, batch) for t, k, s in zip(targets, keys, state, strict=True)]
        values, gradients, states, infos = zip(*parts, strict=True)
        _check_gradients(gradients, params)
        shares = [t.size / size for t in targets]
        value = total(w * v for w, v in zip(shares, values, strict=True))
        gradient = jax.tree.map(lambda *g: total(w * x for w, x in zip(shares, g, strict=True)), *gradients)
        told = {f"{n}/log_density": v for n, v in enumerate(values)}
        told |= {f"{n}/{name}": jnp.asarray(x) for n, info in enumerate(infos) for name, x in info.items()}
        return value, gradient, states, told

    def check(data: Batch) -> None:
        for t in scoring or [judge]:  # without the former these are frames for validation
            t.check(data)

    def share(params: Params, state: tuple):
        parts = [t.share(params, s) for t, s in zip(targets, state, strict=True) if t.share is not None]
        return jnp.stack(parts).min()

    simulating = any(t.share is not None for t in targets)
    return Target(
        initial, init, value_and_grad, judge.metrics, size, targets[0].spec, check,
        frames=bool(scoring), share=share if simulating else None, exact=all(t.exact for t in targets),
    )  # fmt: skip


def _size(targets: tuple[Target, ...]) -> int:
    """Number of the frames that all score, or 1 (host)."""
    if not targets:
        raise ValueError("fused needs at least one target. Got none.")
    if any(t.spec != targets[0].spec for t in targets):
        raise ValueError(f"The targets must share a potential. Got {[dict(t.spec) for t in targets]}.")
    if len(sizes := {t.size for t in targets if t.frames}) > 1:
        raise ValueError(
            f"Targets that score frames must score the same ones. Got {sorted(sizes)} frames. "
            "Give all but one of them frames of their own by with_frames."
        )
    return sizes.pop() if sizes else 1


def _check_gradients(gradients, params: Params) -> None:
    if any(jax.tree.structure(g) != jax.tree.structure(params) for g in gradients):
        raise ValueError(
            "The targets must have the same parameters. Got some that have a subset of them only. "
            "Take the subset of the joint target: subset(fused(…), …)."
        )


def _joined(starts: list[Params]) -> Params:
    """What any of the targets starts from, by the first that has it."""
    _check_scales([start["noise"] for start in starts if "noise" in start])
    return reduce(_merged, starts)


def _merged(first: Params, other: Params) -> Params:
    """The first, and what only the other has, level by level."""
    both = {k: _merged(x, other[k]) for k, x in first.items() if isinstance(x, dict) and isinstance(other.get(k), dict)}
    return other | first | both


def _check_scales(noises: list[Params]) -> None:
    seen: dict = {}
    for name, x in (pair for noise in noises for pair in noise.items()):
        if jax.tree.structure(seen.setdefault(name, x)) != jax.tree.structure(x):
            raise ValueError(
                f"Targets that learn a σ of {name} share it. Got one for all species and one for each, or other "
                "species. Give all of them the same Noise, or keep one with learn='fixed'."
            )
