from __future__ import annotations

import json
import math

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.errors import Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import Chips
from edge_infer_export.chips.split import SplitOptions, split_chips


def chips_at(places, targets, *, latitude=34.0, ground_metres=32.0, classes=2, longitude=-95.0, **columns):
    """Chips at places (east, north), each (n,), in metres off a point."""
    east, north = places
    degrees = latitude + np.asarray(north) / 111_195
    count = len(degrees)
    turned = longitude + np.asarray(east) / 111_195 / math.cos(math.radians(latitude))
    values = {
        "bearing": np.full(count, np.nan),
        "gsd_metres": np.full(count, 0.5),
        "event": np.full(count, "", object),
        "place": np.full(count, "", object),
        "image": np.full(count, "a.tif", object),
        "source_fid": np.arange(count),
        **columns,
    }
    return Chips(
        contract=ChipContract(ground_metres=32.0, chip_pixels=8, bands=("grey",), coarsest_gsd_metres=1),
        classes=tuple("abcdef"[:classes]),
        file=np.array([f"{k}.png" for k in range(count)], object),
        targets=np.asarray(targets, np.int64),
        longitude=(turned + 180) % 360 - 180,
        latitude=degrees,
        ground_metres=np.broadcast_to(np.asarray(ground_metres, np.float64), (count,)).copy(),
        **values,
    )


def meet(chips, one, other, slack):
    """Which chips of `one` have a window that meets one of `other`: every pair, no index."""
    east = np.abs(chips.longitude[one][:, None] - chips.longitude[other])
    east = np.minimum(east, 360 - east)
    north = np.abs(chips.latitude[one][:, None] - chips.latitude[other])
    narrowing = np.cos(np.radians((chips.latitude[one][:, None] + chips.latitude[other]) / 2))
    reach = (chips.ground_metres[one][:, None] + chips.ground_metres[other]) / 2 * slack
    return ((east * 111_195 * narrowing < reach) & (north * 111_195 < reach)).any(axis=1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    latitude=st.sampled_from([-77.0, -16.9, 0.0, 34.0, 70.0]),
    longitude=st.sampled_from([-95.0, 179.99]),
    shares=st.sampled_from([(0.1, 0.0), (0.2, 0.0), (0.2, 0.2), (0.5, 0.0)]),
    classes=st.integers(2, 4),
    largest=st.sampled_from([32.0, 90.0]),
)
def test_no_ground_is_seen_on_two_sides(seed, latitude, longitude, shares, classes, largest):
    rng = np.random.default_rng(seed)
    chips = chips_at(
        rng.uniform(0, 4000, (2, 400)),
        rng.integers(0, classes, 400),
        latitude=latitude,
        longitude=longitude,
        classes=classes,
        ground_metres=rng.uniform(32.0, largest, 400),
    )
    options = SplitOptions(validation_share=shares[0], test_share=shares[1], seed=seed)
    split = split_chips(chips, options)
    sides = (split.training, split.validation, split.test)
    assert sorted(np.concatenate([*sides, split.dropped]).tolist()) == list(range(400))
    judged = np.concatenate([split.validation, split.test])
    assert not meet(chips, split.training, judged, 0.99).any()
    if shares[1]:
        assert not meet(chips, split.validation, split.test, 0.99).any()
    assert meet(chips, split.dropped, judged, 1.01).all()  # and nothing was dropped without need
    for share, side in zip((None, *shares), sides, strict=True):
        if share == 0:
            assert len(side) == 0
            continue
        assert set(chips.targets[side].tolist()) == set(range(classes))
        if share is not None:
            assert 0.3 * share < len(side) / 400 < 1.8 * share
    assert split.kind == "place"
    assert f"{len(split.dropped)} chips were left out" in split.words


def test_a_rare_class_is_on_both_sides():
    rng = np.random.default_rng(3)
    targets = np.zeros(1000, int)
    targets[:12] = 1
    split = split_chips(chips_at(rng.uniform(0, 4000, (2, 1000)), targets), SplitOptions())
    assert 1 <= (split.validation < 12).sum() <= 5
    assert (split.training < 12).sum() >= 5


def test_the_seed_chooses_the_blocks():
    rng = np.random.default_rng(0)
    chips = chips_at(rng.uniform(0, 3000, (2, 300)), rng.integers(0, 2, 300))
    one, same, other = (split_chips(chips, SplitOptions(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.validation, same.validation)
    assert set(one.validation) != set(other.validation)


def test_blocks_come_from_the_windows_and_shrink_where_the_ground_is_small():
    rng = np.random.default_rng(0)
    wide = chips_at(rng.uniform(0, 4000, (2, 400)), rng.integers(0, 2, 400))
    assert split_chips(wide, SplitOptions()).block_metres == 8 * 32
    narrow = chips_at(rng.uniform(0, 130, (2, 60)), rng.integers(0, 2, 60))
    assert split_chips(narrow, SplitOptions()).block_metres < 8 * 32
    metres = np.where(np.arange(400) == 7, 900.0, 32.0)  # one warehouse
    uneven = chips_at(rng.uniform(0, 4000, (2, 400)), rng.integers(0, 2, 400), ground_metres=metres)
    assert split_chips(uneven, SplitOptions()).block_metres == 8 * 32


def test_the_size_of_blocks_may_be_said():
    rng = np.random.default_rng(0)
    chips = chips_at(rng.uniform(0, 4000, (2, 400)), rng.integers(0, 2, 400))
    split = split_chips(chips, SplitOptions(block_metres=500))
    assert split.block_metres == 500
    assert "blocks of ground of 500 m" in split.words
    with pytest.raises(Refused, match="blocks of 50000 m at last"):
        split_chips(chips, SplitOptions(block_metres=50_000))
    for options in ({"block_metres": 0.0}, {"block_metres": math.nan}, {"block_metres": 9, "random": True}):
        with pytest.raises(Refused, match="block"):
            SplitOptions(**options)


@settings(max_examples=25, deadline=None)
@given(turn=st.floats(-180, 180), seed=st.integers(0, 1000))
def test_windows_of_a_turned_image_are_kept_apart(turn, seed):
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(0, 2000, (2, 200))
    sides = rng.uniform(32.0, 60.0, 200)
    chips = chips_at(
        (east, north), np.arange(200) % 2, ground_metres=sides, bearing=np.full(200, turn), latitude=0.0
    )
    split = split_chips(chips, SplitOptions())
    half = sides / 2 * 0.99
    squares = [
        shapely.affinity.rotate(shapely.box(x - h, y - h, x + h, y + h), -turn)
        for x, y, h in zip(east, north, half, strict=True)
    ]
    judged = shapely.union_all([squares[row] for row in split.validation])
    assert not shapely.intersects(judged, [squares[row] for row in split.training]).any()


@pytest.mark.parametrize("count", [2, 40])
def test_chips_on_one_spot_cannot_be_parted(count):
    chips = chips_at((np.linspace(0, 20, count), np.zeros(count)), np.arange(count) % 2)
    with pytest.raises(Refused, match=rf"{count} chips cannot be parted by place .*windows of 32 m"):
        split_chips(chips, SplitOptions())


@pytest.fixture
def two_storms():
    """400 chips, the eastern half of another event, in places of a kilometre each."""
    rng = np.random.default_rng(5)
    east, north = rng.uniform(0, 4000, (2, 400))
    return chips_at(
        (east, north),
        rng.integers(0, 2, 400),
        event=np.where(east < 2000, "first", "second").astype(object),
        place=np.array([f"p{int(e // 1000)}" for e in east], object),
    )


def test_an_event_is_held_out_whole(two_storms):
    split = split_chips(two_storms, SplitOptions(test_events=("second",)))
    np.testing.assert_array_equal(split.test, np.flatnonzero(two_storms.event == "second"))
    assert set(two_storms.event[split.training]) == set(two_storms.event[split.validation]) == {"first"}
    assert not meet(two_storms, np.concatenate([split.training, split.validation]), split.test, 0.99).any()
    assert split.kind == "event"
    assert split.words.startswith("Split by event: test on event second, validation by blocks of ground")
    record = json.loads(json.dumps(split.to_json(two_storms)))
    assert record["kind"] == "event"
    assert sum(record["test"].values()) == len(split.test)


def test_areas_by_name_box_and_file(two_storms, tmp_path):
    named = split_chips(two_storms, SplitOptions(test_areas=("p3",), validation_areas=("p0",)))
    np.testing.assert_array_equal(named.test, np.flatnonzero(two_storms.place == "p3"))
    np.testing.assert_array_equal(named.validation, np.flatnonzero(two_storms.place == "p0"))
    assert named.kind == "area"
    assert named.block_metres == 0
    west, south, east, north = -95.0 + 3000 / 111_195 / math.cos(math.radians(34.0)), 33.9, -94.9, 34.1
    boxed = split_chips(two_storms, SplitOptions(test_areas=(f"{west},{south},{east},{north}",)))
    np.testing.assert_array_equal(boxed.test, named.test)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    drawn = split_chips(two_storms, SplitOptions(test_areas=(str(path),)))
    np.testing.assert_array_equal(drawn.test, named.test)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"test_events": ("third",)}, r"no chip is of the event 'third' \(test\); .*first \(\d+\), second"),
        ({"validation_areas": ("p9",)}, r"no chip is of the place 'p9' \(validation\).*p0 \("),
        ({"test_areas": ("0,0,1,1",)}, r"no chip lies in the area '0,0,1,1' \(test\); they lie in -95\.0"),
        ({"test_areas": ("1,0,0,1",)}, "wanted west,south,east,north"),
        ({"test_events": ("first",), "validation_events": ("second",)}, "the training side has no chip"),
        ({"test_events": ("first",), "test_share": 0.2}, "leave the test share out"),
    ],
)  # fmt: skip
def test_sides_that_cannot_be_are_refused(two_storms, options, text):
    with pytest.raises(Refused, match=text):
        split_chips(two_storms, SplitOptions(**options))


@pytest.mark.parametrize("random", [False, True])
def test_before_and_after_land_on_one_side(random):
    rng = np.random.default_rng(1)
    east, north = np.repeat(rng.uniform(0, 3000, (2, 150)), 2, axis=1)
    chips = chips_at((east, north), np.arange(300) % 2)
    split = split_chips(chips, SplitOptions(random=random, test_share=0.2))
    side = np.full(300, -1)
    for number, rows in enumerate((split.training, split.validation, split.test)):
        side[rows] = number
    np.testing.assert_array_equal(side[::2], side[1::2])
    assert min(len(split.validation), len(split.test)) > 20


def test_chance_is_a_choice_and_says_so():
    rng = np.random.default_rng(0)
    chips = chips_at(rng.uniform(0, 500, (2, 300)), rng.integers(0, 2, 300))
    split = split_chips(chips, SplitOptions(random=True))
    assert split.kind == "random"
    assert split.words.startswith("RANDOM SPLIT")
    assert len(split.dropped) == 0
    assert meet(chips, split.training, split.validation, 0.99).any()
    nowhere = chips_at((np.full(300, np.nan), np.full(300, np.nan)), rng.integers(0, 2, 300))
    with pytest.raises(Refused, match=r"300 of 300 chips have no place on the ground.*--random-split"):
        split_chips(nowhere, SplitOptions())
    assert 45 <= len(split_chips(nowhere, SplitOptions(random=True)).validation) <= 75


@pytest.mark.parametrize(
    "shares",
    [
        {"validation_share": share} for share in (0.0, -0.1, 0.51, math.nan)
    ] + [{"test_share": share} for share in (-0.1, 0.6, math.nan)],
)  # fmt: skip
def test_the_shares_must_leave_something_to_train_on(shares):
    with pytest.raises(Refused, match="share"):
        SplitOptions(**shares)
