"""Splits: disjoint, exhaustive, reproducible, in proportion."""

import jax
import numpy as np
import pytest

from bayespot.records.dataset import dataset
from bayespot.records.split import leave_group_out, split, split_by_group
from bayespot.records.system import system

GROUPS = {"bulk": 61, "surface": 12, "melt": 20, "rare": 7}


@pytest.fixture(scope="module")
def data():
    """100 frames of one atom in four groups, in mixed order; in numpy, where no new length has to be compiled."""
    names = [name for name, n in GROUPS.items() for _ in range(n)]
    names = [names[k] for k in np.random.default_rng(0).permutation(100)]
    made = dataset([system([[0, 0, 0]], [14])] * 100, 3.0, energy=[float(k) for k in range(100)], group=names)
    return jax.tree.map(np.asarray, made)


@pytest.mark.parametrize("function", [split, split_by_group])
@pytest.mark.parametrize("fractions", [(0.9, 0.1), (0.5, 0.3, 0.2), (0.34, 0.33, 0.33)])
def test_parts_are_disjoint_and_complete(function, fractions, data, key):
    parts = function(key, data, fractions)
    frames = [set(p.frame.tolist()) for p in parts]
    assert sum(len(f) for f in frames) == len(set.union(*frames)) == 100
    assert [len(p) for p in parts] == [round(100 * f) for f in fractions]
    for p in parts:
        np.testing.assert_array_equal(p.energy, p.frame)  # every label stays with its frame
        assert p.frame.tolist() == sorted(p.frame.tolist())
        assert p.group_names == data.group_names


@pytest.mark.parametrize("function", [split, split_by_group])
def test_the_key_decides(function, data):
    frames = [function(jax.random.key(s), data)[1].frame.tolist() for s in (0, 0, 1)]
    assert frames[0] == frames[1]
    assert frames[0] != frames[2]


@pytest.mark.parametrize("function", [split, split_by_group])
def test_frames_may_be_left_over(function, data, key):
    first, second = function(key, data, (0.5, 0.1))
    assert (len(first), len(second)) == (50, 10)
    assert not set(first.frame.tolist()) & set(second.frame.tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fractions", [(0.9, 0.1), (0.7, 0.3), (0.6, 0.2, 0.2)])
def test_groups_contribute_in_proportion(fractions, seed, data):
    """Within a frame for two parts: dealing keeps each within 1/2 of its share at any time, and a group is a stretch of
    the dealing. With three parts it is within 1, and the stretch within 2."""
    for part, fraction in zip(split_by_group(jax.random.key(seed), data, fractions), fractions, strict=True):
        for code, name in enumerate(data.group_names):
            deviation = abs(int((part.group == code).sum()) - fraction * GROUPS[name])
            assert deviation <= (1 if len(fractions) == 2 else 2) + 1e-9


def test_all_groups_are_as_likely(data):
    """A frame is in the smaller part with probability 0.1: over 200 keys a group of n frames has 20 n there, with a
    standard deviation of at most √(200 · 0.09 n). Four groups and two functions at 5 standard deviations: 5e-6; the
    keys are fixed. Dealing without a random start fails: of the group of 7 one is always taken, 200 and not 140."""
    for function in (split, split_by_group):
        counts = np.zeros(4)
        for seed in range(200):
            counts += np.bincount(function(jax.random.key(seed), data)[1].group, minlength=4)
        sizes = np.array([GROUPS[name] for name in data.group_names])
        assert (np.abs(counts - 20 * sizes) < 5 * np.sqrt(18 * sizes)).all()


def test_leave_group_out(data):
    rest, out = leave_group_out(data, ["surface", "melt"])
    assert (len(rest), len(out)) == (68, 32)
    assert {data.group_names[g] for g in out.group.tolist()} == {"surface", "melt"}
    assert {data.group_names[g] for g in rest.group.tolist()} == {"bulk", "rare"}
    assert len(leave_group_out(data, "rare")[1]) == 7


def test_bad_requests_are_refused(data, key):
    for fractions in ((0.9, 0.2), (1.0, 0.0), (1.2, -0.2), ()):
        with pytest.raises(ValueError, match="fractions must be positive and sum to at most 1"):
            split(key, data, fractions)
        with pytest.raises(ValueError, match="fractions must be positive and sum to at most 1"):
            split_by_group(key, data, fractions)
    for function in (split, split_by_group):
        with pytest.raises(ValueError, match=r"at least one frame. Got \[5, 0\] of 5 frames"):
            function(jax.random.key(0), data[:5], (0.98, 0.02))
    with pytest.raises(ValueError, match=r"among the groups.*'bulk'.*Got \['crystal'\]"):
        leave_group_out(data, "crystal")
    for names in ([], list(GROUPS)):
        with pytest.raises(ValueError, match="Both parts need at least one frame"):
            leave_group_out(data, names)
