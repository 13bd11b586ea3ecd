"""The whole run against OpenVINO's own benchmark_app: what share of the engine's speed reaches the user?

Both load the same model, batch and precision, in turns, in one process after the other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
import torch
from rasterio.transform import from_origin

from edge_infer.bundle import MODEL_MEMBER, write_bundle
from edge_infer.classify import classify
from edge_infer.engine.openvino import DEFAULT_BATCH
from edge_infer.manifest import ChipContract, Manifest
from edge_infer.request import RunRequest
from edge_infer_export.graph import Classifier, export_graph
from edge_infer_export.resnet import ResNet

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

FOOTPRINTS = 640
STEP_METRES = 20.0
GSD_METRES = 0.3
ROUNDS = 3


@pytest.fixture(scope="module")
def dense_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house each 20 m at 0.3 m, as a JPEG COG, and a ResNet34 for 60 m windows of 224 pixels."""
    folder = tmp_path_factory.mktemp("dense")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (3, 160, 160), np.uint8)
    pixels = np.kron(coarse, np.ones((1, 16, 16), np.uint8))
    with rasterio.open(
        folder / "scene.tif", "w", driver="COG", width=2560, height=2560, count=3, dtype="uint8",
        crs="EPSG:32615", transform=from_origin(360_000, 4_100_000, GSD_METRES, GSD_METRES),
        compress="JPEG",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    across = int(np.ceil(np.sqrt(FOOTPRINTS)))
    column, row = np.divmod(np.arange(FOOTPRINTS), across)
    x, y = 360_050 + column * STEP_METRES, 4_099_950 - row * STEP_METRES
    houses = shapely.box(x - 5, y - 5, x + 5, y + 5)
    pyogrio.raw.write(
        folder / "houses.gpkg", shapely.to_wkb(houses), field_data=[np.arange(FOOTPRINTS)],
        fields=np.array(["number"]), geometry_type="Polygon", crs="EPSG:32615",
    )  # fmt: skip
    contract = ChipContract(
        ground_metres=60, chip_pixels=224, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
    )
    torch.manual_seed(0)
    classifier = Classifier(ResNet(2, in_channels=3), mean=(120.0,) * 3, std=(60.0,) * 3, temperature=1.0)
    manifest = Manifest(
        name="random", created="2025-06-01T12:00:00Z", architecture="ResNet34", parameters=21_285_698,
        classes=("a", "b"), colors=("#000000", "#ffffff"), contract=contract, mean=(120.0,) * 3,
        std=(60.0,) * 3, temperature=1.0,
    )  # fmt: skip
    write_bundle(
        folder / "random.edgemodel",
        manifest,
        {MODEL_MEMBER: export_graph(classifier.eval(), contract.chip_shape)},
    )
    return folder


def run_dense(folder: Path) -> float:
    """Images per second of `edge-infer run` while it streams."""
    summary = classify(
        RunRequest(
            bundle=folder / "random.edgemodel",
            imagery=(folder / "scene.tif",),
            footprints=folder / "houses.gpkg",
            out=folder / "out.gpkg",
            overwrite=True,
        ),
        quiet=True,
    )
    assert summary.classified_now == FOOTPRINTS
    return summary.footprints_per_second


def run_benchmark_app(folder: Path) -> float:
    """Images per second of OpenVINO's benchmark_app for as many images."""
    with zipfile.ZipFile(folder / "random.edgemodel") as archive:
        archive.extract(MODEL_MEMBER, folder)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("benchmark_app")), "-m", str(folder / MODEL_MEMBER)),
            *("-d", "CPU", "-hint", "throughput", "-infer_precision", "f32"),
            *("-shape", f"chips[{DEFAULT_BATCH},224,224,3]", "-niter", str(FOOTPRINTS // DEFAULT_BATCH)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Throughput:\s+([\d.]+) FPS", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def test_dense_scene_against_benchmark_app(dense_scene: Path, benchmark: BenchmarkFixture) -> None:
    """The median of the ratios of neighbouring runs: a machine's mood hits both alike."""
    ratios, ours, theirs = [], [], []

    def turn() -> None:
        theirs.append(run_benchmark_app(dense_scene))
        ours.append(run_dense(dense_scene))
        ratios.append(ours[-1] / theirs[-1])

    benchmark.pedantic(turn, rounds=ROUNDS)
    benchmark.extra_info.update(images_per_second=ours, benchmark_app=theirs, ratio=float(np.median(ratios)))
    print(
        f"\nrun {np.round(ours, 1)} img/s, benchmark_app {np.round(theirs, 1)}, ratios {np.round(ratios, 3)}"
    )


def test_help(benchmark: BenchmarkFixture) -> None:
    """`edge-infer --help`, as a process of its own; wanted: within 0.4 s."""
    command = [str(Path(sys.executable).with_name("edge-infer")), "--help"]
    benchmark(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
