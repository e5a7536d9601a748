"""The one driver: moves chains of any algorithm over minibatches and collects draws.

Work is cut into segments; a segment of all chains is one compiled call, and between segments the host shows progress,
collects draws, looks for diverged chains and saves a checkpoint. Segments of different lengths share one compilation on
a CPU. On an accelerator the usual length has one of its own: a loop of unknown length asks the host at every step.

Results are bit-identical where sums have a fixed order; on a GPU only with
``XLA_FLAGS=--xla_gpu_deterministic_ops=true``.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import lru_cache, partial
from itertools import pairwise
from statistics import mode
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bayespot.batching import default_batch_size, each, over_batches, within_memory
from bayespot.checkpoint import Checkpoint, fingerprint
from bayespot.checkpoint import checkpoint as open_checkpoint
from bayespot.errors import Status, listed
from bayespot.inference.algorithm import Algorithm
from bayespot.inference.minibatches import in_advance, minibatches
from bayespot.inference.target import SIMULATION_STATUS, Batch
from bayespot.records.posterior import PosteriorSamples
from bayespot.tree import all_finite, length, take
from bayespot.typing import Array, Int, Key, Params, PyTree

SECONDS_BETWEEN_CHECKPOINTS = 30.0


class Plan(NamedTuple):
    """Which steps end a segment, which of them are draws, and the length that has a program of its own, if any."""

    ends: tuple[int, ...]
    draws: frozenset[int]
    longest: int
    usual: int

    def after(self, done: int) -> list[tuple[int, int]]:
        """First step and end of the segments after so many steps."""
        return list(pairwise((done, *(e for e in self.ends if e > done))))

    @property
    def facts(self) -> list:
        """What a checkpoint must agree in."""
        return [*self.ends, sorted(self.draws)]


def infer(
    key: Key,
    algorithm: Algorithm,
    params: Params,
    data: Batch | None,
    *,
    steps: int,
    batch_size: int | None = 8,
    batches: str = "epochs",
    burn_in: int | None = None,
    thin: int | None = None,
    keep: Callable[[int], bool] | None = None,
    rows: Int[Array, "C M"] | None = None,
    chains_at_once: int | None = None,
    checkpoint: str | None = None,
    progress: bool = True,
) -> PosteriorSamples:
    """Run ``C`` independent chains (or ensemble members) and return their draws.

    Args:
        key: every chain and every step gets its own, whatever ``chains_at_once`` is.
        algorithm: e.g. ``optimise(target, optax.adam(1e-3))`` or ``sgld(target, schedule)``.
        params: starting points with a leading axis ``C``: ``initial(key, target, chains=C)``, ``samples.params``.
        data: training data with the leading axis of the frames in every leaf; ``None`` for a target without any.
        steps: per chain, burn-in included.
        batch_size: frames per minibatch; ``None`` uses all data in every step.
        batches: ``"epochs"``, without replacement, or ``"independent"``, which ``sgnht`` needs.
        burn_in: steps before the first draw; default ``steps − thin``.
        thin: steps between draws; default: one draw per chain, at the end (what an optimiser wants).
        keep: ``steps done → bool``, which draws to keep, e.g. ``cyclical(…).sampling``; default all.
        rows: frames that each chain sees, e.g. ``bootstrap(key, len(data), chains)``; default all of them.
        chains_at_once: chains per compiled batch; default 1 on a CPU, as many as its memory holds on an accelerator.
        checkpoint: folder for progress; the same call goes on where it stopped, with bit-identical samples.
        progress: whether to show a bar.

    Returns:
        ``C × D`` samples, chain by chain; those of a diverged chain have status ``UNSTABLE``, and a warning names it.

    Raises:
        ValueError: if steps, burn-in, thinning and batch size do not fit, or the checkpoint is of another run.
    """
    data, batch_size = _checked_data(algorithm, data, batch_size)
    chains = length(params)
    plan = _plan(steps, *_checked(steps, burn_in, thin, batch_size, length(data)), keep)
    rows = _checked_rows(rows, chains, length(data), batch_size)
    beginnings, keys = _chain_keys(key, chains)
    order = minibatches(key, rows, batch_size, batches) if batch_size else lambda first, end, length: None
    host = _Host(np.zeros(chains, np.int32), np.zeros(chains), np.array(False), [], [], {})

    def run(size: int) -> _Run:
        begin, segment = _compiled(algorithm._replace(spec=()), size)
        states, store = begin(jax.random.clone(beginnings), params), None  # perhaps once more, with fewer at once
        if checkpoint:
            facts = [batch_size, batches, *_facts(plan, algorithm, keys, states, data)]
            store = _store(checkpoint, key, (params, rows, data), facts)
        advance = partial(_advance, algorithm=algorithm, segment=segment, keys=keys, data=data, plan=plan)
        return _driven(_Run(states, host), advance, order, plan, store, progress)

    return _samples(algorithm, within_memory(run, chains_at_once or default_batch_size(chains)))


def _checked_data(algorithm: Algorithm, data: Batch | None, batch_size: int | None) -> tuple[Batch, int | None]:
    """The data on the device, once and not with every segment."""
    if data is None:
        try:
            algorithm.check(data := np.zeros((1, 0)))
        except (ValueError, AttributeError) as error:
            raise ValueError("data=None is for targets that score no frames. Pass the training data.") from error
        batch_size = None
    algorithm.check(data)
    return jax.tree.map(jnp.asarray, data), batch_size


@partial(jax.jit, static_argnums=1)
def _chain_keys(key: Key, chains: int) -> tuple[jax.Array, jax.Array]:
    """Keys of the first states and of the steps, one of each for every chain."""
    keys = jax.vmap(lambda c: jax.random.split(jax.random.fold_in(key, c)))(jnp.arange(chains))
    return keys[:, 0], keys[:, 1]


def _store(folder: str, key: Key, arrays: PyTree, facts: list) -> Checkpoint:
    return open_checkpoint(folder, fingerprint(key, arrays, facts), SECONDS_BETWEEN_CHECKPOINTS)


def _facts(plan: Plan, algorithm: Algorithm, keys, states: PyTree, data: Batch) -> list:
    """What is computed when: segments, and program and constants of one step; they tell apart runs with other targets
    or settings."""
    traced = jax.jit(algorithm.step).trace(keys[0], take(states, 0), data)
    constants = [hashlib.sha256(np.asarray(c).tobytes()).hexdigest() for c in traced.jaxpr.consts]
    return [*plan.facts, traced.lower().as_text(), *constants]


class _Host(NamedTuple):
    """What the host has noted: status and last log density of the chains, whether all are done, draws, curves."""

    status: np.ndarray
    last: np.ndarray
    stopped: np.ndarray
    draws: list
    densities: list
    history: dict[str, list]


class _Run(NamedTuple):
    """All that a run needs to go on; what a checkpoint holds."""

    states: PyTree
    host: _Host


def _resumed(store, run: _Run) -> tuple[int, _Run]:
    found = store.latest(run.states) if store else None
    if found is None:
        return 0, run
    step, states, host = found
    return step, _Run(states, _Host(**host))


def _driven(run: _Run, advance: Callable, order: Callable, plan: Plan, store, progress: bool) -> _Run:
    """All segments that are still to be done, with a bar and checkpoints."""
    steps = plan.ends[-1]
    done, run = _resumed(store, run)
    segments = plan.after(done)
    bar = tqdm(total=steps, initial=done, desc="infer", unit="step", disable=not progress)
    with bar, closing(in_advance(order, [(*s, plan.longest) for s in segments])) as orders:
        for first, end in segments:
            if _over(run, plan):
                break
            run = advance(run, first, end, next(orders))
            bar.update(end - first)
            bar.set_postfix_str(_postfix(run))
            if store:
                save = store.save if end == steps or _over(run, plan) else store.save_when_due
                save(end, run.states, run.host._asdict())
    return run


def _over(run: _Run, plan: Plan) -> bool:
    """Whether nothing is left to do before the end: no chain moves any more, and no draw lies ahead but the last."""
    return bool(run.host.stopped) and not plan.draws - {plan.ends[-1]}


def _checked(steps, burn_in, thin, batch_size, frames) -> tuple[int, int]:
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Got {steps}.")
    if thin is None:
        thin = steps - (burn_in or 0)
    if burn_in is None:
        burn_in = steps - thin
    sampling = steps - burn_in
    if not 0 <= burn_in < steps:
        raise ValueError(f"burn_in must lie between 0 and steps − 1 = {steps - 1}. Got {burn_in}.")
    if thin < 1 or sampling % thin:
        near = max(d for d in range(1, sampling + 1) if sampling % d == 0 and d <= max(thin, 1))
        raise ValueError(f"`thin` must divide steps − burn_in = {sampling}. Got {thin}. Use {near}.")
    if batch_size is not None and not 1 <= batch_size <= frames:
        raise ValueError(f"batch_size must lie between 1 and the number of frames, {frames}. Got {batch_size}.")
    return burn_in, thin


def _checked_rows(rows, chains: int, frames: int, batch_size: int | None) -> np.ndarray:
    if rows is None:
        return np.broadcast_to(np.arange(frames), (chains, frames))
    rows = np.asarray(rows)
    if batch_size is None:
        raise ValueError("rows choose the frames of minibatches. Give a batch_size.")
    if rows.ndim != 2 or len(rows) != chains or rows.min() < 0 or rows.max() >= frames or rows.shape[1] < batch_size:
        raise ValueError(
            f"rows must hold, for each of the {chains} chains, at least batch_size = {batch_size} numbers from 0 to "
            f"{frames - 1}. Got shape {rows.shape}."
        )
    return rows


def _plan(steps: int, burn_in: int, thin: int, keep: Callable[[int], bool] | None = None) -> Plan:
    """Draws end a segment, and in between a segment is a hundredth of the run, so that progress is seen.

    On a CPU it has 25 steps or more, of short runs, whose steps tend to be slow ones, a twelfth; on an accelerator 100.
    """
    draws = frozenset(n for n in range(burn_in + thin, steps + 1, thin) if keep is None or keep(n))
    if not draws:
        raise ValueError(
            f"`keep` must keep at least one of the draws after {burn_in + thin}, … {steps} steps. Got none."
        )
    cpu = jax.default_backend() == "cpu"
    fewest = min(25, -(-steps // 12)) if cpu else 100
    chunk = min(1000, max(fewest, -(-steps // 100)))
    ends = tuple(sorted(draws | set(range(chunk, steps, chunk)) | ({burn_in} if burn_in else set()) | {steps}))
    lengths = [b - a for a, b in pairwise((0, *ends))]
    return Plan(ends, draws, max(lengths), 0 if cpu else mode(lengths))


@lru_cache(maxsize=8)
def _compiled(algorithm: Algorithm, size: int) -> tuple[Callable, Callable]:
    """The first states of all chains, and a segment: the same programs for the same algorithm, so that a second call
    with it does not compile again."""

    def begin(keys, params):
        return over_batches(lambda batch: each(algorithm.init, size)(*batch), (keys, params), batch_size=size)

    return jax.jit(begin), jax.jit(_segment(algorithm, size), donate_argnums=1, static_argnums=6)


def _segment(algorithm: Algorithm, size: int) -> Callable:
    """``count`` steps of all chains from step ``first`` on, ``fixed`` is the same number for the compiler or ``None``;
    indices are padded to the longest segment; traceable."""
    one_step = jax.jit(algorithm.step)  # traced once, although it is called for its shapes and in the loop

    def chain(key, state, indices, data, first, count, fixed):
        def step(k, state):
            batch = data if indices is None else take(data, indices[k])
            return one_step(jax.random.fold_in(key, first + k), state, batch)

        shapes = jax.eval_shape(lambda s: step(0, s)[1], state)
        info = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(k, carry):
            state, _, total = carry
            state, info = step(k, state)
            return state, info, total + info["log_density"]

        zero = jnp.zeros((), info["log_density"].dtype)
        state, info, total = jax.lax.fori_loop(0, fixed or count, body, (state, info, zero))
        last, info = info["log_density"], {**info, "log_density": total / count}
        return state, info, last, all_finite(algorithm.params(state)) & jnp.isfinite(total)

    def segment(keys, states, indices, data, first, count, fixed):
        def batch(trees, data, first, count):
            return each(lambda k, s, i: chain(k, s, i, data, first, count, fixed), size)(*trees)

        return over_batches(batch, (keys, states, indices), data, first, count, batch_size=size)

    return segment


def _advance(run: _Run, first: int, end: int, indices, *, algorithm, segment, keys, data, plan) -> _Run:
    """One segment, and what the host notes after it."""
    count = end - first
    fixed = count if count == plan.usual else None
    states, *found = segment(keys, run.states, indices, data, first, count, fixed)
    info, last, finite = jax.device_get(found)  # together: each copy from an accelerator waits for the next
    host = run.host
    status = np.where(finite, host.status, int(Status.UNSTABLE))
    history = {k: [*host.history.get(k, []), v.astype(float)] for k, v in info.items() if k != "done"}
    draws, densities = host.draws, host.densities
    if end in plan.draws:
        draws = [*draws, jax.tree.map(np.asarray, jax.vmap(algorithm.params)(states))]
        densities = [*densities, last]
    stopped = np.all(info.get("done", np.array(False)) | (status != Status.OK))
    return _Run(states, _Host(status, last, np.asarray(stopped), draws, densities, history))


def _remedy(history: dict[str, list], lost: list[int]) -> str:
    told = [np.asarray(v)[-1, lost] for name, v in history.items() if name.split("/")[-1] == SIMULATION_STATUS]
    if any((v == Status.NEIGHBOR_OVERFLOW).any() for v in told):
        return "Neighbour lists of their simulations were too short: raise the capacity of the reference run"
    if any((v == Status.UNSTABLE).any() for v in told):
        return "Their simulations became unstable: lower the step size or the time step"
    return "Lower the step size"


def _postfix(run: _Run) -> str:
    history, status = run.host.history, run.host.status
    values = history["validation" if "validation" in history else "log_density"][-1]
    good = values[status == Status.OK]
    text = f"log density {good.mean():.4g}" if len(good) else "no finite chain"
    lost = int((status != Status.OK).sum())
    return text + (f", {lost} diverged" if lost else "")


def _samples(algorithm: Algorithm, run: _Run) -> PosteriorSamples:
    status, last, _, draws, densities, history = run.host
    chains = len(status)
    if not draws:  # every chain stopped early, so the last state is the draw
        draws = [jax.tree.map(np.asarray, jax.vmap(algorithm.params)(run.states))]
        densities = [last]
    if lost := np.flatnonzero(status != Status.OK).tolist():
        warnings.warn(
            f"{len(lost)} of {chains} chains ({listed(lost)}) diverged: their samples have status UNSTABLE. "
            f"{_remedy(history, lost)}, or leave them out with healthy(samples).",
            RuntimeWarning,
            stacklevel=3,
        )
    number = len(draws)

    def per_sample(x):  # (D, C, ...) → (C * D, ...)
        return jax.device_put(np.swapaxes(np.stack(x), 0, 1).reshape(chains * number, *np.shape(x[0])[1:]))

    curves = {k: np.repeat(np.stack(v, 1), number, 0) for k, v in history.items()}
    return PosteriorSamples(
        params=jax.tree.map(lambda *x: per_sample(x), *draws),
        log_weight=jax.device_put(np.zeros(chains * number)),
        chain=jax.device_put(np.repeat(np.arange(chains), number)),
        draw=jax.device_put(np.tile(np.arange(number), chains)),
        log_density=per_sample(densities),
        status=jax.device_put(np.repeat(status, number)),
        history=jax.tree.map(jnp.asarray, curves),
        spec=json.dumps(algorithm.spec),
    )
