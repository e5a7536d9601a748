r"""Learning from experiment (DiffTRe): the likelihood of measured averages, from simulations that are reweighted.

.. math:: \log p(y \mid \theta) = -\frac12 \sum_k \Big( \frac{\langle O_k \rangle_\theta - y_k}{\sigma_k} \Big)^2
          + \mathrm{const}, \qquad
          \langle O \rangle_\theta \approx \sum_n w_n(\theta)\, O(x_n, \theta)

with the weights of ``reference_run``. Its gradient is that of the ensemble average itself,

.. math:: \frac{\partial \langle O \rangle}{\partial \theta}
          = \Big\langle \frac{\partial O}{\partial \theta} \Big\rangle
          - \frac{1}{kT}\, \mathrm{cov}\Big( O, \frac{\partial U}{\partial \theta} \Big),

without a derivative through the integrator, which would grow exponentially with the length of the run. One frame at
a time is differentiated, so that memory does not grow with their number beyond their positions.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.inference.priors import Prior
from bayespot.inference.target import Batch, Target
from bayespot.observables.observable import Observable
from bayespot.potentials.potential import Potential, energy_forces_stress
from bayespot.records.trajectory import Frame
from bayespot.targets.reference_run import (
    Frames,
    ReferenceRun,
    ReferenceState,
    frames_of,
    no_metrics,
    of_start,
    progress,
    pulled_back,
    references,
    with_prior,
)
from bayespot.tree import replace
from bayespot.typing import Array, Float, Key, Params, PyTree, Scalar


class Measurement(NamedTuple):
    """A measured average.

    Attributes:
        observable: what was measured, e.g. ``rdf(r_max=10.0)``; an average over configurations, nothing dynamical.
        value: measured, in the observable's unit and shape.
        uncertainty: standard deviation of the errors of ``value``, one number or of the same shape. The errors of
            the points of a curve count as independent: neighbouring points of one experiment rarely are, and then
            their uncertainty must be larger than the scatter of one point.
    """

    observable: Observable
    value: Float[Array, "*shape"]
    uncertainty: Float[Array, "*#shape"] | float


def difftre(
    potential: Potential, run: ReferenceRun, measurements: Mapping[str, Measurement], prior: Prior | None = None
) -> Target:
    """A target that knows nothing but measured averages; any algorithm climbs or samples it.

    It has no data frames: give ``infer`` the data ``None``. Several state points, or frames of reference calculations
    beside experiment, are ``fused(target, target, …)``, of which only one should have the prior.

    With two replicas or more the sampling error of the averages acts like the noise of minibatches: value and gradient
    are right on average over reference runs (up to the bias of reweighting). With one, squares of errors also hold the
    variance of the average, which draws the parameters to where that is small.

    Args:
        potential: what is learned.
        run: how reference frames are made; its start must resemble the state that was measured.
        measurements: by name.
        prior: of the potential's parameters; default flat.

    Returns:
        A target of size 1. Its ``info``: ``effective_frames`` of the weights in use, as a share; ``simulated``, 1 where
        new frames were made; ``chi2``, the sum of squared standardised errors over their number.

    Raises:
        ValueError: for no measurement, uncertainties that are not positive, values of another shape than the
            observable's, or observables that the start cannot serve.
    """
    observables = _checked(measurements, run)
    kinds = {name: _kind(o, run) for name, o in observables.items()}
    kept = {name: o for name, o in observables.items() if kinds[name] == "kept"}
    frames = frames_of(potential, run)
    ref = references(potential, run, frames, lambda frame: {name: o.frame(frame) for name, o in kept.items()})
    asked = {name: o for name, o in observables.items() if name not in kept}
    values = _values(potential, frames, asked, "stress" in kinds.values())
    likelihood = _likelihood(observables, measurements, run)
    points = sum(np.size(m.value) for m in measurements.values())

    def value_and_grad(key: Key, params: Params, state: ReferenceState, batch: Batch):
        old, own = state, params["potential"]
        state, energy, weight = ref.refreshed(key, own, state)
        number = jnp.arange(len(energy))
        found = jax.lax.map(lambda n: values(own, state, n)[1], number) if asked else {}
        value, cotangents = jax.value_and_grad(likelihood, (0, 1))(energy, found, weight, state.kept)
        slope = pulled_back(lambda p, n: values(p, state, n), own, number, cotangents)
        gradient = {**jax.tree.map(jnp.zeros_like, params), "potential": slope}
        info = progress(old, state, weight) | {"chi2": -2.0 * value / points}
        value, gradient = with_prior(prior, params, value, gradient, 1)
        return value, gradient, state, info

    def initial(key: Key) -> Params:
        return {"potential": potential.init(key), "noise": {}}

    def init(key: Key, params: Params) -> ReferenceState:
        return ref.init(key)

    def share(params: Params, state: ReferenceState) -> Scalar:
        return ref.share(params["potential"], state)

    return Target(initial, init, value_and_grad, no_metrics, 1, potential.spec, frames=False, share=share)


def _checked(measurements: Mapping[str, Measurement], run: ReferenceRun) -> dict[str, Observable]:
    """The observables, prepared for frames like the start."""
    if not measurements:
        raise ValueError("difftre needs at least one measurement. Got none.")
    for name, m in measurements.items():
        if not np.all(np.asarray(m.uncertainty) > 0) or not np.isfinite(np.asarray(m.value, float)).all():
            raise ValueError(
                f"{name} must have finite values and positive uncertainties. Got {m.value} ± {m.uncertainty}."
            )
    start = of_start(run)
    return {
        n: m.observable if m.observable.prepare is None else m.observable.prepare(start)
        for n, m in measurements.items()
    }


def _values(potential: Potential, frames: Frames, asked: dict[str, Observable], needs_stress: bool) -> Callable:
    """``(params, state, n) → energy, values`` of a frame: of the observables that depend on the parameters."""

    def values(params: Params, state: ReferenceState, n) -> tuple[Scalar, PyTree]:
        frame = frames.frame(state, n)
        listed = frames.neighbors(frame.system)
        if needs_stress:
            energy, _, stress = energy_forces_stress(potential)(params, frame.system, listed)
        else:
            energy, stress = potential.energy(params, frame.system, listed), frame.stress
        frame = replace(frame, energy=energy, stress=stress)
        return energy, {
            name: o.frame(frame) if o.parametric is None else o.parametric(frame, params) for name, o in asked.items()
        }

    return values


def _kind(observable: Observable, run: ReferenceRun) -> str:
    """What an observable needs anew when the parameters change: ``"kept"`` (nothing), ``"energy"`` or ``"stress"``.

    It needs what turns it into NaN when that is NaN.
    """
    if observable.parametric is not None:
        return "energy"
    start, dtype = jax.tree.map(jnp.asarray, run.start), jnp.result_type(float)
    evaluate = jax.jit(lambda e, s: observable.frame(Frame(start, jnp.zeros_like(start.position), e, s)))

    def sound(energy: float, stress: float) -> bool:
        found = evaluate(jnp.asarray(energy, dtype), jnp.full((3, 3), stress, dtype))
        return bool(jnp.isfinite(found).all())

    if not sound(0.0, 0.0):
        raise ValueError(f"{observable.name} of the start is not finite. Start from a configuration that shows it.")
    if not sound(0.0, np.nan):
        return "stress"
    return "kept" if sound(np.nan, np.nan) else "energy"


def _likelihood(
    observables: Mapping[str, Observable], measurements: Mapping[str, Measurement], run: ReferenceRun
) -> Callable:
    """``(energies, values that depend on the parameters, weights, kept values) → log likelihood``."""
    replicas, kT = run.replicas, run.ensemble.kT

    def likelihood(energy, found: dict, weight, kept: dict) -> Scalar:
        # The weights as they are, with the derivative that they have as a function of the energies; of each replica
        # they sum to 1.
        logs = jnp.log(weight) - (energy - jax.lax.stop_gradient(energy)) / kT
        weight = jax.nn.softmax(logs.reshape(replicas, -1), axis=1)
        total = jnp.zeros((), energy.dtype)
        for name, m in measurements.items():
            values = kept[name] if name in kept else found[name]
            mean = jax.vmap(observables[name].combine)(values.reshape(*weight.shape, *values.shape[1:]), weight)
            if mean.shape[1:] != np.shape(m.value):
                raise ValueError(
                    f"The measurement {name} must have the shape of {observables[name].name}, {mean.shape[1:]}. "
                    f"Got {np.shape(m.value)}."
                )
            total -= 0.5 * _square((mean - jnp.asarray(m.value)) / jnp.asarray(m.uncertainty)).sum()
        return total

    return likelihood


def _square(error: Float[Array, "R *shape"]) -> Float[Array, "*shape"]:
    """Estimate of the squared mean over replicas: products of different replicas, whose errors are independent.

    The square of a mean would be too large by its own variance, and its slope would lead to where that is small.
    """
    replicas = len(error)
    square = error.sum(0) ** 2
    return square if replicas == 1 else (square - (error**2).sum(0)) / (replicas * (replicas - 1))
