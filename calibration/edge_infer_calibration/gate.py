"""The gate: what INT8 changes on chips that it was not calibrated on, class by class.

Both models run through the run-time engine on the same chips, so every figure is a paired one. Intervals come
from drawing blocks of ground (or chips, where no place is known, or a class lies on few blocks) with
replacement, the same draws for both models. Where chips have no labels, the FP32 model's own classes stand
for them, and recall says what share of them INT8 keeps.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.engine.openvino import OpenVinoEngine
from edge_infer.engine.stream import classify_batches
from edge_infer.errors import Refused
from edge_infer_export.evaluation.intervals import (
    NOTHING,
    Estimate,
    bootstrap,
    matrices_by_block,
    percentile_interval,
    recall_of,
    wilson,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edge_infer.engine import Precision

ENOUGH_OF_CLASS, ENOUGH_BLOCKS = 100, 10
"""With fewer chips of a class, or on fewer blocks of ground, a loss is warned of that could pass unseen: with
the limits as they are, 3 of 20 may go."""

_ECE_BINS = 10
_ECE_UNIT = 1e9
"""Gaps are summed as whole numbers, so that their order does not matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What INT8 may cost."""

    agreement: float = 0.99
    """Least share of chips for which both models name the same class."""
    recall_fall: float = 0.005
    """No class may lose more recall than this, counted from the better end of its 95 % interval."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.agreement <= 1 or not 0 <= self.recall_fall <= 1:
            raise Refused(
                f"limits are shares between 0 and 1, got an agreement of {self.agreement} and a fall of "
                f"recall of {self.recall_fall}"
            )

    def warning(self) -> str | None:
        """Say where INT8 may cost more than is usual."""
        usual = Limits()
        if self.agreement >= usual.agreement and self.recall_fall <= usual.recall_fall:
            return None
        return (
            f"the limits were loosened: an agreement of {self.agreement:.1%} is enough (usual "
            f"{usual.agreement:.1%}), and a class may lose {100 * self.recall_fall:g} points of recall "
            f"(usual {100 * usual.recall_fall:g})"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What the gate found."""

    passed: bool
    reasons: tuple[str, ...]
    """Why not, in words; empty where it passed."""
    figures: dict[str, Any]
    """JSON values."""
    flips: NDArray[np.int64]
    """int64, (f,): positions of chips whose class changes, the largest shift of probability first."""

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Greater is better: passed, then agreement, then the smaller shift of probabilities."""
        shift: float = self.figures["mean_probability_shift"]
        return (self.passed, self.figures["agreement"], -shift)

    def warnings(self) -> tuple[str, ...]:
        """Name the classes that the held-out chips say little or nothing of."""
        per_class = self.figures["per_class"]
        absent = [name for name, entry in per_class.items() if not entry["chips"]]
        few = [
            f"{name} ({entry['chips']}"
            + ("" if entry["blocks"] is None else f" on {entry['blocks']} blocks of ground")
            + ")"
            for name, entry in per_class.items()
            if 0 < entry["chips"] < ENOUGH_OF_CLASS or 0 < (entry["blocks"] or 0) < ENOUGH_BLOCKS
        ]
        found = []
        if absent:
            found.append(
                f"no chip of {', '.join(absent)} was held out, so whether INT8 keeps that is not known; hold "
                "out chips of every class"
            )
        if few:
            found.append(
                f"few chips were held out of {', '.join(few)}; with less than {ENOUGH_OF_CLASS} on "
                f"{ENOUGH_BLOCKS} blocks a fall of recall may go unseen"
            )
        return tuple(found)

    def describe(self) -> str:
        """One line."""
        worst = min(
            (e["recall_change"]["value"], name)
            for name, e in self.figures["per_class"].items()
            if e["recall_change"]["value"] is not None
        )
        return (
            f"agreement {self.figures['agreement']:.2%} on {self.figures['chips']} chips, recall "
            f"{100 * worst[0]:+.2f} points at worst ({worst[1]}), largest shift of a probability "
            f"{self.figures['largest_probability_shift']:.3f}"
        )


def run_model(
    model_onnx: bytes,
    chip_shape: tuple[int, int, int],
    classes: int,
    batches: Iterable[NDArray[np.uint8]],
    *,
    precision: Precision,
) -> NDArray[np.float32]:
    """Probabilities (n, K) of chips uint8 (b, S, S, C), by the run-time engine, batch by batch.

    Raises:
        EdgeInferError: the engine cannot run the model, or it gives no numbers.

    """
    engine = OpenVinoEngine(model_onnx, chip_shape, classes, precision=precision, why="calibration")
    with closing(engine):
        return classify_batches(engine, chip_shape, batches)


def judge(
    in_float: NDArray[np.float32],
    in_int8: NDArray[np.float32],
    targets: NDArray[np.int64] | None,
    classes: Sequence[str],
    *,
    limits: Limits,
    blocks: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Verdict:
    """Hold INT8 probabilities (n, K) against FP32 ones.

    Args:
        in_float: float32, (n, K).
        in_int8: float32, (n, K).
        targets: int64, (n,), true classes; None where they are not known.
        classes: the K names.
        limits: what INT8 may cost.
        blocks: int64, (n,), any numbers: chips of one block are drawn together; None: each alone.
        seed: of the draws.

    """
    labels, others = in_float.argmax(axis=1), in_int8.argmax(axis=1)
    truth = labels if targets is None else targets
    # Numbered anew: a number that no chip here has would be drawn as a block without chips.
    at = np.arange(len(truth)) if blocks is None else np.unique(blocks, return_inverse=True)[1].reshape(-1)
    changes = _changes(truth, in_float, in_int8, at, seed)
    on_blocks = [len(np.unique(at[truth == k])) for k in range(len(classes))]
    few = [k for k, count in enumerate(on_blocks) if 0 < count < ENOUGH_BLOCKS]
    if blocks is not None and few:
        # Draws of two or three blocks give an interval that any loss lies in; draws of chips are stricter.
        alone = _changes(truth, in_float, in_int8, np.arange(len(truth)), seed)
        for k in few:
            changes["recall"][k], changes["precision"][k] = alone["recall"][k], alone["precision"][k]
    shift = np.abs(in_int8 - in_float).max(axis=1)
    flips = np.flatnonzero(labels != others)
    agreement = 1 - len(flips) / len(labels)
    shares = {model: _shares(truth, p, len(classes)) for model, p in (("fp32", labels), ("int8", others))}
    per_class = {
        name: {
            "chips": int((truth == k).sum()),
            "blocks": None if blocks is None else on_blocks[k],
            "recall": {model: recall[k] for model, (recall, _) in shares.items()},
            "precision": {model: precision[k] for model, (_, precision) in shares.items()},
            "recall_change": changes["recall"][k].to_json(),
            "precision_change": changes["precision"][k].to_json(),
        }
        for k, name in enumerate(classes)
    }
    reasons = []
    if agreement < limits.agreement:
        reasons.append(
            f"INT8 and FP32 name the same class for {agreement:.2%} of {len(labels)} chips, wanted "
            f"{limits.agreement:.2%}"
        )
    for k, name in enumerate(classes):
        change = changes["recall"][k]
        if change.value is None:  # no such chip: `Verdict.warnings` tells
            continue
        best = change.value if change.high is None else change.high
        if best < -limits.recall_fall:
            reasons.append(
                f"recall of {name} falls by {-100 * change.value:.1f} points ({-100 * best:.1f} at least), "
                f"wanted {100 * limits.recall_fall:.1f} at most"
            )
    return Verdict(
        passed=not reasons,
        reasons=tuple(reasons),
        figures={
            "chips": len(labels),
            "truth": "fp32" if targets is None else "labels",
            "limits": asdict(limits),
            "agreement": agreement,
            "flips": len(flips),
            "per_class": per_class,
            "calibration_error_change": changes["ece"][0].to_json(),
            "largest_probability_shift": float(shift.max(initial=0)),
            "mean_probability_shift": float(shift.mean()) if len(shift) else 0.0,
        },
        flips=flips[np.argsort(-shift[flips], kind="stable")],
    )


def _shares(
    truth: NDArray[np.int64], labels: NDArray[np.int64], classes: int
) -> tuple[list[float | None], list[float | None]]:
    """Recall and precision of each class; None where it has no chip."""
    (matrix,) = matrices_by_block(truth, labels, np.zeros(len(truth), np.int64), classes)

    def known(table: NDArray[np.int64]) -> list[float | None]:
        return [None if np.isnan(share) else float(share) for share in recall_of(table.astype(np.float64))]

    return known(matrix), known(matrix.T)


def _changes(
    truth: NDArray[np.int64],
    in_float: NDArray[np.float32],
    in_int8: NDArray[np.float32],
    blocks: NDArray[np.int64],
    seed: int,
) -> dict[str, list[Estimate]]:
    """Find changes, INT8 less FP32: `recall` and `precision` of each class, and `ece`."""
    models, classes = (in_float, in_int8), in_float.shape[1]
    matrices = np.stack([matrices_by_block(truth, p.argmax(axis=1), blocks, classes) for p in models], axis=1)
    gaps = np.stack([_gaps(p, truth, blocks) for p in models], axis=1)
    cells = 2 * classes * classes
    by_block = np.concatenate([matrices.reshape(-1, cells), gaps.reshape(-1, 2 * _ECE_BINS)], axis=1)

    def changes(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        tables = sums[:, :cells].reshape(-1, 2, classes, classes)
        errors = np.abs(sums[:, cells:].reshape(-1, 2, _ECE_BINS)).sum(axis=2)
        recall, precision = recall_of(tables), recall_of(np.swapaxes(tables, 2, 3))
        ece = errors / tables.sum(axis=(2, 3)) / _ECE_UNIT
        pairs = (recall, precision, ece[..., None])
        return np.concatenate([pair[:, 1] - pair[:, 0] for pair in pairs], axis=1)

    draws = bootstrap(by_block, changes, seed)
    (whole,) = changes(by_block.sum(axis=0, keepdims=True).astype(np.float64))
    true, predicted = (np.bincount(labels, minlength=classes) for labels in (truth, in_float.argmax(axis=1)))
    found = [
        _interval(draws[:, k], float(value), int(chips))
        for k, (value, chips) in enumerate(zip(whole, (*true, *predicted, len(truth)), strict=True))
    ]
    return {"recall": found[:classes], "precision": found[classes:-1], "ece": found[-1:]}


def _interval(draws: NDArray[np.float64], value: float, chips: int) -> Estimate:
    """Estimate a change of a share of so many chips; NaN: of none.

    Where no chip changes, the draws are all alike. What so many chips could have missed then stands for the
    interval: the upper end of Wilson's for none of them, both ways.
    """
    if not np.isfinite(value):
        return NOTHING
    estimate = percentile_interval(draws, value)
    if estimate.low is not None or value != 0:
        return estimate
    missed = wilson(0, chips).high
    return estimate if missed is None else Estimate(0.0, -missed, missed)


def _gaps(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], blocks: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Confidence less rightness, summed by block and bin of confidence: int64, (P, bins), in `_ECE_UNIT`."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    gaps = np.zeros((int(blocks.max(initial=0)) + 1, _ECE_BINS), np.int64)
    np.add.at(gaps, (blocks, bins), np.rint((confidence - right) * _ECE_UNIT).astype(np.int64))
    return gaps
