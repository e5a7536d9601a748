r"""A linear combination of several copies of one potential, each with its own parameters.

.. math:: u_i(x) = \sum_{t=1}^{n} c_t\, u_i(\theta_t, x)

Coefficients and members are parameters alike. With :math:`c_t = 1/n` it is the mean of a committee, with
:math:`c_t = (1-\alpha)/n + \alpha\delta_{st}` its member *s* moved away from that mean (``bayespot.recalibrate``).
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from bayespot.batching import default_batch_size
from bayespot.potentials.potential import Potential
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params


def combination(potential: Potential, members: int) -> Potential:
    """Sum of ``members`` copies of a potential, each times its coefficient.

    The parameters are ``{"members": …, "coefficient": (n,)}``, those of the copies stacked along a leading axis ``n``;
    at the start they are ``n`` independent draws of ``potential.init`` with the coefficients 1/n. One evaluation costs
    that of ``n`` single potentials: one after another on a CPU, at once on an accelerator; forces keep the intermediate
    results of all of them in memory.

    Args:
        potential: what is combined.
        members: number *n* of copies.

    Raises:
        ValueError: unless ``members`` is positive.
    """
    if members < 1:
        raise ValueError(f"members must be positive. Got {members}.")

    def init(key: Key) -> Params:
        stacked = jax.vmap(potential.init)(jax.random.split(key, members))
        return {"members": stacked, "coefficient": jnp.full(members, 1 / members)}

    spec = {"name": "combination", "potential": potential.spec, "members": int(members)}
    atom_energies = _combined(potential.atom_energies, members)
    return Potential(init, atom_energies, potential.cutoff, potential.species, spec)


@lru_cache(maxsize=8)
def _combined(single: Callable, members: int) -> Callable:
    """The same function for the same facts, so that a posterior recalibrated again does not compile again."""

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        def term(one: tuple[Array, Params]) -> Float[Array, " N"]:
            coefficient, own = one
            energies = single(own, system, neighbors)
            return coefficient.astype(energies.dtype) * energies

        size = default_batch_size(members)
        terms = (params["coefficient"], params["members"])
        return jax.lax.map(term, terms, batch_size=size if size > 1 else None).sum(0)

    return atom_energies
