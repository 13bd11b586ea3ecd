from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    f1_score,
    log_loss,
    roc_auc_score,
)

from edge_infer.errors import Refused
from edge_infer_export.evaluation.figures import Finding, Judged, evaluate
from edge_infer_export.evaluation.scores import softmax
from edge_infer_export.evaluation.shortcut import compare
from edge_infer_export.evaluation.thresholds import Thresholds

CLASSES = ("burnt", "intact", "unclear")


def judged(targets, logits, *, per_block=1, **columns):
    count = len(targets)
    return Judged(
        **{
            "rows": np.arange(count),
            "targets": np.asarray(targets, np.int64),
            "logits": np.asarray(logits, np.float64),
            "blocks": np.arange(count) // per_block,
            "events": np.full(count, "", object),
            "areas": np.full(count, "", object),
            **columns,
        }
    )


def quick(chips, classes=CLASSES, **options):
    values = {"model": "m", "side": "test", "temperature": 1.0, "thresholds": {}, "split": {}, **options}
    return evaluate(chips, classes, **values)


def test_figures_are_those_of_scikit_learn(evaluation):
    targets, predictions = evaluation.judged.targets, evaluation.predictions
    wanted = classification_report(targets, predictions, target_names=CLASSES, output_dict=True)
    assert evaluation.overall.accuracy.value == pytest.approx(wanted["accuracy"])
    assert evaluation.overall.macro_f1.value == pytest.approx(wanted["macro avg"]["f1-score"])
    for k, name in enumerate(CLASSES):
        figures, probability = evaluation.per_class[name], evaluation.probabilities[:, k]
        assert figures.precision.value == pytest.approx(wanted[name]["precision"])
        assert figures.recall.value == pytest.approx(wanted[name]["recall"])
        assert figures.f1.value == pytest.approx(wanted[name]["f1-score"])
        assert figures.chips == wanted[name]["support"]
        assert figures.roc_area == pytest.approx(roc_auc_score(targets == k, probability))
        assert figures.average_precision == pytest.approx(average_precision_score(targets == k, probability))
        for estimate in (figures.precision, figures.recall, figures.f1):
            assert estimate.low < estimate.value < estimate.high
    calibration = evaluation.to_json()["calibration"]
    for side, temperature in (("before", 1.0), ("after", 1.5)):
        probabilities = softmax(evaluation.judged.logits, temperature)
        assert calibration[side]["negative_log_likelihood"] == pytest.approx(log_loss(targets, probabilities))
    assert evaluation.to_json()["confusion"] == evaluation.confusion.tolist()
    assert evaluation.confusion.sum(axis=1).tolist() == [80, 80, 80]


def test_evaluation_is_plain_json(evaluation):
    values = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert values["format"] == 1
    assert values["blocks"] == 60
    assert values["thresholds"]["burnt"]["reached"]["high_precision"]["called"] == int(
        (evaluation.probabilities[:, 0] >= 0.9).sum()
    )
    assert list(values["by_event"]) == ["fire", "flood"]  # the larger first
    assert values["by_event"]["flood"]["chips"] == 80
    assert values["by_area"] == {}
    assert values["shortcut"] is None


def test_groups_are_judged_alone(evaluation):
    here = evaluation.judged.events == "flood"
    wanted = f1_score(evaluation.judged.targets[here], evaluation.predictions[here], average="macro")
    assert evaluation.by_event["flood"].macro_f1.value == pytest.approx(wanted)
    assert evaluation.by_event["flood"].blocks == 20


def test_neighbours_widen_the_intervals():
    """The same figures from fewer places are less certain."""
    rng = np.random.default_rng(1)
    right = np.repeat(rng.random(60) < 0.8, 10)
    targets = rng.integers(0, 2, 600)
    logits = np.eye(2)[np.where(right, targets, 1 - targets)]
    alone = quick(judged(targets, logits), ("a", "b")).overall
    together = quick(judged(targets, logits, per_block=10), ("a", "b")).overall
    assert alone.accuracy.value == together.accuracy.value
    for name in ("accuracy", "macro_f1"):
        narrow, wide = getattr(alone, name), getattr(together, name)
        assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_class_without_chips_has_no_figures():
    found = quick(judged([0, 0, 1, 1] * 10, np.tile(np.eye(3)[[0, 1, 1, 1]], (10, 1))))
    figures = found.per_class["unclear"]
    assert figures.chips == 0
    assert figures.recall.value is None
    assert figures.roc_area is None
    assert found.overall.macro_f1.value == pytest.approx(np.mean([2 / 3, 4 / 5]))
    assert any("No chip here has the class unclear" in finding.words for finding in found.findings)
    json.dumps(found.to_json(), allow_nan=False)


def words(evaluation, level):
    return " ".join(finding.words for finding in evaluation.findings if finding.level == level)


def test_what_a_reader_must_know_is_said(make_evaluation):
    assert words(make_evaluation(), "alarm") == ""
    assert "parted at random" in words(make_evaluation(split={"kind": "random"}), "alarm")
    assert "no test side" in words(make_evaluation(side="validation"), "caution")
    assert "in 5 blocks only" in words(make_evaluation(count=20), "caution")
    assert "burnt (10)" in words(make_evaluation(count=30), "caution")
    noted = make_evaluation(notes=[Finding("note", "by the way")])
    assert noted.findings[-1].words == "by the way"


@pytest.mark.parametrize(("probe_right", "level"), [(0.4, "note"), (0.8, "caution"), (1.0, "alarm")])
def test_a_close_probe_is_said_loudly(evaluation, make_evaluation, probe_right, level):
    targets = evaluation.judged.targets
    # The probe is right on the first part of the chips.
    probed = np.where(np.arange(240) < 240 * probe_right, targets, (targets + 1) % 3)
    shortcut = compare(targets, targets, probed, evaluation.judged.blocks, CLASSES, seed=0)
    found = make_evaluation(shortcut=shortcut)
    assert ("Shortcut probe" in words(found, level)) == (level != "note")
    assert ("Shortcut probe" in " ".join(f.words for f in found.findings)) == (level != "note")


def test_chips_that_cannot_be_judged():
    with pytest.raises(Refused, match="no chip to judge"):
        quick(judged([], np.empty((0, 3))))
    with pytest.raises(Refused, match="logits are for 2 classes, wanted 3"):
        quick(judged([0, 1], np.eye(2)))
    with pytest.raises(Refused, match="events of the judged chips"):
        judged([0, 1], np.eye(2), events=np.array([""], object))
    with pytest.raises(Refused, match="infinite numbers"):
        judged([0, 1], np.array([[0, np.nan], [0, 1]]))
    with pytest.raises(Refused, match="logits have shape"):
        judged([0, 1], np.eye(3))


def test_thresholds_that_nobody_chose_are_left_out():
    targets = [0, 1] * 20
    found = quick(judged(targets, np.eye(2)[targets]), ("a", "b"), thresholds={"b": Thresholds(None, 0.5)})
    assert found.reached.keys() == {"b"}
    assert found.reached["b"]["high_precision"] is None
    assert found.reached["b"]["high_recall"].recall.value == 1
