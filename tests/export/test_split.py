from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.errors import Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.dataset import Chips
from edge_infer_export.split import split_by_place


def chips_at(places, targets, *, latitude=34.0, ground_metres=32.0, classes=2):
    """Chips at places (east, north), each (n,), in metres off a point."""
    east, north = places
    north_degrees = np.asarray(north) / 111_195
    degrees = latitude + north_degrees
    count = len(degrees)
    return Chips(
        contract=ChipContract(
            ground_metres=ground_metres, chip_pixels=8, bands=("grey",), coarsest_gsd_metres=1
        ),
        classes=tuple("abcdef"[:classes]),
        pixels=np.zeros((count, 8, 8, 1), np.uint8),
        targets=np.asarray(targets, np.int64),
        longitude=-95.0 + np.asarray(east) / 111_195 / math.cos(math.radians(latitude)),
        latitude=degrees,
        ground_metres=np.full(count, ground_metres),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    latitude=st.sampled_from([-77.0, -33.0, 0.0, 34.0, 70.0]),
    share=st.sampled_from([0.1, 0.2, 0.5]),
    classes=st.integers(2, 4),
)
def test_no_ground_is_seen_on_both_sides(seed, latitude, share, classes):
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(0, 3000, (2, 400))
    chips = chips_at((east, north), rng.integers(0, classes, 400), latitude=latitude, classes=classes)
    split = split_by_place(chips, share=share, seed=seed)
    every = np.concatenate([split.training, split.validation, split.dropped])
    assert sorted(every.tolist()) == list(range(400))
    # On the plain that the places were laid out on; the degrees bend it by a few decimetres.
    apart = np.maximum(
        np.abs(east[split.training, None] - east[split.validation]),
        np.abs(north[split.training, None] - north[split.validation]),
    )
    assert apart.min() > 31
    for side in (split.training, split.validation):
        assert set(chips.targets[side].tolist()) == set(range(classes))
    assert 0.3 * share < len(split.validation) / 400 < 1.8 * share
    if share < 0.5:
        assert len(split.training) > len(split.validation)


def test_a_rare_class_is_on_both_sides():
    rng = np.random.default_rng(3)
    east, north = rng.uniform(0, 4000, (2, 1000))
    targets = np.zeros(1000, int)
    targets[:12] = 1
    split = split_by_place(chips_at((east, north), targets), share=0.2, seed=0)
    assert 1 <= (split.validation < 12).sum() <= 5
    assert (split.training < 12).sum() >= 5


def test_the_seed_chooses_the_blocks():
    rng = np.random.default_rng(0)
    chips = chips_at(rng.uniform(0, 3000, (2, 300)), rng.integers(0, 2, 300))
    one, same, other = (split_by_place(chips, share=0.2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.validation, same.validation)
    assert set(one.validation) != set(other.validation)


def test_blocks_shrink_where_the_ground_is_small():
    rng = np.random.default_rng(0)
    chips = chips_at(rng.uniform(0, 130, (2, 60)), rng.integers(0, 2, 60))
    assert split_by_place(chips, share=0.2, seed=0).block_metres < 8 * 32


@pytest.mark.parametrize("count", [2, 40])
def test_chips_on_one_spot_cannot_be_parted(count):
    chips = chips_at((np.linspace(0, 20, count), np.zeros(count)), np.arange(count) % 2)
    with pytest.raises(Refused, match=rf"{count} chips cannot be parted by place .*windows of 32 m"):
        split_by_place(chips, share=0.2, seed=0)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, math.nan])
def test_the_share_must_leave_something_to_train_on(share):
    with pytest.raises(Refused, match="validation share"):
        split_by_place(chips_at(([0], [0]), [0]), share=share, seed=0)
