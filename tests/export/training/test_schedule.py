from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from edge_infer_export.training.schedule import MOMENTUM, START, one_cycle


@pytest.mark.parametrize("steps", [10, 11, 37, 360])
def test_it_is_pytorchs_one_cycle(steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps)
    for step in range(steps):
        rate, momentum = one_cycle(step, steps)
        assert rate == pytest.approx(oracle.get_last_lr()[0], rel=1e-9, abs=1e-12)
        assert momentum == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        if step < steps - 1:
            oracle.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_very_short_trainings_have_rates_too(steps):
    rates = [one_cycle(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate, _ in rates)
    assert all(MOMENTUM[1] <= momentum <= MOMENTUM[0] for _, momentum in rates)
    assert max(rate for rate, _ in rates) > START
