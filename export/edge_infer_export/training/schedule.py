"""The one-cycle schedule: the rate climbs to its peak and falls to almost nothing, momentum the other way.

After Smith, https://arxiv.org/abs/1803.09820, with the shape, shares and factors that PyTorch's `OneCycleLR`
has by default. It is a function of the step alone, so that a resumed training needs no schedule's state.
"""

from __future__ import annotations

import math

WARM_UP = 0.3
"""Share of the steps in which the rate climbs."""
START = 1 / 25
"""First rate, in parts of the peak."""
END = START / 10_000
"""Last rate, in parts of the peak."""
MOMENTUM = (0.95, 0.85)
"""Momentum at either end, and at the peak."""


def one_cycle(step: int, steps: int) -> tuple[float, float]:
    """Give rate (in parts of the peak) and momentum of a step, 0..steps - 1."""
    peak = max(WARM_UP * steps - 1, 0.0)
    if step <= peak:
        share = _half_wave(step / peak if peak else 1.0)
        return START + (1 - START) * share, MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * share
    share = _half_wave((step - peak) / (steps - 1 - peak))
    return 1 + (END - 1) * share, MOMENTUM[1] + (MOMENTUM[0] - MOMENTUM[1]) * share


def _half_wave(share: float) -> float:
    """Go from 0 to 1 along half a cosine."""
    return (1 - math.cos(math.pi * share)) / 2
