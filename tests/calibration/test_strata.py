"""Draws in which strata take turns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_infer_calibration.strata import draw, in_turn, known_strata, number

STRATA = hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 4))


@given(STRATA, st.integers(0, 2**32 - 1))
def test_turns_are_taken(strata: np.ndarray, seed: int) -> None:
    order = in_turn(strata, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(strata)))
    left = np.bincount(strata)
    taken = np.zeros_like(left)
    for stratum in strata[order]:
        taken[stratum] += 1
        # Nobody is a turn behind who still has a chip.
        assert all(taken[s] >= taken[stratum] - 1 for s in np.flatnonzero(left > taken))


@given(STRATA, st.integers(2, 80), st.integers(0, 2**32 - 1))
def test_a_draw_is_a_set_of_the_size_asked_for(strata: np.ndarray, most: int, seed: int) -> None:
    rows, by_chance = draw(strata, most, np.random.default_rng(seed))
    assert len(rows) == min(most, len(strata)) == len(by_chance)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows.min() <= rows.max() < len(strata)
    assert by_chance.sum() == (len(strata) if len(strata) <= most else most // 2)


def test_what_is_rare_comes_along_and_chance_stays_chance() -> None:
    strata = np.zeros(100_000, np.int64)
    strata[:20] = 1
    shares = []
    for seed in range(20):
        rows, by_chance = draw(strata, 2000, np.random.default_rng(seed))
        assert (strata[rows] == 1).sum() == 20
        shares.append(strata[rows[by_chance]].mean())
    assert np.mean(shares) < 0.001  # 0.0002 among all


def test_strata_are_combinations_of_what_is_known() -> None:
    assert number(np.array(["a", "b", "a", "b"]), np.array([1, 1, 2, 1])).tolist() == [0, 2, 1, 2]
    scene = np.array(["x", "x", "y", "x"], object)
    gsd = np.array([0.3, 0.301, 0.3, 0.5])
    assert known_strata(None, scene, gsd).tolist() == [0, 0, 2, 1]
    assert len(set(known_strata(np.array([0, 1, 0, 0]), scene, gsd).tolist())) == 4
