"""Predictive spread of every approximation over that of NUTS, for a network of a few dozen parameters.

Frames of eight atoms of silicon, labels of Stillinger–Weber with noise of known size. ``energy`` and ``forces`` are the
root mean square standard deviation of the predictions of held-out frames, divided by that of NUTS.
``energy_error`` and ``forces_error`` are relative standard errors of these ratios, from effective sample sizes.
"""

import argparse
import time

import jax
import numpy as np
from ase.build import bulk

import bayespot as bp
from tests.benchmarks.common import report

NOISE = {"energy": 0.02, "forces": 0.3}
EPSILON, H = 1e-5, 1e-2
CUTOFF, FRAMES, CHANNELS, HIDDEN = 4.0, 16, 1, (4,)


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


def problem():
    """Potential, target, training and held-out frames; the noise is known."""
    train, test = data(FRAMES)
    mlp = bp.descriptor_mlp(train, cutoff=CUTOFF, channels=CHANNELS, hidden=HIDDEN)
    potential = bp.add(bp.repulsion(cutoff=CUTOFF), mlp)
    target = bp.force_matching(potential, train, bp.scaled_normal(1.0), bp.Noise(**NOISE, learn="fixed"))
    return potential, target, train, test


def ensemble(key, target, train, members: int, steps: int = 1500) -> bp.PosteriorSamples:
    """Members from different starting points, on all frames."""
    fit = bp.optimise(target, bp.muon(bp.cosine(8e-3, steps)))
    start = bp.initial(jax.random.fold_in(key, 0), target, members)
    return bp.infer(key, fit, start, train, steps=steps, batch_size=8, progress=False)


def methods(keys, target, train, members: bp.PosteriorSamples, draws: int, scale: int) -> dict:
    """Functions that draw, chains starting from members; the steps of SG-MCMC are multiplied by ``scale``."""
    modes = jax.tree.map(lambda x: x[:4], members.params)
    steps, burn_in = 50_000 * scale, 10_000 * scale
    plan = {"steps": steps, "burn_in": burn_in, "thin": (steps - burn_in) // 200, "batch_size": 8, "progress": False}
    scaling = bp.rms(freeze_after=2000)
    exact = {"steps": draws, "burn_in": 0, "thin": 1, "batch_size": None, "progress": False}
    return {
        "NUTS": lambda: bp.infer(keys[0], bp.nuts(target, train, warm_up=600, dense=True), modes, train, **exact),
        "pSGLD": lambda: bp.infer(
            keys[1], bp.sgld(target, bp.constant(EPSILON), preconditioner=scaling), modes, train, **plan
        ),
        "SGHMC": lambda: bp.infer(
            keys[2], bp.sghmc(target, bp.constant(H), friction=0.1 / H, preconditioner=scaling), modes, train, **plan
        ),
        "Laplace": lambda: bp.laplace(keys[3], target, bp.gauss_newton(target, modes, train), train, draws=50),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=250, help="of NUTS, per chain")
    parser.add_argument("--scale", type=int, default=1, help="of the numbers of steps of SG-MCMC")
    chosen = parser.parse_args()
    potential, target, train, test = problem()
    keys = jax.random.split(jax.random.key(3), 6)
    begin = time.perf_counter()
    members = ensemble(keys[4], target, train, 8)
    found = {"deep ensemble": (members, time.perf_counter() - begin)}
    for name, make in methods(keys, target, train, members, chosen.draws, chosen.scale).items():
        begin = time.perf_counter()
        found[name] = make(), time.perf_counter() - begin
    predictions = {name: bp.predict(potential, bp.healthy(s), test) for name, (s, _) in found.items()}
    reference = spread(predictions["NUTS"])
    for name, (samples, seconds) in found.items():
        row = {q: x / reference[q] for q, x in spread(predictions[name]).items()}
        if len(np.unique(samples.chain)) < len(samples):
            row |= {f"{q}_error": x for q, x in relative_error(samples, predictions[name]).items()}
            row["rhat"] = max(r.rhat for r in bp.diagnose(samples, predictions[name]).rows)
        report("reference", method=name, samples=len(samples), seconds=seconds, **row)


if __name__ == "__main__":
    main()
