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
import pytest

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER
from edge_infer.classify import classify
from edge_infer.engine.openvino import DEFAULT_BATCH
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from edge_infer.engine import PrecisionChoice

FOOTPRINTS = 640
"""In `dense_scene`."""
ROUNDS = 3


def run_dense(bundle: Path, precision: PrecisionChoice, folder: Path) -> float:
    """Images per second of `edge-infer run` while it streams."""
    summary = classify(
        RunRequest(
            bundle=bundle,
            imagery=(folder / "scene.tif",),
            footprints=folder / "houses.gpkg",
            out=folder / "out.gpkg",
            precision=precision,
            overwrite=True,
        ),
        quiet=True,
    )
    assert summary.classified_now == FOOTPRINTS
    return summary.footprints_per_second


def run_benchmark_app(bundle: Path, member: str, folder: Path) -> float:
    """Images per second of OpenVINO's benchmark_app for as many images, with the bundle's own file."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extract(member, folder)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("benchmark_app")), "-m", str(folder / member)),
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


@pytest.mark.parametrize(("precision", "member"), [("fp32", MODEL_MEMBER), ("int8", INT8_MEMBER)])
def test_dense_scene_against_benchmark_app(
    precision: PrecisionChoice, member: str, dense_scene: Path, int8_bundle: Path, benchmark: BenchmarkFixture
) -> None:
    """The median of the ratios of neighbouring runs: a machine's mood hits both alike."""
    ratios, ours, theirs = [], [], []

    def turn() -> None:
        theirs.append(run_benchmark_app(int8_bundle, member, dense_scene))
        ours.append(run_dense(int8_bundle, precision, dense_scene))
        ratios.append(ours[-1] / theirs[-1])

    benchmark.pedantic(turn, rounds=ROUNDS)
    benchmark.extra_info.update(images_per_second=ours, benchmark_app=theirs, ratio=float(np.median(ratios)))
    speeds = f"run {np.round(ours, 1)} img/s, benchmark_app {np.round(theirs, 1)}"
    print(f"\n{precision}: {speeds}, ratios {np.round(ratios, 3)}")


def test_help(benchmark: BenchmarkFixture) -> None:
    """`edge-infer --help`, as a process of its own; wanted: within 0.4 s."""
    command = [str(Path(sys.executable).with_name("edge-infer")), "--help"]
    benchmark(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
