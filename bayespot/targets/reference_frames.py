r"""Simulations inside a target: reference frames, reweighted to the parameters, and made anew when these have moved.

Frames :math:`x_n`, :math:`n = 1 \dots T`, were drawn with the parameters :math:`\theta_r`; at others

.. math:: w_n = \frac{e^{-\Delta_n}}{\sum_m e^{-\Delta_m}}, \qquad
          \Delta_n = \frac{U_\theta(x_n) - U_{\theta_r}(x_n)}{kT}, \qquad
          T_\mathrm{eff} = \exp\Big(-\sum_n w_n \ln w_n\Big).

With several replicas each has its own weights, which sum to 1, and the replica with the fewest effective frames counts.

Everything here is traceable and becomes part of the compiled step of an algorithm.

Reference:
    Thaler and Zavadlav, *Nat. Commun.* 12, 6884 (2021).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.batching import any_together
from bayespot.errors import Status
from bayespot.inference.priors import Prior
from bayespot.inference.target import SIMULATION_STATUS, Batch
from bayespot.potentials.neighbor_list import NeighborList, neighbor_list
from bayespot.potentials.potential import Potential, require_whole_molecules
from bayespot.records.system import System
from bayespot.records.trajectory import Frame
from bayespot.simulation.chunk import Run, batch_chunk, starter
from bayespot.targets.reference_run import ReferenceRun
from bayespot.tree import record, replace
from bayespot.typing import Array, Float, Key, Params, PyTree, Scalar

MOST_SLOPES = 2**24  # numbers that gradients of all frames may hold, 64 MB; above that, energies are computed twice


@record
class ReferenceState:
    """Reference frames, and where their simulations stand.

    Attributes:
        runs: to go on from, with the axis ``R``; random keys as numbers.
        position: ``(R T, N, 3)`` [Å].
        velocity: ``(R T, N, 3)``.
        energy: in the potential that drove them, ``(R T,)`` [eV]; NaN before the first simulation.
        kept: values of functions of the frames that do not depend on the parameters.
        simulations: number of simulations so far.
        age: evaluations since the frames were made.
        status: of the last simulation, a ``Status``.
        crowded: whether a simulation needed longer neighbour lists than those to begin with.
    """

    runs: Run
    position: Float[Array, "n N 3"]
    velocity: Float[Array, "n N 3"]
    energy: Float[Array, "n"]
    kept: PyTree
    simulations: Array
    age: Array
    status: Array
    crowded: Array


class Frames(NamedTuple):
    """Functions of single frames of a reference run, for one potential; all traceable.

    Attributes:
        system: ``position → System``.
        neighbors: ``System → Neighbors``.
        frame: ``(state, n) → Frame`` without energy and stress (NaN).
        energy: ``(params, position) → energy`` [eV].
        energies: ``(params, state) → (n,)`` [eV], of every frame.
        slopes: ``(params, state) →`` energies and their gradients, with the axis ``n``; ``None`` in place of the
            gradients where so many are too large to be kept.
    """

    system: Callable[[Array], System]
    neighbors: Callable[[System], Any]
    frame: Callable[[ReferenceState, Array], Frame]
    energy: Callable[[Params, Array], Scalar]
    energies: Callable[[Params, ReferenceState], Array]
    slopes: Callable[[Params, ReferenceState], tuple[Array, Params | None]]


class References(NamedTuple):
    """What a target that simulates does with its reference run; traceable.

    Attributes:
        init: ``key → state`` without frames.
        refreshed: ``(key, params, state) → state, energies (n,), their gradients or None, weights (R, T)``: the same
            frames, or new ones where these are too old or too few of them effective; with energies, ``Frames.slopes``
            and weights at the parameters. NaN where the simulation failed.
        share: ``(params, state) →`` effective number of the frames over their number.
    """

    init: Callable[[Key], ReferenceState]
    refreshed: Callable[[Key, Params, ReferenceState], tuple[ReferenceState, Array, Params | None, Array]]
    share: Callable[[Params, ReferenceState], Scalar]


def frames_of(potential: Potential, run: ReferenceRun) -> Frames:
    """The functions of single frames of a reference run."""
    require_whole_molecules(potential, np.array([len(run.start.species)]), "the start of the reference run")
    lists = neighbor_list(run.start, potential.cutoff, 0.0, rooms(potential, run)[1])

    def system(position) -> System:
        return replace(run.start, position=position)

    def neighbors(system: System):
        return lists.update(system)[0]

    def frame(state: ReferenceState, n) -> Frame:
        dtype = state.energy.dtype
        missing = jnp.full((), jnp.nan, dtype), jnp.full((3, 3), jnp.nan, dtype)
        return Frame(system(state.position[n]), state.velocity[n], *missing)

    def energy(params: Params, position) -> Scalar:
        return potential.energy(params, system(position), neighbors(system(position)))

    def energies(params: Params, state: ReferenceState) -> Array:
        return jax.lax.map(partial(energy, params), state.position)

    def slopes(params: Params, state: ReferenceState) -> tuple[Array, Params | None]:
        numbers = len(state.position) * sum(x.size for x in jax.tree.leaves(params))
        if numbers > MOST_SLOPES:
            return energies(params, state), None
        return jax.lax.map(partial(jax.value_and_grad(energy), params), state.position)

    return Frames(system, neighbors, frame, energy, energies, slopes)


def references(
    potential: Potential, run: ReferenceRun, frames: Frames, keep: Callable[[Frame], PyTree] = lambda frame: ()
) -> References:
    """What a target that simulates does with its reference run.

    Args:
        potential: that drives the simulations.
        run: how.
        frames: of both.
        keep: function of a frame (without energy and stress) whose values are stored with the frames.
    """
    start, number = run.start, run.replicas * run.frames
    begin = starter(run.ensemble._replace(spec=()), run.replicas)
    advance = _simulation(potential, run)

    def first(key: Key) -> Run:
        replica = jnp.arange(run.replicas, dtype=jnp.int32)
        return begin(key, Run(jnp.zeros_like(replica), replica, {}, jnp.full_like(replica, -1)), start)

    like = jax.eval_shape(first, jax.eval_shape(lambda: jax.random.key(0)))

    def init(key: Key) -> ReferenceState:
        position = jnp.zeros((number, *start.position.shape), start.position.dtype)
        energy = jnp.full(number, jnp.nan, jnp.result_type(float))
        zero = jnp.zeros((), jnp.int32)
        state = ReferenceState(_numbers(first(key)), position, position, energy, (), zero, zero, zero, jnp.array(False))
        shapes = jax.eval_shape(jax.vmap(lambda n: keep(frames.frame(state, n))), jnp.arange(number))
        return replace(state, kept=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))

    def weights(found: Array, state: ReferenceState) -> Array:
        return weights_of((found - state.energy).reshape(run.replicas, -1), run.ensemble.kT)

    def refreshed(key: Key, params: Params, state: ReferenceState):
        # Frames that are replaced whatever their weights need no slopes; reseeding asks for their energies.
        certain = (state.simulations == 0) | (state.age >= run.max_age) | (run.min_share > 1)
        found, slopes = jax.lax.cond(
            any_together(~certain) | run.reseed, frames.slopes, partial(_unknown, frames.slopes), params, state
        )
        weight = weights(found, state)
        worn = ~(share_of(weight) >= run.min_share) | (state.age >= run.max_age)
        # Where a simulation failed there is nothing to go on from.
        due = (state.simulations == 0) | (worn & jnp.isfinite(state.energy).all())

        def new():
            begin = _reseeded(key, state, (state.energy - found) / run.ensemble.kT) if run.reseed else state
            made = advance(partial(_keys, jax.random.key_impl(key), like), params, begin)
            made = replace(made, kept=jax.lax.map(lambda n: keep(frames.frame(made, n)), jnp.arange(number)))
            equal = jnp.where(jnp.isfinite(made.energy), 1.0 / run.frames, jnp.nan).astype(weight.dtype)
            steep = frames.slopes(params, made)[1]
            both = (made, made.energy, steep, equal.reshape(weight.shape)), (state, found, slopes, weight)
            return jax.tree.map(lambda a, b: jnp.where(due, a, b), *both)

        after, *rest = jax.lax.cond(any_together(due), new, lambda: (state, found, slopes, weight))
        return replace(after, age=after.age + 1), *rest

    def share(params: Params, state: ReferenceState) -> Scalar:
        return share_of(weights(frames.energies(params, state), state))

    return References(init, refreshed, share)


def _unknown(function: Callable, *arguments) -> PyTree:
    """What the function returns, but not a number."""
    return jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), jax.eval_shape(function, *arguments))


def outdated(state: ReferenceState, run: ReferenceRun) -> ReferenceState:
    """The state with frames too old to be used again: the next are those of the parameters then."""
    return replace(state, age=jnp.full_like(state.age, run.max_age))


def weights_of(difference: Float[Array, "*R T"], kT: float) -> Float[Array, "*R T"]:
    """Weights of frames from the energy at the parameters minus that in the reference [eV]; they sum to 1."""
    return jax.nn.softmax(-difference / kT, axis=-1)


def share_of(weight: Float[Array, "*R T"]) -> Scalar:
    r"""Effective number of frames, the perplexity :math:`\exp(-\sum_n w_n \ln w_n)`, over their number; of the worst
    replica."""
    return (jnp.exp(jax.scipy.special.entr(weight).sum(-1)) / weight.shape[-1]).min()


def _simulation(potential: Potential, run: ReferenceRun) -> Callable:
    """``(numbers → runs, params, state) → state`` with new frames, from where the last simulation ended.

    A simulation whose neighbour lists were too short is repeated with longer ones, and those after it begin with them.
    """
    short, long = (neighbor_list(run.start, potential.cutoff, run.skin, room) for room in rooms(potential, run))
    last = _simulation_within(potential, run, long)
    if short.capacity == long.capacity:
        return last
    first = _simulation_within(potential, run, short)

    def simulated(keys: Callable, params: Params, state: ReferenceState) -> ReferenceState:
        # All chains of a batch take the same way, or each would have to wait for both.
        refused = replace(state, status=jnp.full_like(state.status, Status.NEIGHBOR_OVERFLOW))
        made = jax.lax.cond(any_together(state.crowded), lambda: refused, lambda: first(keys, params, state))
        crowded = any_together(made.status == Status.NEIGHBOR_OVERFLOW)
        after = jax.lax.cond(crowded, lambda: last(keys, params, state), lambda: made)
        return replace(after, crowded=crowded & (after.status == Status.OK))  # a chain that is lost has no say

    return simulated


def rooms(potential: Potential, run: ReferenceRun) -> tuple[tuple[int, int], tuple[int, int]]:
    """Capacities of the neighbour lists that simulations begin with, and of the longer ones."""
    fewest = neighbor_list(run.start, potential.cutoff, run.skin).capacity
    return fewest, (int(run.capacity * fewest[0]) + 2, int(run.capacity * fewest[1]))


def _simulation_within(potential: Potential, run: ReferenceRun, neighbors: NeighborList) -> Callable:
    """``_simulation`` with one kind of lists; repeated with a longer lookahead until none was used too long."""
    options = {"skin": run.skin, "max_kT": run.max_kT, "frames": run.frames, "batch_size": run.replicas}
    advance = batch_chunk(potential, run.ensemble, neighbors, **options)
    zero, every = np.int32(0), np.int32(run.every)

    def simulated(keys: Callable, params: Params, state: ReferenceState) -> ReferenceState:
        first = any_together(state.simulations == 0)  # one number for all chains of a batch, which share the loops
        skip = jnp.where(first, run.first_equilibration, run.equilibration).astype(jnp.int32)
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], params)

        def attempt(lookahead):
            runs = keys(state.runs)
            new, *found = advance(runs, stacked, run.start, zero, skip + run.frames, every, lookahead, skip)
            return _numbers(new), *found

        def again(carry):
            lookahead, _ = carry
            return 2 * lookahead, attempt(lookahead)

        shapes = jax.eval_shape(attempt, jnp.float32(1.0))
        seen, check = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1:])
        never = (jnp.float32(1.0), (state.runs, seen, replace(check, late=jnp.ones_like(check.late))))
        _, (runs, seen, check) = jax.lax.while_loop(lambda carry: carry[1][2].late.any(), again, never)
        overflow = (check.needed > jnp.asarray(neighbors.capacity)).any()
        status = jnp.where(overflow, Status.NEIGHBOR_OVERFLOW, jnp.where((runs.failed >= 0).any(), Status.UNSTABLE, 0))
        seen = {name: x.reshape(-1, *x.shape[2:]) for name, x in seen.items()}
        return replace(
            state,
            runs=runs,
            position=seen["position"],
            velocity=seen["velocity"],
            energy=jnp.where(status == 0, seen["energy"], jnp.nan).astype(state.energy.dtype),
            simulations=state.simulations + 1,
            age=jnp.zeros_like(state.age),
            status=status.astype(jnp.int32),
        )

    return simulated


def _reseeded(key: Key, state: ReferenceState, log_weight: Float[Array, "n"]) -> ReferenceState:
    """The state with each run at a frame drawn from those of all replicas; as it is where there are none yet.

    One frame from each of R equal shares of the weight, in the order of the replicas: where the weights are equal, each
    goes on from a frame of its own. Independent draws would by and by leave descendants of one replica only. The
    momenta stay; what they still have to do with the positions ends with the equilibration.
    """
    moving = state.runs.state
    replicas = len(moving.position)
    level = (jnp.arange(replicas) + jax.random.uniform(key, (replicas,), log_weight.dtype)) / replicas
    weight = jax.nn.softmax(jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight))
    chosen = jnp.searchsorted(jnp.cumsum(weight), level)
    drawn = state.position[jnp.minimum(chosen, len(log_weight) - 1)]
    position = jnp.where(state.simulations == 0, moving.position, drawn)
    return replace(state, runs=replace(state.runs, state=replace(moving, position=position)))


def _numbers(tree: PyTree) -> PyTree:
    """Random keys as numbers: in a condition or a loop a key would count as used, whether it was or not."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _keys(kind, like: PyTree, tree: PyTree) -> PyTree:
    """Numbers as random keys of this kind, where ``like`` has keys."""
    return jax.tree.map(lambda form, x: jax.random.wrap_key_data(x, impl=kind) if _is_key(form) else x, like, tree)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def progress(old: ReferenceState, new: ReferenceState, weight: Float[Array, "*R T"]) -> dict[str, Array]:
    """What a target that simulates tells of a step."""
    simulated = (new.simulations > old.simulations).astype(weight.dtype)
    return {"effective_frames": share_of(weight), "simulated": simulated, SIMULATION_STATUS: new.status}


def pulled_back(
    function: Callable[[Params, Any], PyTree], params: Params, frames: PyTree, cotangents: PyTree
) -> Params:
    """Gradient of the sum over frames of ``function(params, frame)`` times its cotangent, one frame at a time."""

    def add(total, one):
        frame, cotangent = one
        _, pull = jax.vjp(lambda p: function(p, frame), params)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (frames, cotangents))[0]


def contracted(slopes: Params, cotangents: Float[Array, "n"]) -> Params:
    """Sum over frames of gradients times cotangents."""
    return jax.tree.map(lambda s: jnp.tensordot(cotangents.astype(s.dtype), s, 1, precision="highest"), slopes)


def with_prior(
    prior: Prior | None, params: Params, value: Scalar, gradient: Params, size: int
) -> tuple[Scalar, Params]:
    """Value and gradient per datum with the log prior of the potential's parameters."""
    if prior is None:
        return value, gradient
    log_prior, slope = jax.value_and_grad(lambda p: prior(p["potential"]) / size)(params)
    return value + log_prior.astype(value.dtype), jax.tree.map(jnp.add, gradient, slope)


def prior_precision(prior: Prior | None, params: Params) -> Params:
    """Curvature of −log prior by each parameter, by the vector of ones: that of a prior without mixed derivatives."""
    if prior is None:
        return jax.tree.map(jnp.zeros_like, params)
    slope = jax.grad(lambda p: -prior(p["potential"]))
    return jax.jvp(slope, (params,), (jax.tree.map(jnp.ones_like, params),))[1]


def starting(potential: Potential) -> Callable[[Key], Params]:
    """``Target.initial`` of a target without noise parameters."""
    return lambda key: {"potential": potential.init(key), "noise": {}}


def no_metrics(params: Params, batch: Batch) -> dict[str, Scalar]:
    """In the place of ``Target.metrics``; raises ``ValueError``."""
    raise ValueError(
        "A target that simulates cannot be scored on frames, so it cannot serve for validation. "
        "Simulate with propagate and compare with observe."
    )
