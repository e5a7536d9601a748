"""Real silicon: 214 PBE frames of mlearn, an ensemble of 8 and pSGLD from its members, and their errors by group.

``--element Ge`` does the same with the 228 frames of germanium, by which no setting was chosen.

Needs ``BAYESPOT_DATA``. Every pair of members stops early on its own eighth of the training file, so that together they
see all of it. Whoever changes a setting looks at a tenth that is set aside before; ``--test`` trains on the whole file
and gives the errors on the frames of the test file (17 of silicon, 18 of germanium).
"""

import argparse
import os
import time
from pathlib import Path

import jax

import bayespot as bp
from tests.benchmarks.common import report

NOISE = bp.Noise(0.001, 0.1, learn="fixed")  # only weights here: about the validated errors, which the members reach
PRIOR = bp.scaled_normal(0.5)
CUTOFF, HIDDEN, STEPS, BATCH = 6.0, (32, 32), 4000, 4
BURN_IN, DRAWS, THIN = 600, 8, 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--test", action="store_true", help="train on all, errors of the test file")
    parser.add_argument("--element", choices=["Si", "Ge"], default="Si")
    options = parser.parse_args()
    tested, element = options.test, options.element
    folder = Path(os.environ["BAYESPOT_DATA"]) / "dft_mlearn"
    begin = time.perf_counter()
    keys = jax.random.split(jax.random.key(0), 4)
    data = bp.read(folder / f"{element}_train.extxyz", cutoff=CUTOFF)
    train, held_out = (data, None) if tested else bp.split_by_group(keys[0], data, (0.9, 0.1))
    potential = bp.add(bp.repulsion(cutoff=CUTOFF), bp.descriptor_mlp(train, cutoff=CUTOFF, hidden=HIDDEN))
    ensemble = bp.concatenate([_pair(key, potential, train) for key in jax.random.split(keys[1], 4)])
    trained = time.perf_counter() - begin
    target = bp.force_matching(potential, train, PRIOR, NOISE)
    chains = bp.healthy(ensemble).params
    step_size = bp.polynomial(1e-5, 3e-6, BURN_IN)
    psgld = bp.infer(
        keys[2], bp.sgld(target, step_size, preconditioner=bp.rms(freeze_after=BURN_IN)), chains, train,
        steps=BURN_IN + DRAWS * THIN, burn_in=BURN_IN, thin=THIN,
    )  # fmt: skip
    sampled = time.perf_counter() - begin - trained
    test = bp.read(folder / f"{element}_test.extxyz", cutoff=CUTOFF) if held_out is None else held_out
    for name, samples, duration in (("ensemble", ensemble, trained), ("psgld", psgld, sampled)):
        prediction = bp.predict(potential, bp.healthy(samples), test)
        rows = bp.prediction_errors(prediction, test)
        print(bp.error_table(rows))
        all_ = {r.quantity: r.rmse for r in rows if r.group == "all"}
        groups = {f"forces_rmse_{r.group}": r.rmse for r in rows if r.quantity == "forces" and r.group != "all"}
        report(
            f"silicon_{name}",
            element=element,
            frames="test" if tested else "validation",
            seconds=duration,
            samples=len(samples),
            energy_rmse_meV_per_atom=1e3 * all_["energy"],
            forces_rmse_eV_per_A=all_["forces"],
            **groups,
        )


def _pair(key, potential, data):
    """Two members, energies and forces weighted by fixed noise scales, with their best validated parameters."""
    keys = jax.random.split(key, 3)
    train, validation = bp.split_by_group(keys[0], data, (0.875, 0.125))
    target = bp.force_matching(potential, train, PRIOR, NOISE)
    optimiser = bp.muon(bp.cosine(8e-3, STEPS, warm_up=100))
    algorithm = bp.optimise(target, optimiser, validation=validation, every=200)
    return bp.infer(
        keys[1], algorithm, bp.initial(keys[2], target, chains=2), train, steps=STEPS, batch_size=BATCH, progress=False
    )


if __name__ == "__main__":
    main()
