r"""Control variates: gradients of minibatches without most of their noise, near a point whose full gradient is known.

.. math:: \hat g(\theta) = g_B(\theta) - g_B(\theta_0) + g_D(\theta_0)

for minibatch :math:`B`, all data :math:`D`, and a centre :math:`\theta_0`. It stays unbiased; its noise vanishes at
the centre and grows with the distance from it, so the centre should be a mode, and chains should stay near.
"""

from typing import Any, NamedTuple

import jax

from bayespot.inference.full_data import full_value_and_grad
from bayespot.inference.target import Batch, Target, TargetState
from bayespot.typing import Key, Params, Scalar


class Centred(NamedTuple):
    """State: that of the target inside, the centre, and value and gradient of all data there."""

    target: TargetState
    centre: Params
    value: Scalar
    gradient: Params


def control_variates(target: Target, data: Batch) -> Target:
    """The same log density with quieter gradients, at twice the cost per step and one sweep over the data before.

    Every chain's centre is its starting point: start it from a trained ensemble member, not from random parameters.
    Precondition with ``fixed``, if at all: ``rms`` begins with the gradient at the centre, which is next to nothing
    there, and would make enormous steps of it.

    Args:
        target: any target that neither simulates nor draws minibatches itself (``with_frames``).
        data: its training data.

    Raises:
        ValueError: for data that the target was not made for, or a target that does either.

    Reference:
        Baker, Fearnhead, Fox and Nemeth, Statistics and Computing 29, 599 (2019), arXiv:1706.05439, eq. 6.

    Example:
        ``sgld(control_variates(target, data), constant(1e-3))``
    """
    whole = full_value_and_grad(target, data)

    def init(key: Key, params: Params) -> Centred:
        one, two = jax.random.split(key)
        inner = target.init(one, params)
        return Centred(inner, params, *whole(two, params, inner))

    def value_and_grad(key: Key, params: Params, state: Centred, batch: Batch) -> tuple[Scalar, Params, Any, Any]:
        again = jax.random.clone(key)  # the same randomness in both, so that it cancels
        value, gradient, inner, info = target.value_and_grad(key, params, state.target, batch)
        there, slope, *_ = target.value_and_grad(again, state.centre, state.target, batch)
        gradient = jax.tree.map(lambda g, s, f: g - s + f, gradient, slope, state.gradient)
        return value - there + state.value, gradient, state._replace(target=inner), info

    return target._replace(init=init, value_and_grad=value_and_grad)
