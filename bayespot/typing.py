"""Names for the types that appear in signatures; shapes are written with jaxtyping.

Axis letters: ``N`` atoms, ``K`` neighbours, ``M`` data frames, ``B`` frames of a minibatch, ``A`` atoms of a
flattened minibatch, ``T`` trajectory frames, ``S`` posterior samples, ``R`` replicas, ``C`` chains.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from jaxtyping import Key as _Key

Array = jax.Array | np.ndarray
"""An array on a device, or (results of long work) in the memory of the host."""

Key = _Key[jax.Array, ""]
"""One typed random key, made by ``jax.random.key``."""

Params = PyTree
"""Parameters: a nested dictionary of arrays."""

Spec = Mapping[str, Any]
"""What is needed to rebuild a potential: its ``name`` and plain-Python arguments (writable as JSON)."""

Scalar = Float[Array, ""]

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Params", "PyTree", "Scalar", "Spec"]
