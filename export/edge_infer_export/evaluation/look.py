"""Chips through an engine, as a run feeds it: from disk into batch slots, results as they come.

No more than the engine's own batches are in memory at once, however many chips there are.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.engine.stream import keep_full
from edge_infer.errors import Refused
from edge_infer_export.chips.pictures import UnreadableChip
from edge_infer_export.evaluation.shortcut import features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edge_infer.engine import Engine
    from edge_infer.ring import BatchSlot
    from edge_infer_export.chips.dataset import Chips

_SECONDS_BETWEEN_LINES = 10.0
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the engine said of the chips that could be read."""

    rows: NDArray[np.int64]
    """int64, (n,): positions of the chips."""
    probabilities: NDArray[np.float32]
    """float32, (n, K)."""
    features: NDArray[np.float64]
    """float64, (n, F): for the shortcut probe."""
    unreadable: tuple[tuple[str, str], ...]
    """(file, reason) of the others."""


def look(engine: Engine, chips: Chips, say: Callable[[str], None]) -> Seen:
    """Read chips into slots, keep the engine full, gather what it says.

    Chips that cannot be read are passed over and listed.

    Raises:
        Refused: none of them can be read.

    """
    rows, probabilities, described = [], [], []
    unreadable: list[tuple[str, str]] = []
    left = iter(range(len(chips)))
    started = said = time.monotonic()

    def fill(slot: BatchSlot) -> bool:
        nonlocal said
        slot.count = 0
        for row in left:
            try:
                slot.chips[slot.count] = chips.read(np.array([row]))[0]
            except UnreadableChip as error:
                unreadable.append((str(chips.file[row]), str(error).removeprefix(f"{chips.file[row]} ")))
                continue
            slot.rows[slot.count] = row
            slot.count += 1
            if slot.count == slot.size:
                break
        if slot.count == 0:
            return False
        described.append(features(slot.chips[: slot.count]))
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            done = int(slot.rows[slot.count - 1]) + 1
            say(f"{done:,} of {len(chips):,} chips, {done / (said - started):,.0f}/s")
        return True

    for slot, found in keep_full(engine, chips.contract.chip_shape, fill):
        rows.append(slot.rows[: slot.count].copy())
        probabilities.append(found)
    if not rows:
        raise Refused(f"none of {len(chips):,} chips can be read; {name_files(unreadable)}")
    return Seen(
        np.concatenate(rows), np.concatenate(probabilities), np.concatenate(described), tuple(unreadable)
    )


def name_files(entries: Sequence[tuple[str, str]]) -> str:
    """Name some of the files, and the commonest reasons, of (file, reason) entries."""
    reasons = Counter(reason for _, reason in entries)
    files = ", ".join(Path(file).name for file, _ in entries[:_MOST_NAMED])
    more = f" and {len(entries) - _MOST_NAMED:,} more" if len(entries) > _MOST_NAMED else ""
    return f"{files}{more} ({'; '.join(reason for reason, _ in reasons.most_common(3))})"
