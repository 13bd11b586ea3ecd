"""Whole runs over real footprints: `classify` itself, from a cold and a warm page cache."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_infer.bench import pagecache
from edge_infer.bench.validity import doubts_of_runs
from edge_infer.classify import classify
from edge_infer.imagery.trust import raster_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_infer.bench.watch import PowerFigures, Watch
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        summary, facts = self.summary, self.summary.to_json()
        return {
            "cache": self.cache,
            "cached_share": self.cached_share,
            **{name: facts[name] for name in ("footprints", "statuses", "pixels_read", "seconds")},
            "classified": summary.classified_now,
            "footprints_per_second": round(summary.footprints_per_second, 3),
            "power": self.power and self.power.to_json(summary.classified_now),
        }


@dataclass(slots=True, eq=False)
class Whole:
    """All runs, and what there is to say of them."""

    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def doubts(self) -> list[str]:
        """Why the figures are not to be trusted."""
        doubts = []
        for cache in dict.fromkeys(run.cache for run in self.runs):
            rates = [run.summary.footprints_per_second for run in self.runs if run.cache == cache]
            doubts += doubts_of_runs(f"whole runs, {cache} cache", rates)
        unread = sum(run.summary.exit_code == 3 for run in self.runs)
        if unread:
            doubts.append(f"in {unread} of {len(self.runs)} runs some footprints could not be read")
        return doubts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "engine": asdict(self.runs[0].summary.engine),
            "runs": [run.to_json() for run in self.runs],
        }


def image_files(imagery: Imagery) -> list[Path]:
    """List every file that holds pixels of these images, the sources of a VRT included; each once."""
    found = (file for image in imagery.images for file in raster_files(Path(image.path)))
    return list(dict.fromkeys(found))


def measure_runs(
    request: RunRequest,
    files: Sequence[Path],
    runs: int,
    watch: Watch,
    say: Callable[[str], None],
    whole: Whole,
) -> None:
    """Run `request` so many times from either cache, in turns; its `out` is a file that is removed each time.

    Args:
        request: what to run.
        files: of the imagery.
        runs: of each kind.
        watch: running.
        say: takes a line for each run.
        whole: takes each run when it is done, so that an interruption costs only the last.

    """
    kinds: list[Cache] = ["cold", "warm"] * runs
    cannot = pagecache.drop(files)
    if cannot is not None:
        whole.notes.append(f"no runs from a cold cache: {cannot}")
        kinds = ["warm"] * runs
        _run_once(request)  # brings into memory what is to be there
    elif pagecache.cached_share(files) is None:
        whole.notes.append("whether the cache was cold is unknown: this file system does not tell")
    for cache in kinds:
        if cache == "cold":
            pagecache.drop(files)
        share = pagecache.cached_share(files)
        start = watch.mark()
        summary = _run_once(request)
        power = watch.power(start, watch.mark())
        if summary.stopped_by is not None:
            whole.interrupted = True
            return
        whole.runs.append(Run(cache=cache, cached_share=share, summary=summary, power=power))
        say(f"whole run, {cache} cache: {summary.footprints_per_second:,.1f} footprints/s")


def _run_once(request: RunRequest) -> RunSummary:
    with tempfile.TemporaryDirectory(prefix="edge-infer-bench-") as folder:
        return classify(replace(request, out=Path(folder) / "out.gpkg"), quiet=True)
