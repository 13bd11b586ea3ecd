from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from edge_infer.errors import Refused
from edge_infer_export.evaluation.thresholds import (
    FEWEST,
    TARGET,
    Thresholds,
    choose_thresholds,
    reach,
    read_thresholds,
)


def noisy(seed: int, count: int, steps: int):
    """Probabilities (n, 2), rounded so that some are equal, and targets that mostly agree."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    raw = np.clip(0.5 + (targets - 0.5) * rng.uniform(-0.2, 1, count), 0.01, 0.99)
    first = np.round(raw * steps) / steps
    return np.stack([1 - first, first], axis=1), targets


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(2, 120), steps=st.sampled_from([5, 40, 10**6]))
def test_thresholds_are_the_best_on_scikit_learns_curve(seed, count, steps):
    probabilities, targets = noisy(seed, count, steps)
    found = choose_thresholds(probabilities, targets, ("a", "b"))["b"]
    if not targets.any():
        assert found == Thresholds(None, None)
        return
    precision, recall, levels = precision_recall_curve(targets, probabilities[:, 1])
    called = np.array([(probabilities[:, 1] >= level).sum() for level in levels])
    precise = levels[(precision[:-1] >= TARGET) & (called >= FEWEST)]
    complete = levels[recall[:-1] >= TARGET]
    for threshold, wanted in (
        (found.high_precision, precise.min() if len(precise) else None),
        (found.high_recall, complete.max()),
    ):
        if wanted is None:
            assert threshold is None
        else:
            np.testing.assert_array_equal(probabilities[:, 1] >= threshold, probabilities[:, 1] >= wanted)
            # Half-way to the next one: rounding in a file changes nothing.
            shown = float(f"{threshold:.9f}")
            np.testing.assert_array_equal(probabilities[:, 1] >= shown, probabilities[:, 1] >= wanted)


def test_what_a_threshold_reaches():
    probability = np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    is_class = np.array([True, True, False, True, False])
    found = reach(0.5, probability, is_class, np.arange(5))
    assert found.called == 3
    assert found.precision.value == pytest.approx(2 / 3)
    assert found.recall.value == pytest.approx(2 / 3)
    assert reach(0.95, probability, is_class, np.arange(5)).precision.value is None


def test_thresholds_survive_json():
    chosen = {"a": Thresholds(0.5, None), "b": Thresholds(None, 0.25)}
    values = json.loads(json.dumps({"thresholds": {name: t.to_json() for name, t in chosen.items()}}))
    assert read_thresholds(values, ("b", "a")) == chosen


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"thresholds": None},
        {"thresholds": {"a": None}},
        {"thresholds": {"a": {"high_precision": 0.5}}},
        {"thresholds": {"a": {"high_precision": 1.5, "high_recall": None}}},
        {"thresholds": {"a": {"high_precision": "much", "high_recall": None}}},
    ],
)
def test_malformed_thresholds(values):
    with pytest.raises(Refused, match="threshold"):
        read_thresholds(values, ("a",))
