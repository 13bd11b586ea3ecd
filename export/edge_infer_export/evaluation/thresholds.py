"""Confidences at which a class may be taken for certain, or must not be lost.

Each class has two thresholds on its own probability p, chosen on chips that the figures are not taken from:

- high precision: the lowest p above which at least `TARGET` of the chips called so are so
- high recall: the highest p above which at least `TARGET` of the chips that are so are called so
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.errors import Refused
from edge_infer_export.evaluation.intervals import Estimate, share_over_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

TARGET = 0.95

FEWEST = 10
"""With fewer chips than this above a threshold, no precision is promised."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of one class; None where no confidence keeps the promise."""

    high_precision: float | None
    high_recall: float | None

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for value in (self.high_precision, self.high_recall):
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise Refused(f"a threshold lies in 0..1, got {value}")

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON values."""
        return {"high_precision": self.high_precision, "high_recall": self.high_recall}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """Read what `to_json` wrote; `Refused` for anything else."""
        try:
            found = [values[name] for name in ("high_precision", "high_recall")]
            return cls(*(None if value is None else float(value) for value in found))
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"thresholds are incomplete or malformed: {error!r}") from error


def choose_thresholds(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Thresholds]:
    """Choose the thresholds of every class on one set of chips.

    Args:
        probabilities: (n, K), calibrated.
        targets: int64, (n,).
        classes: the K names.

    """
    return {name: _choose(probabilities[:, k], targets == k) for k, name in enumerate(classes)}


def _choose(probability: NDArray[np.float64], is_class: NDArray[np.bool_]) -> Thresholds:
    if not is_class.any():
        return Thresholds(None, None)
    order = np.argsort(-probability, kind="stable")
    falling, hits = probability[order], np.cumsum(is_class[order])
    # A threshold cannot part equal probabilities: only the last of each run of them counts.
    last = np.append(falling[1:] < falling[:-1], True)
    called = np.arange(1, len(falling) + 1)
    precise = np.flatnonzero(last & (hits >= TARGET * called) & (called >= FEWEST))
    complete = np.flatnonzero(last & (hits >= TARGET * hits[-1]))
    return Thresholds(
        _below(falling, int(precise[-1])) if len(precise) else None,
        _below(falling, int(complete[0])) if len(complete) else None,
    )


def _below(falling: NDArray[np.float64], place: int) -> float:
    """Give the probability half-way to the next lower one, so that rounding changes nothing."""
    following = float(falling[place + 1]) if place + 1 < len(falling) else 0.0
    return (float(falling[place]) + following) / 2


def read_thresholds(evaluation: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Thresholds]:
    """Read the thresholds of each class from the values of an evaluation.json.

    Raises:
        Refused: a class has none, or what it has is malformed.

    """
    try:
        found = {name: dict(evaluation["thresholds"][name]) for name in classes}
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"the evaluation lacks thresholds: {error!r}") from error
    return {name: Thresholds.from_json(values) for name, values in found.items()}


@dataclass(frozen=True, slots=True)
class Reached:
    """What one threshold comes to on chips it was not chosen on."""

    threshold: float
    called: int
    """Chips at or above it."""
    precision: Estimate
    recall: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "threshold": self.threshold,
            "called": self.called,
            "precision": self.precision.to_json(),
            "recall": self.recall.to_json(),
        }


def reach(
    threshold: float, probability: NDArray[np.float64], is_class: NDArray[np.bool_], blocks: NDArray[np.int64]
) -> Reached:
    """Measure precision and recall of calling a class at `threshold`; all arrays (n,)."""
    called = probability >= threshold
    return Reached(
        threshold=threshold,
        called=int(called.sum()),
        precision=share_over_blocks(is_class[called], blocks[called]),
        recall=share_over_blocks(called[is_class], blocks[is_class]),
    )
