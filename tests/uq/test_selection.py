"""Selection against explicit determinants, conditional variances and all subsets of small pools."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest

from bayespot.records.dataset import dataset
from bayespot.records.system import system
from bayespot.tree import replace
from bayespot.uq.predict import Prediction
from bayespot.uq.selection import CRITERIA, frame_uncertainty, select

ETA = {"forces": 0.2, "energy": 0.1}  # eV/Å, eV/atom


def pool(sizes, seed=0, samples=6, log_weight=None, amplitude=None, kinds=1):
    """Random predictions for frames of the given sizes; forces of frame m scatter by ``amplitude[m]``."""
    rng = np.random.default_rng(seed)
    m, n = len(sizes), max(sizes)
    systems = [system(rng.uniform(0, 9, (k, 3)), 14 + np.arange(k) % kinds) for k in sizes]
    data = dataset(systems, 3.0)
    amplitude = np.ones(m) if amplitude is None else np.asarray(amplitude)
    real = np.arange(n) < np.asarray(sizes)[:, None]
    forces = rng.normal(size=(samples, m, n, 3)) * amplitude[:, None, None] * real[..., None]
    members = {"energy": rng.normal(size=(samples, m)) * sizes, "forces": forces}
    return from_members(members, np.zeros(samples) if log_weight is None else log_weight), data


def from_members(members, log_weight):
    w = np.exp(log_weight) / np.exp(log_weight).sum()
    mean = {k: np.tensordot(w, y, 1) for k, y in members.items()}
    std = {k: np.sqrt(np.tensordot(w, (y - mean[k]) ** 2, 1) / (1 - w @ w)) for k, y in members.items()}
    m = len(mean["energy"])
    return Prediction(
        energy=jnp.asarray(mean["energy"]),
        forces=jnp.asarray(mean["forces"]),
        stress=jnp.zeros((m, 3, 3)),
        energy_uncertainty=jnp.asarray(std["energy"]),
        forces_uncertainty=jnp.asarray(std["forces"]),
        stress_uncertainty=jnp.zeros((m, 3, 3)),
        noise={},
        members={k: jnp.asarray(y) for k, y in members.items()},
        log_weight=jnp.asarray(log_weight),
        chain=jnp.arange(len(log_weight)),
    )


def kernel(prediction, data, name):
    """K by loops over pairs of frames, atoms and samples, in units of the error of a label; of a vector, √3 η."""
    w = np.exp(np.asarray(prediction.log_weight))
    w = w / w.sum()
    species, count = np.asarray(data.system.species), data.atom_counts
    y = np.asarray(prediction.members[name])
    a = y - np.tensordot(w, y, 1)
    m = len(count)
    k = np.zeros((m, m))
    for one in range(m):
        for other in range(m):
            if name == "energy":
                each = [a[:, one] * a[:, other] / (count[one] * count[other])]
            else:
                shared = range(min(count[one], count[other]))
                each = [
                    (a[:, one, i] * a[:, other, i]).sum(-1) / np.sqrt(count[one] * count[other])
                    for i in shared
                    if species[one, i] == species[other, i]
                ]
            k[one, other] = sum(w @ x for x in each) / (1 - w @ w)
    return k / (ETA[name] ** 2 * (3 if name == "forces" else 1))


def conditional_variance(k, frame, chosen):
    if not chosen:
        return k[frame, frame]
    cc = k[np.ix_(chosen, chosen)] + np.eye(len(chosen))
    return k[frame, frame] - k[frame, chosen] @ np.linalg.solve(cc, k[chosen, frame])


def information(k, chosen):
    chosen = list(chosen)
    return np.linalg.slogdet(np.eye(len(chosen)) + k[np.ix_(chosen, chosen)])[1]


POOLS = {
    "one size": {"sizes": [3] * 8},
    "several sizes and species": {"sizes": [2, 4, 3, 4, 1, 4, 2, 3], "kinds": 2, "seed": 1},
    "weighted": {"sizes": [2] * 8, "seed": 2, "log_weight": np.array([0.0, 1.0, -0.5, 0.3, -2.0, 0.7])},
    "few samples": {"sizes": [2] * 8, "seed": 3, "samples": 3},
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("quantities", [("forces",), ("energy",), ("energy", "forces")])
def test_every_step_is_the_best_one_and_scores_are_conditional_deviations(name, quantities):
    prediction, data = pool(**POOLS[name])
    k = sum(kernel(prediction, data, q) for q in quantities) / len(quantities)
    got = select(prediction, data, 5, quantities=quantities, noise={q: ETA[q] for q in quantities})
    unit = {("forces",): np.sqrt(3) * ETA["forces"], ("energy",): ETA["energy"]}.get(quantities, 1.0)
    assert len(set(got.frames.tolist())) == 5
    for n, frame in enumerate(got.frames):
        chosen = got.frames[:n].tolist()
        gain = [-np.inf if m in chosen else information(k, [*chosen, m]) for m in range(8)]
        # Where the samples are exhausted all that is left is rounding; then any frame is as good.
        assert gain[frame] == pytest.approx(max(gain), abs=1e-6)
        assert (got.score[n] / unit) ** 2 == pytest.approx(conditional_variance(k, frame, chosen), rel=1e-8)
    best = max(information(k, subset) for subset in combinations(range(8), 3))
    assert (1 - 1 / np.e) * best <= information(k, got.frames[:3]) <= best + 1e-9
    assert (np.diff(got.score) <= 1e-9).all()


def test_the_best_pair_of_a_pool_whose_answer_is_known():
    """Frames 0 and 1 are the most uncertain and the same; 2 is independent and less uncertain."""
    one, two = np.array([1.0, -1, 0, 0, 1, -1]), np.array([0.0, 0, 2, -2, 0, 0]) / np.sqrt(2)
    energy = np.stack([2.0 * one, 2.0 * one, 1.2 * two, 0.1 * one], 1)
    data = pool([1] * 4)[1]
    forces = energy[:, :, None, None] * np.ones((1, 1, 1, 3))
    prediction = from_members({"energy": energy, "forces": forces}, np.zeros(6))
    for quantities in (("forces",), ("energy",)):
        assert select(prediction, data, 2, quantities=quantities).frames.tolist() == [0, 2]
    assert select(prediction, data, 2, "max").frames.tolist() == [0, 1]
    assert select(prediction, data, 2, "rms").frames.tolist() == [0, 1]


def test_duplicates_are_chosen_once():
    """Twelve frames, each of them three times in a shuffled pool; a copy differs by 1 % of the spread."""
    rng = np.random.default_rng(4)
    prediction, data = pool([3] * 12, samples=8)
    origin = rng.permutation(np.repeat(np.arange(12), 3))
    forces = np.asarray(prediction.members["forces"])[:, origin]
    forces = forces + 0.01 * rng.normal(size=forces.shape)
    copies = from_members({"energy": prediction.members["energy"][:, origin], "forces": forces}, np.zeros(8))
    got = select(copies, data[origin], 12)
    assert sorted(origin[got.frames].tolist()) == list(range(12))
    usual = np.median(frame_uncertainty(copies, data[origin], "rms"))
    more = select(copies, data[origin], 13)
    assert more.score[12] < 0.2 * usual < 0.5 * usual < more.score[11]  # left of a copy: about the noise, a tenth


@pytest.mark.parametrize("noise", [None, {"forces": 0.1}])
@pytest.mark.parametrize("factor", [200, 1e6])
def test_a_frame_that_blew_up_does_not_make_the_others_alike(factor, noise):
    """The same pool of 36, in order, with one frame of far larger forces: it comes first, then the eleven others."""
    rng = np.random.default_rng(3)
    prediction, data = pool([3] * 12, samples=8)
    origin = np.repeat(np.arange(12), 3)
    forces = np.asarray(prediction.members["forces"])[:, origin]
    forces = forces + 0.01 * rng.normal(size=forces.shape)
    forces[:, 35] *= factor
    wild = from_members({"energy": prediction.members["energy"][:, origin], "forces": forces}, np.zeros(8))
    got = select(wild, data[origin], 12, noise=noise)
    assert got.frames[0] == 35
    assert len(set(origin[got.frames].tolist())) == 12


def test_uncertainty_of_a_frame():
    prediction, data = pool([2, 4, 3], seed=5)
    u = np.linalg.norm(np.asarray(prediction.forces_uncertainty), axis=-1)
    rows = [u[m, :n] for m, n in enumerate((2, 4, 3))]
    np.testing.assert_allclose(frame_uncertainty(prediction, data), [r.max() for r in rows], rtol=1e-12)
    rms = [np.sqrt((r**2).mean()) for r in rows]
    np.testing.assert_allclose(frame_uncertainty(prediction, data, "rms"), rms, rtol=1e-12)
    got = select(prediction, data, 3, "rms")
    np.testing.assert_array_equal(got.frames, np.argsort(rms)[::-1])
    np.testing.assert_allclose(got.score, np.sort(rms)[::-1], rtol=1e-12)
    # The first frame of the diverse choice is that of the largest rms.
    diverse = select(prediction, data, 1)
    assert diverse.frames[0] == got.frames[0]
    assert diverse.score[0] == pytest.approx(max(rms), rel=1e-12)


@pytest.mark.parametrize("by", CRITERIA)
def test_ties_go_to_the_first_frame_also_up_to_rounding(by):
    prediction, data = pool([2] * 6, seed=6)
    one = np.asarray(prediction.members["forces"])[:, :1]
    wobble = 1 + 1e-14 * np.array([0, 1, -1, 2, 3, 1])[None, :, None, None]
    same = from_members({"energy": prediction.members["energy"], "forces": one * wobble}, np.zeros(6))
    assert select(same, data, 6, by).frames.tolist() == list(range(6))


def test_shuffling_the_pool_changes_nothing_but_the_numbers():
    prediction, data = pool([3] * 10, seed=7, samples=12)
    order = np.random.default_rng(1).permutation(10)
    shuffled = from_members({k: y[:, order] for k, y in prediction.members.items()}, np.zeros(12))
    one, other = select(prediction, data, 6), select(shuffled, data[order], 6)
    np.testing.assert_array_equal(order[other.frames], one.frames)
    np.testing.assert_allclose(other.score, one.score, rtol=1e-9)


def test_what_cannot_be_chosen_is_refused():
    prediction, data = pool([2] * 4)
    for number in (0, 5):
        with pytest.raises(ValueError, match=rf"number must be from 1 to 4, the frames of the pool. Got {number}"):
            select(prediction, data, number)
    for wrong in (
        {"by": "random"},
        {"quantities": ("stress",)},
        {"quantities": ()},
        {"noise": {"forces": 0.0}},
        {"noise": {"energy": 0.1}},
    ):
        with pytest.raises(ValueError, match="Need by from"):
            select(prediction, data, 2, **wrong)
    with pytest.raises(ValueError, match="same frames"):
        select(prediction, data[:3], 2)
    with pytest.raises(ValueError, match="must hold its members"):
        select(replace(prediction, members={}), data, 2)
    with pytest.raises(ValueError, match="no spread"):
        select(from_members({k: 0 * y for k, y in prediction.members.items()}, np.zeros(6)), data, 2)
    broken = {**prediction.members, "forces": prediction.members["forces"].at[2, 1, 0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"in the frames 1\. Leave"):
        select(replace(prediction, members=broken), data, 2)
    with pytest.raises(ValueError, match="over must be"):
        frame_uncertainty(prediction, data, "mean")
