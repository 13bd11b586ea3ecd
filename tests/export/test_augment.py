from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_infer_export.augment import LIGHT, SHIFT, TINT, augment, relight, shift, turn


@pytest.fixture
def chips():
    return torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (40, 3, 12, 12)).astype(np.float32))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_chip_is_one_of_its_eight_views_and_all_come(chips):
    seen = set()
    for chip, turned in zip(chips.numpy(), turn(chips, generator()).numpy(), strict=True):
        views = [np.rot90(side, k, axes=(1, 2)) for side in (chip, chip[:, :, ::-1]) for k in range(4)]
        matches = [k for k, view in enumerate(views) if np.array_equal(view, turned)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(8))


def test_a_shift_repeats_the_border(chips):
    reach = round(12 * SHIFT)
    padded = np.pad(chips.numpy(), ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    for place, moved in enumerate(shift(chips, generator()).numpy()):
        views = [
            padded[place, :, y : y + 12, x : x + 12]
            for y in range(2 * reach + 1)
            for x in range(2 * reach + 1)
        ]
        assert sum(np.array_equal(view, moved) for view in views) == 1


def test_light_changes_no_shapes_and_stays_within_bounds(chips):
    lit = relight(chips, generator())
    for before, after in zip(chips.reshape(120, -1).numpy(), lit.reshape(120, -1).numpy(), strict=True):
        assert np.corrcoef(before, after)[0, 1] > 0.9999
        assert 1 - LIGHT - 1e-3 < after.std() / before.std() < 1 + LIGHT + 1e-3
        assert (
            (1 - LIGHT) * (1 - TINT) - 1e-3 < after.mean() / before.mean() < (1 + LIGHT) * (1 + TINT) + 1e-3
        )


def test_the_generator_decides(chips):
    torch.testing.assert_close(augment(chips, generator(5)), augment(chips, generator(5)), rtol=0, atol=0)
    assert not torch.equal(augment(chips, generator(5)), augment(chips, generator(6)))
    untouched = chips.clone()
    augment(chips, generator())
    assert torch.equal(chips, untouched)
