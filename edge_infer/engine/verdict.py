"""What calibration says of a bundle's INT8 model: unasked, no engine runs one that did not pass its gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_infer.bundle import INT8_MEMBER

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle

_MOST_LETTERS = 300
"""Of a reason, which a bundle from anywhere may make as long as it likes."""


def against_int8(bundle: Bundle) -> str | None:
    """Say why INT8 is not to be used unasked; None where it passed its gate (`edge-infer calibrate`)."""
    verdict = bundle.manifest.facts.get("int8")
    verdict = verdict if isinstance(verdict, dict) else {}
    if verdict.get("int8") == "rejected":
        return f"INT8 did not pass its gate ({str(verdict.get('reason'))[:_MOST_LETTERS]})"
    if INT8_MEMBER not in bundle.members:
        return "the bundle holds no INT8 model"
    return None if verdict.get("int8") == "passed" else "the bundle's INT8 model was not put to a gate"
