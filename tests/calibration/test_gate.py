"""The gate's figures, against plain counts on the same probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.errors import Refused
from edge_infer_calibration.gate import Limits, judge
from edge_infer_export.evaluation.scores import calibration_error

CLASSES = ("a", "b", "c")


def probabilities_of(labels: np.ndarray, confidence: float = 0.8) -> np.ndarray:
    rest = (1 - confidence) / 2
    found = np.full((len(labels), 3), rest, np.float32)
    found[np.arange(len(labels)), labels] = confidence
    return found


def test_equal_outputs_pass_with_intervals_that_admit_what_could_be_missed() -> None:
    truth = np.arange(300) % 3
    same = probabilities_of(truth)
    verdict = judge(same, same, truth, CLASSES, limits=Limits())
    assert verdict.passed
    assert verdict.figures["agreement"] == 1
    change = verdict.figures["per_class"]["a"]["recall_change"]
    assert change["value"] == 0
    assert change["low"] == -change["high"]
    # Rule of three: none of 100 leaves up to about 3.7 % open (Wilson).
    assert change["high"] == pytest.approx(0.037, abs=0.001)


def test_a_class_that_loses_recall_fails_even_where_agreement_is_high() -> None:
    truth = np.array([0] * 2000 + [1] * 100)
    in_float = probabilities_of(truth)
    labels = truth.copy()
    labels[2000:2020] = 0  # a fifth of the rare class, one per cent of all
    verdict = judge(in_float, probabilities_of(labels), truth, CLASSES, limits=Limits())
    assert verdict.figures["agreement"] > 0.99
    assert not verdict.passed
    assert verdict.reasons[0].startswith("recall of b falls by 20.0 points")
    change = verdict.figures["per_class"]["b"]["recall_change"]
    assert change["low"] < -0.2 < change["high"] < -0.1
    assert verdict.figures["per_class"]["c"]["recall_change"]["value"] is None
    assert len(verdict.flips) == 20
    assert "points at worst (b)" in verdict.describe()


def test_little_agreement_fails() -> None:
    truth = np.arange(300) % 3
    labels = truth.copy()
    labels[:6] = (labels[:6] + 1) % 3
    verdict = judge(probabilities_of(truth), probabilities_of(labels), truth, CLASSES, limits=Limits())
    assert verdict.reasons == ("INT8 and FP32 name the same class for 98.00% of 300 chips, wanted 99.00%",)


def test_without_labels_float_is_the_truth() -> None:
    truth = np.arange(300) % 3
    in_float = probabilities_of(truth)
    labels = truth.copy()
    labels[[0, 3]] = 1
    verdict = judge(in_float, probabilities_of(labels), None, CLASSES, limits=Limits())
    assert verdict.figures["truth"] == "fp32"
    assert verdict.figures["per_class"]["a"]["recall_change"]["value"] == pytest.approx(-0.02)


def test_the_largest_shift_comes_first() -> None:
    truth = np.zeros(100, np.int64)
    in_float, in_int8 = probabilities_of(truth), probabilities_of(truth)
    in_int8[7], in_int8[30] = (0.3, 0.4, 0.3), (0.05, 0.9, 0.05)
    verdict = judge(in_float, in_int8, truth, CLASSES, limits=Limits(agreement=0.5))
    assert verdict.flips.tolist() == [30, 7]
    assert verdict.figures["largest_probability_shift"] == pytest.approx(0.8)


def test_chips_of_one_block_widen_the_interval() -> None:
    truth = np.zeros(400, np.int64)
    labels = truth.copy()
    labels[:40] = 1
    pair = probabilities_of(truth), probabilities_of(labels)
    limits = Limits(agreement=0)
    alone = judge(*pair, truth, CLASSES, limits=limits).figures["per_class"]["a"]["recall_change"]
    blocks = np.arange(400) // 40  # all that is lost lies in one block
    together = judge(*pair, truth, CLASSES, limits=limits, blocks=blocks)
    change = together.figures["per_class"]["a"]["recall_change"]
    assert change["value"] == alone["value"] == pytest.approx(-0.1)
    assert change["high"] - change["low"] > 2 * (alone["high"] - alone["low"])
    assert change["high"] == 0
    assert together.passed  # one bad block of ten is no proof that the class suffers everywhere


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_changes_are_differences_of_the_two_models_figures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 120)
    pair = (
        rng.dirichlet((1, 1, 1), 120).astype(np.float32),
        rng.dirichlet((1, 1, 1), 120).astype(np.float32),
    )
    figures = judge(*pair, truth, CLASSES, limits=Limits()).figures

    def share(p: np.ndarray, k: int, *, recall: bool) -> float:
        labels = p.argmax(axis=1)
        among = truth == k if recall else labels == k
        return float((labels[among] == truth[among]).mean()) if among.any() else np.nan

    for k, name in enumerate(CLASSES):
        for which in ("recall", "precision"):
            before, after = (share(p, k, recall=which == "recall") for p in pair)
            found = figures["per_class"][name][f"{which}_change"]
            assert found["value"] == pytest.approx(after - before)
            assert found["low"] <= found["value"] <= found["high"]
    errors = [calibration_error(p.astype(np.float64), truth) or 0.0 for p in pair]
    change = figures["calibration_error_change"]
    assert change["value"] == pytest.approx(errors[1] - errors[0], abs=1e-6)
    assert figures["agreement"] == pytest.approx((pair[0].argmax(1) == pair[1].argmax(1)).mean())


@pytest.mark.parametrize("wrong", [{"agreement": 1.5}, {"recall_fall": -0.1}])
def test_limits_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(Refused, match="shares between 0 and 1"):
        Limits(**wrong)
