"""From batches of probabilities to committed rows, a group at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.committer import Committer
from edge_infer.reasons import too_little
from edge_infer.results import ResultRows

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_infer.coverage import Coverage
    from edge_infer.drift import DriftWatch
    from edge_infer.progress import Progress
    from edge_infer.results import Results
    from edge_infer.ring import BatchSlot

COMMIT_FOOTPRINTS = 256
"""Results wait in memory until so many are there; a durable commit costs one disk flush."""
COMMIT_SECONDS = 1.0
"""... or so long, whichever comes first: what a power cut can cost, and how soon the first rows are seen."""
MOST_FOOTPRINTS = 4096
"""Where so many wait, because the disk is slower than the engine, the engine waits: twice so many, waiting
and in one commit, are what a power cut can cost where a second brings more."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is known of k footprints; the committer's thread makes rows of it."""

    rows: npt.NDArray[np.int64]
    """int64, (k,): their positions."""
    probabilities: npt.NDArray[np.float32] | None
    """float32, (k, K); None where they got no chip, as for the next two."""
    valid: npt.NDArray[np.float32] | None
    """float32, (k,): valid share of each chip."""
    covered: npt.NDArray[np.float32] | None
    """float32, (k,): share of each footprint on valid pixels."""
    status: npt.NDArray[np.str_]
    """(k,): their status."""
    reason: npt.NDArray[np.object_] | None
    """(k,): why they got no chip; None where they got one."""


@dataclass(slots=True, eq=False)
class Ledger:
    """Decides each footprint's status, and commits. Position k of `coverage` is the output's row k + 1.

    While it is entered, a thread of its own writes to `results`, and nobody else does. What that raises
    is raised here, by the call that comes next.
    """

    results: Results
    coverage: Coverage
    classes: tuple[str, ...]
    min_valid: float
    """Chips with a smaller share of valid pixels get the status no_data,"""
    min_covered: float
    """and so do footprints of which a smaller share lies on valid pixels."""
    progress: Progress
    watch: DriftWatch | None = None
    """Is shown every chip that gets a class, of those that a GPU cuts the sample that comes back."""
    classified: int = 0
    """Footprints with a class so far."""
    committer: Committer[Outcome] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is written before this is entered."""
        self.committer = Committer(
            self._commit,
            least=COMMIT_FOOTPRINTS,
            seconds=COMMIT_SECONDS,
            most=max(COMMIT_FOOTPRINTS, MOST_FOOTPRINTS),
        )

    def __enter__(self) -> Ledger:
        """Start to commit."""
        self.committer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Commit what waits."""
        self.committer.__exit__(*exception)

    def add(self, slot: BatchSlot, probabilities: npt.NDArray[np.float32]) -> None:
        """Take the results of one batch: float32 (count, K) for the chips of `slot`."""
        kept = slice(0, slot.count)
        valid, covered = slot.valid_fraction[kept].copy(), slot.covered_fraction[kept].copy()
        seen = (valid >= self.min_valid) & (covered >= self.min_covered)
        self.classified += int(seen.sum())
        if self.watch is not None and not slot.pieces:  # pieces are in the GPU's memory only
            self.watch.add(slot.chips[kept], seen)
        status = np.where(seen, "ok", "no_data")
        self._put(Outcome(slot.rows[kept].copy(), probabilities, valid, covered, status, None))

    def add_unseen(
        self,
        rows: npt.NDArray[np.int64],
        status: npt.NDArray[np.str_],
        reason: npt.NDArray[np.object_],
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        """Take footprints at positions `rows`, (k,), that got no chip; `status` and `reason` are (k,).

        There may be more of them than one commit should hold. Once `stopped` says so, the rest are left.
        """
        for start in range(0, len(rows), COMMIT_FOOTPRINTS):
            if stopped is not None and stopped():
                return
            part = slice(start, start + COMMIT_FOOTPRINTS)
            self._put(Outcome(rows[part], None, None, None, status[part], reason[part]))

    def flush(self) -> None:
        """Wait until all so far is committed."""
        self.committer.flush()

    def check(self) -> None:
        """Raise what ended the committing, unless that was raised before."""
        self.committer.check()

    def _put(self, outcome: Outcome) -> None:
        if len(outcome.rows):
            self.committer.put(outcome, len(outcome.rows))

    # --- in the committer's thread ---

    def _commit(self, outcomes: list[Outcome]) -> None:
        """Write outcomes, durably, and say so."""
        rows = self._rows(outcomes)
        self.results.commit(rows)
        labels = [
            self.classes[index] if index >= 0 else status
            for index, status in zip(rows.class_index.tolist(), rows.status.tolist(), strict=True)
        ]
        self.progress.update(Counter(labels))

    def _rows(self, outcomes: list[Outcome]) -> ResultRows:
        rows = np.concatenate([outcome.rows for outcome in outcomes])
        status = np.concatenate([outcome.status for outcome in outcomes])
        probabilities = np.zeros((len(rows), len(self.classes)), np.float32)
        valid, covered = (np.full(len(rows), np.nan, np.float32) for _ in range(2))
        reason = np.full(len(rows), None, dtype=object)
        end = 0
        for outcome in outcomes:
            place = slice(end, end := end + len(outcome.rows))
            if outcome.probabilities is not None:
                probabilities[place], valid[place] = outcome.probabilities, outcome.valid
                covered[place] = outcome.covered
            else:
                reason[place] = outcome.reason
        for place in np.flatnonzero((status == "no_data") & ~np.isnan(valid)).tolist():
            shares = float(valid[place]), float(covered[place])
            reason[place] = too_little(shares[0], self.min_valid, shares[1], self.min_covered)
        return ResultRows(
            fids=rows + 1,
            class_index=np.where(status == "ok", probabilities.argmax(axis=1), -1),
            probabilities=probabilities,
            status=status,
            reason=reason,
            valid_fraction=valid,
            covered_fraction=covered,
            image_index=self.coverage.image[rows].astype(np.int64),
            gsd_m=self.coverage.gsd_metres[rows],
        )
