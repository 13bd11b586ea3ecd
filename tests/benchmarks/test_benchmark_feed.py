"""The stream with an engine that answers at once, against a plain loop and against what bounds it.

Ratios within one run. Processor time is what is compared where both sides use all they can get: on a machine
that does other work as well, it says what the clock would say on a quiet one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.windows import Window

from edge_infer.bench.feed import FeedRun, measure_run, run_to_json
from edge_infer.bench.memory import forget_peak, peak_bytes
from edge_infer.bench.scenes import CLASSES, COLORS, KINDS, Scene, make_scene
from edge_infer.bench.touched import Touched, find_touched
from edge_infer.bundle import open_bundle
from edge_infer.coverage import Coverage, cover
from edge_infer.footprints import read_footprints
from edge_infer.imagery import Imagery, Reader, bound_cache, open_imagery
from edge_infer.ledger import COMMIT_FOOTPRINTS
from edge_infer.machine import Machine
from edge_infer.output import create_output
from edge_infer.plan import TileJob, plan
from edge_infer.request import RunRequest
from edge_infer.results import ResultRows, Results, RunInfo
from edge_infer.sampler import sample
from edge_infer.sizes import choose_cache_bytes, installed_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 3
PLAIN_WINDOWS = 300
"""Of the plain loop, which is slow and steady."""
HOUSES = {
    "suburb": 40_000,
    "county": 400,
    "mosaic": 400,
    "tiles": 28_000,  # files of 254 pixels
    "deflate16": 5_000,
    "degrees": 5_000,
}
MEGABYTE = 10**6
GDAL_SHARE = 20
"""GDAL's cache, where nobody bounds it, is one part in so many of the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A scene, and what a run would do there."""

    scene: Scene
    imagery: Imagery
    coverage: Coverage
    jobs: list[TileJob]
    touched: Touched
    chip_shape: tuple[int, int, int]
    value_range: tuple[float, float]


def planned(name: str, count: int, folder: Path) -> Planned:
    scene = make_scene(KINDS[name], count, folder)
    contract = open_bundle(scene.bundle).manifest.contract
    imagery = open_imagery((scene.imagery,), contract)
    coverage = cover(read_footprints(scene.footprints), imagery, contract)
    jobs = plan(coverage, imagery.images, contract.chip_pixels, np.flatnonzero(coverage.status == "pending"))
    touched = find_touched(jobs, imagery.images, contract.chip_pixels)
    return Planned(scene, imagery, coverage, jobs, touched, contract.chip_shape, contract.value_range)


@pytest.fixture(scope="module")
def suburb(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return planned("suburb", HOUSES["suburb"], tmp_path_factory.mktemp("suburb"))


def run(scene: Scene, **options: Any) -> FeedRun:
    return measure_run(
        RunRequest(
            bundle=scene.bundle,
            imagery=(scene.imagery,),
            footprints=scene.footprints,
            out=scene.bundle.with_name("out.gpkg"),
            overwrite=True,
            **options,
        ),
        len(CLASSES),
    )


def least(work: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Least seconds by the clock and of processor time."""
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def plain_loop(job: Planned, *, sort: bool = False) -> tuple[float, float]:
    """Seconds a window, by the clock and of processor time, of what everybody writes first.

    In the order of the footprints' file, which is none; or sorted, so that GDAL's cache serves it best.
    """
    bound_cache(installed_memory_bytes() // GDAL_SHARE)
    rows = np.flatnonzero(job.coverage.image >= 0)
    if sort:
        block = job.coverage.boxes[rows, :2] // job.imagery.images[0].block_width
        rows = rows[np.lexsort((block[:, 0], block[:, 1], job.coverage.image[rows]))]
    rows = rows[:PLAIN_WINDOWS]
    side, _, bands = job.chip_shape
    chips = np.empty((len(rows), bands, side, side), np.dtype(job.imagery.images[0].dtype))

    def loop() -> None:
        path, dataset = "", None
        for place, row in enumerate(rows):
            image = job.imagery.images[job.coverage.image[row]]
            if image.path != path:
                if dataset is not None:
                    dataset.close()
                path, dataset = image.path, rasterio.open(image.path)
            assert dataset is not None
            chips[place] = dataset.read(
                list(image.band_indexes),
                window=Window(*job.coverage.boxes[row]),
                out_shape=(bands, side, side),
                resampling=Resampling.bilinear,
                boundless=False,
            )
        if dataset is not None:
            dataset.close()

    wall, cpu = least(loop, 2)
    return wall / len(rows), cpu / len(rows)


def record(benchmark: BenchmarkFixture, name: str, figures: dict[str, Any]) -> None:
    """Keep figures, in the folder that EDGE_INFER_RESULTS names too, with the machine they were taken on."""
    benchmark.extra_info.update(figures)
    print(f"\n{name}: {json.dumps(figures)}")
    folder = os.environ.get("EDGE_INFER_RESULTS")
    if folder:
        document = {"name": name, "machine": Machine.read().to_json(), **figures}
        Path(folder, f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def against_a_plain_loop(job: Planned, benchmark: BenchmarkFixture) -> dict[str, Any]:
    """Run `job`, and the loop over its windows as they come and sorted; ratios are by footprints a second."""
    runs: list[FeedRun] = []
    benchmark.pedantic(lambda: runs.append(run(job.scene)), rounds=ROUNDS)
    plain_wall, plain_cpu = plain_loop(job)
    sorted_wall, sorted_cpu = plain_loop(job, sort=True)
    best = min(runs, key=lambda each: each.cpu_seconds)
    threads, count = best.summary.threads, job.scene.count
    wall = min(each.summary.times.stream for each in runs) / count
    cpu = best.cpu_seconds / count
    statuses = best.summary.counts.statuses  # no_data: of small files some windows show less than half
    assert statuses["ok"] + statuses.get("no_data", 0) > 0.99 * count
    return {
        "footprints_per_second": 1 / wall,
        "plain_loop_per_second": 1 / plain_wall,
        "ratio": plain_wall / wall,
        "ratio_by_processor_time": plain_cpu / cpu * threads,
        "sorted_loop_per_second": 1 / sorted_wall,
        "sorted_ratio_by_processor_time": sorted_cpu / cpu * threads,
        "threads": threads,
        "run": run_to_json(best, job.touched),
    }


@pytest.mark.parametrize(("name", "wanted"), [("suburb", 20.0), ("county", 1.8)])
def test_against_a_plain_loop(
    name: str, wanted: float, tmp_path: Path, request: pytest.FixtureRequest, benchmark: BenchmarkFixture
) -> None:
    """In the county both decode the same blocks, so that two cores can do it at most twice as fast."""
    job = request.getfixturevalue("suburb") if name == "suburb" else planned(name, HOUSES[name], tmp_path)
    figures = against_a_plain_loop(job, benchmark)
    record(benchmark, f"scene-{name}", figures)
    assert figures["run"]["decoded_to_touched"] <= 1.2
    assert figures["ratio_by_processor_time"] >= wanted


def decode_all(job: Planned) -> None:
    """Decode each touched block once: the tiles of one reader, whose cache holds a whole row of them."""
    bound_cache(choose_cache_bytes(threads=1, pixel_bytes=3, memory_bytes=installed_memory_bytes()))
    with Reader() as reader:
        for tile in job.jobs:
            reader.read(
                job.imagery.images[tile.image],
                column=tile.column,
                row=tile.row,
                width=tile.width,
                height=tile.height,
                decimation=tile.decimation,
            )


def sample_all(job: Planned) -> Callable[[], None]:
    """Cut every chip from one decoded tile, at windows that are as large as those of the scene."""
    first = job.jobs[0]
    with Reader() as reader:
        tile = reader.read(
            job.imagery.images[first.image],
            column=first.column,
            row=first.row,
            width=first.width,
            height=first.height,
            decimation=first.decimation,
        )
    out = np.empty((len(first.rows), *job.chip_shape), np.uint8)
    valid = np.empty(len(first.rows), np.float32)
    times = -(-job.scene.count // len(first.rows))

    def cut() -> None:
        for _ in range(times):
            sample(tile, first.boxes, out, valid, value_range=job.value_range)

    return cut


def write_vectors(job: Planned, out: Path) -> None:
    """Read the footprints, copy them, and fill in every row, in groups of a run's."""
    footprints = read_footprints(job.scene.footprints)
    create_output(
        out, job.scene.footprints, footprints, class_names=CLASSES, class_colors=COLORS, overwrite=True
    )
    info = RunInfo(
        model="m", model_sha256="0", engine="e", precision="p", device="d", why="w", versions={}, options={}
    )
    with Results.open(out) as results:
        results.start_run(info, [])
        for start in range(0, len(footprints), COMMIT_FOOTPRINTS):
            fids = np.arange(start, min(start + COMMIT_FOOTPRINTS, len(footprints))) + 1
            count = len(fids)
            results.commit(
                ResultRows(
                    fids=fids,
                    class_index=np.zeros(count, np.int64),
                    probabilities=np.full((count, 2), 0.5, np.float32),
                    status=np.full(count, "ok"),
                    reason=np.full(count, None, dtype=object),
                    valid_fraction=np.ones(count, np.float32),
                    covered_fraction=np.ones(count, np.float32),
                    image_index=np.full(count, -1),
                    gsd_m=np.full(count, 0.3),
                )
            )
        results.finish()


def test_against_its_bound(suburb: Planned, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """What decoding, cutting and vectors take, each alone, over what the run takes; in processor time."""
    parts = {
        "decode": least(lambda: decode_all(suburb))[1],
        "sample": least(sample_all(suburb))[1],
        "vectors": least(lambda: write_vectors(suburb, tmp_path / "out.gpkg"))[1],
    }
    runs: list[FeedRun] = []
    benchmark.pedantic(lambda: runs.append(run(suburb.scene)), rounds=ROUNDS)
    whole = min(each.cpu_seconds for each in runs)
    share = sum(parts.values()) / whole
    record(benchmark, "bound", {"alone_seconds": parts, "run_seconds": whole, "share_of_bound": share})
    assert share >= 0.7


@pytest.mark.parametrize("name", ["mosaic", "tiles", "deflate16", "degrees"])
def test_scene(name: str, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    figures = against_a_plain_loop(planned(name, HOUSES[name], tmp_path), benchmark)
    record(benchmark, f"scene-{name}", figures)
    assert figures["ratio_by_processor_time"] >= 1


def runs_of_a_process(scene: Scene, runs: int) -> list[dict[str, Any]]:
    """What `bench --feed` finds in a process of its own, whose memory no other test has touched."""
    command = [
        *(str(Path(sys.executable).with_name("edge-infer")), "bench", "--feed", str(scene.bundle)),
        *("--imagery", str(scene.imagery), "--footprints", str(scene.footprints)),
        *("--runs", str(runs), "--json", "-"),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def test_ten_times_as_many(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Ten times the footprints take ten times the work, and hardly more memory: 0.4 kB each.

    The cache follows from the plan's order, and the small scene fills it, too.
    """
    scenes = []
    for count in (10_000, 100_000):
        (tmp_path / str(count)).mkdir()
        scenes.append(make_scene(KINDS["suburb"], count, tmp_path / str(count)))
    small = runs_of_a_process(scenes[0], ROUNDS)
    large: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: large.extend(runs_of_a_process(scenes[1], 2)), rounds=1)
    ratio = min(each["cpu_seconds"] for each in large) / min(each["cpu_seconds"] for each in small)
    peaks = [min(each["peak_memory_bytes"] for each in runs) for runs in (small, large)]
    record(benchmark, "ten-times", {"ratio": ratio, "peak_bytes": peaks})
    assert ratio <= 10.5
    assert peaks[1] - peaks[0] <= 50 * MEGABYTE


def test_a_million_streamed(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """A million houses on a hundred files, 4.4 gigapixels: some minutes to make, and some to stream."""
    scene = make_scene(replace(KINDS["suburb"], tiles=100), 1_000_000, tmp_path)
    found: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: found.extend(runs_of_a_process(scene, 1)), rounds=1)
    record(benchmark, "million-streamed", {"run": found[0]})
    assert found[0]["classified"] == scene.count


def test_a_million_planned_and_copied(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    scene = make_scene(KINDS["suburb"], 1_000_000, tmp_path, empty=True)
    contract = open_bundle(scene.bundle).manifest.contract
    imagery = open_imagery((scene.imagery,), contract)
    forget_peak()

    def plan_and_copy() -> None:
        footprints = read_footprints(scene.footprints)
        coverage = cover(footprints, imagery, contract)
        jobs = plan(coverage, imagery.images, contract.chip_pixels, np.arange(scene.count))
        assert sum(len(job.rows) for job in jobs) == scene.count
        create_output(
            tmp_path / "out.gpkg", scene.footprints, footprints,
            class_names=CLASSES, class_colors=COLORS, overwrite=True,
        )  # fmt: skip

    wall, cpu = time.perf_counter(), time.process_time()
    benchmark.pedantic(plan_and_copy, rounds=1)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    record(benchmark, "million", {"seconds": wall, "processor_seconds": cpu, "peak_bytes": peak_bytes()})
    assert cpu < 20
