from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.split import Split, SplitOptions, split_chips
from edge_infer_export.evaluation.judge import WINDOWS_A_BLOCK, evaluate_training, gather
from edge_infer_export.evaluation.scores import fit_temperature

CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=1
)
LABELS = ["bright", "dark"] * 60


@pytest.fixture
def chips(write_chips):
    """Chips in a row; the bright ones are brighter on the whole, so that the probe needs no eyes."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 120, (120, 16, 16, 3)).astype(np.uint8)
    pixels[::2] += 100
    return read_chips([write_chips(pixels, LABELS, CONTRACT)])


def logits_of(chips, rows, share=0.9):
    rng = np.random.default_rng(2)
    called = np.where(rng.random(len(rows)) < share, chips.targets[rows], 1 - chips.targets[rows])
    return (3 * np.eye(2)[called] + rng.normal(0, 0.3, (len(rows), 2))).astype(np.float32)


def judge(chips, split, share=0.9):
    return evaluate_training(
        chips,
        split,
        model="row",
        validation_logits=logits_of(chips, split.validation, share),
        test_logits=logits_of(chips, split.test, share),
    )


def words(evaluation, level):
    return " ".join(finding.words for finding in evaluation.findings if finding.level == level)


def test_test_side_is_judged_and_validation_side_fitted(chips):
    split = split_chips(chips, SplitOptions(test_share=0.3))
    found = judge(chips, split)
    assert found.side == "test"
    np.testing.assert_array_equal(found.judged.rows, split.test)
    targets = chips.targets[split.validation]
    assert found.temperature == fit_temperature(logits_of(chips, split.validation), targets)
    assert found.split["kind"] == "place"


def test_without_a_test_side_validation_is_judged_and_it_is_said(chips):
    split = split_chips(chips, SplitOptions())
    found = judge(chips, split)
    assert found.side == "validation"
    np.testing.assert_array_equal(found.judged.rows, split.validation)
    assert "no test side" in words(found, "caution")


def test_probe_that_needs_no_eyes_raises_the_alarm(chips):
    found = judge(chips, split_chips(chips, SplitOptions(test_share=0.3)))
    assert found.shortcut.probe.value == 1
    assert found.shortcut.verdict == "close"
    assert "brightness, colour and sharpness alone reach a mean recall of 100.0%" in words(found, "alarm")
    assert found.to_json()["shortcut"]["fitted"]["weights"]


def test_random_split_raises_the_alarm(chips):
    found = judge(chips, split_chips(chips, SplitOptions(test_share=0.3, random=True)))
    assert "parted at random" in words(found, "alarm")


def test_an_event_that_was_trained_on_is_noted(chips):
    by_place = judge(chips, split_chips(chips, SplitOptions(test_share=0.3)))
    assert "of an event that was trained on" in words(by_place, "note")
    unnamed = replace(chips, event=np.full(len(chips), "", object))
    assert "of no event that was named" in words(judge(unnamed, split_chips(unnamed, SplitOptions())), "note")
    fire, flood = (np.flatnonzero(chips.event == name) for name in ("fire", "flood"))
    both = replace(chips, targets=np.arange(120) // 2 % 2)  # each event has both classes
    other_event = Split(
        training=fire[:40],
        validation=fire[40:],
        test=flood,
        dropped=np.empty(0, np.int64),
        kind="event",
        block_metres=0,
        words="",
    )
    assert "event" not in words(judge(both, other_event), "note")


def test_unreadable_chips_are_told_of(chips):
    hurt = replace(chips, unreadable=(("chips/1.png", "cut off"),))
    assert "1 of 121 chips are left out" in words(judge(hurt, split_chips(hurt, SplitOptions())), "caution")


def test_few_chips_to_fit_on_are_told_of(chips):
    split = split_chips(chips, SplitOptions())
    counts = chips.counts(split.validation)
    least = min(counts.values())
    assert least < 30
    said = words(judge(chips, split), "caution")
    assert f"fitted on {len(split.validation)} validation chips, {least} of them " in said
    wanted = binomtest(least, least).proportion_ci(0.95, "wilson").low
    assert f"the true share might still be {wanted:.0%}" in said
    half = Split(
        training=np.arange(40),
        validation=np.arange(40, 120),
        test=np.empty(0, np.int64),
        dropped=np.empty(0, np.int64),
        kind="place",
        block_metres=0,
        words="",
    )
    assert "fitted on" not in words(judge(chips, half), "caution")


def test_chips_without_a_place_are_told_of(chips):
    nowhere = replace(chips, longitude=np.full(120, np.nan))
    found = judge(nowhere, split_chips(nowhere, SplitOptions(random=True)))
    count = len(found.judged.rows)
    assert f"{count} of {count} chips have no place on the ground" in words(found, "caution")


def test_blocks_are_of_ground(chips):
    rows = np.arange(120)
    found = gather(chips, rows, np.zeros((120, 2)))
    # Chips stand 1e-4 degrees of longitude apart at 52 degrees north: 6.85 m.
    east = 6.846 * rows
    for one in range(0, 120, 7):
        apart = np.abs(east - east[one])
        assert not (found.blocks == found.blocks[one])[apart > WINDOWS_A_BLOCK * 20 + 1].any()
    assert 120 * 6.846 / 80 <= found.blocks.max() + 1 <= 120 * 6.846 / 80 + 2


def test_chips_without_a_place_are_blocks_of_their_own(chips):
    longitude = chips.longitude.copy()
    longitude[10:20] = np.nan
    found = gather(replace(chips, longitude=longitude), np.arange(5, 25), np.zeros((20, 2)))
    inside = found.blocks[5:15]
    assert len(set(inside.tolist())) == 10
    assert not set(inside.tolist()) & set(found.blocks[:5].tolist() + found.blocks[15:].tolist())
    nowhere = replace(chips, longitude=np.full(120, np.nan))
    assert len(set(gather(nowhere, np.arange(120), np.zeros((120, 2))).blocks.tolist())) == 120


def test_a_class_that_was_not_trained_on_leaves_the_probe_out(chips):
    split = Split(
        training=np.flatnonzero(chips.targets == 0)[:20],
        validation=np.arange(60, 90),
        test=np.arange(90, 120),
        dropped=np.empty(0, np.int64),
        kind="place",
        block_metres=0,
        words="",
    )
    assert judge(chips, split).shortcut is None
