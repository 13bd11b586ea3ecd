"""How fast chips come where the engine takes no time: the whole run, with one that answers at once.

What it finds is the bound that this machine's reading, cutting and writing set to any engine.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.allocation import give_back_freed
from edge_infer.bench.memory import forget_peak, peak_bytes
from edge_infer.bench.touched import find_touched
from edge_infer.bundle import open_bundle
from edge_infer.classify import classify
from edge_infer.coverage import cover
from edge_infer.device.host import HostMemory
from edge_infer.engine import EngineFacts
from edge_infer.errors import Refused, Stopped
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.machine import Machine
from edge_infer.outlines import cover_own, write_outlines
from edge_infer.plan import plan
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_infer.bench.touched import Touched
    from edge_infer.bundle import Bundle
    from edge_infer.ring import BatchSlot
    from edge_infer.summary import RunSummary

FORMAT, VERSION = "edge-infer feed", 1
BATCH = 64
"""Chips in one batch, where nothing is said: what a GPU takes."""
DEPTH = 3
"""Batches in flight, as on a GPU."""


class InstantEngine:
    """`Engine` that gives the same probabilities for every chip, without looking at one."""

    def __init__(self, classes: int, batch: int = BATCH) -> None:
        self.memory = HostMemory()
        self.cutter = None
        self.depth = DEPTH
        self.facts = EngineFacts(
            name="instant",
            version="1",
            precision="fp32",
            device="none",
            batch=batch,
            why="to measure what feeds an engine",
        )
        self._answer = np.linspace(1, 0, classes, dtype=np.float32) / np.float32(classes / 2)
        self._running: deque[BatchSlot] = deque()

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return len(self._running)

    def submit(self, slot: BatchSlot) -> None:
        """Keep the slot until it is collected."""
        self._running.append(slot)

    def collect(self) -> tuple[BatchSlot, npt.NDArray[np.float32]]:
        """Give the oldest slot, and float32 (count, K) probabilities."""
        slot = self._running.popleft()
        return slot, np.tile(self._answer, (slot.count, 1))

    def close(self) -> None:
        """Drop what is in flight."""
        self._running.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRequest:
    """What to stream: given data, or a scene that is made up first."""

    given: RunRequest | None = None
    """Its `out` is not used."""
    scene: str = "suburb"
    """Name of a scene of `scenes.KINDS`, where nothing is given."""
    houses: int = 10_000
    batch: int = BATCH
    threads: int | None = None
    runs: int = 3

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        if min(self.houses, self.batch, self.runs) < 1:
            raise Refused(
                f"houses, batch and runs are 1 or more, got {self.houses}, {self.batch} and {self.runs}"
            )


def bench_feed(request: FeedRequest, *, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Stream everything, several times, to an engine that answers at once.

    Args:
        request: what to stream.
        say: takes a line for what begins and what was found.

    Returns:
        The document: the machine, what was streamed, and what each run took; the first run is the one in
        which imagery may not yet lie in memory.

    Raises:
        Refused: the request cannot be met.

    """
    give_back_freed()  # as a run does, before what is done here for the benchmark alone
    with tempfile.TemporaryDirectory(prefix="edge-infer-feed-") as outs:
        given = request.given or _make(request, Path(outs), say)
        job = replace(given, out=Path(outs) / "out.gpkg", overwrite=True, threads=request.threads)
        bundle = open_bundle(job.bundle)
        touched = _touched(job, bundle)
        runs = []
        for _ in range(request.runs):
            run = measure_run(job, len(bundle.manifest.classes), request.batch)
            runs.append(run_to_json(run, touched))
            say(f"{run.summary.footprints_per_second:,.0f} footprints/s")
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": Machine.read().to_json(),
        "streamed": {
            "scene": request.scene if request.given is None else None,
            "footprints": runs[0]["footprints"],
            "blocks_touched": touched.blocks,
            "pixels_touched": touched.pixels,
            "bytes_touched": touched.bytes,
            "chip_shape": list(bundle.manifest.contract.chip_shape),
        },
        "batch": request.batch,
        "runs": runs,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedRun:
    """One run, measured."""

    summary: RunSummary
    cpu_seconds: float
    """Processor time of the whole process."""
    peak_bytes: int | None


def measure_run(job: RunRequest, classes: int, batch: int = BATCH) -> FeedRun:
    """Run `job` with an engine that answers at once."""
    forget_peak()
    cpu = time.process_time()
    summary = classify(job, quiet=True, opener=lambda *_, **__: InstantEngine(classes, batch))
    if summary.stopped_early:
        raise Stopped(f"the benchmark was stopped by {summary.stopped_by}; nothing was measured")
    return FeedRun(summary=summary, cpu_seconds=time.process_time() - cpu, peak_bytes=peak_bytes())


def run_to_json(run: FeedRun, touched: Touched) -> dict[str, Any]:
    """Plain JSON values."""
    summary, work = run.summary, run.summary.work
    again = work.bytes_read / touched.bytes if work.bytes_read is not None and touched.bytes else None
    return {
        "footprints": sum(summary.counts.statuses.values()),
        "classified": summary.classified_now,
        "footprints_per_second": round(summary.footprints_per_second, 1),
        "threads": summary.threads,
        "seconds": {name: round(value, 4) for name, value in asdict(summary.times).items()},
        "stages": {
            stage: {name: round(value, 4) for name, value in split.items()}
            for stage, split in summary.times.stages().items()
        },
        "cpu_seconds": round(run.cpu_seconds, 4),
        "readers_cpu_seconds": round(work.cpu_seconds, 4),
        "tiles": work.tiles,
        "pixels_handed_over": work.pixels_read,
        "pixels_decoded": None if again is None else round(again * touched.pixels),
        "decoded_to_touched": None if again is None else round(again, 4),
        "bytes_read": work.bytes_read,
        "bytes_copied": work.bytes_copied,
        "peak_memory_bytes": run.peak_bytes,
    }


def describe(document: dict[str, Any]) -> str:
    """Several lines of text: the fastest run, stage by stage."""
    run = max(document["runs"], key=lambda run: run["footprints_per_second"])
    streamed = document["streamed"]
    what = streamed["scene"] or "the given data"
    title = (
        f"{run['footprints']:,} footprints of {what}, {run['footprints_per_second']:,.0f}/s in the fastest "
        f"of {len(document['runs'])} runs: {run['threads']} reader threads, batch {document['batch']}"
    )
    lines = [title, f"{'stage':<10}{'busy, s':>10}{'waited, s':>12}"]
    lines += []
    lines += [
        f"{stage:<10}{split['busy']:>10.2f}{split['waited']:>12.2f}" for stage, split in run["stages"].items()
    ]
    lines.append(
        f"processor time {run['cpu_seconds']:.2f} s, of which readers {run['readers_cpu_seconds']:.2f} s"
    )
    decoded = "as often as the system does not tell"
    if run["decoded_to_touched"] is not None:
        decoded = f"{run['decoded_to_touched']:.2f} times"
    lines.append(
        f"{streamed['blocks_touched']:,} blocks touched, {streamed['pixels_touched'] / 1e6:,.1f} Mpx, "
        f"decoded {decoded}; {run['pixels_handed_over'] / 1e6:,.1f} Mpx handed over in "
        f"{run['tiles']:,} tiles; {run['bytes_copied'] / 2**20:,.0f} MiB copied"
    )
    if run["peak_memory_bytes"] is not None:
        lines.append(f"peak memory {run['peak_memory_bytes'] / 2**20:,.0f} MiB")
    return "\n".join(lines)


def _make(request: FeedRequest, folder: Path, say: Callable[[str], None]) -> RunRequest:
    from edge_infer.bench.scenes import KINDS, make_scene

    say(f"making {request.houses:,} houses of {request.scene} ...")
    scene = make_scene(KINDS[request.scene], request.houses, folder)
    return RunRequest(
        bundle=scene.bundle, imagery=(scene.imagery,), footprints=scene.footprints, out=folder / "out.gpkg"
    )


def _touched(job: RunRequest, bundle: Bundle) -> Touched:
    contract = bundle.manifest.contract
    imagery = open_imagery(job.imagery, contract, crs=job.imagery_crs, bands=job.bands)
    if job.footprints is not None:
        footprints = read_footprints(job.footprints, layer=job.layer, where=job.where, crs=job.footprints_crs)
        coverage = cover(footprints, imagery, contract)
    else:
        outlines = job.out.with_name("images.geojson")
        write_outlines(imagery, outlines)
        coverage = cover_own(read_footprints(outlines), imagery, contract)
    rows = np.flatnonzero(coverage.status == "pending")
    return find_touched(
        plan(coverage, imagery.images, contract.chip_pixels, rows), imagery.images, contract.chip_pixels
    )
