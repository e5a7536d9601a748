"""A real shift: 3BPA, trained on frames at 300 K, asked at 300, 600 and 1200 K. Needs ``BAYESPOT_DATA``.

An ensemble with learned noise scales; pSGLD and SGHMC from its members; Laplace on the read-out of each member; a
shallow ensemble. As sampled, the noise that the samples inferred counts; recalibrated, their spread alone, times one
factor from held-out frames at 300 K, because these labels carry no noise. The frames at 600 and 1200 K are looked at
for the table alone.
"""

import argparse
import os
import time
from pathlib import Path

import ase.io
import jax
import numpy as np

import bayespot as bp
from tests.benchmarks.common import report

CUTOFF, HIDDEN, BATCH = 5.0, (32, 32), 8
READ_OUT = ("kernel_2", "bias_2")
NOISE = bp.Noise(energy=0.003, forces=0.1)
EXACT = {"energy": 0.0, "forces": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6000, help="of the members' training")
    parser.add_argument("--report", action="store_true", help="print the whole tables, too")
    chosen = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 8)
    train, held_out, tests = material(keys[0])
    potential = bp.add(bp.repulsion(cutoff=CUTOFF), bp.descriptor_mlp(train, cutoff=CUTOFF, hidden=HIDDEN))
    target = bp.force_matching(potential, train, bp.scaled_normal(1.0), NOISE)
    begin = time.perf_counter()
    members = ensemble(keys[1:3], target, train, chosen.members, chosen.steps)
    seconds = {"ensemble": time.perf_counter() - begin}
    posteriors = {"ensemble": members}
    for name, make in samplers(keys[3:6], potential, target, train, members, chosen.steps).items():
        begin = time.perf_counter()
        posteriors[name] = make()
        seconds[name] = time.perf_counter() - begin
    for n, (name, samples) in enumerate(posteriors.items()):
        found = shifted(jax.random.fold_in(keys[6], n), potential, bp.healthy(samples), held_out, tests, chosen.report)
        for row in found:
            report("shift", posterior=name, seconds=seconds[name], samples=len(samples), **row)


def material(key):
    """400 frames to train on, 100 to recalibrate, all at 300 K; test frames at three temperatures."""
    folder = Path(os.environ["BAYESPOT_DATA"]) / "molecules_ood"
    train, held_out = bp.split(key, bp.read(folder / "3bpa_train_300K.extxyz", cutoff=CUTOFF), (0.8, 0.2))
    frames = ase.io.read(folder / "3bpa_mixedT_300K_part.extxyz", ":")
    unseen = [a for a in frames if not a.info["in_train_300K"]]
    tests = {"300 K": bp.from_ase_frames(unseen, cutoff=CUTOFF)}
    tests |= {f"{t} K": bp.read(folder / f"3bpa_ood_{t}K.extxyz", cutoff=CUTOFF) for t in (600, 1200)}
    return train, held_out, tests


def ensemble(keys, target, train, members: int, steps: int):
    fit = bp.optimise(target, bp.muon(bp.cosine(8e-3, steps, warm_up=100)))
    start = bp.initial(keys[0], target, chains=members)
    rows = bp.bootstrap(keys[1], len(train), members)
    return bp.infer(keys[1], fit, start, train, steps=steps, batch_size=BATCH, rows=rows)


def samplers(keys, potential, target, train, members, steps: int) -> dict:
    """Functions that draw; 8 draws of each chain."""
    start = bp.healthy(members).params
    plan = {"steps": 1600, "burn_in": 800, "thin": 100, "batch_size": BATCH}
    scaling = bp.rms(freeze_after=400)
    psgld = bp.sgld(target, bp.polynomial(1e-5, 3e-6, 800), preconditioner=scaling)
    sghmc = bp.sghmc(target, bp.constant(6e-4), friction=200.0, preconditioner=scaling)  # as ε = h/γ = 3e-6
    heads = {"readout": READ_OUT, "heads": 16}
    shallow = bp.shallow_ensemble(potential, train, bp.scaled_normal(1.0), NOISE, **heads)
    fit = bp.optimise(shallow, bp.muon(bp.cosine(8e-3, steps // 2, warm_up=100)))
    return {
        "pSGLD": lambda: bp.infer(keys[0], psgld, start, train, **plan),
        "SGHMC": lambda: bp.infer(keys[1], sghmc, start, train, **plan),
        "last-layer Laplace": lambda: bp.laplace(
            keys[2], target, bp.gauss_newton(target, start, train, free=READ_OUT), train, free=READ_OUT, draws=8
        ),
        "shallow": lambda: bp.split_heads(
            bp.infer(keys[2], fit, bp.initial(keys[1], shallow, 1), train, steps=steps // 2, batch_size=BATCH)
        ),
    }


def shifted(key, potential, samples, held_out, tests: dict, whole: bool) -> list[dict]:
    """Scores at each temperature, as sampled and recalibrated by the held-out forces at 300 K."""
    one, two = jax.random.split(key)
    known = bp.predict(potential, samples, held_out)
    factor = bp.recalibration_factor(one, known, held_out, "forces", noise=0.0, kind="coverage")
    predictions = {name: bp.predict(potential, samples, data) for name, data in tests.items()}
    calibrated = {n: (bp.recalibrate_prediction(p, factor.alpha), tests[n]) for n, p in predictions.items()}
    plain = {n: (p, tests[n]) for n, p in predictions.items()}
    out = []
    for kind, sets, noise in (("as sampled", plain, None), ("recalibrated", calibrated, EXACT)):
        rows = bp.compare_calibration(two if kind == "as sampled" else jax.random.fold_in(key, 9), sets, noise)
        if whole:
            print(kind, bp.calibration_report([r for r in rows if not r.species]), sep="\n")
        forces = [r for r in rows if r.quantity == "forces" and not r.species]
        out += [numbers(r, kind, sets[r.group][0], factor.alpha) for r in forces]
        energies = {r.group: r for r in rows if r.quantity == "energy"}
        for row in out[-len(sets) :]:
            e = energies[row["at"]]
            row |= {"energy_rmse_meV_per_atom": 1e3 * e.rmse.value, "energy_coverage_95": e.coverage_95.value}
    return out


def numbers(row, kind: str, prediction, alpha: float) -> dict:
    epistemic = np.asarray(prediction.forces_uncertainty)
    return {
        "at": row.group, "kind": kind, "alpha": alpha, "forces_rmse_eV_per_A": row.rmse.value, "nll": row.nll.value,
        "coverage_50": row.coverage_50.value, "coverage_80": row.coverage_80.value,
        "coverage_95": row.coverage_95.value, "zms": row.zms.value, "ence": row.ence.value,
        "spearman": row.spearman.value, "spearman_vectors": row.spearman_vector.value,
        "median_uncertainty": float(np.median(epistemic[epistemic > 0])),
    }  # fmt: skip


if __name__ == "__main__":
    main()
