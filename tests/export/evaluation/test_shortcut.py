from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from edge_infer.errors import Refused
from edge_infer_export.evaluation.shortcut import JPEG_QUALITY, Probe, compare, features, fit_probe


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_features_are_band_statistics_and_jpeg_bytes(make_chips, bands):
    chips = make_chips(count=4, bands=bands)
    found = features(chips)
    assert found.shape == (4, 2 * bands + 1)
    for chip, row in zip(chips, found, strict=True):
        np.testing.assert_allclose(row[:bands], [chip[..., band].mean() for band in range(bands)])
        np.testing.assert_allclose(row[bands:-1], [chip[..., band].std() for band in range(bands)])
        stream = io.BytesIO()
        flat = chip if bands == 3 else np.concatenate([chip[..., band] for band in range(bands)], axis=1)
        Image.fromarray(flat).save(stream, "JPEG", quality=JPEG_QUALITY)
        assert row[-1] == pytest.approx(math.log(len(stream.getvalue())))


def test_no_chips_have_no_features(make_chips):
    assert features(make_chips(count=4)[:0]).shape == (0, 7)


def test_sharpness_alone_is_seen(make_chips):
    """The mistake that the probe is for: two classes that differ by their compression only."""
    sharp = make_chips(count=40)
    blurred = np.repeat(np.repeat(sharp[:, ::4, ::4], 4, axis=1), 4, axis=2)
    described = features(np.concatenate([sharp, blurred]))
    targets = np.repeat([0, 1], 40)
    assert (fit_probe(described, targets, 2).predict(described) == targets).mean() > 0.95


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_is_scikit_learns(classes):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, classes, 200)
    described = rng.normal(size=(200, 5)) * 10 + 3 * targets[:, None]
    probe = fit_probe(described, targets, classes)
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    scaled = (described - described.mean(axis=0)) / described.std(axis=0)
    np.testing.assert_array_equal(probe.predict(described), model.fit(scaled, targets).predict(scaled))
    again = Probe.from_json(json.loads(json.dumps(probe.to_json())))
    np.testing.assert_array_equal(again.predict(described), probe.predict(described))


def test_probe_needs_every_class():
    with pytest.raises(Refused, match="every class"):
        fit_probe(np.zeros((4, 3)), np.zeros(4, np.int64), 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [[1.0, 2.0]]},
        {"weights": 5},
        {"scale": [1.0, 0.0]},
        {"scale": [1.0]},
        {"bias": ["a", "b"]},
        {"centre": None},
        {"centre": [float("inf"), 0.0]},
    ],
)
def test_a_malformed_probe(changes):
    values = {
        "centre": [0.0, 0.0],
        "scale": [1.0, 1.0],
        "weights": [[1.0, 2.0], [2.0, 1.0]],
        "bias": [0.0, 0.0],
    }
    assert Probe.from_json(values).weights.shape == (2, 2)
    with pytest.raises(Refused, match="shortcut probe"):
        Probe.from_json({**values, **changes})


def judged(share_model: float, share_probe: float, count: int = 600):
    """Targets, and predictions of model and probe that are right so often, in blocks of three."""
    rng = np.random.default_rng(4)
    targets = rng.integers(0, 2, count)
    sides = [
        np.where(rng.random(count) < share, targets, 1 - targets) for share in (share_model, share_probe)
    ]
    return targets, *sides, np.arange(count) // 3


@pytest.mark.parametrize(
    ("model", "probe", "verdict"),
    [
        (0.95, 0.55, "far"),
        (0.97, 0.80, "partial"),
        (0.90, 0.88, "close"),
        (0.60, 0.90, "close"),
        (0.5, 0.5, "close"),
    ],
)
def test_verdicts(model, probe, verdict):
    targets, called, probed, blocks = judged(model, probe)
    found = compare(targets, called, probed, blocks, ("a", "b"), seed=0)
    assert found.model.low is not None
    assert found.model.value is not None
    assert found.model.high is not None
    assert found.probe.value is not None
    assert found.verdict == verdict
    assert found.model.low < found.model.value < found.model.high
    assert found.lead.value == pytest.approx(found.model.value - found.probe.value)
    assert f"{found.probe.value:.1%}" in found.words
    assert json.loads(json.dumps(found.to_json()))["verdict"] == verdict


def test_mean_recall_counts_classes_alike():
    targets = np.array([0] * 90 + [1] * 10)
    always_first = np.zeros(100, np.int64)
    found = compare(targets, targets, always_first, np.arange(100), ("a", "b"), seed=0)
    assert found.probe.value == pytest.approx(0.5)
    assert found.model.value == 1


def test_one_block_has_no_interval_and_never_the_best_verdict():
    targets = np.array([0, 1] * 20)
    found = compare(targets, targets, 1 - targets, np.zeros(40, np.int64), ("a", "b"), seed=0)
    assert found.lead.low is None
    assert found.verdict == "partial"
    assert "0% of what the model gains over guessing" in found.words
    assert "for its lead there is no interval" in found.words
    same = compare(targets, targets, targets, np.zeros(40, np.int64), ("a", "b"), seed=0)
    assert same.verdict == "close"
    assert "its lead is +0.0 points, there is no interval" in same.words


def test_words_claim_no_more_than_the_figures():
    """A probe at 70 % tells the classes apart quite often."""
    targets, called, probed, blocks = judged(0.96, 0.70)
    found = compare(targets, called, probed, blocks, ("a", "b"), seed=0)
    assert found.verdict == "far"
    assert "% of what the model gains over guessing can be had without looking" in found.words
    assert "cannot be told apart" not in found.words


def test_a_class_without_chips_is_left_out():
    targets = np.zeros(20, np.int64)
    found = compare(targets, targets, targets, np.arange(20), ("a", "b"), seed=0)
    assert found.model.value == 1
    assert found.verdict == "close"


def test_real_chips_whose_classes_are_of_different_days(shared_data):
    """Before and after a hurricane: the day alone tells the classes apart on places not seen before."""
    with (shared_data / "hurricane" / "index.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["class"] in {"damage", "no_damage"}][::5]
    chips = np.stack([np.asarray(Image.open(shared_data / "hurricane" / row["path"])) for row in rows])
    targets = np.array([int(row["class"] == "damage") for row in rows])
    _, blocks = np.unique([row["block_0.05deg"] for row in rows], return_inverse=True)
    held_out = blocks % 3 == 0
    described = features(chips)
    probe = fit_probe(described[~held_out], targets[~held_out], 2)
    perfect = targets[held_out]
    found = compare(
        perfect, perfect, probe.predict(described[held_out]), blocks[held_out], ("no", "yes"), seed=0
    )
    assert found.probe.value is not None
    assert found.probe.value > 0.8
    # Even a model without a mistake would be told of.
    assert found.verdict != "far"
