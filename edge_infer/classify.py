r"""The main job on one page: footprints and imagery in, one classified GeoPackage out.

footprints -> cover -> plan -> read -> sample -> ring -> engine -> commit
                       \___ reader threads (feed) __/    \__ this thread __/
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bundle import open_bundle
from edge_infer.coverage import cover
from edge_infer.engine.choose import open_engine
from edge_infer.errors import EdgeInferError, OutputChanged, OutputError, Stopped
from edge_infer.feed import Feeder
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.interrupt import StopSignals
from edge_infer.ledger import Ledger
from edge_infer.outlines import cover_own, write_outlines
from edge_infer.output import create_output, refuse_output
from edge_infer.progress import Progress
from edge_infer.results import ImageInfo, Results, RunInfo, read_last_run, read_schema
from edge_infer.ring import BatchRing
from edge_infer.summary import ReadFailures, RunSummary, RunTimes

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.engine import Engine
    from edge_infer.imagery import Image, Imagery
    from edge_infer.request import RunRequest

SPARE_SLOTS = 2
"""Ring slots beyond those in flight: one being filled while one stands ready."""
PATIENCE_SECONDS = 0.5
"""How long nothing at all may come before this thread looks for failures to commit."""
MOST_READERS = 4
"""Reader threads where none are asked for: more only wait for the engine."""
LIBRARIES = ("edge-infer", "numpy", "openvino", "pyogrio", "pyproj", "rasterio", "shapely")
"""Their versions go into the record of the run."""


def classify(request: RunRequest, *, quiet: bool = False) -> RunSummary:
    """Do the main job.

    Every reason to refuse is found before anything is written. From then on the output is whole at every
    moment, and a run that was cut short goes on where it stopped with `resume`.

    Args:
        request: what to do.
        quiet: show no progress.

    Returns:
        What was done; its `exit_code` is the command's.

    Raises:
        Refused: nothing was written; the text says why and what to do.
        Stopped: the output could not be written any further; what was committed stays.
        EdgeInferError: the engine or the system failed on the way; what was committed stays.

    """
    started = time.monotonic()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        bundle = open_bundle(request.bundle)
        imagery = open_imagery(
            request.imagery, bundle.manifest.contract, crs=request.imagery_crs, bands=request.bands
        )
        job = _open(request, bundle, imagery, stack)
        try:
            return _run(request, job, signals, started, quiet=quiet)
        except OutputChanged:
            raise
        except OutputError as error:
            raise Stopped(f"{error}; what was committed stays, then --resume goes on") from error
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
    results: Results


def _open(request: RunRequest, bundle: Bundle, imagery: Imagery, stack: ExitStack) -> _Job:
    """Refuse what is to be refused; then make the output, or open that of an earlier run."""
    resuming = request.resume and request.out.exists()
    if resuming:
        _refuse_another_run(request, bundle, imagery)
        source: Path = request.out
        footprints = read_footprints(source, layer=read_schema(source).layer)
        if not np.array_equal(footprints.fids, np.arange(1, len(footprints) + 1)):
            raise OutputError(
                f"{source} has lost or gained rows since its run began; start again with --overwrite"
            )
    else:
        source = request.footprints or _images_as_footprints(imagery, stack)
        inputs = [source, request.bundle, *(Path(image.path) for image in imagery.images)]
        refuse_output(request.out, inputs, overwrite=request.overwrite)
        footprints = read_footprints(
            source, layer=request.layer, where=request.where, crs=request.footprints_crs
        )
    place = cover if request.footprints is not None else cover_own
    coverage = place(footprints, imagery, bundle.manifest.contract)
    engine = stack.enter_context(
        closing(open_engine(bundle, engine=request.engine, precision=request.precision, batch=request.batch))
    )
    if not resuming:
        create_output(
            request.out,
            source,
            footprints,
            layer=request.layer,
            where=request.where,
            class_names=bundle.manifest.classes,
            class_colors=bundle.manifest.colors,
            overwrite=request.overwrite,
        )
    # Last, as GDAL must be done with the file: once it closes it, this process holds no locks on it any more.
    results = stack.enter_context(Results.open(request.out))
    if resuming:
        results.retry_unread()
    return _Job(bundle, imagery, coverage, engine, results)


def _images_as_footprints(imagery: Imagery, stack: ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-infer-"))
    path = Path(folder) / "images.geojson"
    write_outlines(imagery, path)
    return path


def _refuse_another_run(request: RunRequest, bundle: Bundle, imagery: Imagery) -> None:
    before = read_last_run(request.out)
    if before is None:
        return
    differences = request.differences(before["options"])
    if before["model_sha256"] != bundle.sha256:
        differences.append(f"the model was {before['model']} with other content")
    images = [image.path for image in imagery.images]
    if before["images"] != images:
        changed = sorted(set(before["images"]) ^ set(images)) or ["their order"]
        differences.append(f"the images differ in {', '.join(changed[:5])}")
    if differences:
        raise OutputError(
            f"{request.out} was begun by another run: {'; '.join(differences)}; "
            "resume with the same, or start again with --overwrite"
        )


def _run(request: RunRequest, job: _Job, signals: StopSignals, started: float, *, quiet: bool) -> RunSummary:
    """Fill in the pending rows."""
    manifest, results, coverage, engine = job.bundle.manifest, job.results, job.coverage, job.engine
    images = job.imagery.images
    results.start_run(_record(request, job), [_image_info(image) for image in images])
    pending = results.pending_rows() - 1
    progress = Progress(len(pending), quiet=quiet)
    ledger = Ledger(results, coverage, manifest.classes, request.min_valid, progress)
    ring = BatchRing.allocate(
        engine.depth + SPARE_SLOTS, engine.facts.batch, manifest.contract.chip_shape, engine.memory
    )
    placed = coverage.status[pending] == "pending"
    threads = request.threads or min(os.cpu_count() or 1, MOST_READERS)
    feeder = Feeder(images, coverage, manifest.contract, pending[placed], ring, threads)
    failures = ReadFailures(tuple(image.path for image in images))

    streaming = time.monotonic()
    with signals.told(ring.stop):
        ledger.add_unseen(pending[~placed], coverage.status[pending[~placed]])
        ledger.commit()
        try:
            with feeder:
                _stream(engine, ring, feeder, ledger, failures)
        finally:
            ledger.commit()
            progress.close()
        if feeder.error is not None:
            raise feeder.error
        times = RunTimes(
            total=time.monotonic() - started,
            stream=time.monotonic() - streaming,
            read=feeder.work.read_seconds,
            sample=feeder.work.sample_seconds,
            commit=ledger.commit_seconds,
            readers_waited=ring.waits.feeders_seconds,
            engine_waited=ring.waits.engine_seconds,
        )
        counts = results.end_run(asdict(times))
        one_file = results.finish()
    return RunSummary(
        out=request.out,
        counts=counts,
        skipped_images=job.imagery.skipped,
        read_failures=failures.summary(),
        engine=engine.facts,
        times=times,
        classified_now=ledger.classified,
        pixels_read=feeder.work.pixels_read,
        stopped_by=signals.received,
        one_file=one_file,
    )


def _stream(engine: Engine, ring: BatchRing, feeder: Feeder, ledger: Ledger, failures: ReadFailures) -> None:
    """Keep the engine full, and commit what it gives, until the ring has ended and nothing is in flight."""
    ended = False
    while not (ended and not engine.in_flight):
        room = not ended and engine.in_flight < engine.depth
        if room and ring.wait(0 if engine.in_flight else PATIENCE_SECONDS):
            slot = ring.take()
            ended = slot is None
            if slot is not None:
                engine.submit(slot)
        elif engine.in_flight:
            slot, probabilities = engine.collect()
            ledger.add(slot, probabilities)
            ring.give_back(slot)
        for failure in feeder.take_failures():
            ledger.add_unseen(failure.rows, np.full(len(failure.rows), "read_error"))
            failures.add(int(ledger.coverage.image[failure.rows[0]]), len(failure.rows), failure.reason)


def _record(request: RunRequest, job: _Job) -> RunInfo:
    engine = job.engine.facts
    return RunInfo(
        model=job.bundle.manifest.name,
        model_sha256=job.bundle.sha256,
        engine=engine.name,
        precision=engine.precision,
        device=engine.device,
        why=f"{engine.why}; batch {engine.batch}",
        versions={name: version(name) for name in LIBRARIES},
        options=request.options(),
    )


def _image_info(image: Image) -> ImageInfo:
    return ImageInfo(path=image.path, crs=image.grid.crs.srs, gsd_metres=image.gsd_metres, date=image.date)
