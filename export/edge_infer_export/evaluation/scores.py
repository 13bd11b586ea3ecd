"""How good predictions are, and how far their confidence can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPERATURES = (0.05, 20.0)
"""A fitted temperature lies between these."""


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of (n, K) logits divided by the temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def confusion_matrix(
    targets: NDArray[np.integer[Any]], predictions: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """Count pairs: int64, (K, K), rows are true classes, columns predicted ones."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (targets, predictions), 1)
    return matrix


BINS = 10
"""Of a reliability diagram, equally wide."""


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Chips by the confidence of their prediction, in equally wide bins."""

    chips: NDArray[np.int64]
    """int64, (bins,)."""
    confidence: NDArray[np.float64]
    """float64, (bins,): mean of the bin's chips; NaN where there are none."""
    accuracy: NDArray[np.float64]
    """float64, (bins,): share of the bin's chips that are right; NaN where there are none."""

    @property
    def calibration_error(self) -> float | None:
        """Mean gap between confidence and accuracy, weighted by chips; None without chips."""
        if not self.chips.sum():
            return None
        gaps = np.abs(np.nan_to_num(self.confidence) - np.nan_to_num(self.accuracy))
        return float((gaps * self.chips).sum() / self.chips.sum())


def reliability(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], bins: int = BINS
) -> Reliability:
    """Sort chips by confidence and compare it with how often they are right.

    After Guo et al., On Calibration of Modern Neural Networks (2017), https://arxiv.org/abs/1706.04599.

    Args:
        probabilities: (n, K).
        targets: int64, (n,).
        bins: number of bins.

    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    chips = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            chips=chips,
            confidence=np.bincount(place, confidence, minlength=bins) / chips,
            accuracy=np.bincount(place, right, minlength=bins) / chips,
        )


def calibration_error(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], bins: int = BINS
) -> float | None:
    """Measure the expected calibration error, see `Reliability.calibration_error`."""
    return reliability(probabilities, targets, bins).calibration_error


def calibration_figures(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64]
) -> dict[str, float | None]:
    """Judge probabilities (n, K) as such: calibration error, negative log likelihood, Brier score.

    The Brier score is the sum over classes of squared differences (Brier 1950, Verification of Forecasts
    Expressed in Terms of Probability, Monthly Weather Review 78, 1-3): 0 at best, 2 at worst.
    """
    names = ("calibration_error", "negative_log_likelihood", "brier")
    if len(targets) == 0:
        return dict.fromkeys(names)
    rows = np.arange(len(targets))
    truth = np.zeros(probabilities.shape)
    truth[rows, targets] = 1
    likelihood = np.maximum(probabilities[rows, targets], 1e-12)
    values = (
        calibration_error(probabilities, targets),
        float(-np.log(likelihood).mean()),
        float(((probabilities - truth) ** 2).sum(axis=1).mean()),
    )
    return dict(zip(names, values, strict=True))


def fit_temperature(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> float:
    """Find the temperature under which the logits (n, K) are most likely, by golden section on its logarithm.

    The targets are softened as Platt (1999) does, by one imagined chip on the wrong side: without it, a
    validation set free of errors would ask for a temperature of zero and certainty about everything.
    """
    count, classes = logits.shape
    soft = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    soft[np.arange(count), targets] = 1 - 1 / (count + 2)

    def loss(log_temperature: float) -> float:
        return float(-(soft * np.log(np.maximum(softmax(logits, math.exp(log_temperature)), 1e-300))).sum())

    low, high = math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
