r"""The main job on one page: footprints and imagery in, one classified GeoPackage out.

footprints -> cover -> plan -> read -> sample -> ring -> engine -> commit
                       \___ reader threads (feed) __/    \__ this thread __/
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bundle import open_bundle
from edge_infer.coverage import cover
from edge_infer.engine.choose import open_engine
from edge_infer.errors import OutputError, Stopped
from edge_infer.feed import Feeder
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.interrupt import StopSignals
from edge_infer.ledger import Ledger
from edge_infer.outlines import cover_own, write_outlines
from edge_infer.output import create_output, refuse_output
from edge_infer.progress import Progress
from edge_infer.results import ImageInfo, Results, RunInfo, read_schema
from edge_infer.ring import BatchRing
from edge_infer.summary import RunSummary, RunTimes

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.engine import Engine
    from edge_infer.imagery import Image, Imagery
    from edge_infer.request import RunRequest

SPARE_SLOTS = 2
"""Ring slots beyond those in flight: one being filled while one stands ready."""
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

    """
    started = time.monotonic()
    with ExitStack() as stack:
        bundle = open_bundle(request.bundle)
        imagery = open_imagery(
            request.imagery, bundle.manifest.contract, crs=request.imagery_crs, bands=request.bands
        )
        results, coverage, engine = _open(request, bundle, imagery, stack)
        try:
            return _run(request, bundle, imagery, coverage, engine, results, started, quiet=quiet)
        except OutputError as error:
            raise Stopped(f"{error}; what was committed stays, --resume goes on") from error


def _open(
    request: RunRequest, bundle: Bundle, imagery: Imagery, stack: ExitStack
) -> tuple[Results, Coverage, Engine]:
    """Open the output of an earlier run, or make a new one once nothing is left to refuse."""
    resuming = request.resume and request.out.exists()
    source = request.footprints or _images_as_footprints(imagery, stack)
    if resuming:
        # GDAL first: once it closes a file, this process holds no locks of SQLite on it any more.
        footprints = read_footprints(request.out, layer=read_schema(request.out).layer)
        results = stack.enter_context(Results.open(request.out))
        _refuse_another_run(results, request, bundle)
    else:
        refuse_output(request.out, source, overwrite=request.overwrite)
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
        results = stack.enter_context(Results.open(request.out))
    return results, coverage, engine


def _images_as_footprints(imagery: Imagery, stack: ExitStack) -> Path:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-infer-"))
    path = Path(folder) / "images.geojson"
    write_outlines(imagery, path)
    return path


def _refuse_another_run(results: Results, request: RunRequest, bundle: Bundle) -> None:
    before = results.last_run()
    if before is None:
        return
    differences = request.differences(before["options"])
    if before["model_sha256"] != bundle.sha256:
        differences.append(f"the model was {before['model']} with other content")
    if differences:
        raise OutputError(
            f"{results.path} was begun by another run: {'; '.join(differences)}; "
            "resume with the same, or start again with --overwrite"
        )


def _run(
    request: RunRequest,
    bundle: Bundle,
    imagery: Imagery,
    coverage: Coverage,
    engine: Engine,
    results: Results,
    started: float,
    *,
    quiet: bool,
) -> RunSummary:
    """Fill in the pending rows."""
    manifest = bundle.manifest
    results.start_run(_record(request, bundle, engine), [_image_info(image) for image in imagery.images])
    pending = results.pending_rows() - 1
    progress = Progress(len(pending), quiet=quiet)
    ledger = Ledger(results, coverage, manifest.classes, request.min_valid, progress)

    placed = coverage.status[pending] == "pending"
    ledger.add_unseen(pending[~placed], coverage.status[pending[~placed]])
    ledger.commit()

    ring = BatchRing.allocate(
        engine.depth + SPARE_SLOTS, engine.facts.batch, manifest.contract.chip_shape, engine.memory
    )
    threads = request.threads or min(os.cpu_count() or 1, MOST_READERS)
    feeder = Feeder(imagery.images, coverage, manifest.contract, pending[placed], ring, threads)
    streaming = time.monotonic()
    with StopSignals(ring.stop) as signals:
        with feeder:
            _stream(engine, ring, feeder, ledger)
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
        skipped_images=imagery.skipped,
        engine=engine.facts,
        times=times,
        classified_now=ledger.classified,
        pixels_read=feeder.work.pixels_read,
        stopped_by=signals.received,
        one_file=one_file,
    )


def _stream(engine: Engine, ring: BatchRing, feeder: Feeder, ledger: Ledger) -> None:
    """Keep the engine full, and commit what it gives, until the ring has ended and nothing is in flight."""
    while True:
        while engine.in_flight < engine.depth and (ring.ready() or not engine.in_flight):
            slot = ring.take()
            if slot is None:
                break
            engine.submit(slot)
        if not engine.in_flight:
            break
        slot, probabilities = engine.collect()
        ledger.add(slot, probabilities)
        ring.give_back(slot)
        _add_failures(feeder, ledger)
    _add_failures(feeder, ledger)


def _add_failures(feeder: Feeder, ledger: Ledger) -> None:
    for failure in feeder.take_failures():
        ledger.add_unseen(failure.rows, np.full(len(failure.rows), "read_error"))


def _record(request: RunRequest, bundle: Bundle, engine: Engine) -> RunInfo:
    return RunInfo(
        model=bundle.manifest.name,
        model_sha256=bundle.sha256,
        engine=engine.facts.name,
        precision=engine.facts.precision,
        device=engine.facts.device,
        versions={name: version(name) for name in LIBRARIES},
        options=request.options(),
    )


def _image_info(image: Image) -> ImageInfo:
    return ImageInfo(path=image.path, crs=image.grid.crs.srs, gsd_metres=image.gsd_metres, date=image.date)
