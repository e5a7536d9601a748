"""Every sampler on conjugate linear models: sampled variances over the exact ones, at temperatures 1 and 0.25.

Three parameters with condition number 4, and fifty with condition number 1000. ``lowest`` and ``highest`` are over the
coordinates, ``error`` is the expected standard error of one ratio from the effective sample size of its squares.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayespot as bp
from bayespot.inference.target import Target
from tests.benchmarks.common import report
from tests.oracles.linear_model import make

jax.config.update("jax_enable_x64", True)


class Problem(NamedTuple):
    """Data, target, exact mean and covariance, and the curvatures per datum, λ_min and λ_max."""

    data: dict
    target: Target
    mean: np.ndarray
    covariance: np.ndarray
    slow: float
    fast: float


class Case(NamedTuple):
    """A sampler at its recommended settings on one problem."""

    algorithm: Callable[[float], bp.Algorithm]
    batch_size: int | None
    memory: float  # steps after which the slowest coordinate has forgotten


def problem(dimension: int, condition: float) -> Problem:
    """In coordinates along the principal axes where the condition is high: a diagonal preconditioner needs them."""
    data, target, mean, covariance = make(rows=4 * dimension + 20, condition=condition, dimension=dimension)
    if dimension > 3:
        axes = np.linalg.eigh(covariance)[1]
        data, mean, covariance = {"x": data["x"] @ axes, "y": data["y"]}, axes.T @ mean, axes.T @ covariance @ axes
    curvature = np.linalg.eigvalsh(np.linalg.inv(covariance)) / target.size
    return Problem(data, target, mean, covariance, float(curvature[0]), float(curvature[-1]))


def cases(p: Problem) -> dict[str, Case]:
    """Step sizes in units of the fastest motion 1/√λ_max, frictions of the order of the slowest, √λ_min."""
    quick, slow = p.fast**-0.5, p.slow**0.5
    quiet = bp.control_variates(p.target, p.data)
    diagonal = {"a": jnp.asarray(np.diag(p.covariance) * p.target.size)}
    half = p.target.size // 4 * 2

    def moves(step, friction=1.0):  # steps in which an underdamped chain forgets
        return 2.0 / (step * quick * slow * min(1.0, friction))

    return {
        "sgld": Case(lambda t: bp.sgld(p.target, bp.constant(0.02), temperature=t,
                                       preconditioner=bp.fixed(diagonal)), None, 50),
        "sgld, control variates": Case(lambda t: bp.sgld(quiet, bp.constant(0.02), temperature=t,
                                                         preconditioner=bp.fixed(diagonal)), half, 50),
        "sghmc": Case(lambda t: bp.sghmc(p.target, bp.constant(0.8 * quick), friction=slow, temperature=t),
                      None, moves(0.8)),
        "sghmc, control variates": Case(
            lambda t: bp.sghmc(quiet, bp.constant(0.2), friction=2.0, temperature=t,
                               preconditioner=bp.fixed(diagonal)), half, 20),
        "sgnht": Case(lambda t: bp.sgnht(p.target, bp.constant(0.5 * quick), friction=slow, relaxation=5 / slow,
                                         temperature=t), None, moves(0.5)),
        "sggmc, minibatches": Case(
            lambda t: bp.sggmc(p.target, p.data, bp.constant(0.1), friction=1.0, length=2, temperature=t,
                               diagonal=diagonal), half, 120),
        "amagold, minibatches": Case(
            lambda t: bp.amagold(p.target, p.data, bp.constant(0.1), friction=2.0, length=2, temperature=t,
                                 diagonal=diagonal), half, 120),
        "replica exchange": Case(
            lambda t: bp.replica_exchange(
                lambda u: bp.sgld(p.target, bp.constant(0.04), temperature=u, preconditioner=bp.fixed(diagonal)),
                p.target, (t, 1.3 * t)), None, 25),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", help="names of samplers")
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=400, help="per chain")
    chosen = parser.parse_args()
    for dimension, condition in ((3, 4.0), (50, 1000.0)):
        p = problem(dimension, condition)
        for name, case in cases(p).items():
            if not chosen.only or name in chosen.only:
                for temperature in (1.0, 0.25):
                    row(p, name, case, temperature, chosen.chains, chosen.draws)


def row(p: Problem, name: str, case: Case, temperature: float, chains: int, draws: int) -> None:
    thin = max(1, -(-int(case.memory) // 4) * 4)
    start = {"a": jnp.tile(jnp.asarray(p.mean), (chains, 1))}
    samples = bp.infer(
        jax.random.key(1), case.algorithm(temperature), start, p.data, steps=(draws + 20) * thin, burn_in=20 * thin,
        thin=thin, batch_size=case.batch_size, chains_at_once=chains, progress=False,
    )  # fmt: skip
    x = np.asarray(samples.params["a"])
    ratio = ((x - p.mean) ** 2).mean(0) / np.diag(p.covariance) / temperature
    effective = np.asarray(bp.ess(samples, (x - p.mean) ** 2))
    history = {k: float(np.asarray(v).mean()) for k, v in samples.history.items() if k.endswith("acceptance")}
    report(
        "samplers", sampler=name, parameters=len(p.mean), temperature=temperature, lowest=ratio.min(),
        highest=ratio.max(), error=float((2 / effective.min()) ** 0.5), steps=(draws + 20) * thin, **history,
    )  # fmt: skip


if __name__ == "__main__":
    main()
