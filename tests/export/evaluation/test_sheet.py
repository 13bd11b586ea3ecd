from __future__ import annotations

import numpy as np
import pytest

from edge_infer_export.evaluation import sheet
from edge_infer_export.evaluation.sheet import SIDE, Tile, contact_sheet, overlay, to_rgb

GREEN = np.full((16, 16, 3), (20, 200, 40), np.uint8)


def test_tiles_lie_in_rows_with_their_frames():
    tiles = [Tile(GREEN, ("one", "two"), "#ff0000"), *[Tile(GREEN, ("one",), "#0000ff")] * 6]
    found = np.asarray(contact_sheet(tiles, columns=3))
    one = np.asarray(contact_sheet(tiles[:1], columns=3))
    step = found.shape[1] // 3
    assert found.shape[0] > 2.5 * SIDE
    assert one.shape[1] < 1.2 * SIDE
    gap = (one.shape[1] - SIDE) // 2
    assert found[gap - 2, gap].tolist() == [255, 0, 0]
    assert found[gap - 2, gap + step].tolist() == [0, 0, 255]
    assert found[gap + SIDE // 2, gap + SIDE // 2].tolist() == [20, 200, 40]
    # Two of the third row's places stay empty.
    assert (found[-3 * SIDE // 4 :, -SIDE:] == 255).all()
    assert (found[-3 * SIDE // 4 :, :SIDE] != 255).any()


def test_words_never_leave_their_tile():
    long = Tile(GREEN, ("no_visible_damage_whatsoever 100%", "/a/very/long/path/" + "x" * 200), "#ff0000")
    alone = np.asarray(contact_sheet([long]))
    both = np.asarray(contact_sheet([long, Tile(GREEN, ("",), "#ff0000")]))
    width = alone.shape[1]
    # What is right of the first tile is the same as without its words.
    words = slice(SIDE + 24, None)
    assert (both[words, width - 2 :] == 255).all()
    assert (alone[words] < 200).any()


@pytest.mark.parametrize("width", [5, 40, 90])
def test_texts_are_shortened_in_the_middle(width):
    font = sheet._font(bold=False)
    short = sheet._fitted("000000123.png", font, width)
    assert font.getlength(short) <= max(width, font.getlength("…"))
    assert short.endswith(("…", "g"))
    assert sheet._fitted("000000123.png", font, 1000) == "000000123.png"


def test_bands_are_shown_as_colours():
    chips = np.arange(4 * 4 * 4 * 4, dtype=np.uint8).reshape(4, 4, 4, 4)
    named = to_rgb(chips, ("nir", "blue", "green", "red"))
    np.testing.assert_array_equal(named, chips[..., [3, 2, 1]])
    np.testing.assert_array_equal(to_rgb(chips, ("a", "b", "c", "d")), chips[..., :3])
    np.testing.assert_array_equal(to_rgb(chips[..., :1], ("grey",)), chips[..., [0, 0, 0]])
    np.testing.assert_array_equal(to_rgb(chips[..., :2], ("grey", "other")), chips[..., [0, 0, 0]])


def test_overlay_leaves_cold_parts_alone():
    picture = np.full((4, 4, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    found = overlay(picture, heat)
    assert (found[1:] == 100).all()
    assert (found[0, 0] != 100).any()
