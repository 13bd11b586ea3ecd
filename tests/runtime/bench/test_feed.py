"""`edge-infer bench --feed`: the stream measured with an engine that answers at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from edge_infer.bench.feed import FeedRequest, InstantEngine, bench_feed, describe
from edge_infer.bench.scenes import KINDS, SceneKind, make_scene
from edge_infer.bench.touched import find_touched
from edge_infer.bundle import open_bundle
from edge_infer.cli_bench import bench
from edge_infer.coverage import cover
from edge_infer.device.host import HostMemory
from edge_infer.errors import Refused
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.plan import plan
from edge_infer.request import RunRequest
from edge_infer.ring import BatchSlot

if TYPE_CHECKING:
    from pathlib import Path

STAGES = ["copy", "plan", "read", "measure", "sample", "queue", "infer", "commit"]
SMALL_TILES = SceneKind(step_metres=20, gsd_metres=0.3, block_pixels=128, tiles=9)


def test_the_engine_keeps_order_and_gives_probabilities() -> None:
    engine = InstantEngine(classes=3, batch=4)
    slots = [BatchSlot.allocate(4, (8, 8, 3), HostMemory()) for _ in range(2)]
    for count, slot in enumerate(slots, start=3):
        slot.count = count
        engine.submit(slot)
    assert engine.in_flight == 2
    for slot in slots:
        collected, probabilities = engine.collect()
        assert collected is slot
        assert probabilities.shape == (slot.count, 3)
        assert np.allclose(probabilities.sum(axis=1), 1)
    assert engine.in_flight == 0


@pytest.mark.parametrize(
    ("name", "houses"), [("county", 2), ("mosaic", 2), ("deflate16", 12), ("degrees", 12)]
)
def test_every_footprint_of_a_scene_gets_a_chip(name: str, houses: int) -> None:
    document = bench_feed(FeedRequest(scene=name, houses=houses, batch=8, runs=1))
    (run,) = document["runs"]
    assert (run["footprints"], run["classified"]) == (houses, houses)
    assert list(run["stages"]) == STAGES
    assert all(value >= 0 for split in run["stages"].values() for value in split.values())
    assert run["stages"]["read"]["busy"] > 0 < run["stages"]["sample"]["busy"]
    chips = houses * int(np.prod(document["streamed"]["chip_shape"]))
    bytes_per_value = 2 if name == "deflate16" else 1
    tiles = run["pixels_handed_over"] * document["streamed"]["chip_shape"][2] * bytes_per_value
    assert run["bytes_copied"] == chips + tiles
    assert run["decoded_to_touched"] is None or run["decoded_to_touched"] > 0.9
    assert "peak memory" in describe(document)
    json.dumps(document, allow_nan=False)


def test_a_seed_makes_the_same_scene(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        make_scene(SMALL_TILES, 9, folder, seed=3)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.tif")) for folder in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 9
    for name in files[0]:
        with rasterio.open(folders[0] / name) as one, rasterio.open(folders[1] / name) as other:
            assert np.array_equal(one.read(), other.read())


def test_blocks_touched_are_those_that_hold_a_window(tmp_path: Path) -> None:
    """Against marking each block of each window on a canvas."""
    scene = make_scene(KINDS["suburb"], 30, tmp_path)
    bundle = open_bundle(scene.bundle)
    contract = bundle.manifest.contract
    imagery = open_imagery((scene.imagery,), contract)
    coverage = cover(read_footprints(scene.footprints), imagery, contract)
    jobs = plan(coverage, imagery.images, contract.chip_pixels, np.arange(30))
    touched = find_touched(jobs, imagery.images, contract.chip_pixels)
    (image,) = imagery.images
    with rasterio.open(scene.imagery) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1)[:1] == [2]
        assert (dataset.count, dataset.descriptions) == (3, contract.bands)
    canvas = np.zeros((image.grid.height, image.grid.width), dtype=bool)
    for x, y, width, height in coverage.boxes:
        left, top = int(max(x - 2, 0)), int(max(y - 2, 0))
        canvas[top : int(np.ceil(y + height)) + 2, left : int(np.ceil(x + width)) + 2] = True
    side = image.block_width
    marked = {(row // side, column // side) for row, column in np.argwhere(canvas)}
    assert touched.blocks == len(marked)
    assert touched.pixels == len(marked) * side * side
    assert touched.bytes is not None
    assert 0.5 * scene.imagery.stat().st_size < touched.bytes < scene.imagery.stat().st_size


def test_given_data_by_the_command(tmp_path: Path) -> None:
    scene = make_scene(SMALL_TILES, 9, tmp_path)
    result = CliRunner().invoke(
        bench,
        [
            *("--feed", str(scene.bundle), "--imagery", str(scene.imagery)),
            *("--footprints", str(scene.footprints), "--runs", "2", "--batch", "4", "--json", "-"),
        ],
        standalone_mode=False,
    )
    assert result.exception is None
    document = json.loads(result.stdout)
    assert [run["footprints"] for run in document["runs"]] == [9, 9]
    assert document["streamed"]["scene"] is None
    assert document["machine"]
    assert not list(tmp_path.glob("out.gpkg*"))
    outlines = bench_feed(
        FeedRequest(
            given=RunRequest(
                bundle=scene.bundle, imagery=(scene.imagery,), footprints=None, out=tmp_path / "out.gpkg"
            ),
            runs=1,
        )
    )
    assert outlines["runs"][0]["footprints"] == 9  # the images are the objects


def test_what_measures_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="1 or more"):
        FeedRequest(houses=0)
    result = CliRunner().invoke(bench, ["--feed", str(tmp_path / "m.edgemodel")])
    assert result.exit_code == 2
    assert "--feed takes MODEL with --imagery, or neither" in result.output
