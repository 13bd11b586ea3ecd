from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_infer_export.training.lrfinder import draw_curve, judge_curve, middle_of_valley

RATES = np.geomspace(1e-6, 1.0, 80)
FALL = 1 / (1 + np.exp(2.5 * (np.log10(RATES) + 3)))
"""A loss that falls about 1e-3, fastest there."""
RUNAWAY = np.maximum(np.log10(RATES) + 1, 0) ** 2 * 3


def test_the_valley_lies_on_the_falling_side_and_the_steepest_where_it_falls_fastest():
    losses = 0.2 + FALL + RUNAWAY
    curve = judge_curve(RATES.tolist(), losses.tolist())
    assert curve.steepest == pytest.approx(1e-3, rel=0.2)
    bottom = RATES[losses.argmin()]
    assert 1e-5 < curve.valley < bottom
    assert np.interp(curve.valley, RATES, losses) < losses[0]


def test_one_noisy_drop_moves_the_steepest_but_hardly_the_valley():
    losses = 0.2 + FALL + RUNAWAY
    noisy = losses.copy()
    noisy[20] -= 0.3
    before, after = (judge_curve(RATES.tolist(), part.tolist()) for part in (losses, noisy))
    assert after.steepest < before.steepest / 10
    assert 0.5 < after.valley / before.valley < 2


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_the_valley_is_the_middle_of_a_longest_falling_subsequence(losses):
    middle = middle_of_valley(losses)

    def longest(values):
        """By patience sorting, another method than the module's."""
        piles: list[int] = []
        for value in values:
            place = next((k for k, top in enumerate(piles) if top <= value), len(piles))
            piles[place : place + 1] = [value]
        return len(piles)

    left = longest([v for v in losses[:middle] if v > losses[middle]])
    right = longest([v for v in losses[middle + 1 :] if v < losses[middle]])
    assert left + 1 + right == longest(losses)
    assert left - right in (0, -1, 1)


def test_the_curve_is_drawn(tmp_path):
    curve = judge_curve(RATES.tolist(), (0.2 + FALL + RUNAWAY).tolist())
    draw_curve(tmp_path / "c.png", curve, curve.valley)
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(100_000) or []) > 20
