"""Force matching through the public ``infer``: structures per second, and the cost of a step over its bare gradient.

64 atoms of silicon, cutoff 5 Å, minibatches of 8; labels are energies and forces.
"""

import jax
import optax

import bayespot as bp
from bayespot.tree import take
from tests.benchmarks.common import alternate, frames, report

STEPS, BATCH = 600, 8


def material() -> tuple:
    """Frames, the posterior of a potential, and two algorithms."""
    data = frames(32)
    potential = bp.add(bp.repulsion(cutoff=5.0), bp.descriptor_mlp(data, cutoff=5.0))
    target = bp.force_matching(potential, data, bp.scaled_normal(1.0), bp.Noise(0.001, 0.1))
    adam = bp.optimise(target, optax.adam(1e-3))
    sgld = bp.sgld(target, bp.constant(1e-10))  # a larger step diverges at the untrained start
    return data, target, {"adam": adam, "sgld": sgld}


def gradients(target, key):
    """Nothing but gradients of one chain: ``(params, data, order) → params, sum of log densities``."""

    def bare(params, data, order):
        def step(carry, indices):
            params, total = carry
            value, gradient, _, _ = target.value_and_grad(key, params, (), take(data, indices))
            # the parameters move, so that no gradient can be taken out of the loop
            return (jax.tree.map(lambda p, g: p + 1e-9 * g, params, gradient), total + value), None

        return jax.lax.scan(step, (params, 0.0), order)[0]

    return bare


def runner(key, data, **options):
    """``(algorithm, params) →`` a function that runs it through ``infer``."""

    def run(algorithm, params):
        def sound():  # a diverged chain ends early and would look fast
            return bp.healthy(bp.infer(key, algorithm, params, data, batch_size=BATCH, progress=False, **options))

        return lambda: sound().params

    return run


def main() -> None:
    data, target, algorithms = material()
    key = jax.random.key(0)
    one, two = bp.initial(key, target, 1), bp.initial(key, target, 2)
    adam, sgld = algorithms.values()
    psgld = bp.sgld(target, bp.constant(1e-6), preconditioner=bp.rms())
    sghmc = bp.sghmc(target, bp.constant(1e-6), friction=1e5)
    sgnht = bp.sgnht(target, bp.constant(1e-6), friction=1e5, relaxation=1e-4)
    start, bare = take(one, 0), jax.jit(gradients(target, key))
    order = jax.random.randint(key, (STEPS, BATCH), 0, len(data))
    run = runner(key, data, steps=STEPS)
    times = alternate(
        {
            "bare": lambda: bare(start, data, order),
            "adam": run(adam, one),
            "sgld": run(sgld, one),
            "psgld": run(psgld, one),
            "sghmc": run(sghmc, one),
            "sgnht": run(sgnht, one),
            "adam_two_chains": run(adam, two),
        },
        repeats=5,
    )
    chains = {name: 2 if name == "adam_two_chains" else 1 for name in times}
    rate = {f"{k}_structures_per_s": chains[k] * STEPS * BATCH / t for k, t in times.items()}
    ratio = {f"{k}_over_bare": times[k] / times["bare"] for k in ("adam", "sgld", "psgld", "sghmc", "sgnht")}
    report("training", parameters=sum(x.size for x in jax.tree.leaves(start)), **rate, **ratio)


if __name__ == "__main__":
    main()
