"""blackjax under the contract of the library: any of its kernels, and full-batch references with their warm-up.

The full-batch samplers see all data at every step. They are exact, but affordable for small potentials only, or for a
part of the parameters. Run them with ``infer(..., batch_size=None)``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayespot.inference.algorithm import Algorithm
from bayespot.inference.full_data import full_log_density
from bayespot.inference.schedules import StepSize, schedule_of
from bayespot.inference.target import Batch, Target, require_training_data
from bayespot.typing import Array, Key, Params, Spec


class KernelState(NamedTuple):
    """State of a blackjax kernel, what its warm-up found, and the step number."""

    kernel: Any
    tuned: Any
    step: Array


def from_blackjax(
    kernel,
    spec: Spec,
    *,
    step_size: StepSize | None = None,
    temperature: float = 1.0,
    position: Callable[[Any], Params] | None = None,
) -> Algorithm:
    """Any ``blackjax.SamplingAlgorithm`` as an ``Algorithm``.

    Args:
        kernel: e.g. ``blackjax.hmc(full_log_density(target, data), …)`` or ``blackjax.sgld(gradient_estimator)``.
        spec: of the potential, ``target.spec``.
        step_size: a number or a schedule, for stochastic-gradient kernels only; those are called with minibatch, step
            size and temperature.
        temperature: handed to such kernels; a full-batch kernel has it in its density.
        position: ``state → parameters``; default the state's ``position``, or the state itself where it has none.

    Returns:
        Reports ``log_density`` as the kernel tells it, not per datum; 0 where it tells none. ``kernel.init`` is called
        with the parameters, and with a key as ``rng_key`` where it demands one by this name.
    """
    schedule = None if step_size is None else schedule_of(step_size)
    place = position or (lambda state: getattr(state, "position", state))

    def init(key: Key, params: Params) -> KernelState:
        state = kernel.init(params, rng_key=_raw(key)) if _takes_key(kernel.init) else kernel.init(params)
        return KernelState(state, (), jnp.zeros((), jnp.int32))

    def step(key: Key, state: KernelState, batch: Batch):
        if schedule is None:
            inner, info = kernel.step(_raw(key), state.kernel)
        else:
            inner, info = kernel.step(_raw(key), state.kernel, batch, schedule(state.step), temperature), None
        out = {"log_density": getattr(inner, "logdensity", jnp.zeros(())), **_told(info)}
        return KernelState(inner, state.tuned, state.step + 1), out

    return Algorithm(init, step, lambda state: place(state.kernel), spec)


def _raw(key: Key) -> Array:
    """The key as numbers: blackjax's own conditions under ``vmap`` look like reuse to JAX's check of typed keys."""
    return jax.random.key_data(key)


def _takes_key(init: Callable) -> bool:
    from inspect import signature

    parameter = signature(init).parameters.get("rng_key")
    return parameter is not None and parameter.default is parameter.empty


def _told(info: Any) -> dict[str, Array]:
    """Acceptance and divergence, as numbers, where a kernel reports them."""
    found = {"acceptance": getattr(info, "acceptance_rate", None), "divergence": getattr(info, "is_divergent", None)}
    return {k: jnp.asarray(v, jnp.result_type(float)) for k, v in found.items() if v is not None}


def nuts(
    target: Target,
    data: Batch,
    *,
    warm_up: int = 500,
    temperature: float = 1.0,
    acceptance: float = 0.8,
    dense: bool = False,
) -> Algorithm:
    """No-U-turn sampler with Stan's window adaptation: the reference for small problems.

    Args:
        target: without a random or changing state.
        data: the training data, all of which every step sees.
        warm_up: steps of adaptation of step size and mass, before the first step and without progress bar.
        temperature: of the posterior.
        acceptance: target acceptance rate.
        dense: a full mass matrix instead of a diagonal one; shortens trajectories where parameters are correlated, and
            asks for a warm-up of several times their number.

    Raises:
        ValueError: for data that the target was not made for.

    Reference:
        Hoffman and Gelman, J. Mach. Learn. Res. 15, 1593 (2014).
    """
    import blackjax

    return _adapted(blackjax.nuts, target, data, warm_up, temperature, acceptance, dense)


def hmc(
    target: Target,
    data: Batch,
    *,
    length: int = 10,
    warm_up: int = 500,
    temperature: float = 1.0,
    acceptance: float = 0.8,
    dense: bool = False,
) -> Algorithm:
    """Hamiltonian Monte Carlo, adapted like ``nuts``; arguments as there.

    Trajectories have 1 to 2 ``length`` − 1 leapfrog steps, drawn anew each time: one fixed length may be that of a
    period, after which the chain is back where it started (Neal, *Handbook of MCMC* (2011), section 5.3.2).
    """
    import blackjax

    return _adapted(blackjax.hmc, target, data, warm_up, temperature, acceptance, dense, num_integration_steps=length)


def _adapted(family, target: Target, data: Batch, warm_up, temperature, acceptance, dense, **settings) -> Algorithm:
    import blackjax

    density = full_log_density(target, data, temperature)
    adaptation = blackjax.window_adaptation(
        family, density, is_mass_matrix_diagonal=not dense, target_acceptance_rate=acceptance, **settings
    )
    kernel = family.build_kernel()

    def init(key: Key, params: Params) -> KernelState:
        run: Any = adaptation.run  # typed without its number of steps
        (state, tuned), _ = run(_raw(key), params, num_steps=warm_up)
        tuned = {k: v for k, v in tuned.items() if k not in settings}
        return KernelState(state, tuned, jnp.zeros((), jnp.int32))

    def step(key: Key, state: KernelState, batch: Batch):
        one, two = jax.random.split(key)
        lengths = {k: jax.random.randint(two, (), 1, 2 * n) for k, n in settings.items()}
        inner, info = kernel(_raw(one), state.kernel, density, **state.tuned, **lengths)
        return KernelState(inner, state.tuned, state.step + 1), _report(inner, info, target, temperature)

    return Algorithm(init, step, lambda s: s.kernel.position, target.spec, partial(require_training_data, target))


def mclmc(target: Target, data: Batch, *, warm_up: int = 1000, temperature: float = 1.0) -> Algorithm:
    """Microcanonical Langevin Monte Carlo, unadjusted, with step size and decoherence length found in the warm-up.

    Arguments as for ``nuts``.

    Reference:
        Robnik, De Luca, Silverstein and Seljak, J. Mach. Learn. Res. 24, 311 (2023).
    """
    import blackjax

    density = full_log_density(target, data, temperature)
    integrator = blackjax.mcmc.integrators.isokinetic_mclachlan
    kernel = blackjax.mclmc.build_kernel(integrator=integrator)

    def init(key: Key, params: Params) -> KernelState:
        one, two = jax.random.split(key)
        state = blackjax.mclmc.init(position=params, logdensity_fn=density, rng_key=_raw(one))
        state, tuned, *_ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel, num_steps=warm_up, state=state, rng_key=_raw(two), logdensity_fn=density
        )
        return KernelState(state, tuned._asdict(), jnp.zeros((), jnp.int32))

    def step(key: Key, state: KernelState, batch: Batch):
        inner, info = kernel(_raw(key), state.kernel, density, **state.tuned)
        return KernelState(inner, state.tuned, state.step + 1), _report(inner, info, target, temperature)

    return Algorithm(init, step, lambda s: s.kernel.position, target.spec, partial(require_training_data, target))


def _report(state, info, target: Target, temperature: float) -> dict[str, Array]:
    return {"log_density": state.logdensity * temperature / target.size, **_told(info)}
