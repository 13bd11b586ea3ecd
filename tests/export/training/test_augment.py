from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edge_infer.errors import Refused
from edge_infer_export.training.augment import (
    Augmentation,
    augment,
    blur,
    coarsen,
    compress,
    relight,
    rotate,
    sharpen,
    shift,
    turn,
)

HOW = Augmentation()


def all_shares(value: float) -> dict[str, Any]:
    """Every change of a chip happens always, or never."""
    return {field.name: value for field in fields(Augmentation) if field.name.endswith("_share")}


@pytest.fixture
def chips():
    """Smooth shapes with some grain, uint8 (40, 24, 24, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (40, 4, 4, 3), np.uint8)
    chips = np.stack([np.asarray(Image.fromarray(chip).resize((24, 24))) for chip in coarse])
    return np.clip(chips + rng.normal(0, 6, chips.shape), 0, 255).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_chip_is_one_of_its_eight_views_and_all_come(chips):
    source = rng()
    seen = set()
    for chip in chips:
        turned = turn(chip, source)
        views = [np.rot90(side, k) for side in (chip, chip[:, ::-1]) for k in range(4)]
        matches = [k for k, view in enumerate(views) if np.array_equal(view, turned)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(8))


def test_a_shift_repeats_the_border_and_reaches_as_far_as_it_may(chips):
    source, reach, moves = rng(), 2, set()
    for chip in chips:
        padded = np.pad(chip, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
        moved = shift(chip, source, reach / 24)
        found = [
            (y, x)
            for y in range(2 * reach + 1)
            for x in range(2 * reach + 1)
            if np.array_equal(padded[y : y + 24, x : x + 24], moved)
        ]
        assert len(found) == 1
        moves.update(found)
    assert len(moves) > 15
    assert np.array_equal(shift(chips[0], source, 0.0), chips[0])


def test_a_rotation_is_that_of_pillow_about_the_centre(chips):
    class Fixed:
        """Thirty degrees, no zoom, no shift."""

        def uniform(self, low, high, size=None):
            return np.zeros(size) if size else np.radians(30) if high > 1 else 0.0

    fixed: Any = Fixed()
    turned = rotate(chips[0], fixed, replace(HOW, shift=0.0, zoom=0.0))
    expected = np.asarray(Image.fromarray(chips[0]).rotate(30, Image.Resampling.BILINEAR))
    # Within the circle that no corner reaches, nothing came in from outside.
    y, x = np.mgrid[:24, :24] - 11.5
    inside = np.hypot(x, y) < 10.5
    np.testing.assert_allclose(turned[inside].astype(int), expected[inside], atol=1)


def test_a_rotation_leaves_no_black_corner(chips):
    light = np.maximum(chips, 40)
    for chip in light:
        assert rotate(chip, rng(3), HOW).min() >= 39


def test_light_changes_no_shapes_and_stays_within_bounds(chips):
    source = rng()
    for chip in chips:
        lit = relight(chip, source, replace(HOW, light=0.2, tint=0.05)).astype(float)
        for band in range(3):
            before, after = chip[..., band].astype(float), lit[..., band]
            assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.995
            assert 0.75 < after.std() / before.std() < 1.25
            assert 0.8 * 0.95 - 0.01 < after.mean() / before.mean() < 1.2 * 1.05 + 0.01


def detail(chip):
    """Mean difference of neighbouring pixels."""
    return np.abs(np.diff(chip.astype(float), axis=1)).mean()


def test_resolution_sharpness_and_compression_change_detail_and_little_else(chips):
    for chip in chips:
        for worse in (coarsen(chip, 2.0), blur(chip, 1.0)):
            assert detail(worse) < 0.8 * detail(chip)
            assert worse.mean() == pytest.approx(chip.mean(), abs=1.0)
        assert detail(sharpen(chip, 1.0)) > 1.1 * detail(chip)
    assert np.array_equal(coarsen(chips[0], 1.0), chips[0])


def test_filters_and_jpeg_are_pillows_own(chips):
    picture = Image.fromarray(chips[0])
    assert np.array_equal(blur(chips[0], 0.7), np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7))))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=35)
    assert np.array_equal(compress(chips[0], 35), np.asarray(Image.open(stream)))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5])
def test_chips_of_any_number_of_bands_keep_their_shape(bands):
    chip = np.full((16, 16, bands), 100, np.uint8) + 10 * np.arange(bands, dtype=np.uint8)
    everything = replace(HOW, light=0.0, tint=0.0, **all_shares(1.0))
    for seed in range(5):
        out = augment(chip, rng(seed), everything)
        assert out.shape == chip.shape
        assert out.dtype == np.uint8
        if bands != 3:  # bands don't mix: JPEG of a colour picture turns them into luma and chroma
            np.testing.assert_allclose(out.mean(axis=(0, 1)), chip[0, 0], atol=2)


def test_the_generator_decides_and_the_chip_is_left_alone(chips):
    untouched = chips[0].copy()
    views = [augment(chips[0], rng(seed), HOW) for seed in (5, 5, 6)]
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])
    assert np.array_equal(chips[0], untouched)


def test_nothing_happens_where_nothing_may(chips):
    still = Augmentation(light=0, tint=0, shift=0, zoom=0, **all_shares(0.0))
    assert np.array_equal(np.sort(augment(chips[0], rng(), still), axis=None), np.sort(chips[0], axis=None))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"light": 1.5}, "light"),
        ({"jpeg_share": -0.1}, "jpeg_share"),
        ({"shift": 0.5}, "shift"),
        ({"coarser": 0.5}, "coarser"),
        ({"jpeg_quality": (90, 40)}, "JPEG quality"),
    ],
)
def test_augmentations_that_leave_no_chip_are_refused(changes, named):
    with pytest.raises(Refused, match=named):
        Augmentation(**changes)
