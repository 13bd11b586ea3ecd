"""Whole runs over real footprints: `classify` itself, from a cold and a warm page cache."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_infer.bench import pagecache
from edge_infer.bench.alone import FAILURES
from edge_infer.bench.validity import doubts_of_runs
from edge_infer.bundle import open_bundle
from edge_infer.classify import classify
from edge_infer.coverage import cover
from edge_infer.errors import Refused
from edge_infer.footprints import read_footprints
from edge_infer.guard import identify_footprints, identify_image
from edge_infer.imagery.trust import raster_files
from edge_infer.outlines import cover_own, write_outlines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_infer.bench.watch import PowerFigures, Watch
    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.engine import Engine
    from edge_infer.imagery import Imagery
    from edge_infer.request import RunRequest
    from edge_infer.summary import RunSummary

Cache = Literal["cold", "warm"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One run, measured."""

    cache: Cache
    cached_share: float | None
    """Share of the imagery in memory when it began; None where that cannot be told."""
    summary: RunSummary
    power: PowerFigures | None
    """While footprints streamed, which is what their number in a second is of."""
    power_in_all: PowerFigures | None
    """With reading the footprints, opening the engine, and closing the output."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        summary, facts = self.summary, self.summary.to_json()
        classified = summary.classified_now
        return {
            "cache": self.cache,
            "cached_share": self.cached_share,
            **{name: facts[name] for name in ("footprints", "statuses", "pixels_read", "seconds")},
            "classified": classified,
            "footprints_per_second": round(summary.footprints_per_second, 3),
            "power": self.power and self.power.to_json(classified),
            "power_in_all": self.power_in_all and self.power_in_all.to_json(classified),
        }


@dataclass(slots=True, eq=False)
class Whole:
    """All runs, and what there is to say of them."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    failure: str | None = None
    """What ended them early."""

    def doubts(self) -> list[str]:
        """Why the figures are not to be trusted."""
        doubts = []
        for cache in dict.fromkeys(run.cache for run in self.runs):
            rates = [run.summary.footprints_per_second for run in self.runs if run.cache == cache]
            doubts += doubts_of_runs(f"whole runs, {cache} cache", rates)
        unread = sum(run.summary.exit_code == 3 for run in self.runs)
        if unread:
            doubts.append(f"in {unread} of {len(self.runs)} runs some footprints could not be read")
        if self.failure is not None:
            doubts.append(f"whole runs broke off after {len(self.runs)}: {self.failure}")
        return doubts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        summary = self.runs[0].summary
        assert summary.engine is not None, "a fresh output is filled in"
        return {
            "engine": asdict(summary.engine),
            "threads": summary.threads,
            "runs": [run.to_json() for run in self.runs],
        }


def place_footprints(bundle: Bundle, request: RunRequest, imagery: Imagery) -> Coverage:
    """Say which footprint lies on which image, as a run will; the images themselves where none are named.

    Raises:
        Refused: the footprints cannot be read, or none of them can be classified.

    """
    contract = bundle.manifest.contract
    if request.footprints is None:
        with tempfile.TemporaryDirectory(prefix="edge-infer-bench-") as folder:
            outlines = Path(folder) / "images.geojson"
            write_outlines(imagery, outlines)
            coverage = cover_own(read_footprints(outlines), imagery, contract)
    else:
        footprints = read_footprints(
            request.footprints, layer=request.layer, where=request.where, crs=request.footprints_crs
        )
        coverage = cover(footprints, imagery, contract)
    if "pending" not in coverage.status:
        named = f"footprint of {request.footprints}" if request.footprints is not None else "image"
        raise Refused(f"no {named} can be classified with this imagery and model; give others")
    return coverage


def identify(request: RunRequest, imagery: Imagery) -> dict[str, Any]:
    """Say what imagery and footprints these are, by content, as JSON values."""
    contents = [str(identify_image(image).content) for image in imagery.images]
    return {
        "images": len(contents),
        "imagery": sha256("\n".join(contents).encode()).hexdigest(),
        "footprints": identify_footprints(request.footprints, request.layer)["content"],
    }


def image_files(imagery: Imagery) -> list[Path]:
    """List every file that holds pixels of these images; each once.

    Overviews and masks that lie beside an image belong to it, and the sources of a VRT.
    """
    files = (file for image in imagery.images for file in raster_files(Path(image.path)))
    return list(dict.fromkeys(part for file in files for part in _with_sides(file)))


def _with_sides(file: Path) -> Iterator[Path]:
    yield file
    for suffix in (".ovr", ".msk"):  # overviews may have a mask, and masks overviews
        side = Path(f"{file}{suffix}")
        if side.is_file():
            yield from _with_sides(side)


def measure_runs(
    request: RunRequest,
    files: Sequence[Path],
    runs: int,
    watch: Watch,
    say: Callable[[str], None],
    whole: Whole,
    opener: Callable[..., Engine],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run `request` so many times from either cache, in turns; its `out` is a file that is removed each time.

    The engine is opened once before: what it takes to build one is no part of any run.

    Args:
        request: what to run.
        files: of the imagery.
        runs: of each kind.
        watch: running.
        say: takes a line for each run.
        whole: takes each run when it is done, and what ended them, so that no failure costs the others.
        opener: as `open_engine`.
        clock: seconds, that of `watch`.

    """
    try:
        _open_once(request, say, opener)
        for cache in _kinds(request, files, runs, whole, opener):
            if cache == "cold" and (cannot := pagecache.drop(files)) is not None:
                whole.notes.append(f"a run from a cold cache was left out: {cannot}")
                continue
            run = _measure(request, files, cache, watch, opener, clock)
            if run.summary.stopped_by is not None:
                whole.interrupted = True
                return
            whole.runs.append(run)
            say(f"whole run, {cache} cache: {run.summary.footprints_per_second:,.1f} footprints/s")
    except FAILURES as error:
        whole.failure = str(error) or type(error).__name__
        say(f"whole runs broke off: {whole.failure}")


def _open_once(request: RunRequest, say: Callable[[str], None], opener: Callable[..., Engine]) -> None:
    with closing(
        opener(
            open_bundle(request.bundle),
            engine=request.engine,
            precision=request.precision,
            batch=request.batch,
            gpu=request.gpu,
            say=say,
        )
    ):
        pass


def _kinds(
    request: RunRequest, files: Sequence[Path], runs: int, whole: Whole, opener: Callable[..., Engine]
) -> list[Cache]:
    """List the runs to make; without cold ones where files cannot be put out of memory."""
    cannot = pagecache.drop(files)
    if cannot is not None:
        whole.notes.append(f"no runs from a cold cache: {cannot}")
        first = _run_once(request, opener)  # brings into memory what is to be there
        whole.interrupted = first.stopped_by is not None
        return [] if whole.interrupted else ["warm"] * runs
    if pagecache.cached_share(files) is None:
        whole.notes.append("whether the cache was cold is unknown: this file system does not tell")
    return ["cold", "warm"] * runs


def _measure(
    request: RunRequest,
    files: Sequence[Path],
    cache: Cache,
    watch: Watch,
    opener: Callable[..., Engine],
    clock: Callable[[], float],
) -> Run:
    share = pagecache.cached_share(files)
    watch.mark()
    start = clock()
    summary = _run_once(request, opener)
    end = watch.mark()
    streamed = start + summary.times.total
    return Run(
        cache=cache,
        cached_share=share,
        summary=summary,
        power=watch.power(streamed - summary.times.stream, streamed),
        power_in_all=watch.power(start, end),
    )


def _run_once(request: RunRequest, opener: Callable[..., Engine]) -> RunSummary:
    with tempfile.TemporaryDirectory(prefix="edge-infer-bench-") as folder:
        return classify(replace(request, out=Path(folder) / "out.gpkg"), quiet=True, opener=opener)
