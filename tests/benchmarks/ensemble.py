"""An ensemble of eight in one call of ``infer`` over eight trainings of one member, with and without compilation.

64 atoms of silicon, cutoff 5 Å, minibatches of 8; the public road with validation frames and early stopping.
"""

import jax

import bayespot as bp
from tests.benchmarks.common import alternate, frames, report, seconds

STEPS, MEMBERS, BATCH = 300, 8, 8


def trainings(steps: int = STEPS) -> tuple:
    """``algorithm()``, and ``trained(first, members, fit)``: a training as a user starts it, with an algorithm of its
    own, or with one that is compiled already."""
    data, validation = frames(32), frames(40)[32:]
    potential = bp.add(bp.repulsion(cutoff=5.0), bp.descriptor_mlp(data, cutoff=5.0))
    target = bp.force_matching(potential, data, bp.scaled_normal(1.0), bp.Noise(0.001, 0.1))
    key = jax.random.key(0)
    start = bp.initial(key, target, MEMBERS)

    def algorithm():
        return bp.optimise(target, bp.muon(bp.cosine(8e-3, steps)), validation=validation, every=100)

    def trained(first: int, members: int, fit=None, **options):
        params = jax.tree.map(lambda x: x[first : first + members], start)
        common = {"steps": steps, "batch_size": BATCH, "progress": False}
        return bp.infer(key, fit or algorithm(), params, data, **common, **options).params

    return algorithm, trained


def main() -> None:
    algorithm, trained = trainings()

    def cold(function) -> float:
        jax.clear_caches()
        return seconds(function)

    fit = algorithm()
    times = alternate(
        {
            "ensemble": lambda: trained(0, MEMBERS, fit),
            "singles": lambda: [trained(n, 1, fit) for n in range(MEMBERS)],
        }
    )
    ensemble = cold(lambda: trained(0, MEMBERS))
    singles = sum(cold(lambda n=n: trained(n, 1)) for n in range(MEMBERS))
    report(
        "ensemble", steps=STEPS, devices=jax.device_count(), over_singles=times["ensemble"] / times["singles"],
        over_singles_with_compilation=ensemble / singles, ensemble_s=times["ensemble"], ensemble_cold_s=ensemble,
    )  # fmt: skip


if __name__ == "__main__":
    main()
