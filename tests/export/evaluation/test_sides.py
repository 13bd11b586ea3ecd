from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edge_infer.errors import Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.split import SplitOptions, split_chips
from edge_infer_export.evaluation.sides import SIDES, Sides, chip_keys

CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=1
)


@pytest.fixture
def folder(write_chips, make_chips):
    return write_chips(make_chips(count=120, side=16), ["bright", "dark"] * 60, CONTRACT)


def test_every_chip_is_found_on_its_side(folder):
    chips = read_chips([folder])
    split = split_chips(chips, SplitOptions(test_share=0.3))
    sides = Sides.from_bytes(Sides.of_split(chips, split).to_bytes(), "bundle")
    found = sides.find(chips)
    for number, name in enumerate(SIDES):
        np.testing.assert_array_equal(np.flatnonzero(found == number), getattr(split, name))
    np.testing.assert_array_equal(np.flatnonzero(found < 0), split.dropped)
    assert len(sides.to_bytes()) < 128 + 9 * len(chips)


def test_a_place_that_was_trained_at_counts_as_trained(folder):
    """Before and after the storm: one house, two chips."""
    chips = read_chips([folder])
    split = split_chips(chips, SplitOptions(test_share=0.3))
    there, here = split.test[0], split.training[0]
    moved = {name: getattr(chips, name).copy() for name in ("longitude", "latitude")}
    for values in moved.values():
        values[there] = values[here]
    twice = replace(chips, **moved)
    assert SIDES[Sides.of_split(twice, split).find(twice)[there]] == "training"


def test_chips_without_a_place_are_known_by_their_files(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    one, other = (
        replace(chips, longitude=np.full(len(chips), np.nan))
        for chips in (read_chips([folder]), read_chips([copied]))
    )
    np.testing.assert_array_equal(chip_keys(one), chip_keys(other))
    assert len(set(chip_keys(one).tolist())) == len(one)
    gone = replace(one, file=np.array([str(tmp_path / "gone.png")] * len(one), object))
    with pytest.raises(Refused, match=r"gone\.png cannot be read"):
        chip_keys(gone)


def as_npy(rows):
    stream = io.BytesIO()
    np.save(stream, rows)
    return stream.getvalue()


KIND = [("key", "<u8"), ("side", "u1")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no NumPy array"),
        (as_npy(np.zeros(3)), "holds no sides"),
        (as_npy(np.zeros((2, 2), KIND)), "holds no sides"),
        (as_npy(np.array([(5, 0), (5, 1)], KIND)), "holds no sides"),
        (as_npy(np.array([(5, 0), (6, 3)], KIND)), "names a side that there is not"),
    ],
)
def test_other_files_are_refused(content, words):
    with pytest.raises(Refused, match=words):
        Sides.from_bytes(content, "town.edgemodel")


def test_nothing_is_found_among_no_sides(folder):
    nothing = Sides.from_bytes(as_npy(np.zeros(0, KIND)), "town.edgemodel")
    assert set(nothing.find(read_chips([folder])).tolist()) == {-1}
