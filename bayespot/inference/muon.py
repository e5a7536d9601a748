"""Muon for the matrices of a network, Adam for everything else: an optax optimiser for ``optimise``."""

import jax
import optax
from optax import contrib

from bayespot.typing import Params


def muon(
    learning_rate: optax.ScalarOrSchedule, adam_learning_rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformation:
    """Momentum whose matrices are made orthogonal, so that every direction of a layer learns at the same pace.

    Kernels (leaves named ``kernel…`` of which the last two axes are longer than 1; axes before them count layers or
    species) get Muon; biases, read-outs and noise scales get Adam with Nesterov momentum. ``cosine(8e-3, steps)`` suits
    ``descriptor_mlp``.

    Args:
        learning_rate: of the kernels, e.g. ``cosine(8e-3, steps)``.
        adam_learning_rate: of the rest; default three eighths of ``learning_rate``.

    Returns:
        An ``optax.GradientTransformation``.

    Reference:
        K. Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, kellerjordan.github.io/posts/muon
        (2024), as implemented in ``optax.contrib``.
    """
    if adam_learning_rate is None:
        adam_learning_rate = _scaled(learning_rate, 0.375)
    return contrib.muon(learning_rate, adam_learning_rate=adam_learning_rate, muon_weight_dimension_numbers=_matrices)


def _scaled(rate: optax.ScalarOrSchedule, factor: float) -> optax.ScalarOrSchedule:
    return (lambda step: factor * rate(step)) if callable(rate) else factor * rate


def _matrices(params: Params) -> Params:
    """For every leaf its axes (inputs, outputs) as a matrix, or ``None``."""

    def axes(path, leaf: jax.Array):
        named = str(getattr(path[-1], "key", "")).startswith("kernel")
        if not named or leaf.ndim < 2 or min(leaf.shape[-2:]) < 2:
            return None
        return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
