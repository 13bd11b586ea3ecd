"""From batches of probabilities to committed rows, a group at a time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.results import ResultRows

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.coverage import Coverage
    from edge_infer.progress import Progress
    from edge_infer.results import Results
    from edge_infer.ring import BatchSlot

COMMIT_FOOTPRINTS = 256
"""Results wait in memory until so many are there; a durable commit costs one disk flush."""
COMMIT_SECONDS = 2.0
"""... or so long, whichever comes first: what a power cut can cost."""


@dataclass(slots=True, eq=False)
class Ledger:
    """Decides each footprint's status, and commits. Position k of `coverage` is the output's row k + 1."""

    results: Results
    coverage: Coverage
    classes: tuple[str, ...]
    min_valid: float
    """Chips with a smaller share of valid pixels get the status no_data."""
    progress: Progress
    commit_seconds: float = 0.0
    classified: int = 0
    """Footprints with a class so far."""
    _waiting: list[ResultRows] = field(default_factory=list)
    _last_commit: float = field(default_factory=time.monotonic)

    def add(self, slot: BatchSlot, probabilities: npt.NDArray[np.float32]) -> None:
        """Take the results of one batch: float32 (count, K) for the chips of `slot`."""
        rows, valid = slot.rows[: slot.count].copy(), slot.valid_fraction[: slot.count].copy()
        seen = valid >= self.min_valid
        self._add(
            rows,
            status=np.where(seen, "ok", "no_data"),
            class_index=np.where(seen, probabilities.argmax(axis=1), -1),
            probabilities=probabilities,
            valid=valid,
        )
        self.classified += int(seen.sum())
        if self._due():
            self.commit()

    def add_unseen(self, rows: npt.NDArray[np.int64], status: npt.NDArray[np.str_]) -> None:
        """Take footprints at positions `rows`, (k,), that got no chip, with the `status`, (k,), of each."""
        self._add(
            rows,
            status=status,
            class_index=np.full(len(rows), -1),
            probabilities=np.zeros((len(rows), len(self.classes)), np.float32),
            valid=np.full(len(rows), np.nan, np.float32),
        )
        if self._due():
            self.commit()

    def commit(self) -> None:
        """Write all that waits, durably, and say so."""
        started = time.monotonic()
        waiting, self._waiting = self._waiting, []
        if waiting:
            rows = _joined(waiting)
            self.results.commit(rows)
            labels = [
                self.classes[index] if index >= 0 else status
                for index, status in zip(rows.class_index.tolist(), rows.status.tolist(), strict=True)
            ]
            self.progress.update(Counter(labels))
        self._last_commit = time.monotonic()
        self.commit_seconds += self._last_commit - started

    def _due(self) -> bool:
        many = sum(len(rows.fids) for rows in self._waiting) >= COMMIT_FOOTPRINTS
        return many or time.monotonic() - self._last_commit >= COMMIT_SECONDS

    def _add(
        self,
        rows: npt.NDArray[np.int64],
        *,
        status: npt.NDArray[np.str_],
        class_index: npt.NDArray[np.int64],
        probabilities: npt.NDArray[np.float32],
        valid: npt.NDArray[np.float32],
    ) -> None:
        self._waiting.append(
            ResultRows(
                fids=rows + 1,
                class_index=class_index,
                probabilities=probabilities,
                status=status,
                valid_fraction=valid,
                image_index=self.coverage.image[rows].astype(np.int64),
                gsd_m=self.coverage.gsd_metres[rows],
            )
        )


def _joined(parts: list[ResultRows]) -> ResultRows:
    return ResultRows(
        fids=np.concatenate([part.fids for part in parts]),
        class_index=np.concatenate([part.class_index for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        status=np.concatenate([part.status for part in parts]),
        valid_fraction=np.concatenate([part.valid_fraction for part in parts]),
        image_index=np.concatenate([part.image_index for part in parts]),
        gsd_m=np.concatenate([part.gsd_m for part in parts]),
    )
