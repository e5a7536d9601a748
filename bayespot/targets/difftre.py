r"""Learning from experiment (DiffTRe): the likelihood of measured averages, from simulations that are reweighted.

.. math:: \log p(y \mid \theta) = -\frac12 \sum_k \Big( \frac{\langle O_k \rangle_\theta - y_k}{\sigma_k} \Big)^2
          + \mathrm{const}, \qquad
          \langle O \rangle_\theta \approx \sum_n w_n(\theta)\, O(x_n, \theta)

with the weights of ``reference_run``. Its gradient is that of the ensemble average itself,

.. math:: \frac{\partial \langle O \rangle}{\partial \theta}
          = \Big\langle \frac{\partial O}{\partial \theta} \Big\rangle
          - \frac{1}{kT}\, \mathrm{cov}\Big( O, \frac{\partial U}{\partial \theta} \Big),

without a derivative through the integrator, which would grow exponentially with the length of the run. One frame at
a time is differentiated. The gradients of the energies of all frames are kept up to 2²⁴ numbers for each chain (64 MB
in single precision), unless an observable asks for energy, stress or parameters; otherwise the energies are computed
twice. Beyond that, memory grows with the frames: their positions, velocities and values of the observables.

Reference:
    Thaler and Zavadlav, *Nat. Commun.* 12, 6884 (2021); products of replicas in place of squares are not in it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bayespot.inference.priors import Prior
from bayespot.inference.target import Batch, Linearised, Target
from bayespot.observables.observable import Observable
from bayespot.potentials.potential import Potential, energy_forces_stress
from bayespot.records.trajectory import Frame
from bayespot.targets.reference_frames import (
    Frames,
    References,
    ReferenceState,
    contracted,
    frames_of,
    no_metrics,
    outdated,
    prior_precision,
    progress,
    pulled_back,
    references,
    starting,
    with_prior,
)
from bayespot.targets.reference_run import ReferenceRun, like_start
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

    The averages carry the sampling error of the reference run, ``noise`` in ``info``; it should be small, or new frames
    be made often (``max_age``). With two replicas or more, value and gradient at new frames are right on average over
    reference runs, so that their noise acts like that of minibatches. With one, squares of errors also hold the
    variance of the average, which draws the parameters to where that is small.

    Args:
        potential: what is learned.
        run: how reference frames are made; its start must resemble the state that was measured.
        measurements: by name.
        prior: of the potential's parameters; default flat.

    Returns:
        A target of size 1. Its ``info``: ``effective_frames`` of the weights in use, as a share; ``simulated``, 1 where
        new frames were made; ``simulation_status``; ``chi2``, the mean of squared standardised errors, less what the
        sampling error adds to it where there are replicas (it may be negative); ``noise``, the sampling error in units
        of the uncertainty, root mean square; NaN without replicas.

    Raises:
        ValueError: for no measurement, uncertainties that are not positive, values of another shape than the
            observable's, observables that the start cannot serve, or that ask another potential.
    """
    observables = _checked(measurements, potential, run)
    kept = {name: o for name, o in observables.items() if not _moves(o, run)}
    asked = {name: o for name, o in observables.items() if name not in kept}
    frames = _energies_alone(frames_of(potential, run)) if asked else frames_of(potential, run)
    ref = references(potential, run, frames, lambda frame: {name: o.frame(frame) for name, o in kept.items()})
    values = _values(potential, frames, asked, any(_moves(o, run, ("stress",)) for o in asked.values()))
    errors = _errors(observables, measurements, run)
    likelihood = _likelihood(errors, run)

    found_in = _found(values, run, bool(asked))

    def value_and_grad(key: Key, params: Params, state: ReferenceState, batch: Batch):
        old, own = state, params["potential"]
        state, energy, slopes, weight = ref.refreshed(key, own, state)
        fresh = state.simulations > old.simulations
        scored = jax.value_and_grad(likelihood, (0, 1), has_aux=True)
        (value, told), cotangents = scored(energy, found_in(own, state), weight, state.kept, fresh)
        if slopes is None:
            slope = pulled_back(lambda p, n: values(p, state, n), own, jnp.arange(len(energy)), cotangents)
        else:
            slope = contracted(slopes, cotangents[0])
        gradient = {**jax.tree.map(jnp.zeros_like, params), "potential": slope}
        value, gradient = with_prior(prior, params, value, gradient, 1)
        return value, gradient, state, progress(old, state, weight) | told

    linearise = _lineariser(run, ref, values, found_in, errors, prior)
    return Target(
        starting(potential), lambda key, params: ref.init(key), value_and_grad, no_metrics, 1, potential.spec,
        frames=False, share=lambda params, state: ref.share(params["potential"], state), linearise=linearise,
    )  # fmt: skip


def _energies_alone(frames: Frames) -> Frames:
    """Without gradients: where values depend on the parameters, theirs and those of the energies are taken together."""
    return frames._replace(slopes=lambda params, state: (frames.energies(params, state), None))


def _checked(measurements: Mapping[str, Measurement], potential: Potential, run: ReferenceRun) -> dict[str, Observable]:
    """The observables, prepared for frames like the start."""
    if not measurements:
        raise ValueError("difftre needs at least one measurement. Got none.")
    for name, m in measurements.items():
        if not np.all(np.asarray(m.uncertainty) > 0) or not np.isfinite(np.asarray(m.value, float)).all():
            raise ValueError(
                f"{name} must have finite values and positive uncertainties. Got {m.value} ± {m.uncertainty}."
            )
        if m.observable.spec and (m.observable.parametric is None or m.observable.spec != potential.spec):
            raise ValueError(
                f"{m.observable.name} must ask the potential that is learned, with its present parameters. "
                "Make it from that potential, and without `params`."
            )
    copies = like_start(run)
    found = {
        n: m.observable if m.observable.prepare is None else m.observable.prepare(copies)
        for n, m in measurements.items()
    }
    for name, m in measurements.items():
        shape = _shape(found[name], potential, run)
        if np.shape(m.value) != shape or np.broadcast_shapes(np.shape(m.uncertainty), shape) != shape:
            raise ValueError(
                f"The measurement {name} must have the shape of {found[name].name}, {shape}. "
                f"Got {np.shape(m.value)} ± {np.shape(m.uncertainty)}."
            )
    return found


def _shape(observable: Observable, potential: Potential, run: ReferenceRun) -> tuple[int, ...]:
    """Shape of an average."""
    params, frame = jax.eval_shape(potential.init, jax.random.key(0)), _example(run)
    if observable.parametric is None:
        values = jax.eval_shape(observable.frame, frame)
    else:
        values = jax.eval_shape(observable.parametric, frame, params)
    many = jax.ShapeDtypeStruct((run.frames, *values.shape), values.dtype)
    weights = np.full(run.frames, 1.0 / run.frames)
    return jax.eval_shape(lambda v, w: observable.combine(v, w), many, weights).shape


def _example(run: ReferenceRun) -> Frame:
    zero = jnp.zeros((), jnp.result_type(float))
    return Frame(run.start, jnp.zeros_like(run.start.position), zero, jnp.zeros((3, 3), zero.dtype))


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


def _moves(observable: Observable, run: ReferenceRun, entries: tuple[str, ...] = ("energy", "stress")) -> bool:
    """Whether the value of a frame depends on the parameters: through itself, or through these entries of the frame."""
    if observable.parametric is not None:
        return len(entries) > 1
    frame = _example(run)
    traced = jax.make_jaxpr(lambda **known: observable.frame(replace(frame, **known)))(
        **{name: getattr(frame, name) for name in entries}
    )
    reached = {id(x) for x in traced.jaxpr.invars}
    for equation in traced.jaxpr.eqns:
        if any(id(x) in reached for x in equation.invars):
            reached |= {id(x) for x in equation.outvars}
    return any(id(x) in reached for x in traced.jaxpr.outvars)


def _errors(
    observables: Mapping[str, Observable], measurements: Mapping[str, Measurement], run: ReferenceRun
) -> Callable:
    """``(energies, values that depend on the parameters, weights, kept values) → standardised errors (R, *shape)``."""
    kT = run.ensemble.kT

    def errors(energy, found: dict, weight, kept: dict) -> dict[str, Array]:
        # The weights as they are, with the derivative that they have as a function of the energies.
        change = (energy - jax.lax.stop_gradient(energy)).reshape(weight.shape)
        weight = jax.nn.softmax(jnp.log(weight) - change / kT, axis=1)
        out = {}
        for name, m in measurements.items():
            values = kept[name] if name in kept else found[name]
            mean = jax.vmap(observables[name].combine)(values.reshape(*weight.shape, *values.shape[1:]), weight)
            out[name] = (mean - jnp.asarray(m.value)) / jnp.asarray(m.uncertainty)
        return out

    return errors


def _likelihood(errors: Callable, run: ReferenceRun) -> Callable:
    """``(energies, values that depend on the parameters, weights, kept values, fresh) → log likelihood, info``."""
    replicas = run.replicas

    def likelihood(energy, found: dict, weight, kept: dict, fresh) -> tuple[Scalar, dict[str, Array]]:
        total, noise, points = jnp.zeros((), energy.dtype), jnp.zeros((), energy.dtype), 0
        for error in errors(energy, found, weight, kept).values():
            variance = error.var(0, ddof=1) / replicas if replicas > 1 else jnp.full_like(error[0], jnp.nan)
            total -= 0.5 * _square(error, fresh).sum()
            noise += variance.sum()
            points += variance.size
        return total, {"chi2": -2.0 * total / points, "noise": jnp.sqrt(noise / points)}

    return likelihood


def _found(values: Callable, run: ReferenceRun, asked: bool) -> Callable[[Params, ReferenceState], PyTree]:
    """Values that depend on the parameters, of all frames."""
    number = np.arange(run.replicas * run.frames)
    return lambda params, state: jax.lax.map(lambda n: values(params, state, n)[1], number) if asked else {}


def _lineariser(
    run: ReferenceRun, ref: References, values: Callable, found_in: Callable, errors: Callable, prior: Prior | None
) -> Callable[[Key, Params, ReferenceState], Linearised]:
    """``Target.linearise``."""

    def linearise(key: Key, params: Params, state: ReferenceState) -> Linearised:
        own = params["potential"]
        state, energy, _, weight = ref.refreshed(key, own, outdated(state, run))

        def mean(energy, found):
            return jnp.concatenate([x.mean(0).ravel() for x in errors(energy, found, weight, state.kept).values()])

        at = energy, found_in(own, state)
        error, pull = jax.vjp(mean, *at)
        slopes = _summed(lambda p, n: values(p, state, n), own, jax.vmap(pull)(jnp.eye(len(error), dtype=error.dtype)))
        zero = jax.tree.map(lambda x: jnp.zeros((len(error), *jnp.shape(x)), x.dtype), params)
        return Linearised(error, {**zero, "potential": slopes}, prior_precision(prior, params), state)

    return linearise


def _summed(values: Callable, params: Params, cotangents: tuple) -> Params:
    """Sum over frames of cotangents, with axes ``m`` and frames, times the derivatives of the values of a frame."""
    weights = jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in jax.tree.leaves(cotangents)], -1)

    def add(total, n):
        value, pull = jax.vjp(lambda p: ravel_pytree(values(p, n))[0], params)
        rows = jax.vmap(lambda one: pull(one)[0])(jnp.eye(len(value), dtype=value.dtype))
        own = jax.tree.map(lambda r: jnp.tensordot(weights[:, n].astype(r.dtype), r, 1, precision="highest"), rows)
        return jax.tree.map(jnp.add, total, own), None

    start = jax.tree.map(lambda x: jnp.zeros((len(weights), *jnp.shape(x)), x.dtype), params)
    return jax.lax.scan(add, start, jnp.arange(weights.shape[1]))[0]


def _square(error: Float[Array, "R *shape"], fresh: Array) -> Float[Array, "*shape"]:
    """Estimate of the squared true error from that of each replica.

    The square of the mean is too large by the variance of the mean, and its slope leads to where that is small. At
    frames that do not know the parameters yet, products of different replicas are right on average, in value and slope.
    Parameters that have been adapted to the frames would make these products negative without bound, by making replicas
    disagree; there it is the square of the mean, less a constant.
    """
    replicas, mean = len(error), error.mean(0)
    if replicas == 1:
        return mean**2
    variance = error.var(0, ddof=1) / replicas
    return mean**2 - jnp.where(fresh, variance, jax.lax.stop_gradient(variance))
