from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from edge_infer_export.evaluation.scores import (
    calibration_error,
    calibration_figures,
    confusion_matrix,
    fit_temperature,
    reliability,
    softmax,
)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_confusion_matrix_counts_pairs(pairs):
    targets, predictions = np.array(pairs, np.int64).reshape(-1, 2).T
    matrix = confusion_matrix(targets, predictions, 3)
    assert all(matrix[t, p] == pairs.count((t, p)) for t in range(3) for p in range(3))


def test_calibration_error_is_the_gap_to_accuracy():
    sure = np.tile([0.95, 0.05], (100, 1))
    targets = np.zeros(100, np.int64)
    targets[:20] = 1
    assert calibration_error(sure, targets) == pytest.approx(0.95 - 0.80)
    honest = np.tile([0.8, 0.2], (100, 1))
    assert calibration_error(honest, targets) == pytest.approx(0, abs=1e-12)


@pytest.fixture
def drawn():
    """Probabilities (n, 3), and targets drawn by flatter ones."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (800, 3))
    return softmax(logits), (logits / 2 + rng.gumbel(size=logits.shape)).argmax(axis=1)


def test_reliability_is_that_of_scikit_learn(drawn):
    probabilities, targets = drawn
    found = reliability(probabilities, targets)
    right = probabilities.argmax(axis=1) == targets
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    held = found.chips > 0
    np.testing.assert_allclose(found.accuracy[held], accuracy)
    np.testing.assert_allclose(found.confidence[held], confidence)
    assert np.isnan(found.accuracy[~held]).all()
    assert found.chips.sum() == 800
    gaps = np.abs(accuracy - confidence) * found.chips[held]
    assert found.calibration_error == pytest.approx(gaps.sum() / 800)
    assert (found.calibration_error or 0) > 0.1


def test_calibration_figures_are_those_of_scikit_learn(drawn):
    probabilities, targets = drawn
    found = calibration_figures(probabilities, targets)
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(targets, probabilities))
    # Summed over a chip's classes, each against the rest.
    brier = sum(brier_score_loss(targets == k, probabilities[:, k]) for k in range(3))
    assert found["brier"] == pytest.approx(brier)
    assert found["calibration_error"] == calibration_error(probabilities, targets)
    assert set(calibration_figures(probabilities[:0], targets[:0]).values()) == {None}


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), true_temperature=st.sampled_from([0.5, 1.0, 3.0]), classes=st.integers(2, 5))
def test_temperature_undoes_what_was_done_to_the_logits(seed, true_temperature, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (4000, classes))
    powers = rng.gumbel(size=logits.shape)
    targets = (logits + powers).argmax(axis=1)  # drawn with the probabilities that the logits say
    assert fit_temperature(logits * true_temperature, targets) == pytest.approx(true_temperature, rel=0.12)


def test_temperature_is_the_best_of_a_grid():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (500, 3))
    targets = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(axis=1)
    grid = np.geomspace(0.1, 10, 400)
    likelihood = [np.log(softmax(logits, t)[np.arange(500), targets]).mean() for t in grid]
    assert fit_temperature(logits, targets) == pytest.approx(grid[int(np.argmax(likelihood))], rel=0.03)


def test_no_errors_do_not_mean_certainty():
    logits = np.array([[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 30)
    targets = np.array([0] * 30 + [1] * 30)
    temperature = fit_temperature(logits, targets)
    assert 0.3 < temperature < 2
    assert softmax(logits, temperature).max() < 0.995
