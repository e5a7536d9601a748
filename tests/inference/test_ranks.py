"""The band of rank plots: how often chains leave it that agree, and that do not."""

import numpy as np
import pytest

from bayespot.inference.ranks import POINTS, _bound, rank_difference
from tests.inference.chains import chains


def leaves(found) -> bool:
    return bool((np.abs(found.difference) > found.half_width).any())


def test_the_bound_of_a_brownian_bridge():
    """Against 20 000 simulated bridges: the share has a standard error of 0.15 %, and 4 of them are allowed."""
    steps = np.random.default_rng(0).normal(size=(20_000, POINTS)) / np.sqrt(POINTS)
    at = np.arange(1, POINTS) / POINTS
    walk = steps.cumsum(1)
    bridge = walk[:, :-1] - at * walk[:, -1:]
    inside = (np.abs(bridge) / np.sqrt(at * (1 - at)) < _bound(0.95)).all(1).mean()
    assert inside == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_chains_that_agree_keep_to_the_band(memory):
    """At most 5 % leave it (measured 3.5 % and 1 %); of 100 sets of four chains 13 would be 4 standard errors more."""
    samples, values = chains(draws=200, memory=memory, components=100)
    out = sum(leaves(rank_difference(samples, column)) for column in values["energy"].T)
    assert out <= 13


def test_a_shifted_and_a_wider_chain_leave_it():
    """The mean of a chain of 200/3 independent draws is known to 0.12 standard deviations; the shift is 1."""
    samples, values = chains(draws=200, memory=0.5, components=20)
    for column in values["energy"].T:
        moved, wide = column.copy(), column.copy()
        moved[:200] += 1.0
        wide[:200] *= 2.5
        assert leaves(rank_difference(samples, moved))
        assert leaves(rank_difference(samples, wide))


def test_the_effective_number_is_that_within_a_chain():
    """Each of the chains stays in a place of its own: no draw less is independent for that."""
    samples, values = chains(memory=0.6)
    _, moved = chains(memory=0.6, apart=20.0)
    together, apart = (rank_difference(samples, x["energy"][:, 0]) for x in (values, moved))
    assert 60 < together.effective < 140  # 400 (1 − 0.6)/(1 + 0.6) = 100
    assert apart.effective == pytest.approx(together.effective)
    assert np.abs(apart.difference[0]).max() == pytest.approx(0.75)  # the lowest quarter of all draws


def test_what_is_refused():
    samples, values = chains()
    one = values["energy"][:, 0]
    with pytest.raises(ValueError, match=r"one finite number per sample. Got the shape \(1600, 3\)"):
        rank_difference(samples, values["energy"])
    with pytest.raises(ValueError, match="NaN or inf"):
        rank_difference(samples, np.where(one > 2, np.nan, one))
    with pytest.raises(ValueError, match=r"level must be .* Got 95"):
        rank_difference(samples, one, level=95.0)
    with pytest.raises(ValueError, match="at least 2 chains of 8 draws"):
        rank_difference(samples[:400], one[:400])
