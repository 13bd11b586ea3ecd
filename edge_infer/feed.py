"""Reader threads: each goes through its share of the tile jobs and cuts every tile's chips into the ring."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_infer.blacken import blacken
from edge_infer.covered import covered_fraction
from edge_infer.cutter import HostCutter
from edge_infer.device.host import HostMemory
from edge_infer.errors import ReadError
from edge_infer.imagery import Reader, bound_cache
from edge_infer.interrupt import join_all
from edge_infer.plan import plan
from edge_infer.ring import BatchRing, RingClosedError
from edge_infer.shares import JobShares
from edge_infer.sizes import TILE_PIXELS, choose_cache_bytes, installed_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from edge_infer.coverage import Coverage
    from edge_infer.cutter import Cutter
    from edge_infer.imagery import Image, Tile
    from edge_infer.manifest import ChipContract
    from edge_infer.plan import TileJob


@dataclass(frozen=True, slots=True, eq=False)
class ReadFailure:
    """Footprints whose pixels cannot be read, and what the reader said."""

    rows: npt.NDArray[np.int64]
    """int64, (k,): positions of the footprints."""
    reason: str


@dataclass(slots=True)
class FeedWork:
    """What the reader threads did, summed over threads."""

    plan_seconds: float = 0.0
    """Before the threads started."""
    read_seconds: float = 0.0
    measure_seconds: float = 0.0
    """How much of each footprint is covered, reading more of a mask included."""
    sample_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time of it all, but for the plan."""
    tiles: int = 0
    pixels_read: int = 0
    """Pixels handed over by GDAL, at the decimation asked for, bands counted once."""
    bytes_copied: int = 0
    """Of these pixels, out of GDAL's cache, and of the chips or tiles made of them: each written once."""
    bytes_read: int | None = 0
    """Of the files; a block that is decoded twice counts twice. None where the system does not tell."""


@dataclass(slots=True, eq=False)
class Feeder:
    """Runs `threads` reader threads over the jobs, until all chips lie in the ring.

    A block that cannot be read halves its job until only the footprints that need it are left.
    """

    images: Sequence[Image]
    coverage: Coverage
    contract: ChipContract
    rows: npt.NDArray[np.int64]
    """int64, (n,): positions of the footprints to cut chips for."""
    ring: BatchRing
    threads: int = 2
    tile_pixels: int = TILE_PIXELS
    """Most pixels of a tile, bands counted once."""
    cutter: Cutter | None = None
    """Who cuts the chips; None: the reader threads."""
    work: FeedWork = field(default_factory=FeedWork)
    error: BaseException | None = None
    """What ended a reader thread, other than a block that cannot be read."""
    _jobs: JobShares = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _failures: list[ReadFailure] = field(default_factory=list)
    _running: list[threading.Thread] = field(default_factory=list)
    _left: int = field(init=False)

    def __enter__(self) -> Feeder:
        """Plan the jobs and start the threads."""
        started = time.perf_counter()
        self._jobs = JobShares(self._plan(self.rows), self.threads)
        self.work.plan_seconds = time.perf_counter() - started
        bound_cache(
            choose_cache_bytes(
                threads=self.threads,
                pixel_bytes=max(image.pixel_bytes for image in self.images),
                memory_bytes=installed_memory_bytes(),
            )
        )
        self._left = self.threads
        self._running = [
            threading.Thread(target=self._run, args=(number,), name=f"reader-{number}")
            for number in range(self.threads)
        ]
        try:
            for thread in self._running:
                thread.start()
        except BaseException:  # the system may refuse another thread; those that run must not wait for ever
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the ring and wait for the threads."""
        self._end()

    def _end(self) -> None:
        join_all(self._running, self.ring.stop)

    def take_failures(self) -> list[ReadFailure]:
        """Give the failures since the last call."""
        with self._lock:
            failures, self._failures = self._failures, []
        return failures

    def _plan(self, rows: npt.NDArray[np.int64]) -> list[TileJob]:
        side = self.contract.chip_pixels
        return plan(self.coverage, self.images, side, rows, budget_pixels=self.tile_pixels)

    def _run(self, number: int) -> None:
        try:
            with self._counted(), Reader() as reader:
                while (job := self._jobs.take(number)) is not None:
                    self._feed(job, reader)
        except RingClosedError:
            pass
        except BaseException as error:  # it is raised again in the thread that takes
            self.error = error
            self.ring.stop()
        finally:
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self.ring.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count processor time and bytes of this thread, which reads no files but imagery."""
        cpu, read = time.thread_time(), _bytes_read()
        try:
            yield
        finally:
            cpu, now = time.thread_time() - cpu, _bytes_read()
            with self._lock:
                self.work.cpu_seconds += cpu
                if now is None or read is None or self.work.bytes_read is None:
                    self.work.bytes_read = None
                else:
                    self.work.bytes_read += now - read

    def _feed(self, job: TileJob, reader: Reader) -> None:
        if self.ring.stopped:  # a job that cannot be read claims nothing, and would not notice
            raise RingClosedError
        started = time.perf_counter()
        try:
            tile = reader.read(
                self.images[job.image],
                column=job.column,
                row=job.row,
                width=job.width,
                height=job.height,
                decimation=job.decimation,
            )
        except ReadError as failure:
            self._retreat(job, reader, failure)
            return
        read = time.perf_counter()
        covered = covered_fraction(self.coverage, job.rows, self.images[job.image], tile, reader)
        measured = time.perf_counter()
        with self._lock:
            self.work.tiles += 1
            self.work.read_seconds += read - started
            self.work.measure_seconds += measured - read
            self.work.pixels_read += int(tile.pixels[0].size)
            self.work.bytes_copied += tile.pixels.nbytes
        self._cut(job, tile, covered)

    def _retreat(self, job: TileJob, reader: Reader, failure: ReadError) -> None:
        if len(job.rows) == 1:
            with self._lock:
                self._failures.append(ReadFailure(job.rows, str(failure)))
            return
        middle = len(job.rows) // 2
        for half in (job.rows[:middle], job.rows[middle:]):
            for smaller in self._plan(half):
                self._feed(smaller, reader)

    def _cut(self, job: TileJob, tile: Tile, covered: npt.NDArray[np.float32]) -> None:
        started = time.perf_counter()
        cutter = self.cutter or HostCutter(self.contract.value_range)
        cut = cutter.open(tile, len(job.rows), self.ring)
        seconds = time.perf_counter() - started
        done = 0
        while done < len(job.rows):
            span = self.ring.claim(len(job.rows) - done)
            end = done + len(span)
            places = slice(span.start, span.stop)
            started = time.perf_counter()
            cut(job.boxes[done:end], span)
            if self.contract.blacken:
                image = self.images[job.image]
                blacken(
                    span.slot.chips[places], job.boxes[done:end], job.rows[done:end], self.coverage, image
                )
            seconds += time.perf_counter() - started
            span.slot.rows[places] = job.rows[done:end]
            span.slot.covered_fraction[places] = covered[done:end]
            self.ring.fill(span)
            done = end
        with self._lock:
            self.work.sample_seconds += seconds
            # Where a device cuts the chips, tiles are copied to where it finds them.
            chips = len(job.rows) * math.prod(self.contract.chip_shape)
            self.work.bytes_copied += chips if self.cutter is None else tile.pixels.nbytes


def _bytes_read() -> int | None:
    """Bytes that this thread has read from files so far; None where the system does not tell."""
    try:
        first = Path("/proc/thread-self/io").read_text().splitlines()[0]
        return int(first.removeprefix("rchar:"))
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ChipBatch:
    """Some chips and whose they are; the arrays are the caller's to keep."""

    chips: npt.NDArray[np.uint8]
    """uint8, (n, S, S, C)."""
    rows: npt.NDArray[np.int64]
    """int64, (n,): positions of the footprints."""
    valid_fraction: npt.NDArray[np.float32]
    """float32, (n,)."""
    covered_fraction: npt.NDArray[np.float32]
    """float32, (n,): share of each footprint on valid pixels."""


def stream_chips(
    images: Sequence[Image],
    coverage: Coverage,
    contract: ChipContract,
    rows: npt.NDArray[np.int64],
    *,
    batch: int = 64,
    threads: int = 2,
) -> Iterator[ChipBatch | ReadFailure]:
    """Cut the chips of the footprints at `rows` just as `run` does, for those who keep chips.

    Args:
        images: the images that `coverage` refers to.
        coverage: which image each footprint is judged on.
        contract: what a chip is.
        rows: int64, (n,): positions of footprints that have an image.
        batch: most chips in one batch.
        threads: reader threads.

    Yields:
        Batches of chips in scan order of the imagery, and the footprints that cannot be read.

    """
    ring = BatchRing.allocate(4, batch, contract.chip_shape, HostMemory())
    with Feeder(images, coverage, contract, rows, ring, threads) as feeder:
        while (slot := ring.take()) is not None:
            kept = slice(0, slot.count)
            yield ChipBatch(
                slot.chips[kept].copy(),
                slot.rows[kept].copy(),
                slot.valid_fraction[kept].copy(),
                slot.covered_fraction[kept].copy(),
            )
            ring.give_back(slot)
            yield from feeder.take_failures()
        if feeder.error is not None:
            raise feeder.error
        yield from feeder.take_failures()
