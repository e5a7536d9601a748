"""Reweight or rerun against simulating every sample: intervals and MD steps, for a Lennard-Jones liquid and silicon.

The posterior is Laplace's, of parameters that were fitted to noisy labels of a known potential, at a temperature that
makes it as wide as that of a network with few data: the total energies of a frame differ between samples by half of kT
and more. Runs of some of the samples (or of the mode), together an eighth as long as those of all samples, serve the
samples that they can, the others get a run each; that is compared with a run for each sample. Both are made from the
same samples, so that only the sampling errors differ. The difference of the means is told in two units: the error of
the rerun interval, parametric and sampling, in which it must be small; and its own standard error, z, whose root mean
square over many seeds is 1 where the sampling errors are what they claim to be (68 % below 1). Widths are compared
where both resolve the parametric spread.
"""

import argparse
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk

import bayespot as bp
from bayespot import units
from bayespot.tree import replace, take
from tests.benchmarks.common import report

EQUILIBRATION = 2000


class Case(NamedTuple):
    """A material, its noisy labels, the temperature of the posterior, and how it is simulated."""

    potential: bp.Potential
    crystal: bp.System
    free: tuple[str, ...]
    noise: bp.Noise
    temperature: float
    melt: float | None  # K
    kelvin: float
    ensemble: bp.Ensemble
    r_max: float


def cases() -> dict[str, Case]:
    """Liquid argon, 32 atoms, and silicon at 1000 K, 64 atoms."""
    argon, silicon = 120.0, 1000.0
    return {
        "lennard_jones": Case(
            bp.lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=6.5),
            bp.from_ase(bulk("Ar", cubic=True, a=5.9) * (2, 2, 2)),
            ("epsilon", "sigma"),
            bp.Noise(energy=0.001, forces=0.012, learn="fixed"),
            20.0,
            400.0,
            argon,
            bp.nvt_langevin(kT=argon * units.kB, dt=5.0 * units.fs, gamma=0.02),
            7.0,
        ),
        "stillinger_weber": Case(
            bp.stillinger_weber(14),
            bp.from_ase(bulk("Si", cubic=True) * (2, 2, 2)),
            ("epsilon", "sigma", "lambda"),
            bp.Noise(energy=0.004, forces=0.3, learn="fixed"),
            250.0,
            None,
            silicon,
            bp.nvt_langevin(kT=silicon * units.kB, dt=2.0 * units.fs, gamma=0.1),
            5.0,
        ),
    }


def posterior(key, case: Case, draws: int):
    """Laplace samples from eight small, strongly displaced crystals with noisy labels, and their mode."""
    noise, run = jax.random.split(key)
    atoms = bp.to_ase(case.crystal)
    systems = []
    for seed in range(8):
        one = atoms.copy()
        one.rattle(0.2, seed=seed)
        systems.append(bp.from_ase(one))
    true = case.potential.init(noise)
    labels = bp.add_noise(
        jax.random.clone(noise),
        bp.label(case.potential, true, systems, case.potential.cutoff),
        case.noise.energy,
        case.noise.forces,
    )
    target = bp.force_matching(case.potential, labels, bp.flat(), case.noise)
    start = bp.initial(jax.random.key(0), target, chains=1)
    mode = bp.gauss_newton(target, start, labels, free=case.free, steps=5)
    samples = bp.laplace(run, target, mode, labels, free=case.free, draws=draws, temperature=case.temperature)
    return bp.as_samples(mode["potential"], case.potential.spec), samples


def observables(case: Case) -> dict[str, bp.Observable]:
    return {"energy": bp.energy_per_atom(), "pressure": bp.pressure(), "rdf": bp.rdf(r_max=case.r_max, bins=50)}


def compared(reused: bp.Interval, rerun: bp.Interval) -> dict[str, float]:
    """Differences of the points where the observable is not nearly zero; widths of those that are resolved."""
    reused, rerun = (jax.tree.map(np.ravel, x) for x in (reused, rerun))
    points = np.flatnonzero(np.abs(rerun.mean) > 0.05 * np.abs(rerun.mean).max())
    reused, rerun = (take(replace(x, coordinate=x.mean), points) for x in (reused, rerun))
    clear = rerun.resolved & reused.resolved
    z = (reused.mean - rerun.mean) / np.hypot(reused.std_sampling, rerun.std_sampling)
    shift = np.abs(reused.mean - rerun.mean) / np.hypot(rerun.std_model, rerun.std_sampling)
    ratio = ((reused.upper - reused.lower) / (rerun.upper - rerun.lower))[clear]
    error = reused.std_sampling / rerun.std_sampling
    numbers = {
        "largest_shift": shift.max(),
        "within_error_bar": (shift <= 1).mean(),
        "rms_z": np.sqrt((z**2).mean()),
        "within_1_error": (np.abs(z) <= 1).mean(),
        "error_ratio": np.median(error),
        "resolved": clear.mean(),
    }
    if clear.any():
        numbers |= {"width_ratio": np.median(ratio), "within_20_percent": (np.abs(ratio - 1) <= 0.2).mean()}
    return {name: float(x) for name, x in numbers.items()}


def one(name: str, case: Case, seed: int, samples: int, steps: int, references: int) -> None:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), len(name)), 5)
    mode, drawn = posterior(keys[0], case, samples)
    start = melted(keys[1], case, mode)
    options = {"every": 50, "equilibration": EQUILIBRATION, "progress": False}
    simulate = partial(bp.propagate, potential=case.potential, start=start, ensemble=case.ensemble, **options)
    served = mode if references == 1 else bp.as_samples(drawn[:references].params["potential"], case.potential.spec)
    replicas = 2 if references == 1 else 1
    long = samples * steps // (8 * references * replicas) // 50 * 50
    reference = simulate(keys[2], samples=served, steps=long, replicas=replicas)
    weighted = bp.reweight(case.potential, drawn, served, reference, case.ensemble.kT)
    reused = simulate(keys[3], samples=drawn, steps=steps, reuse=weighted)
    print(reused)
    rerun = simulate(keys[4], samples=drawn, steps=steps)
    numbers: dict = {}
    for label, observable in observables(case).items():
        one, other = (bp.interval(bp.observe(observable, runs, samples=drawn)) for runs in (reused, rerun))
        numbers |= {f"{label}_{k}": x for k, x in compared(one, other).items()}
    report(
        f"reuse_{name}",
        seed=seed,
        samples=samples,
        steps=steps,
        spread_of_log_weights=float(np.median(np.std(weighted.log_boltzmann, axis=(1, 2, 3)))),
        own_runs=int((reused.own >= 0).sum()),
        references=references,
        steps_over_rerun=(references * replicas * (long + EQUILIBRATION) + reused.steps) / reused.steps_of_all,
        **numbers,
    )


def melted(key, case: Case, mode: bp.PosteriorSamples) -> bp.System:
    """The crystal, or what has become of it at a temperature far above."""
    if case.melt is None:
        return case.crystal
    hot = bp.nvt_langevin(kT=case.melt * units.kB, dt=case.ensemble.dt, gamma=0.02)
    params = jax.tree.map(lambda x: x[0], mode.params["potential"])
    run = bp.simulate(key, case.potential, params, case.crystal, hot, steps=4000, every=4000, progress=False)
    return jax.tree.map(lambda x: jnp.asarray(x[-1]), run.frames.system)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10_000, help="of each sample's own run")
    parser.add_argument("--references", type=int, default=1, help="1: the mode; more: so many of the samples")
    parser.add_argument("--only", choices=list(cases()))
    chosen = parser.parse_args()
    for name, case in cases().items():
        if chosen.only in (None, name):
            for seed in chosen.seeds:
                one(name, case, seed, chosen.samples, chosen.steps, chosen.references)


if __name__ == "__main__":
    main()
