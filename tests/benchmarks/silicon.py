"""Real silicon: 214 PBE frames of mlearn, an ensemble of 8 and pSGLD from its members, errors on the 17 test frames.

Needs ``BAYESPOT_DATA``. Early stopping sees a tenth of the training file; the test file is looked at once, at the end.
"""

import os
import time
from pathlib import Path

import jax
import numpy as np
import optax

import bayespot as bp
from tests.benchmarks.common import report

STEPS, BURN_IN, DRAWS, THIN = 8000, 1000, 4, 250


def main() -> None:
    folder = Path(os.environ["BAYESPOT_DATA"]) / "dft_mlearn"
    begin = time.perf_counter()
    key = jax.random.key(0)
    data = bp.read(folder / "Si_train.extxyz", cutoff=5.0)
    train, validation = bp.split_by_group(jax.random.key(1), data, (0.9, 0.1))
    potential = bp.add(bp.repulsion(cutoff=5.0), bp.descriptor_mlp(train, cutoff=5.0))
    ensemble = _ensemble(key, potential, train, validation)
    trained = time.perf_counter() - begin
    target = bp.force_matching(potential, train, bp.scaled_normal(1.0), bp.Noise(0.001, 0.1))
    chains = jax.tree.map(lambda x: x[:4], ensemble.params) | {"noise": _noise(target, 4)}
    step_size = bp.polynomial(1e-4, 2e-5, BURN_IN)
    psgld = bp.infer(
        key, bp.sgld(target, step_size, preconditioner=bp.rms(freeze_after=BURN_IN)), chains, train,
        steps=BURN_IN + DRAWS * THIN, burn_in=BURN_IN, thin=THIN,
    )  # fmt: skip
    sampled = time.perf_counter() - begin - trained
    test = bp.read(folder / "Si_test.extxyz", cutoff=5.0)
    for name, samples, duration in (("ensemble", ensemble, trained), ("psgld", psgld, sampled)):
        prediction = bp.predict(potential, bp.healthy(samples), test)
        rows = bp.prediction_errors(prediction, test)
        print(bp.error_table(rows))
        all_ = {r.quantity: r.rmse for r in rows if r.group == "all"}
        groups = {f"forces_rmse_{r.group}": r.rmse for r in rows if r.quantity == "forces" and r.group != "all"}
        report(
            f"silicon_{name}",
            seconds=duration,
            samples=len(samples),
            energy_rmse_meV_per_atom=1e3 * all_["energy"],
            forces_rmse_eV_per_A=all_["forces"],
            **groups,
        )


def _ensemble(key, potential, train, validation):
    """Eight members, energies and forces weighted by fixed noise scales, each with its best validated parameters."""
    target = bp.force_matching(potential, train, bp.flat(), bp.Noise(0.001, 0.1, learn="fixed"))
    optimiser = optax.adam(bp.cosine(3e-3, STEPS, warm_up=100))
    algorithm = bp.optimise(target, optimiser, validation=validation, every=200)
    start = bp.initial(key, target, chains=8)
    return bp.infer(jax.random.fold_in(key, 1), algorithm, start, train, steps=STEPS)


def _noise(target, chains: int) -> dict:
    return {k: np.repeat(np.asarray(v), chains) for k, v in target.initial(jax.random.key(0))["noise"].items()}


if __name__ == "__main__":
    main()
