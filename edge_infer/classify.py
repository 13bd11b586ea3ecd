r"""The main job on one page: footprints and imagery in, one classified GeoPackage out.

footprints -> cover -> plan -> read -> sample -> ring -> engine -> commit
                       \___ reader threads (feed) __/    this    a thread
                                                         thread  (ledger)
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.allocation import give_back_freed
from edge_infer.bundle import open_bundle
from edge_infer.coverage import cover, doubtful_places
from edge_infer.drift import DriftWatch
from edge_infer.engine.choose import open_engine
from edge_infer.errors import EdgeInferError, OutputError, Stopped
from edge_infer.feed import Feeder, FeedWork
from edge_infer.footprints import read_footprints
from edge_infer.guard import (
    begun,
    find_differences,
    find_precision,
    has_new_images,
    identify_footprints,
    identify_image,
)
from edge_infer.imagery import open_imagery
from edge_infer.interrupt import StopSignals
from edge_infer.ledger import Ledger
from edge_infer.lock import sole_run
from edge_infer.outlines import cover_own, write_outlines
from edge_infer.output import create_output, refuse_output, refuse_place
from edge_infer.progress import Progress
from edge_infer.reasons import unread
from edge_infer.results import Counts, Results, RunInfo, read_finished, read_schema
from edge_infer.ring import SPARE_SLOTS, BatchRing
from edge_infer.sizes import available_cores, choose_sizes, installed_memory_bytes
from edge_infer.summary import ReadFailures, RunSummary, RunTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.engine import Engine
    from edge_infer.imagery import Imagery
    from edge_infer.request import RunRequest
    from edge_infer.results import ImageInfo

PATIENCE_SECONDS = 0.5
"""How long nothing at all may come before this thread looks for failures, of readers and of commits."""
LIBRARIES = ("edge-infer", "numpy", "pyogrio", "pyproj", "rasterio", "shapely")
"""Their versions go into the record of the run, with the engine's."""


def classify(
    request: RunRequest, *, quiet: bool = False, opener: Callable[..., Engine] | None = None
) -> RunSummary:
    """Do the main job.

    Every reason to refuse is found before anything is written. From then on the output is whole at every
    moment, and a run that was cut short goes on where it stopped with `resume`. Where nothing is left to do,
    the output stays as it is, and no engine is opened.

    Args:
        request: what to do.
        quiet: show no progress.
        opener: as `open_engine`; None: that.

    Returns:
        What was done; its `exit_code` is the command's.

    Raises:
        Refused: nothing was written; the text says why and what to do.
        Stopped: the output could not be written any further; what was committed stays.
        EdgeInferError: the engine or the system failed on the way; what was committed stays.

    """
    started = time.monotonic()
    give_back_freed()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        bundle = open_bundle(request.bundle)
        imagery = open_imagery(
            request.imagery, bundle.manifest.contract, crs=request.imagery_crs, bands=request.bands
        )
        job = _open(request, bundle, imagery, opener or open_engine, stack, signals)
        if isinstance(job, Counts):
            return _unchanged(request, imagery, job, time.monotonic() - started)
        try:
            return _run(request, job, signals, started, quiet=quiet)
        except OutputError as error:
            raise _stopped(error) from error
        except (MemoryError, OSError, RuntimeError) as error:  # of the engine, GDAL or the system
            raise EdgeInferError(
                f"the run broke off: {error!r}; what was committed stays, --resume goes on"
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Everything that is open once nothing is left to refuse."""

    bundle: Bundle
    imagery: Imagery
    coverage: Coverage
    """Position k of it is the output's row k + 1."""
    engine: Engine
    watch: DriftWatch
    results: Results
    marks: list[ImageInfo]
    """What identifies each image."""
    identity: dict[str, Any]
    """What identifies the footprints."""
    overridden: tuple[str, ...]
    """Differences from the run that is resumed, which the user chose to pass over."""
    notes: tuple[str, ...]
    """What to know before the result is trusted."""
    copy_seconds: float
    """Reading the footprints and copying them to the output."""
    cover_seconds: float


def _open(
    request: RunRequest,
    bundle: Bundle,
    imagery: Imagery,
    opener: Callable[..., Engine],
    stack: ExitStack,
    signals: StopSignals,
) -> _Job | Counts:
    """Refuse what is to be refused; then make the output, or open that of an earlier run.

    Returns the counts of an output in which nothing is left to do.
    """
    refuse_place(request.out)
    stack.enter_context(sole_run(request.out))  # before a look at what is there, which another may be making
    resuming = request.goes_on and request.out.exists() and begun(request.out)
    marks = [identify_image(image) for image in imagery.images]
    identity = identify_footprints(request.footprints, request.layer)
    overridden: list[str] = []
    started = time.monotonic()
    if resuming:
        source: Path = request.out
        footprints = read_footprints(source, layer=read_schema(source).layer)
        if not np.array_equal(footprints.fids, np.arange(1, len(footprints) + 1)):
            raise OutputError(
                f"{source} has lost or gained rows since its run began; start again with --overwrite"
            )
        overridden += _overrule(request, find_differences(request, bundle, marks, identity))
        # Another precision than before is told below, as only an engine says in what it runs.
        same = request.precision == "auto" or not find_precision(source, request.precision)
        if same and not overridden and (counts := read_finished(source)) is not None:
            return counts
    else:
        source = request.footprints or _images_as_footprints(request.out, imagery, stack)
        inputs = [source, request.bundle, *(Path(image.path) for image in imagery.images)]
        refuse_output(request.out, inputs, overwrite=request.overwrite or request.goes_on)
        footprints = read_footprints(
            source, layer=request.layer, where=request.where, crs=request.footprints_crs
        )
    copy_seconds = time.monotonic() - started
    place = cover if request.footprints is not None else cover_own
    started = time.monotonic()
    coverage = place(footprints, imagery, bundle.manifest.contract)
    cover_seconds = time.monotonic() - started
    notes = doubtful_places(coverage, imagery.images)
    watch = DriftWatch.of(bundle)
    engine = stack.enter_context(
        closing(
            opener(
                bundle,
                engine=request.engine,
                precision=request.precision,
                batch=request.batch,
                gpu=request.gpu,
                say=_tell,
            )
        )
    )
    started = time.monotonic()
    if resuming:
        overridden += _overrule(request, find_precision(request.out, engine.facts.precision))
    else:
        create_output(
            request.out,
            source,
            footprints,
            layer=request.layer,
            where=request.where,
            class_names=bundle.manifest.classes,
            class_colors=bundle.manifest.colors,
            overwrite=request.overwrite or request.goes_on,  # nothing has been classified in what is there
        )
        signals.changed = True
    # Last, as GDAL must be done with the file: once it closes it, this process holds no locks on it any more.
    try:
        results = stack.enter_context(Results.open(request.out, _tell))
    except OutputError as error:
        if resuming:
            raise
        raise _stopped(error) from error
    if resuming:
        results.retry("read_error", *(("outside_imagery",) if has_new_images(request.out, marks) else ()))
    copy_seconds += time.monotonic() - started
    return _Job(
        bundle,
        imagery,
        coverage,
        engine,
        watch,
        results,
        marks,
        identity,
        tuple(overridden),
        tuple(notes),
        copy_seconds,
        cover_seconds,
    )


def _unchanged(request: RunRequest, imagery: Imagery, counts: Counts, seconds: float) -> RunSummary:
    """Summarise a run that found nothing left to do."""
    return RunSummary(
        out=request.out,
        counts=counts,
        skipped_images=imagery.skipped,
        overridden=(),
        notes=(),
        read_failures=(),
        engine=None,
        drift=None,
        drift_unknown=None,
        times=RunTimes(total=seconds),
        classified_now=0,
        threads=0,
        work=FeedWork(),
        stopped_by=None,
        one_file=True,
    )


def _tell(line: str) -> None:
    """Tell what takes minutes, quiet or not: a TensorRT engine that is built."""
    with suppress(OSError):  # a terminal that is gone
        sys.stderr.write(f"edge-infer: {line}\n")
        sys.stderr.flush()


def _stopped(error: OutputError) -> Stopped:
    return Stopped(f"{error}; what was committed stays, then --resume goes on")


def _images_as_footprints(out: Path, imagery: Imagery, stack: ExitStack) -> Path:
    path = out.with_name(f"{out.name}.images.geojson")  # where there must be room anyway
    stack.callback(path.unlink, missing_ok=True)
    path.unlink(missing_ok=True)  # of a run that was killed
    write_outlines(imagery, path)
    return path


def _overrule(request: RunRequest, differences: list[str]) -> list[str]:
    """Return the differences from the earlier run that --force-resume passes over; refuse without it."""
    if differences and not request.force_resume:
        raise OutputError(
            f"{request.out} was begun by another run: {'; '.join(differences)}; resume with the same, "
            "go on in spite of that with --force-resume, or start again with --overwrite"
        )
    return differences


def _run(request: RunRequest, job: _Job, signals: StopSignals, started: float, *, quiet: bool) -> RunSummary:
    """Fill in the pending rows."""
    manifest, results, coverage, engine = job.bundle.manifest, job.results, job.coverage, job.engine
    images = job.imagery.images
    results.start_run(_record(request, job), job.marks)
    pending = results.pending_rows() - 1
    progress = Progress(len(pending), quiet=quiet)
    ledger = Ledger(
        results, coverage, manifest.classes, request.min_valid, request.min_covered, progress, job.watch
    )
    sizes = choose_sizes(
        engine.facts.name,
        cores=available_cores(),
        memory_bytes=installed_memory_bytes(),
        threads=request.threads,
        tile_pixels=request.tile_pixels,
    )
    ring = BatchRing.allocate(
        engine.depth + SPARE_SLOTS, engine.facts.batch, manifest.contract.chip_shape, engine.memory
    )
    placed = coverage.status[pending] == "pending"
    feeder = Feeder(
        images,
        coverage,
        manifest.contract,
        pending[placed],
        ring,
        sizes.threads,
        sizes.tile_pixels,
        cutter=engine.cutter,
    )
    failures = ReadFailures(tuple(image.path for image in images))

    streaming = time.monotonic()
    with signals.told(ring.stop):
        try:
            with ledger:
                unplaced = pending[~placed]
                ledger.add_unseen(
                    unplaced,
                    coverage.status[unplaced],
                    coverage.reason[unplaced],
                    stopped=lambda: ring.stopped,
                )
                ledger.flush()
                with feeder:
                    infer_seconds = _stream(engine, ring, feeder, ledger, failures)
        finally:
            progress.close()
        if feeder.error is not None:
            raise feeder.error
        times = RunTimes(
            total=time.monotonic() - started,
            stream=time.monotonic() - streaming,
            copy=job.copy_seconds,
            plan=job.cover_seconds + feeder.work.plan_seconds,
            read=feeder.work.read_seconds,
            measure=feeder.work.measure_seconds,
            sample=feeder.work.sample_seconds,
            infer=infer_seconds,
            commit=ledger.committer.busy_seconds,
            readers_waited=ring.waits.feeders_seconds,
            engine_waited=ring.waits.engine_seconds,
            commits_waited=ledger.committer.idle_seconds,
            stalled=ledger.committer.stalled_seconds,
        )
        drift = job.watch.drift()
        counts = results.end_run(asdict(times), None if drift is None else drift.to_json())
        one_file = results.finish()
    return RunSummary(
        out=request.out,
        counts=counts,
        skipped_images=job.imagery.skipped,
        overridden=job.overridden,
        notes=job.notes,
        read_failures=failures.summary(),
        engine=engine.facts,
        drift=drift,
        drift_unknown=job.watch.why_unknown(ledger.classified),
        times=times,
        classified_now=ledger.classified,
        threads=sizes.threads,
        work=feeder.work,
        stopped_by=signals.received,
        one_file=one_file,
    )


def _stream(engine: Engine, ring: BatchRing, feeder: Feeder, ledger: Ledger, failures: ReadFailures) -> float:
    """Keep the engine full, and hand on what it gives, until the ring has ended and nothing is in flight.

    Returns the seconds spent giving to the engine and waiting for what it gives.
    """
    ended, seconds = False, 0.0
    while not (ended and not engine.in_flight):
        room = not ended and engine.in_flight < engine.depth
        if room and ring.wait(0 if engine.in_flight else PATIENCE_SECONDS):
            slot = ring.take()
            ended = slot is None
            if slot is not None:
                started = time.perf_counter()
                engine.submit(slot)
                seconds += time.perf_counter() - started
        elif engine.in_flight:
            started = time.perf_counter()
            slot, probabilities = engine.collect()
            seconds += time.perf_counter() - started
            ledger.add(slot, probabilities)
            ring.give_back(slot)
        for failure in feeder.take_failures():
            count, image = len(failure.rows), int(ledger.coverage.image[failure.rows[0]])
            why = unread(failure.reason, failures.paths[image])
            ledger.add_unseen(failure.rows, np.full(count, "read_error"), np.full(count, why, dtype=object))
            failures.add(image, count, failure.reason)
        ledger.check()
    return seconds


def _record(request: RunRequest, job: _Job) -> RunInfo:
    engine = job.engine.facts
    return RunInfo(
        model=job.bundle.manifest.name,
        model_sha256=job.bundle.sha256,
        engine=engine.name,
        precision=engine.precision,
        device=engine.device,
        why=f"{engine.why}; batch {engine.batch}",
        versions={**{name: version(name) for name in LIBRARIES}, engine.name: engine.version},
        options=request.options(),
        footprints=job.identity,
        skipped_images=job.imagery.skipped,
        overridden=job.overridden,
        notes=job.notes,
    )
