"""Coverage of a teacher's observables over many independent data sets, with controls whose coverage must fail.

Liquid argon (Lennard-Jones, 108 atoms, 100 K) and liquid silicon (Stillinger–Weber, 64 atoms, 2500 K). Each data set
holds frames of a run of the teacher with noisy energies and forces; what is learned is the teacher's own form. The
posteriors: an ensemble of fits to labels with further noise, and SGHMC. The controls: the parameters of each sample
pulled to the posterior mean until a quarter of their distance is left, and a model that cannot be right (argon with a
cutoff of 4.5 Å, silicon whose three-body term is a tenth too weak). On a GPU all samples of all sets go at once; what
suits a CPU better, the data and their posteriors, can be made elsewhere and kept in a file (``--posteriors x.npz``).
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from scipy import stats

import bayespot as bp
from bayespot import units
from bayespot.tree import replace, stack
from tests.benchmarks.common import report

POSTERIORS = ("ensemble", "sghmc")


class Problem(NamedTuple):
    """A teacher, what is learned and with what, and how to simulate. Lengths in steps."""

    teacher: bp.Potential
    model: bp.Potential
    wrong: bp.Potential
    start: bp.System
    ensemble: bp.Ensemble
    noise: bp.Noise
    observables: dict[str, bp.Observable]
    steps: int
    every: int
    equilibration: int
    frames: int = 12


def argon(length: float) -> Problem:
    atoms = bulk("Ar", "fcc", a=5.72, cubic=True) * (3, 3, 3)
    atoms.rattle(0.2, seed=0)
    dt, sigma, epsilon = 5.0 * units.fs, 3.4, 0.0104
    teacher = bp.lennard_jones(sigma, epsilon, cutoff=8.0)
    observables = {"rdf": bp.rdf(8.0, 40), "diffusion": bp.diffusion(1.0 * units.ps, 4.0 * units.ps, 0.25 * units.ps)}
    return Problem(
        teacher, teacher, bp.lennard_jones(sigma, epsilon, cutoff=4.5), bp.from_ase(atoms),
        bp.nvt_langevin(kT=100 * units.kB, dt=dt, gamma=0.02), bp.Noise(energy=0.008, forces=0.16, learn="fixed"),
        observables | averages(), steps=50 * round(length * units.ps / dt / 50), every=50, equilibration=2000,
    )  # fmt: skip


def silicon(length: float) -> Problem:
    atoms = bulk("Si", "diamond", a=5.32, cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=0)
    dt = 2.0 * units.fs
    observables = {"rdf": bp.rdf(5.3, 40), "diffusion": bp.diffusion(0.2 * units.ps, 1.0 * units.ps, 0.05 * units.ps)}
    held = {"A": 7.049556277, "B": 0.6022245584}  # with σ they all say where the pair potential has its minimum
    learned = partial(without, bp.stillinger_weber(14))
    return Problem(
        bp.stillinger_weber(14), learned(held), learned(held | {"lambda": 18.9}),
        bp.from_ase(atoms), bp.nvt_langevin(kT=2500 * units.kB, dt=dt, gamma=0.02),
        bp.Noise(energy=0.06, forces=1.0, learn="fixed"),
        observables | averages(), steps=25 * round(length * units.ps / dt / 25), every=25, equilibration=2500,
    )  # fmt: skip


def melted(key, problem: Problem) -> Problem:
    """The problem, beginning as a liquid: 20 000 steps at twice the temperature."""
    hot = bp.nvt_langevin(kT=2 * problem.ensemble.kT, dt=problem.ensemble.dt, gamma=0.02)
    params = problem.teacher.init(jax.random.key(0))
    run = bp.simulate(key, problem.teacher, params, problem.start, hot, steps=20_000, every=20_000, progress=False)
    return problem._replace(start=jax.tree.map(lambda x: jnp.asarray(x[-1]), run.frames.system))


def averages() -> dict[str, bp.Observable]:
    return {"energy": bp.energy_per_atom(), "pressure": bp.pressure()}


def without(potential: bp.Potential, held: dict[str, float]) -> bp.Potential:
    """The potential with some parameters held."""

    def whole(params):
        return params | {k: jnp.asarray(v, float) for k, v in held.items()}

    def init(key):
        return {k: v for k, v in potential.init(key).items() if k not in held}

    def atom_energies(params, system, neighbors):
        return potential.atom_energies(whole(params), system, neighbors)

    return bp.Potential(init, atom_energies, potential.cutoff, potential.species, {"name": "held", "held": held})


def teacher_samples(problem: Problem, number: int) -> bp.PosteriorSamples:
    params = problem.teacher.init(jax.random.key(0))
    stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *x.shape)), params)
    return bp.as_samples(stacked, problem.teacher.spec)


def simulated(key, problem: Problem, runs: int, steps: int, every: int):
    return bp.propagate(
        key, problem.teacher, teacher_samples(problem, runs), problem.start, problem.ensemble,
        steps=steps, every=every, equilibration=problem.equilibration, progress=False,
    )  # fmt: skip


def truth(key, problem: Problem, runs: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Values of the teacher; practically empty bins do not count. And their largest standard errors."""
    trajectories = simulated(key, problem, runs, problem.steps, problem.every)
    values, errors = {}, {}
    for name, observable in problem.observables.items():
        found = np.asarray(bp.observe(observable, trajectories).value, np.float64)[:, 0]
        mean = found.mean(0)
        values[name] = np.where(mean > 0.1, mean, np.nan) if name == "rdf" else mean
        errors[name] = float((found.std(0) / runs**0.5).max())
    return values, errors


def data_sets(key, problem: Problem, number: int) -> list[bp.Dataset]:
    """Independent sets: frames of one run of the teacher each, with noise of their own."""
    gap = 20 * problem.every
    runs = simulated(jax.random.fold_in(key, 0), problem, number, problem.frames * gap, gap)
    params, sets = problem.teacher.init(jax.random.key(0)), []
    for n in range(number):
        systems = [jax.tree.map(lambda x, t=t, n=n: x[n, 0, t], runs.frames.system) for t in range(problem.frames)]
        exact = bp.label(problem.teacher, params, systems, problem.teacher.cutoff)
        exact = replace(exact, has_stress=np.zeros(problem.frames, bool))
        noise = {"energy": problem.noise.energy, "forces": problem.noise.forces}
        sets.append(bp.add_noise(jax.random.fold_in(key, n + 1), exact, **noise))
    return sets


def posteriors_of(key, problem: Problem, model: bp.Potential, sets: list, kinds, samples: int) -> dict[str, list]:
    """Posterior samples of every data set, by each of the methods."""
    found = {kind: [] for kind in kinds}
    capacity = max(d.neighbors.index.shape[2] for d in sets)
    sets = [padded(d, capacity) for d in sets]  # of one shape, so that one program serves all
    target = bp.force_matching(model, sets[0], bp.flat(), problem.noise)
    for n, data in enumerate(sets):
        one, two, three = jax.random.split(jax.random.fold_in(key, n), 3)
        mode = bp.gauss_newton(target, bp.initial(one, target, 1), data, steps=20)
        if "ensemble" in kinds:
            found["ensemble"].append(ensemble(one, target, data, mode, problem.noise, samples))
        if "sghmc" in kinds:
            found["sghmc"].append(sghmc(two, three, target, data, mode, samples))
    return found


def padded(data: bp.Dataset, capacity: int) -> bp.Dataset:
    index, shift = (np.asarray(x) for x in (data.neighbors.index, data.neighbors.shift))
    more = ((0, 0), (0, 0), (0, capacity - index.shape[2]))
    index = np.pad(index, more, constant_values=index.shape[1])
    return replace(data, neighbors=bp.Neighbors(index, np.pad(shift, (*more, (0, 0)))))


def ensemble(key, target, data, mode, noise: bp.Noise, members: int) -> bp.PosteriorSamples:
    """Modes of labels that carry the noise once more: draws of the posterior, where predictions are linear."""
    more = {"energy": noise.energy, "forces": noise.forces}
    drawn = [bp.add_noise(k, data, **more) for k in jax.random.split(key, members)]
    modes = [bp.gauss_newton(target, mode, labels, steps=3) for labels in drawn]
    params = jax.tree.map(lambda *x: jnp.concatenate(x), *modes)
    return bp.as_samples(params["potential"], target.spec)


def sghmc(key_local, key, target, data, mode, samples: int) -> bp.PosteriorSamples:
    """Four chains, preconditioned by the variances of the Laplace approximation."""
    drawn = bp.laplace(key_local, target, mode, data, draws=400)
    local = jax.tree.map(lambda x: len(data) * x.var(0), drawn.params["potential"])
    # In units of these variances the slowest direction has the frequency 1, the fastest that of the correlations.
    correlation = np.corrcoef([np.asarray(x, np.float64) for x in jax.tree.leaves(drawn.params["potential"])])
    slow, fast = 1 / np.sqrt(np.linalg.eigvalsh(correlation)[[-1, 0]])
    algorithm = bp.sghmc(target, 0.5 / fast, friction=slow, preconditioner=bp.fixed({"potential": local, "noise": {}}))
    start = jax.tree.map(lambda x: x[:4], drawn.params)
    draws = samples // 4
    return bp.infer(key, algorithm, start, data, steps=100 + 40 * draws, burn_in=100, thin=40, batch_size=None,
                    progress=False)  # fmt: skip


def shrunk(samples: bp.PosteriorSamples, factor: float = 0.25) -> bp.PosteriorSamples:
    """The posterior with a quarter of its spread."""
    params = jax.tree.map(lambda x: x.mean(0) + factor * (x - x.mean(0)), samples.params)
    return replace(samples, params=params)


def made(chosen, problem: Problem, keys) -> dict[str, np.ndarray]:
    """The liquid to start from, and by posterior the parameters and chains of the samples of every data set."""
    begin = time.perf_counter()
    problem = melted(keys[5], problem)
    sets = data_sets(keys[1], problem, chosen.sets)
    stage(begin, "data sets")
    with jax.default_device(jax.devices("cpu")[0]):  # a few parameters and frames: small work
        kinds = (chosen.only,) if chosen.only else POSTERIORS
        found = posteriors_of(keys[2], problem, problem.model, sets, kinds, chosen.samples)
        if not chosen.only:
            found |= {f"{n} shrunk": [shrunk(s) for s in samples] for n, samples in found.items()}
            few = sets[: chosen.controls]
            wrong = posteriors_of(keys[3], problem, problem.wrong, few, ("ensemble",), chosen.samples)
            found["wrong model"] = wrong["ensemble"]
    stage(begin, "posteriors")
    numbers = {"start": np.asarray(problem.start.position), "made_with": np.array(made_with(chosen))}
    for name, samples in found.items():
        if any(np.asarray(s.status).any() or np.asarray(s.log_weight).any() for s in samples):
            raise RuntimeError(f"Samples of {name} are not all sound and equally weighted.")
        stacked = stack([s.params["potential"] | {"chain": s.chain} for s in samples])
        numbers |= {f"{name}/{k}": np.asarray(x) for k, x in stacked.items()}
    return numbers


def made_with(chosen) -> str:
    return f"--teacher {chosen.teacher} --seed {chosen.seed} --samples {chosen.samples}"


def kept(chosen, problem: Problem, keys) -> dict | None:
    """``made``, from the file where there is one; nothing where it was just written."""
    if not chosen.posteriors:
        return made(chosen, problem, keys)
    file = Path(chosen.posteriors).with_suffix(".npz")
    if not file.exists():
        np.savez(file, **made(chosen, problem, keys))
        return None
    found = dict(np.load(file))
    if found["made_with"] != made_with(chosen):
        raise SystemExit(f"{file} was made with {found['made_with']}. Got {made_with(chosen)}.")
    for name in (chosen.only,) if chosen.only else POSTERIORS:
        if f"{name}/chain" not in found:
            raise SystemExit(f"{file} has no samples of {name}.")
    return found


def samples_of(numbers: dict, name: str, spec, sets: int) -> list[bp.PosteriorSamples]:
    """The samples of the first data sets."""
    own = {k.split("/")[1]: x for k, x in numbers.items() if k.startswith(f"{name}/")}
    chain = own.pop("chain")
    if len(chain) < sets:
        raise SystemExit(f"There are {len(chain)} data sets of {name}. Got --sets or --controls {sets}.")
    one = [bp.as_samples({k: x[n] for k, x in own.items()}, spec) for n in range(sets)]
    return [replace(s, chain=jnp.asarray(chain[n])) for n, s in enumerate(one)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", choices=["argon", "silicon"], default="argon")
    parser.add_argument("--only", choices=POSTERIORS, help="one posterior, without controls")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--controls", type=int, default=20, help="data sets of the controls, at most")
    parser.add_argument("--samples", type=int, default=12, help="of each posterior")
    parser.add_argument("--length", type=float, default=30.0, help="of a run [ps]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", help="file for the curves")
    parser.add_argument("--posteriors", help="file of samples: is read, or else written, and nothing more done")
    chosen = parser.parse_args()
    problem = {"argon": argon, "silicon": silicon}[chosen.teacher](chosen.length)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(17), chosen.seed), 6)
    ready = kept(chosen, problem, keys)
    if ready is not None:
        start = replace(problem.start, position=jnp.asarray(ready["start"]))
        study(chosen, problem._replace(start=start), ready, keys)


def study(chosen, problem: Problem, posteriors: dict[str, np.ndarray], keys) -> None:
    """Run every sample of every set, and count how often the intervals contain what the teacher shows."""
    begin = time.perf_counter()
    true, errors = truth(keys[0], problem, 4 * chosen.samples)
    report("coverage_study_truth", teacher=chosen.teacher, **{f"{k}_error": v for k, v in errors.items()})
    stage(begin, "truth")
    studies, few = {}, min(chosen.sets, chosen.controls)
    for n, name in enumerate(dict.fromkeys(k.split("/")[0] for k in posteriors if "/" in k)):
        if chosen.only not in (None, name):
            continue
        model = problem.wrong if name == "wrong model" else problem.model
        samples = samples_of(posteriors, name, model.spec, chosen.sets if name in POSTERIORS else few)
        studies[name] = found = bp.coverage_study(
            jax.random.fold_in(keys[4], n), model, samples, problem.start, problem.ensemble, problem.observables, true,
            steps=problem.steps, every=problem.every, equilibration=problem.equilibration, progress=False,
        )  # fmt: skip
        stage(begin, name)
        told(chosen.teacher, name, found)
        told_of_parameters(chosen.teacher, name, samples, problem.teacher.init(keys[0]))
    if chosen.figure:
        draw(chosen.teacher, studies, chosen.figure)


def stage(begin: float, what: str) -> None:
    print(f"{time.perf_counter() - begin:7.1f} s  {what}", file=sys.stderr)


def told(teacher: str, name: str, study: bp.CoverageStudy) -> None:
    numbers = {}
    for c in study.curves:
        numbers |= {
            f"{c.quantity}_{100 * level:.0f}": float(x)
            for level, x in zip(np.asarray(c.level), np.asarray(c.observed), strict=True)
        }
        numbers |= {f"{c.quantity}_zms": float(c.zms), f"{c.quantity}_parametric": study.parametric[c.quantity]}
        numbers |= {f"{c.quantity}_resolved": study.resolved[c.quantity]}
    sets = len(next(iter(study.inside.values())))
    report("coverage_study", teacher=teacher, posterior=name, sets=sets, dropped=study.dropped, **numbers)


def told_of_parameters(teacher: str, name: str, samples: list[bp.PosteriorSamples], true: dict) -> None:
    """How often Student's intervals of the parameters, all draws for independent, contain the teacher's."""
    numbers = {}
    for k, x in stack([s.params["potential"] for s in samples]).items():
        x = np.asarray(x, np.float64)
        n = x.shape[1]
        z = np.abs(x.mean(1) - float(true[k])) / (x.std(1, ddof=1) * np.sqrt(1 + 1 / n))
        numbers |= {f"{k}_{100 * level:.0f}": (z < stats.t.ppf(0.5 + level / 2, n - 1)).mean() for level in (0.8, 0.95)}
    report("coverage_study_parameters", teacher=teacher, posterior=name, sets=len(samples), **numbers)


def draw(teacher: str, studies: dict, file: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(studies), figsize=(3.4 * len(studies), 3.8), layout="constrained", squeeze=False)
    for ax, (name, study) in zip(axes[0], studies.items(), strict=True):
        bp.plot_reliability(study.curves, ax=ax)
        ax.set_title(f"{teacher}: {name}", fontsize="medium")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
