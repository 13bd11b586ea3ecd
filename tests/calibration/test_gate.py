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


def test_a_class_without_chips_or_with_few_is_warned_of() -> None:
    truth = np.array([0] * 480 + [1] * 20)
    labels = truth.copy()
    labels[-3:] = 0  # a loss that the interval of 20 chips cannot tell from none
    pair = probabilities_of(truth), probabilities_of(labels)
    verdict = judge(*pair, truth, CLASSES, limits=Limits(), blocks=np.arange(500) // 10)
    assert verdict.passed
    absent, few = verdict.warnings()
    assert absent.startswith("no chip of c was held out")
    assert few.startswith("few chips were held out of b (20 on 2 blocks of ground); with less than 100 on 10")
    alone = judge(*pair, truth, CLASSES, limits=Limits())
    assert "few chips were held out of b (20);" in alone.warnings()[1]
    # Many chips on little ground are few, too.
    truth = np.arange(600) % 3
    same = probabilities_of(truth)
    (little,) = judge(same, same, truth, CLASSES, limits=Limits(), blocks=truth * 7).warnings()
    assert "a (200 on 1 blocks of ground), b (200" in little
    assert judge(same, same, truth, CLASSES, limits=Limits(), blocks=np.arange(600)).warnings() == ()


def test_few_blocks_do_not_excuse_the_loss_of_one() -> None:
    """Drawn from two blocks, one of them lost: the interval would reach from 0 to all."""
    truth = np.array([0] * 3000 + [1] * 20)
    labels = truth.copy()
    labels[3000:3010] = 0
    blocks = np.concatenate([np.arange(3000) // 30, np.repeat([100, 101], 10)])
    verdict = judge(
        probabilities_of(truth), probabilities_of(labels), truth, CLASSES, limits=Limits(), blocks=blocks
    )
    assert [reason[:34] for reason in verdict.reasons] == ["recall of b falls by 50.0 points ("]
    assert verdict.figures["per_class"]["b"]["recall_change"]["high"] < -0.2


def test_numbers_of_blocks_that_hold_no_chip_change_nothing() -> None:
    """The gate's chips are some of many; the others' blocks must not be drawn."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 300)
    before, after = (rng.dirichlet((1, 1, 1), 300).astype(np.float32) for _ in range(2))
    blocks = rng.integers(0, 40, 300)
    dense, sparse = (
        judge(before, after, truth, CLASSES, limits=Limits(), blocks=numbers)
        for numbers in (blocks, blocks * 97 + 5)
    )
    assert dense.figures == sparse.figures


def test_both_models_figures_are_kept() -> None:
    truth = np.array([0] * 100 + [1] * 100)
    labels = truth.copy()
    labels[:10] = 1
    figures = judge(
        probabilities_of(truth), probabilities_of(labels), truth, CLASSES, limits=Limits(), blocks=truth
    ).figures
    entry = figures["per_class"]["a"]
    assert (entry["chips"], entry["blocks"]) == (100, 1)
    assert entry["recall"] == {"fp32": 1.0, "int8": pytest.approx(0.9)}
    assert figures["per_class"]["b"]["precision"] == {"fp32": 1.0, "int8": pytest.approx(100 / 110)}
    assert figures["per_class"]["c"]["recall"] == {"fp32": None, "int8": None}
    assert figures["per_class"]["c"]["blocks"] == 0


def test_looser_limits_say_so() -> None:
    assert Limits().warning() is None
    assert Limits(agreement=0.999, recall_fall=0).warning() is None
    words = Limits(agreement=0.9, recall_fall=0.2).warning()
    assert words is not None
    assert "an agreement of 90.0% is enough (usual 99.0%)" in words
    assert "may lose 20 points of recall (usual 0.5)" in words


@pytest.mark.parametrize("wrong", [{"agreement": 1.5}, {"recall_fall": -0.1}])
def test_limits_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(Refused, match="shares between 0 and 1"):
        Limits(**wrong)
