"""What a run did, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edge_infer.progress import hours, tally

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.drift import Drift
    from edge_infer.engine import EngineFacts
    from edge_infer.feed import FeedWork
    from edge_infer.results import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """Seconds by stage. Reading, sampling and the readers' waiting are summed over the reader threads."""

    total: float
    stream: float = 0.0
    """From the first job to the last commit."""
    copy: float = 0.0
    """Reading the footprints and copying them to the output."""
    plan: float = 0.0
    """Which image and window each footprint has, and which tile."""
    read: float = 0.0
    measure: float = 0.0
    """How much of each footprint itself is covered."""
    sample: float = 0.0
    infer: float = 0.0
    """Giving batches to the engine, and waiting for what it makes of them."""
    commit: float = 0.0
    readers_waited: float = 0.0
    """For a free place in the ring: reading is faster than the engine."""
    engine_waited: float = 0.0
    """For a ready batch: the engine is faster than reading."""
    commits_waited: float = 0.0
    """For results to commit: the disk is faster than the engine."""
    stalled: float = 0.0
    """That the engine's thread waited for the disk."""

    def stages(self) -> dict[str, dict[str, float]]:
        """Seconds at work and waiting of each stage, in the order of the data."""
        return {
            "copy": {"busy": self.copy, "waited": 0.0},
            "plan": {"busy": self.plan, "waited": 0.0},
            "read": {"busy": self.read, "waited": 0.0},
            "measure": {"busy": self.measure, "waited": 0.0},
            "sample": {"busy": self.sample, "waited": 0.0},
            "queue": {"busy": 0.0, "waited": self.readers_waited},
            "infer": {"busy": self.infer, "waited": self.engine_waited + self.stalled},
            "commit": {"busy": self.commit, "waited": self.commits_waited},
        }


@dataclass(slots=True)
class ReadFailures:
    """Counts footprints whose pixels could not be read, with one reason for each image."""

    paths: tuple[str, ...]
    """Of the images, by index."""
    _counts: Counter[int] = field(default_factory=Counter)
    _reasons: dict[int, str] = field(default_factory=dict)

    def add(self, image: int, footprints: int, reason: str) -> None:
        """Add footprints that image number `image` failed."""
        self._counts[image] += footprints
        self._reasons.setdefault(image, reason)

    def summary(self) -> tuple[tuple[str, int, str], ...]:
        """Path, footprints and first reason of each image that failed."""
        return tuple(
            (self.paths[image], number, self._reasons[image]) for image, number in self._counts.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Counts over the whole output, and the times of this run."""

    out: Path
    counts: Counts
    skipped_images: tuple[tuple[str, str], ...]
    """Path and reason of images in a folder that could not be used."""
    overridden: tuple[str, ...]
    """Differences from the run that was resumed, passed over by --force-resume."""
    notes: tuple[str, ...]
    """What to know before the result is trusted."""
    read_failures: tuple[tuple[str, int, str], ...]
    """Path, footprints and first reason of images that could not be read everywhere, in this run."""
    engine: EngineFacts | None
    """None where nothing was left to do, so that none was opened."""
    drift: Drift | None
    """How far the imagery lies from what the model was calibrated on; None where that cannot be told."""
    drift_unknown: str | None
    """Why it cannot be told."""
    times: RunTimes
    classified_now: int
    """Footprints classified by this run, not by one that it resumed."""
    threads: int
    """Reader threads."""
    work: FeedWork
    """What they did."""
    stopped_by: str | None
    """Signal that ended the run early."""
    one_file: bool
    """False where another program held the output open, so that its -wal and -shm files stay for now."""

    @property
    def exit_code(self) -> int:
        """0 done; 3 some footprints could not be read; 4 stopped early."""
        if self.stopped_early:
            return 4
        return 3 if self.counts.statuses.get("read_error") else 0

    @property
    def stopped_early(self) -> bool:
        """Whether a signal left footprints to do."""
        return self.stopped_by is not None and self.counts.statuses.get("pending", 0) > 0

    @property
    def footprints_per_second(self) -> float:
        """Classified footprints per second of streaming."""
        return self.classified_now / self.times.stream if self.times.stream > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "out": str(self.out),
            "exit_code": self.exit_code,
            "footprints": sum(self.counts.statuses.values()),
            "classes": dict(self.counts.classes),
            "statuses": dict(self.counts.statuses),
            "images": dict(self.counts.images),
            "skipped_images": [{"path": path, "reason": reason} for path, reason in self.skipped_images],
            "overridden": list(self.overridden),
            "notes": list(self.notes),
            "read_failures": [
                {"path": path, "footprints": number, "reason": reason}
                for path, number, reason in self.read_failures
            ],
            "engine": None if self.engine is None else asdict(self.engine),
            "drift": None if self.drift is None else self.drift.to_json(),
            "drift_unknown": self.drift_unknown,
            "seconds": {name: round(seconds, 3) for name, seconds in asdict(self.times).items()},
            "stages": {
                stage: {name: round(seconds, 3) for name, seconds in split.items()}
                for stage, split in self.times.stages().items()
            },
            "threads": self.threads,
            "classified_now": self.classified_now,
            "footprints_per_second": round(self.footprints_per_second, 2),
            "pixels_read": self.work.pixels_read,
            "bytes_read": self.work.bytes_read,
            "bytes_copied": self.work.bytes_copied,
            "stopped_by": self.stopped_by,
            "one_file": self.one_file,
        }

    def describe(self) -> str:
        """Several lines of text."""
        statuses = self.counts.statuses
        others = {name: number for name, number in statuses.items() if name != "ok"}
        lines = [
            f"{self.out}: {sum(statuses.values()):,} footprints",
            f"  classified: {tally(self.counts.classes) or 'none'}",
        ]
        if others:
            lines.append(f"  not classified: {tally(others)}")
        if others.get("outside_imagery") == sum(statuses.values()):
            lines.append("  no footprint lies on the imagery: check the CRS of both (edge-infer run --help)")
        lines += [f"  note: {note}" for note in self.notes]
        if self.drift is not None and (warning := self.drift.warning()):
            lines.append(f"  warning: {warning}")
        if self.drift_unknown is not None:
            lines.append(f"  drift of the imagery not known: {self.drift_unknown}")
        lines += [f"  resumed in spite of this: {difference}" for difference in self.overridden]
        lines += [
            f"  not readable for {number:,} footprints, --resume tries again"
            f" (--force-resume once the image was replaced): {reason}"
            for _, number, reason in self.read_failures
        ]
        lines += [f"  image skipped: {path}: {reason}" for path, reason in self.skipped_images]
        lines += self._work_lines()
        if self.stopped_early:
            lines.append(f"stopped early by {self.stopped_by}; the same command with --resume goes on")
        if not self.one_file:
            lines.append(
                "another program has the output open, so that its -wal and -shm files are still needed: "
                "close it there, then the same command with --resume makes it one file"
            )
        return "\n".join(lines)

    def _work_lines(self) -> list[str]:
        engine, times = self.engine, self.times
        if engine is None:
            return ["nothing was left to do: the file is as it was (edge-infer info lists its runs)"]
        engine_line = (
            f"engine: {engine.name} {engine.version}, {engine.precision}, batch {engine.batch}, "
            f"on {engine.device} ({engine.why})"
        )
        time_line = (
            f"time: {hours(times.total)}, {self.footprints_per_second:,.1f} footprints/s while streaming "
            f"(read {times.read:.1f} s, sample {times.sample:.1f} s, commit {times.commit:.1f} s; "
            f"waited: engine {times.engine_waited:.1f} s, readers {times.readers_waited:.1f} s)"
        )
        return [engine_line, time_line]
