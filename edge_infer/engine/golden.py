"""Golden chips: whether an engine gives the answers that the model was exported with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bundle import CALIBRATION_MEMBER, GOLDEN_CHIPS_MEMBER
from edge_infer.engine.stream import classify_batches
from edge_infer.errors import BundleError, EdgeInferError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine, Precision

LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}
"""Largest difference of a probability from the stored one. Another order of summing gives 1e-6 in FP32, and
export leaves out an FP16 model that shifts by more than 0.02. For INT8 see `largest_difference`."""

SEVERAL = 2.0
"""An INT8 model may shift a golden chip by so many times the largest shift that its gate saw."""

LEAST_INT8 = 0.05
"""... but this much in any case: a gate on few chips sees small shifts only."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an engine agrees with the stored answers on n chips."""

    chips: int
    same_class: int
    """Chips that get the class they had."""
    largest_difference: float
    """Of a probability; infinite where one is no number."""


def compare(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> Agreement:
    """Compare probabilities (n, K) with the stored ones."""
    difference = np.nan_to_num(np.abs(found - expected), nan=np.inf, posinf=np.inf)
    return Agreement(
        len(expected),
        int((found.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        float(difference.max(initial=0.0)),
    )


def classify_chips(engine: Engine, chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Give the probabilities float32 (n, K) of chips uint8 (n, S, S, C); the engine is idle, and is again."""
    return classify_batches(engine, chips.shape[1:], [chips])


def largest_difference(bundle: Bundle, precision: Precision) -> float:
    """Largest difference of a probability to bear; for INT8 by the shift that its gate found, where told."""
    if precision != "int8":
        return LIMITS[precision]
    try:
        shift = float(bundle.read_json(CALIBRATION_MEMBER)["gate"]["largest_probability_shift"])
    except (BundleError, KeyError, TypeError, ValueError):
        return LIMITS["int8"]
    return min(max(LEAST_INT8, SEVERAL * shift), LIMITS["int8"])


def find_fault(engine: Engine, bundle: Bundle) -> str | None:
    """Say how an idle engine fails the bundle's golden chips; None where it does not, or there are none."""
    if GOLDEN_CHIPS_MEMBER not in bundle.members:
        return None
    chips, expected = bundle.golden()
    try:
        found = compare(classify_chips(engine, chips), expected)
    except EdgeInferError:
        return "the golden chips get probabilities that are no numbers"
    limit = largest_difference(bundle, engine.facts.precision)
    if found.largest_difference <= limit:
        return None
    return (
        f"the golden chips' probabilities differ by up to {found.largest_difference:.2g}, wanted {limit:.2g}"
    )
