"""Rates of the vector side: read, copy, commit. Run with `--benchmark-only`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import pytest
import shapely

from edge_infer.footprints import read_footprints
from edge_infer.output import create_output
from edge_infer.results import ResultRows, Results, RunInfo

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

COUNT = 100_000
GROUP = 256
CLASSES = ("destroyed", "no visible damage")
COLORS = ("#d62728", "#2ca02c")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GeoPackage of rectangles with four attributes."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 1e5, (COUNT, 2)), rng.uniform(5, 30, (COUNT, 2))
    boxes = shapely.box(*corner.T, *(corner + size).T)
    columns = {
        "id": np.arange(COUNT),
        "name": np.array([f"house {n}" for n in range(COUNT)], dtype=object),
        "height": rng.uniform(2, 20, COUNT),
        "floors": rng.integers(1, 9, COUNT).astype(np.int32),
    }
    path = tmp_path_factory.mktemp("source") / "houses.gpkg"
    pyogrio.raw.write(
        path,
        shapely.to_wkb(boxes),
        list(columns.values()),
        list(columns),
        crs="EPSG:26915",
        geometry_type="Polygon",
        driver="GPKG",
    )
    return path


def create(source: Path, out: Path) -> None:
    create_output(
        out, source, read_footprints(source), class_names=CLASSES, class_colors=COLORS, overwrite=True
    )


def test_read_footprints(benchmark: BenchmarkFixture, source: Path) -> None:
    footprints = benchmark(read_footprints, source)
    benchmark.extra_info["rows"] = COUNT
    assert footprints.usable.all()


def test_create_output(benchmark: BenchmarkFixture, source: Path, tmp_path: Path) -> None:
    """Copy, result columns, source ids, spatial index and style; without reading the footprints."""
    footprints, out = read_footprints(source), tmp_path / "out.gpkg"
    benchmark(
        create_output,
        out,
        source,
        footprints,
        class_names=CLASSES,
        class_colors=COLORS,
        overwrite=True,
    )
    benchmark.extra_info["rows"] = COUNT


@pytest.mark.parametrize("order", ["file", "scan"])
def test_commit(benchmark: BenchmarkFixture, source: Path, tmp_path: Path, order: str) -> None:
    """Durable groups of 256 rows, in file order and in the random order that tiles may bring."""
    out = tmp_path / "out.gpkg"
    create(source, out)
    fids = np.arange(1, COUNT + 1)
    if order == "scan":
        np.random.default_rng(0).shuffle(fids)
    probabilities = np.random.default_rng(0).dirichlet([1.0, 1.0], COUNT).astype(np.float32)
    with Results.open(out) as results:
        run = RunInfo(
            model="m",
            model_sha256="0",
            engine="e",
            precision="p",
            device="d",
            why="w",
            versions={},
            options={},
        )
        results.start_run(run, [])

        def commit_all() -> None:
            for start in range(0, COUNT, GROUP):
                part = slice(start, start + GROUP)
                count = len(fids[part])
                results.commit(
                    ResultRows(
                        fids=fids[part],
                        class_index=probabilities[part].argmax(axis=1),
                        probabilities=probabilities[part],
                        status=np.full(count, "ok"),
                        reason=np.full(count, None, dtype=object),
                        valid_fraction=np.ones(count, dtype=np.float32),
                        covered_fraction=np.ones(count, dtype=np.float32),
                        image_index=np.full(count, -1),
                        gsd_m=np.full(count, 0.5),
                    )
                )

        benchmark(commit_all)
        assert results.finish()
    benchmark.extra_info["rows"] = COUNT
