"""Predictive spread of every approximation over that of NUTS, for a network of a few dozen parameters.

Frames of eight atoms of silicon, labels of Stillinger–Weber with noise of known size. ``energy`` and ``forces`` are the
root mean square standard deviation of the predictions of held-out frames, divided by that of NUTS.
``energy_error`` and ``forces_error`` are relative standard errors of the spread of the method itself, from effective
sample sizes; to those of the ratios that of NUTS comes on top.

The noise and the width of the prior were chosen so that samplers without a full mass matrix can mix, too.
"""

import argparse
import time

import jax
import numpy as np
from ase.build import bulk

import bayespot as bp
from tests.benchmarks.common import report

NOISE = {"energy": 0.07, "forces": 0.8}  # eV/atom, eV/Å
CUTOFF, FRAMES, PRIOR = 4.0, 8, 0.3
H, EPSILON = 2e-3, 2e-4


def data(frames: int) -> tuple[bp.Dataset, bp.Dataset]:
    """Noisy training frames, and as many held-out ones, of rattled crystals."""
    teacher, systems = bp.stillinger_weber(14), []
    for seed in range(2 * frames):
        atoms = bulk("Si", "diamond", a=5.431, cubic=True)
        atoms.rattle(0.12, seed=seed)
        systems.append(bp.from_ase(atoms))
    exact = bp.label(teacher, teacher.init(jax.random.key(0)), systems, CUTOFF)
    noisy = bp.add_noise(jax.random.key(1), exact, **NOISE)
    return noisy[:frames], noisy[frames:]


def problem():
    """Potential, target, training and held-out frames; the noise is known."""
    train, test = data(FRAMES)
    mlp = bp.descriptor_mlp(train, cutoff=CUTOFF, channels=1, hidden=(4,))
    potential = bp.add(bp.repulsion(cutoff=CUTOFF), mlp)
    target = bp.force_matching(potential, train, bp.scaled_normal(PRIOR), bp.Noise(**NOISE, learn="fixed"))
    return potential, target, train, test


def ensemble(key, target, train, members: int, steps: int = 3000) -> bp.PosteriorSamples:
    """Members from different starting points, on all frames."""
    fit = bp.optimise(target, bp.muon(bp.cosine(8e-3, steps)))
    start = bp.initial(jax.random.fold_in(key, 0), target, members)
    return bp.infer(key, fit, start, train, steps=steps, batch_size=None, progress=False)


def methods(keys, target, train, members: bp.PosteriorSamples, draws: int, steps: int) -> dict:
    """Functions that draw, chains starting from members."""
    modes = jax.tree.map(lambda x: x[:4], members.params)
    exact = {"steps": draws, "burn_in": 0, "thin": 1, "batch_size": None, "progress": False}
    plan = {"steps": steps, "burn_in": steps // 5, "thin": steps // 250, "progress": False}
    psgld = bp.sgld(target, bp.constant(EPSILON), preconditioner=bp.rms(freeze_after=steps // 50))
    sghmc = bp.sghmc(target, bp.constant(H), friction=0.01 / H)
    return {
        "NUTS": lambda: bp.infer(keys[0], bp.nuts(target, train, warm_up=300, dense=True), modes, train, **exact),
        "SGHMC": lambda: bp.infer(keys[1], sghmc, modes, train, batch_size=None, **plan),
        "SGHMC, minibatches": lambda: bp.infer(keys[2], sghmc, modes, train, batch_size=FRAMES // 2, **plan),
        "pSGLD": lambda: bp.infer(keys[3], psgld, modes, train, batch_size=None, **plan),
        "pSGLD, minibatches": lambda: bp.infer(keys[4], psgld, modes, train, batch_size=FRAMES // 2, **plan),
        "Laplace": lambda: bp.laplace(
            keys[5], target, bp.gauss_newton(target, modes, train, steps=20), train, draws=50
        ),
    }


def spread(prediction: bp.Prediction) -> dict[str, float]:
    """Root mean square over the held-out labels of the posterior's standard deviation."""
    return {q: float(np.sqrt(np.asarray(prediction.members[q]).var(0, ddof=1).mean())) for q in ("energy", "forces")}


def relative_error(samples: bp.PosteriorSamples, prediction: bp.Prediction) -> dict[str, float]:
    """Standard error of ``spread`` over it: half that of the mean variance, whose effective draws are counted."""
    out = {}
    for q in ("energy", "forces"):
        y = np.asarray(prediction.members[q], np.float64)
        square = ((y - y.mean(0)) ** 2).reshape(len(y), -1).mean(1)
        out[q] = float(0.5 * square.std(ddof=1) / square.mean() / np.sqrt(float(bp.ess(samples, square))))
    return out


def measured(samples, potential, test, reference: dict | None) -> tuple[dict[str, float], dict[str, float]]:
    """Spreads, and a row of them over those of the reference."""
    prediction = bp.predict(potential, samples, test)
    found = spread(prediction)
    row = {q: x / (reference or found)[q] for q, x in found.items()}
    if len(np.unique(samples.chain)) < len(samples):
        row |= {f"{q}_error": x for q, x in relative_error(samples, prediction).items()}
        row["rhat"] = max(r.rhat for r in bp.diagnose(samples, prediction).rows)
    return found, row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=250, help="of NUTS, per chain")
    parser.add_argument("--steps", type=int, default=200_000, help="of SG-MCMC")
    chosen = parser.parse_args()
    potential, target, train, test = problem()
    keys = jax.random.split(jax.random.key(3), 8)
    begin = time.perf_counter()
    members = ensemble(keys[7], target, train, 8)
    seconds, reference = time.perf_counter() - begin, None
    for name, make in methods(keys, target, train, members, chosen.draws, chosen.steps).items():
        begin = time.perf_counter()
        samples = bp.healthy(make())
        took = time.perf_counter() - begin
        found, row = measured(samples, potential, test, reference)
        reference = reference or found
        report("reference", method=name, samples=len(samples), seconds=took, **row)
    row = measured(members, potential, test, reference)[1]
    report("reference", method="deep ensemble", samples=len(members), seconds=seconds, **row)


if __name__ == "__main__":
    main()
