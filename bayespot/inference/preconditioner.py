r"""Diagonal preconditioners of Langevin samplers.

A preconditioner :math:`G` multiplies the drift and the square of the noise. One that changes with the parameters
would need a further drift :math:`\sum \partial G / \partial\theta`. It is left out here, as everywhere; instead
``rms`` can be frozen after burn-in, when no such term exists.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.typing import Array, Params


class Preconditioner(NamedTuple):
    """Functions ``init: params → state``, ``update: (state, gradient, step) → state``, ``diagonal: state → G``."""

    init: Callable[[Params], Any]
    update: Callable[[Any, Params, Array], Any]
    diagonal: Callable[[Any], Params]


def identity() -> Preconditioner:
    """No preconditioning, G = 1."""
    return Preconditioner(
        init=lambda params: jax.tree.map(lambda x: jnp.ones((), x.dtype), params),
        update=lambda state, gradient, step: state,
        diagonal=lambda state: state,
    )


def fixed(diagonal: Params) -> Preconditioner:
    """A given diagonal, of the parameters' structure; posterior variances are ideal."""
    return Preconditioner(lambda params: diagonal, lambda state, gradient, step: state, lambda state: state)


def rms(decay: float = 0.99, damping: float = 1e-2, freeze_after: int | None = None) -> Preconditioner:
    r"""RMSprop: :math:`G = 1 / (\lambda + \sqrt{v})` with a running mean ``v`` of squared minibatch gradients.

    ``v`` starts from the first minibatch's gradient (not from 0 or 1), and λ is ``damping`` times the root mean square
    gradient over all parameters, so that both follow the scale of the problem. Not for ``control_variates``, whose
    first gradient is that of all data at a mode.

    Args:
        decay: α of the running mean.
        damping: λ relative to the typical gradient; it bounds G from above.
        freeze_after: step after which G stays as it is; choose the burn-in.

    Reference:
        Li, Chen, Carlson and Carin, AAAI (2016), arXiv:1512.07666, algorithm 1; ``v`` is built from the gradient per
        datum here.
    """

    if freeze_after is not None and freeze_after < 1:
        raise ValueError(f"freeze_after must be at least 1: G needs a gradient to start from. Got {freeze_after}.")

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(v, gradient, step):
        rate = jnp.where(step == 0, 1.0, 1.0 - decay)
        if freeze_after is not None:
            rate = jnp.where(step < freeze_after, rate, 0.0)
        # a NaN gradient belongs to a lost chain; nothing here needs to repair it
        return jax.tree.map(lambda a, g: a + (rate * (g * g - a)).astype(a.dtype), v, gradient)

    def diagonal(v):
        leaves = jax.tree.leaves(v)
        typical = jnp.sqrt(sum(x.sum() for x in leaves) / sum(x.size for x in leaves))
        return jax.tree.map(lambda a: 1.0 / (damping * typical + jnp.sqrt(a)), v)

    return Preconditioner(init, update, diagonal)
