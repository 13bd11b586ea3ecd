r"""A whole benchmark on one page: what is measured, in which order, and what becomes of it.

machine -> chips -> the engine alone, over precisions and batches -> whole runs -> machine again -> document
           \________________________ watched: power, heat, throttling ___________/
"""

from __future__ import annotations

import math
import platform
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_infer.bench.alone import Cell, Skipped, least_seconds, measure_all, precisions_of
from edge_infer.bench.chips import real_chips
from edge_infer.bench.document import FORMAT, VERSION
from edge_infer.bench.memory import peak_bytes
from edge_infer.bench.scenario import Rule
from edge_infer.bench.validity import doubts_of_machine, notes_on_machine
from edge_infer.bench.watch import Watch
from edge_infer.bench.whole import Whole, identify, image_files, measure_runs, place_footprints
from edge_infer.bundle import open_bundle
from edge_infer.classify import LIBRARIES
from edge_infer.engine import GpuOptions
from edge_infer.engine.choose import find_gpu, open_engine
from edge_infer.errors import EngineError, Refused
from edge_infer.imagery import open_imagery
from edge_infer.machine import Machine, Tree
from edge_infer.progress import hours
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine, EngineChoice, GpuMemoryChoice, PrecisionChoice, SampleChoice
    from edge_infer.imagery import Imagery

STREAMS = (
    "OpenVINO is compiled for throughput, as in a run: one batch at a time has the threads of one of its "
    "streams, and a processor of many cores could answer one chip sooner"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """The options of `edge-infer bench`, under their own names."""

    bundle: Path
    imagery: tuple[Path, ...] = ()
    footprints: Path | None = None
    layer: str | None = None
    where: str | None = None
    imagery_crs: str | None = None
    footprints_crs: str | None = None
    bands: tuple[int, ...] | None = None
    engine: EngineChoice = "auto"
    precision: PrecisionChoice | Literal["all"] = "auto"
    batches: tuple[int, ...] = ()
    """Chips in one batch, each measured; none: 1 and the engine's choice."""
    gpu_memory: GpuMemoryChoice = "auto"
    cuda_graphs: bool = True
    sample_on: SampleChoice = "auto"
    threads: int | None = None
    rule: Rule = field(default_factory=Rule)
    burn_in_seconds: float = 0.0
    runs: int = 3
    """Whole runs from either cache."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other or mean nothing."""
        if self.footprints is not None and not self.imagery:
            raise Refused(f"--footprints {self.footprints} lie on no imagery; name it with --imagery")
        if any(batch < 1 for batch in self.batches):
            raise Refused(f"a batch is of 1 chip or more, got {', '.join(map(str, self.batches))}")
        if len(set(self.batches)) < len(self.batches):
            raise Refused(f"each batch is measured once, got {', '.join(map(str, self.batches))}")
        if not 0 <= self.burn_in_seconds < math.inf:
            raise Refused(f"--burn-in is seconds, 0 or more, got {self.burn_in_seconds}")
        if self.runs < 1:
            raise Refused(f"--runs is 1 or more, got {self.runs}")

    @property
    def gpu(self) -> GpuOptions:
        """How a GPU is used for an engine that gets chips that are ready."""
        return GpuOptions(memory=self.gpu_memory, graphs=self.cuda_graphs, sample_on="cpu")

    def options(self) -> dict[str, Any]:
        """Give what was asked for as JSON values, but for the inputs and the rule, which stand elsewhere."""
        elsewhere = ("bundle", "imagery", "footprints", "rule", "burn_in_seconds")
        options = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in elsewhere}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    def whole_run(self) -> RunRequest | None:
        """Say what a whole run is to do, but for its `out`; None where there is no imagery."""
        if not self.imagery:
            return None
        return RunRequest(
            bundle=self.bundle,
            imagery=self.imagery,
            footprints=self.footprints,
            out=Path("out.gpkg"),
            layer=self.layer,
            where=self.where,
            imagery_crs=self.imagery_crs,
            footprints_crs=self.footprints_crs,
            bands=self.bands,
            engine=self.engine,
            precision="auto" if self.precision == "all" else self.precision,
            batch=self.batches[0] if len(self.batches) == 1 else None,
            gpu_memory=self.gpu_memory,
            cuda_graphs=self.cuda_graphs,
            sample_on=self.sample_on,
            threads=self.threads,
        )


def run_bench(
    request: BenchRequest,
    *,
    tree: Tree = Tree(),  # noqa: B008 - frozen
    say: Callable[[str], None] = lambda _: None,
    opener: Callable[..., Engine] = open_engine,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure what is asked for.

    Ctrl-C ends it early; what was measured by then is given, marked as not valid. So it is where an engine or
    a whole run fails.

    Args:
        request: what to measure.
        tree: the machine's files and commands.
        say: takes a line for what begins and what was found.
        opener: as `open_engine`.
        clock: seconds.

    Returns:
        The document, of the schema docs/bench.schema.json.

    Raises:
        Refused: the request cannot be met, or no engine can be opened; nothing was measured.

    """
    started, began = datetime.now(timezone.utc), clock()
    bundle = open_bundle(request.bundle)
    whole_request = request.whole_run()
    imagery = coverage = inputs = None
    if whole_request is not None:  # what there is to refuse is refused before hours are spent
        imagery = _open_imagery(bundle, whole_request)
        coverage = place_footprints(bundle, whole_request, imagery)
        inputs = identify(whole_request, imagery)
    chips = real_chips(bundle, imagery, coverage)
    coverage = None  # of a million footprints it would count as memory of the engine
    before = Machine.read(tree.root, tree.run)
    found = _Found()
    with Watch(tree, clock=clock) as watch:
        try:
            sweep = _sweep(bundle, request)
            least = hours(least_seconds(request.rule, len(sweep)) + request.burn_in_seconds)
            say(f"{len(sweep)} engines to measure, {least} at least; --seconds shortens it")
            open_one = partial(opener, bundle, gpu=request.gpu, say=say)
            for one in measure_all(
                sweep, open_one, chips, request.rule, watch, say, request.burn_in_seconds, clock
            ):
                found.take(one)
            if not found.cells:
                raise EngineError(found.skipped[0].reason)
            if whole_request is not None and imagery is not None:
                files = image_files(imagery)
                measure_runs(
                    whole_request, files, request.runs, watch, say, found.whole, opener=opener, clock=clock
                )
        except KeyboardInterrupt:
            if not found.cells:
                raise
            found.interrupted = True
    after = Machine.read(tree.root, tree.run)
    doubts = [*doubts_of_machine(before, after, watch), *found.doubts()]
    return {
        "format": FORMAT,
        "version": VERSION,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(clock() - began, 3),
        "interrupted": found.interrupted or found.whole.interrupted,
        "valid": not doubts,
        "doubts": doubts,
        "notes": [*notes_on_machine(after, watch), *found.notes(), *found.whole.notes],
        "machine": _machine(before),
        "watched": _watched(before, after, watch),
        "model": _model(bundle),
        "chips": chips.source,
        "options": request.options(),
        "inputs": inputs,
        "rule": {
            **asdict(request.rule),
            "burn_in_seconds": request.burn_in_seconds,
            "mlperf": request.rule.mlperf,
        },
        "alone": [cell.to_json() for cell in found.cells],
        "skipped": [asdict(one) for one in found.skipped],
        "whole": found.whole.to_json() if found.whole.runs else None,
    }


@dataclass(slots=True, eq=False)
class _Found:
    """What was measured so far."""

    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    whole: Whole = field(default_factory=Whole)
    interrupted: bool = False

    def take(self, one: Cell | Skipped) -> None:
        if isinstance(one, Cell):
            self.cells.append(one)
        else:
            self.skipped.append(one)

    def notes(self) -> list[str]:
        return [STREAMS] if any(cell.facts.name == "openvino" for cell in self.cells) else []

    def doubts(self) -> list[str]:
        doubts = [doubt for cell in self.cells for doubt in cell.doubts()]
        doubts += [f"{one.what} was not measured: {one.reason}" for one in self.skipped]
        doubts += self.whole.doubts()
        if self.interrupted or self.whole.interrupted:
            doubts.append("it was interrupted before all was measured")
        return doubts


def _sweep(bundle: Bundle, request: BenchRequest) -> list[dict[str, Any]]:
    """List the engines to measure, as options of `open_engine`."""
    engine: EngineChoice = request.engine
    if request.precision != "all":
        precisions: tuple[PrecisionChoice, ...] = (request.precision,)
    else:
        if engine == "auto":
            engine = "openvino" if isinstance(find_gpu(), str) else "tensorrt"
        precisions = precisions_of(bundle, engine)
    batches: tuple[int | None, ...] = request.batches or (1, None)
    return [
        {"engine": engine, "precision": precision, "batch": batch}
        for precision in precisions
        for batch in batches
    ]


def _open_imagery(bundle: Bundle, request: RunRequest) -> Imagery:
    return open_imagery(
        request.imagery, bundle.manifest.contract, crs=request.imagery_crs, bands=request.bands
    )


def _machine(machine: Machine) -> dict[str, Any]:
    software = {
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return {**machine.to_json(), "clocks_locked": machine.clocks_locked, "software": software}


def _watched(before: Machine, after: Machine, watch: Watch) -> dict[str, Any]:
    return {
        "interval_seconds": watch.interval_seconds,
        "celsius_before": _celsius(before),
        "celsius_after": _celsius(after),
        "hottest_celsius": watch.hottest_celsius,
        "slowed_by": list(watch.slowed_by),
        "peak_memory_bytes": peak_bytes(),
    }


def _celsius(machine: Machine) -> dict[str, float]:
    zones = {zone.name: zone.celsius for zone in machine.thermal_zones or ()}
    cards = {card.name: card.celsius for card in machine.graphics_cards or ()}
    return {name: value for name, value in (zones | cards).items() if value is not None}


def _model(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "sha256": bundle.sha256,
        "architecture": manifest.architecture,
        "parameters": manifest.parameters,
        "chip_shape": list(manifest.contract.chip_shape),
        "classes": len(manifest.classes),
    }
