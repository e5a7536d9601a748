"""Do the quickstart's intervals cover the teacher? Three seeds, both posteriors, and two controls that must fail.

The controls: the ensemble's samples pulled together to a quarter of their spread, and a model whose cutoff (2.7 Å) is
too short to see what the teacher sees.
"""

import argparse

import jax
import numpy as np

import bayespot as bp
from bayespot import units
from bayespot.quickstart import FULL, consequences, ensemble_posterior, observables, quickstart
from bayespot.report import counted, coverage
from bayespot.tree import replace
from tests.benchmarks.common import report


def shrunk(observed: bp.Observed, factor: float = 0.25) -> bp.Observed:
    """The same runs, with the differences between samples (not between replicas) reduced by ``factor``."""
    mean = observed.value.mean(1, keepdims=True)
    sound = (np.asarray(observed.status) == 0).all(1)
    moved = (factor - 1.0) * (mean - mean[sound].mean(0, keepdims=True))
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
    for seed in parser.parse_args().seeds:
        s = FULL
        material, posteriors, true = quickstart(seed, s)
        numbers = {}
        intervals = {name.replace(" ", "_"): p.intervals for name, p in posteriors.items()}
        ensemble = posteriors["deep ensemble"]
        intervals["shrunk_control"] = {n: bp.interval(shrunk(o), failed="drop") for n, o in ensemble.observed.items()}
        intervals["short_cutoff_control"] = _short_cutoff(seed, material, s)
        for name, found in intervals.items():
            if not found:
                numbers[f"{name}_without_stable_samples"] = True
                continue
            numbers[f"{name}_bins"] = bins(found, true)
            numbers[f"{name}_resolved"] = resolved(found, true)
            share = coverage(found, true)
            numbers |= {f"{name}_{k}": share[k] for k in ("energy", "pressure")}
        both = [ensemble.intervals, posteriors["pSGLD"].intervals]
        overlap = [
            np.ravel((a.lower <= b.upper) & (b.lower <= a.upper))
            for a, b in zip(*(x.values() for x in both), strict=True)
        ]
        numbers["posteriors_overlap"] = float(np.mean(np.concatenate(overlap)))
        report("coverage", seed=seed, **numbers)


def _short_cutoff(seed: int, material, s) -> dict:
    key = jax.random.fold_in(jax.random.key(seed), 99)
    potential = bp.add(bp.repulsion(cutoff=2.7), bp.descriptor_mlp(material.train, cutoff=2.7))
    noise = bp.Noise(energy=s.energy_noise, forces=s.force_noise, stress=s.stress_noise)
    target = bp.force_matching(potential, material.train, bp.scaled_normal(1.0), noise)
    samples = ensemble_posterior(key, target, material, s, True)
    thermostat = bp.nvt_langevin(kT=s.temperature * units.kB, dt=s.time_step * units.ps)
    return consequences(key, potential, samples, material, thermostat, s, observables(s), True).intervals


if __name__ == "__main__":
    main()
