"""How good predictions are, and how far their confidence can be trusted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def score(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """Judge predictions; a figure that would divide by zero is None.

    Args:
        probabilities: (n, K).
        targets: (n,).
        classes: the K names.

    Returns:
        JSON values: chips, accuracy, macro_f1, negative_log_likelihood, calibration_error, precision, recall
        and f1 of each class, and the confusion matrix (rows are true classes).

    """
    matrix = confusion_matrix(targets, probabilities.argmax(axis=1), len(classes))
    right, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = [_share(2 * r, t + p) for r, t, p in zip(right, true, predicted, strict=True)]
    likelihood = np.maximum(probabilities[np.arange(len(targets)), targets], 1e-12)
    return {
        "chips": len(targets),
        "accuracy": _share(right.sum(), matrix.sum()),
        "macro_f1": None if None in f1 else float(np.mean([v for v in f1 if v is not None])),
        "negative_log_likelihood": float(-np.log(likelihood).mean()) if len(targets) else None,
        "calibration_error": calibration_error(probabilities, targets),
        "per_class": {
            name: {
                "chips": int(true[k]),
                "precision": _share(right[k], predicted[k]),
                "recall": _share(right[k], true[k]),
                "f1": f1[k],
            }
            for k, name in enumerate(classes)
        },
        "confusion": matrix.tolist(),
    }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def calibration_error(
    probabilities: NDArray[np.float64], targets: NDArray[np.int64], bins: int = 10
) -> float | None:
    """Measure the expected calibration error: mean gap between confidence and accuracy, equal-width bins.

    After Guo et al., On Calibration of Modern Neural Networks (2017), https://arxiv.org/abs/1706.04599.
    """
    if len(targets) == 0:
        return None
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(targets))


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
