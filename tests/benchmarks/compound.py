"""Samplers whose step asks the target several times, over the same evaluations alone, in one program each.

``sggmc``: gradients of the two halves of a minibatch, and the density of all data after a trajectory. ``amagold``: one
gradient, and the same density. ``replica_exchange`` (two copies of ``sgld``): a gradient for each, and the densities of
both halves before an exchange. Material as for ``training``.
"""

import jax
import jax.numpy as jnp

import bayespot as bp
from bayespot.inference.full_data import full_value
from bayespot.tree import take
from tests.benchmarks.common import alternate, report
from tests.benchmarks.training import BATCH, material, runner

STEPS, LENGTH, EVERY, COPIES = 200, 8, 10, 2
FIRST, SECOND = slice(0, BATCH // 2), slice(BATCH // 2, BATCH)


def evaluations(target, data, key, *, parts, every, extra):
    """A scan that does nothing but evaluate: ``(params, order) → params, sum of log densities``.

    Args:
        parts: slices of the minibatch, a gradient for each.
        every: steps between calls of ``extra``.
        extra: ``params, indices → value``.
    """

    def step(carry, xs):
        params, total = carry
        n, indices = xs
        for number, part in enumerate(parts):
            own = take(data, jnp.roll(indices[part], number))  # the same frames would share their descriptors
            value, gradient, _, _ = target.value_and_grad(key, params, (), own)
            params = jax.tree.map(lambda p, g: p + 1e-9 * g, params, gradient)
            total = total + value
        due = (n + 1) % every == 0
        return (params, jax.lax.cond(due, lambda p: total + extra(p, indices), lambda p: total, params)), None

    return jax.jit(lambda params, order: jax.lax.scan(step, (params, 0.0), (jnp.arange(STEPS), order))[0])


def main() -> None:
    data, target, _ = material()
    key = jax.random.key(0)
    start = bp.initial(key, target, 1)
    order = jax.random.randint(key, (STEPS, BATCH), 0, len(data))
    whole = full_value(target, data)
    data_on_device = jax.tree.map(jnp.asarray, data)

    def halves(params, indices):
        rows = [jnp.roll(indices[h], n) for n in range(COPIES) for h in (FIRST, SECOND)]
        return sum(target.value_and_grad(key, params, (), take(data_on_device, r))[0] for r in rows)

    def all_data(params, indices):
        return whole(key, params, ())

    def bare(parts, every, extra):
        scan = evaluations(target, data_on_device, key, parts=parts, every=every, extra=extra)
        return lambda: scan(take(start, 0), order)

    run = runner(key, data, steps=STEPS)
    settings = {"friction": 1e5, "length": LENGTH}
    exchange = bp.replica_exchange(
        lambda t: bp.sgld(target, bp.constant(1e-10), temperature=t), target, (1.0, 1.1)[:COPIES], every=EVERY
    )
    pairs = {
        "sggmc": (bp.sggmc(target, data, 1e-6, **settings), bare((FIRST, SECOND), LENGTH, all_data)),
        "amagold": (bp.amagold(target, data, 1e-6, **settings), bare((slice(None),), LENGTH, all_data)),
        "replica_exchange": (exchange, bare(COPIES * (slice(None),), EVERY, halves)),
    }
    functions = {}
    for name, (algorithm, alone) in pairs.items():
        functions |= {name: run(algorithm, start), f"{name}_bare": alone}
    times = alternate(functions, repeats=4)
    report(
        "compound",
        **{f"{k}_ms": 1e3 * times[k] / STEPS for k in pairs},
        **{f"{k}_over_bare": times[k] / times[f"{k}_bare"] for k in pairs},
    )


if __name__ == "__main__":
    main()
