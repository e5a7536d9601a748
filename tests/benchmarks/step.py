"""What a sampler adds to a gradient that costs nothing: one step at 50 000 parameters, beside blackjax's ``sgld``.

Also the noise alone, one normal number for each parameter, which every sampler has to draw.
"""

import jax
import jax.numpy as jnp

import bayespot as bp
from bayespot.inference.target import Target
from bayespot.tree import noise
from tests.benchmarks.common import alternate, report

STEPS = 500
SHAPES = {"kernel_0": (140, 256), "bias_0": (256,), "kernel_1": (256, 52), "bias_1": (52,), "kernel_2": (52, 1)}


def main() -> None:
    import blackjax  # its import starts the backend, which has to be set up before

    params = {k: 0.1 * jax.random.normal(jax.random.key(n), s) for n, (k, s) in enumerate(SHAPES.items())}

    def value_and_grad(key, params, state, batch):
        return jnp.zeros(()), jax.tree.map(jnp.negative, params), state, {}

    target = Target(lambda key: params, lambda key, p: (), value_and_grad, lambda p, b: {}, 100, {})
    step_size = bp.constant(1e-4)
    samplers = {
        "sgld": bp.sgld(target, step_size),
        "psgld": bp.sgld(target, step_size, preconditioner=bp.rms()),
        "sghmc": bp.sghmc(target, step_size, friction=1e3),
        "sgnht": bp.sgnht(target, step_size, friction=1e3, relaxation=1e-2),
    }
    kernel = blackjax.sgld(lambda params, batch: jax.tree.map(jnp.negative, params))
    keys = jax.random.split(jax.random.key(9), STEPS)

    def ours(algorithm):
        @jax.jit
        def run(params):
            state = algorithm.init(jax.random.key(8), params)
            return jax.lax.scan(lambda s, k: (algorithm.step(k, s, ())[0], None), state, keys)[0]

        return lambda: run(params)

    @jax.jit
    def theirs(params):
        return jax.lax.scan(lambda p, k: (kernel.step(k, p, (), 1e-4), None), params, keys)[0]

    @jax.jit
    def noise_alone(params):
        def step(p, k):
            return jax.tree.map(lambda x, z: x + 1e-3 * z, p, noise(k, p)), None

        return jax.lax.scan(step, params, keys)[0]

    runs = {"noise": lambda: noise_alone(params), "blackjax": lambda: theirs(params)}
    times = alternate(runs | {k: ours(a) for k, a in samplers.items()}, repeats=5)
    count = sum(x.size for x in jax.tree.leaves(params))
    report(
        "step", parameters=count, **{f"{k}_us": 1e6 * t / STEPS for k, t in times.items()},
        **{f"blackjax_over_{k}": times["blackjax"] / times[k] for k in samplers},
    )  # fmt: skip


if __name__ == "__main__":
    main()
