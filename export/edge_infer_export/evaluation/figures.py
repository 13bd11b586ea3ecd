"""The evaluation: everything that is known of how a model fares on chips it was not trained on.

Pure arithmetic over arrays. `Evaluation.to_json` is the `evaluation.json` of a run folder and of a bundle;
`edge_infer_export.evaluation.report` turns it into pages and pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edge_infer.errors import Refused
from edge_infer_export.evaluation.intervals import (
    CONFIDENCE,
    NOTHING,
    RESAMPLES,
    Estimate,
    bootstrap,
    f1_of,
    matrices_by_block,
    percentile_interval,
    share_over_blocks,
)
from edge_infer_export.evaluation.scores import calibration_figures, confusion_matrix, softmax
from edge_infer_export.evaluation.thresholds import Reached, Thresholds, reach

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.evaluation.shortcut import Comparison, Probe

EVALUATION_FILE = "evaluation.json"
EVALUATION_FORMAT = 1
"""Value of `format` in it."""

FEW_BLOCKS = 10
"""Intervals over fewer blocks are rough themselves."""
FEW_CHIPS = 30
"""A class with fewer chips is judged by luck."""
_MOST_GROUPS = 200
"""Of so many events or areas the largest are listed: evaluation.json must stay small."""

SideName = Literal["test", "validation", "chips"]
Level = Literal["alarm", "caution", "note"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Chips and what a model said of them; all arrays have one entry a chip."""

    rows: NDArray[np.int64]
    """int64, (n,): position in the set of chips."""
    targets: NDArray[np.int64]
    """int64, (n,): true classes."""
    logits: NDArray[np.floating[Any]]
    """(n, K): before the temperature; logarithms of probabilities do as well."""
    blocks: NDArray[np.int64]
    """int64, (n,): block of ground, numbers from 0."""
    events: NDArray[np.object_]
    """object, (n,): name of the event; empty where unknown."""
    areas: NDArray[np.object_]
    """object, (n,): name of the area; empty where unknown."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together, and logits that are no numbers."""
        count = len(self.rows)
        for name in ("targets", "blocks", "events", "areas"):
            if getattr(self, name).shape != (count,):
                raise Refused(
                    f"{name} of the judged chips has shape {getattr(self, name).shape}, wanted ({count},)"
                )
        if self.logits.ndim != 2 or len(self.logits) != count:
            raise Refused(f"logits have shape {self.logits.shape}, wanted ({count}, classes)")
        if not np.isfinite(self.logits).all():
            raise Refused("logits hold infinite numbers or none at all; train again with a lower --lr")

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a reader of the figures must know."""

    level: Level
    """`alarm`: the figures do not mean what they seem to. `caution`: they may not. `note`: good to know."""
    words: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON values."""
        return {"level": self.level, "words": self.words}


@dataclass(frozen=True, slots=True)
class Overall:
    """Figures of one set of chips as a whole."""

    chips: int
    blocks: int
    accuracy: Estimate
    macro_f1: Estimate
    """Mean F1 of the classes that have chips here."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "chips": self.chips,
            "blocks": self.blocks,
            "accuracy": self.accuracy.to_json(),
            "macro_f1": self.macro_f1.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """Figures of one class."""

    chips: int
    predicted: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    roc_area: float | None
    """Probability that a chip of the class gets a higher probability of it than another chip."""
    average_precision: float | None
    """Area under the precision-recall curve, by steps."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            name: value.to_json() if isinstance(value := getattr(self, name), Estimate) else value
            for name in ("chips", "predicted", "precision", "recall", "f1", "roc_area", "average_precision")
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """A model judged on one side."""

    model: str
    side: SideName
    classes: tuple[str, ...]
    judged: Judged
    temperature: float
    probabilities: NDArray[np.float64]
    """float64, (n, K): under the temperature."""
    overall: Overall
    per_class: Mapping[str, ClassFigures]
    confusion: NDArray[np.int64]
    """int64, (K, K): rows are true classes."""
    by_event: Mapping[str, Overall]
    """Empty where no event is known."""
    by_area: Mapping[str, Overall]
    thresholds: Mapping[str, Thresholds]
    """As chosen on the validation side."""
    reached: Mapping[str, Mapping[str, Reached | None]]
    """By class, then `high_precision` or `high_recall`: what they come to here."""
    shortcut: Comparison | None
    probe: Probe | None
    split: Mapping[str, Any]
    """How the chips were parted, as plain JSON values; empty where nobody knows."""
    findings: tuple[Finding, ...]
    runs_on: Mapping[str, Any] = field(default_factory=dict)
    """Engine and precision, where a bundle was judged; empty for a network in training."""

    @property
    def predictions(self) -> NDArray[np.int64]:
        """int64, (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    @property
    def uncalibrated(self) -> NDArray[np.float64]:
        """Probabilities under temperature 1: float64, (n, K)."""
        return softmax(self.judged.logits)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as evaluation.json holds them."""
        shortcut = None
        if self.shortcut is not None:
            shortcut = self.shortcut.to_json() | {"fitted": self.probe.to_json() if self.probe else None}
        return {
            "format": EVALUATION_FORMAT,
            "model": self.model,
            "side": self.side,
            "runs_on": dict(self.runs_on),
            "split": dict(self.split),
            **self.overall.to_json(),
            "per_class": {name: figures.to_json() for name, figures in self.per_class.items()},
            "confusion": self.confusion.tolist(),
            "calibration": {
                "temperature": self.temperature,
                "before": calibration_figures(self.uncalibrated, self.judged.targets),
                "after": calibration_figures(self.probabilities, self.judged.targets),
            },
            "thresholds": {
                name: {
                    "high_precision": chosen.high_precision,
                    "high_recall": chosen.high_recall,
                    "reached": {
                        kind: None if found is None else found.to_json()
                        for kind, found in self.reached[name].items()
                    },
                }
                for name, chosen in self.thresholds.items()
            },
            "shortcut": shortcut,
            "by_event": {name: overall.to_json() for name, overall in self.by_event.items()},
            "by_area": {name: overall.to_json() for name, overall in self.by_area.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "methods": {
                "confidence": CONFIDENCE,
                "shares": "Wilson's interval, chips divided by the design effect of the blocks; Student's t",
                "f1": f"percentile bootstrap over blocks, {RESAMPLES} draws",
                "calibration_error": "10 equally wide bins of the highest probability",
            },
        }


def evaluate(
    judged: Judged,
    classes: Sequence[str],
    *,
    model: str,
    side: SideName,
    temperature: float,
    thresholds: Mapping[str, Thresholds],
    split: Mapping[str, Any],
    shortcut: Comparison | None = None,
    probe: Probe | None = None,
    runs_on: Mapping[str, Any] | None = None,
    notes: Sequence[Finding] = (),
    seed: int = 0,
) -> Evaluation:
    """Judge a model by what it said of chips.

    Args:
        judged: the chips and the model's logits.
        classes: the K names.
        model: its name.
        side: which chips these are: the `test` side of a split, the `validation` side (which flatters), or
            `chips` of which it is not known whether the model was trained on them.
        temperature: fitted on the validation side.
        thresholds: chosen on the validation side, by class.
        split: how the chips were parted; `kind` is "random" for a split by chance.
        shortcut: the model beside the shortcut probe.
        probe: the probe itself, to travel with the figures.
        runs_on: what ran the model, where that was a bundle.
        notes: further findings, put last among those of their level; the gravest come first.
        seed: of the bootstraps.

    Raises:
        Refused: no chips, or logits of another number of classes.

    """
    if len(judged) == 0:
        raise Refused("there is no chip to judge the model on; see what became of the chips")
    if judged.logits.shape[1] != len(classes):
        raise Refused(f"logits are for {judged.logits.shape[1]} classes, wanted {len(classes)}")
    probabilities = softmax(judged.logits, temperature)
    predictions = probabilities.argmax(axis=1)
    overall = _overall(judged, predictions, np.arange(len(judged)), len(classes), seed)
    per_class = _per_class(judged, probabilities, predictions, classes, seed)
    reached = {
        name: {
            kind: None
            if (level := getattr(thresholds[name], kind)) is None
            else reach(level, probabilities[:, k], judged.targets == k, judged.blocks)
            for kind in ("high_precision", "high_recall")
        }
        for k, name in enumerate(classes)
        if name in thresholds
    }
    return Evaluation(
        model=model,
        side=side,
        classes=tuple(classes),
        judged=judged,
        temperature=temperature,
        probabilities=probabilities,
        overall=overall,
        per_class=per_class,
        confusion=confusion_matrix(judged.targets, predictions, len(classes)),
        by_event=_by_group(judged, predictions, judged.events, len(classes), seed),
        by_area=_by_group(judged, predictions, judged.areas, len(classes), seed),
        thresholds=thresholds,
        reached=reached,
        shortcut=shortcut,
        probe=probe,
        split=split,
        findings=tuple(
            sorted(
                (*_findings(side, split, overall, per_class, shortcut), *notes),
                key=lambda finding: get_args(Level).index(finding.level),
            )
        ),
        runs_on=runs_on or {},
    )


def _overall(
    judged: Judged, predictions: NDArray[np.int64], chosen: NDArray[np.int64], classes: int, seed: int
) -> Overall:
    """Sum up the chips at `chosen`."""
    targets, predictions = judged.targets[chosen], predictions[chosen]
    _, blocks = np.unique(judged.blocks[chosen], return_inverse=True)
    matrices = matrices_by_block(targets, predictions, blocks, classes)
    there = np.flatnonzero(matrices.sum(axis=(0, 2)))

    def macro(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        # A draw without any chip of a class has no mean F1: NaN, and left out.
        lacking = (sums.sum(axis=-1)[:, there] == 0).any(axis=1)
        return np.where(lacking, np.nan, f1_of(sums)[:, there].mean(axis=1))[:, None]

    value = float(macro(matrices.sum(axis=0)[None].astype(np.float64))[0, 0])
    return Overall(
        chips=len(chosen),
        blocks=len(matrices),
        accuracy=share_over_blocks(predictions == targets, blocks),
        macro_f1=percentile_interval(bootstrap(matrices, macro, seed)[:, 0], value),
    )


def _per_class(
    judged: Judged,
    probabilities: NDArray[np.float64],
    predictions: NDArray[np.int64],
    classes: Sequence[str],
    seed: int,
) -> dict[str, ClassFigures]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    targets, blocks = judged.targets, judged.blocks
    _, dense = np.unique(blocks, return_inverse=True)
    matrices = matrices_by_block(targets, predictions, dense, len(classes))
    f1 = f1_of(matrices.sum(axis=0).astype(np.float64))
    draws = bootstrap(matrices, f1_of, seed)
    figures = {}
    for k, name in enumerate(classes):
        is_class, called = targets == k, predictions == k
        both_kinds = is_class.any() and not is_class.all()
        figures[name] = ClassFigures(
            chips=int(is_class.sum()),
            predicted=int(called.sum()),
            precision=share_over_blocks(is_class[called], blocks[called]),
            recall=share_over_blocks(called[is_class], blocks[is_class]),
            f1=percentile_interval(draws[:, k], float(f1[k])) if is_class.any() else NOTHING,
            roc_area=float(roc_auc_score(is_class, probabilities[:, k])) if both_kinds else None,
            average_precision=(
                float(average_precision_score(is_class, probabilities[:, k])) if both_kinds else None
            ),
        )
    return figures


def _by_group(
    judged: Judged, predictions: NDArray[np.int64], groups: NDArray[np.object_], classes: int, seed: int
) -> dict[str, Overall]:
    """Sum up each event or area, the largest first; nothing where no name is known."""
    names, index, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    if names.tolist() == [""]:
        return {}
    order = np.argsort(-counts, kind="stable")[:_MOST_GROUPS]
    return {
        str(names[g]) or "(not named)": _overall(
            judged, predictions, np.flatnonzero(index == g), classes, seed
        )
        for g in order
    }


def _findings(
    side: SideName,
    split: Mapping[str, Any],
    overall: Overall,
    per_class: Mapping[str, ClassFigures],
    shortcut: Comparison | None,
) -> list[Finding]:
    found = []
    if split.get("kind") == "random":
        found.append(
            Finding(
                "alarm",
                "The chips were parted at random: neighbours of training chips are judged here, often the "
                "same roofs. These figures flatter; split by place or by event before you rely on them.",
            )
        )
    if side == "validation":
        found.append(
            Finding(
                "caution",
                "There is no test side: these chips also chose the epoch, the temperature and the "
                "thresholds. Hold an area or an event out to learn how the model fares where it was not "
                "trained.",
            )
        )
    if shortcut is not None and shortcut.verdict != "far":
        level: Level = "alarm" if shortcut.verdict == "close" else "caution"
        found.append(Finding(level, f"Shortcut probe: {shortcut.words}."))
    if overall.blocks < FEW_BLOCKS:
        found.append(
            Finding(
                "caution",
                f"The chips lie in {overall.blocks} blocks only: the intervals themselves are rough.",
            )
        )
    absent = [name for name, figures in per_class.items() if figures.chips == 0]
    few = [
        f"{name} ({figures.chips})" for name, figures in per_class.items() if 0 < figures.chips < FEW_CHIPS
    ]
    if absent:
        found.append(
            Finding("caution", f"No chip here has the class {', '.join(absent)}: nothing is known of it.")
        )
    if few:
        found.append(Finding("caution", f"Few chips: {', '.join(few)}. Their figures rest on luck."))
    return found
