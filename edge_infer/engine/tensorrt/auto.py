"""`--precision auto`: INT8 only where it passed its gate and is faster on this device than the float plan."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_infer.bundle import FP16_MEMBER
from edge_infer.durable import replace_durably

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Precision
    from edge_infer.engine.tensorrt.cache import PlanKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which of two precisions to run, by what was measured."""

    precision: Precision
    images_per_second: dict[str, float]
    """What each plan reached on this device on real chips."""

    @property
    def why(self) -> str:
        """In words for a person."""
        rates = ", ".join(f"{name} {rate:,.0f} images/s" for name, rate in self.images_per_second.items())
        return f"{self.precision}: the faster one here ({rates})"


def float_precision(bundle: Bundle) -> Precision:
    """Name the best precision that needs no gate: FP16 where the bundle has it."""
    return "fp16" if FP16_MEMBER in bundle.members else "fp32"


def decide(int8: float, other: float, other_precision: Precision) -> Decision:
    """Take INT8 if it is faster; rates in images/s."""
    return Decision(
        precision="int8" if int8 > other else other_precision,
        images_per_second={"int8": int8, other_precision: other},
    )


def decision_path(folder: Path, int8: PlanKey, other: PlanKey) -> Path:
    """Name the file of the decision between two plans: it holds for exactly these."""
    return folder / f"choice-{int8.digest}-{other.digest}.json"


def read_decision(path: Path, other_precision: Precision) -> Decision | None:
    """Read a decision; None where there is none that can be used."""
    try:
        values = json.loads(path.read_bytes())
        rates = {name: float(values["images_per_second"][name]) for name in ("int8", other_precision)}
        # Made again from the figures, so that a damaged file cannot say what they do not.
        return decide(rates["int8"], rates[other_precision], other_precision)
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def write_decision(path: Path, decision: Decision) -> None:
    """Keep a decision; `OSError` where it cannot be written."""
    values: dict[str, Any] = asdict(decision)
    replace_durably(path, json.dumps(values, indent=1).encode() + b"\n")
