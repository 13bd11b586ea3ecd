"""What several benchmarks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pyogrio.raw
import pytest
import rasterio
import shapely
import torch
from rasterio.transform import from_origin

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER, open_bundle, write_bundle
from edge_infer.manifest import ChipContract, Manifest
from edge_infer_calibration.activations import observe
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_calibration.ranges import find_ranges
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from pathlib import Path

FOOTPRINTS = 640
STEP_METRES = 20.0
GSD_METRES = 0.3


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


@pytest.fixture(scope="module")
def int8_bundle(dense_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's model with ranges from smooth noise: labels do not matter here."""
    bundle = open_bundle(dense_scene / "random.edgemodel")
    content = bundle.read(MODEL_MEMBER)
    model = onnx.load_from_string(content)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 14, 14, 3))
    chips = coarse.repeat(16, 1).repeat(16, 2).astype(np.uint8)
    ranges = find_ranges(observe(model, place(model), [chips]).histograms, "minmax")
    path = tmp_path_factory.mktemp("int8") / "int8.edgemodel"
    quantised = insert_qdq(model, ranges).SerializeToString()
    write_bundle(path, bundle.manifest, {MODEL_MEMBER: content, INT8_MEMBER: quantised})
    return path
