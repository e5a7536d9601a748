"""Do the quickstart's intervals cover the teacher? Three seeds, both posteriors, and controls that must fail.

The controls: the samples of each posterior pulled together to a quarter of their spread, and a model whose cutoff
(2.7 Å) is too short to see what the teacher sees. The teacher's values come from longer runs than the quickstart's.

The posteriors must cover 90 % of the bins, energy and pressure for every seed. A quarter of a 95 % interval contains
the truth in 38 % of all cases, so that single seeds say little about the shrunk controls: they are caught where, over
all seeds, less than 75 % of their energies and pressures are covered (twelve for three seeds: at 38 % each, that fails
by chance in 1 % of all cases). Their bins are reported and not judged: a quarter of the spread is mostly below the
sampling noise of the bins. The short cutoff must cover less than 75 % of the bins.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import bayespot as bp
from bayespot.quickstart import (
    FULL,
    Material,
    Settings,
    consequences,
    ensemble_posterior,
    langevin,
    model,
    observables,
    quickstart,
    teacher_material,
    truth,
)
from bayespot.report import counted, coverage
from bayespot.tree import replace, take
from bayespot.uq.variance import components
from tests.benchmarks.common import report

POSTERIORS = ("deep_ensemble", "pSGLD")
MEASURED = ("bins", "resolved", "energy", "pressure")
CONTROLS = ("shrunk_deep_ensemble", "shrunk_pSGLD", "short_cutoff")


def shrunk(observed: bp.Observed, factor: float = 0.25) -> bp.Observed:
    """The same runs as if the posterior were narrower by ``factor``.

    The sample means are pulled together until their variance is what such a posterior would show, factor² of the
    parametric part and all of the sampling part; the replicas about each mean, hence the sampling error, stay.
    """
    sound = (np.asarray(observed.status) == 0).all(1)
    mean = observed.value.mean(1, keepdims=True)
    parts = components(take(observed, np.flatnonzero(sound)))
    model = np.maximum(parts.spread - parts.noise, 0.0)
    scale = np.sqrt((factor**2 * model + parts.noise) / np.where(parts.spread > 0, parts.spread, 1.0))
    scale = np.minimum(scale, 1.0)  # where the noise exceeds the spread there is nothing to shrink
    moved = (scale - 1.0) * (mean - parts.mean)
    return replace(observed, value=observed.value + moved, blocks=observed.blocks + moved[:, :, None])


def resolved(intervals: dict, true: dict) -> float:
    """Share of the counted RDF and ADF bins whose parametric spread stands out of the sampling noise."""
    return float(np.mean(np.concatenate([intervals[n].resolved[counted(n, true[n])] for n in ("rdf", "adf")])))


def bins(intervals: dict, true: dict) -> float:
    """Share of all counted RDF and ADF bins that are covered."""
    return float(np.mean(np.concatenate([intervals[n].covers(true[n])[counted(n, true[n])] for n in ("rdf", "adf")])))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--run", type=float, default=FULL.run, help="length of a run [ps]; default: the quickstart's")
    chosen = parser.parse_args()
    s = FULL._replace(run=chosen.run)
    true = long_truth(s)
    found = [one_seed(seed, s, true) for seed in chosen.seeds]
    together = {f"{n}_{k}": mean(found, f"{n}_{k}") for n in (*POSTERIORS, *CONTROLS) for k in MEASURED}
    report("coverage_together", seeds=chosen.seeds, passed=passed(found, together), **together)


def long_truth(s: Settings) -> dict[str, np.ndarray]:
    """The teacher's values, from ten times the quickstart's simulated time."""
    key = jax.random.key(2**31 - 1)
    material = teacher_material(jax.random.fold_in(key, 0), s, True)
    measured = observables(s, material.start)
    s = s._replace(truth=10 * s.truth)
    return truth(jax.random.fold_in(key, 1), material.teacher, material, langevin(s, s.temperature), s, measured, True)


def one_seed(seed: int, s: Settings, true: dict[str, np.ndarray]) -> dict:
    """Coverage of the quickstart's and the controls' intervals for one seed, printed and returned."""
    material, posteriors, _ = quickstart(seed, s)
    intervals = {name.replace(" ", "_"): p.intervals for name, p in posteriors.items()}
    for name, p in posteriors.items():
        drawn = {n: shrunk(p.observed[n]) for n in p.intervals}
        intervals[f"shrunk_{name.replace(' ', '_')}"] = {n: bp.interval(o, failed="drop") for n, o in drawn.items()}
    intervals["short_cutoff"] = _short_cutoff(seed, material, s)
    numbers: dict = label_errors(material, s)
    for name, found in intervals.items():
        if not found:
            numbers[f"{name}_without_stable_samples"] = True
            continue
        numbers |= {f"{name}_bins": bins(found, true), f"{name}_resolved": resolved(found, true)}
        share = coverage(found, true)
        for k in ("energy", "pressure"):
            numbers |= {f"{name}_{k}": share[k], f"{name}_{k}_clear": bool(found[k].resolved)}
    if len(posteriors) == 2:
        numbers["posteriors_overlap"] = overlap(*(p.intervals for p in posteriors.values()), true)
    report("coverage", seed=seed, **numbers)
    return numbers


def label_errors(material: Material, s: Settings) -> dict[str, float]:
    """Mean errors of the labels that all samples learn from, in standard errors: far beyond 2 intervals should miss."""
    train, teacher = material.train, material.teacher
    systems = [jax.tree.map(lambda x, n=n: jnp.asarray(x[n]), train.system) for n in range(len(train))]
    exact = bp.label(teacher, teacher.init(jax.random.key(0)), systems, s.cutoff)
    energy = (np.asarray(train.energy) - np.asarray(exact.energy)) / train.atom_counts / s.energy_noise
    stress = np.asarray(train.stress) - np.asarray(exact.stress)
    pressure = -np.trace(stress, axis1=1, axis2=2) / 3**0.5 / s.stress_noise
    errors = {"energy": energy, "pressure": pressure}
    return {f"mean_label_error_{k}": float(x.sum() / len(train) ** 0.5) for k, x in errors.items()}


def mean(seeds: list[dict], name: str) -> float:
    """Average over the seeds; what is missing counts as the opposite of what is hoped for."""
    return float(np.mean([numbers.get(name, float(name.startswith(CONTROLS))) for numbers in seeds]))


def overlap(one: dict, other: dict, true: dict) -> float:
    """Share of the counted values at which two sets of intervals overlap; 0 where a posterior has no intervals."""
    shared = [
        np.ravel(((a.lower <= other[n].upper) & (other[n].lower <= a.upper))[counted(n, true[n])])
        for n, a in one.items()
        if n in other
    ]
    return float(np.mean(np.concatenate(shared))) if shared else 0.0


def passed(seeds: list[dict], together: dict) -> bool:
    """Whether the bars hold.

    Both posteriors cover 90 % of the bins, energy and pressure for every seed, and agree; half of the bins are
    resolved. The controls are caught. One that gave no intervals counts as covering, because it was not tried.
    """
    covered = all(covers(numbers, n) for numbers in seeds for n in POSTERIORS)
    agree = min(numbers.get("posteriors_overlap", 0) for numbers in seeds)
    clear = min(together[f"{n}_resolved"] for n in POSTERIORS)
    shrunk = np.mean([together[f"shrunk_{n}_{k}"] for n in POSTERIORS for k in ("energy", "pressure")])
    caught = shrunk < 0.75 and together["short_cutoff_bins"] < 0.75
    return bool(covered and agree >= 0.9 and clear >= 0.5 and caught)


def covers(numbers: dict, name: str) -> bool:
    """The bar of one seed: 90 % of the bins, energy and pressure."""
    return all(numbers.get(f"{name}_{k}", 0.0) >= 0.9 for k in ("bins", "energy", "pressure"))


def _short_cutoff(seed: int, material: Material, s: Settings) -> dict:
    train, run = jax.random.split(jax.random.fold_in(jax.random.key(seed), 99))
    potential = model(material, s._replace(cutoff=2.7))
    noise = bp.Noise(energy=s.energy_noise, forces=s.force_noise, stress=s.stress_noise)
    target = bp.force_matching(potential, material.train, bp.scaled_normal(1.0), noise)
    samples = ensemble_posterior(train, target, material, s, True)
    measured = observables(s, material.start)
    return consequences(run, potential, samples, material, langevin(s, s.temperature), s, measured, True).intervals


if __name__ == "__main__":
    main()
