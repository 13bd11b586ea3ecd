"""What the tests of calibration share: a small network and chips that look like imagery."""

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

from edge_infer.bundle import MODEL_MEMBER, write_bundle
from edge_infer.manifest import ChipContract, Manifest
from edge_infer_calibration.activations import observe
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_calibration.ranges import find_ranges
from edge_infer_export.chips.dataset import ChipRecord, ChipWriter
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer_calibration.activations import Activations

SIDE = 32
CLASSES = ("dark", "middling", "bright")
CONTRACT = ChipContract(
    ground_metres=16, chip_pixels=SIDE, bands=("red", "green", "blue"), coarsest_gsd_metres=1.0
)


def make_chips(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Smooth chips uint8 (n, S, S, 3), and the class of each by its brightness, int64 (n,)."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 25, (count, 4, 4, 3)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    classes = rng.integers(0, 3, count)
    levels = 55 + 70 * classes[:, None, None, None] + coarse + rng.normal(0, 4, coarse.shape)
    return np.clip(levels, 0, 255).astype(np.uint8), classes.astype(np.int64)


@pytest.fixture
def imagery_chips() -> Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Make chips that look like imagery: see `make_chips`."""
    return make_chips


@pytest.fixture(scope="session")
def trained() -> Classifier:
    """A small ResNet whose last layer was fitted, so that it tells the three classes apart."""
    torch.manual_seed(0)
    network = ResNet(3, blocks=(1, 2, 1, 1), width=8).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    classifier = Classifier(network, mean=(120.0,) * 3, std=(60.0,) * 3, temperature=1.0)
    chips, classes = make_chips(300, seed=5)
    with torch.inference_mode():
        images = ((torch.from_numpy(chips).float() - classifier.mean) / classifier.std).permute(0, 3, 1, 2)
        features: list[torch.Tensor] = []
        hook = network.fc.register_forward_hook(lambda _m, inputs, _o: features.append(inputs[0]))
        network(images)
        hook.remove()
    # Least squares on centred features: a layer that is right for nearly all chips.
    values = features[0].double().numpy()
    mean = values.mean(axis=0)
    wanted = np.eye(3)[classes] - 1 / 3
    weights = np.linalg.lstsq(values - mean, wanted, rcond=1e-4)[0] * 8
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(weights.T))
        network.fc.bias.copy_(torch.from_numpy(-mean @ weights))
    return classifier


@pytest.fixture(scope="session")
def model(trained: Classifier) -> onnx.ModelProto:
    """Its ONNX graph."""
    return onnx.load_from_string(export_graph(trained, CONTRACT.chip_shape))


@pytest.fixture(scope="session")
def activations(model: onnx.ModelProto) -> Activations:
    """Its activations on 96 chips."""
    chips, _ = make_chips(96)
    return observe(model, place(model), np.split(chips, 6))


@pytest.fixture(scope="session")
def quantised(model: onnx.ModelProto, activations: Activations) -> onnx.ModelProto:
    """The same with Q/DQ nodes."""
    return insert_qdq(model, find_ranges(activations.histograms, "minmax"))


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model as a bundle."""

    def write(model: onnx.ModelProto, name: str = "small") -> Path:
        manifest = Manifest(
            name=name,
            created="2025-06-01T12:00:00Z",
            architecture="ResNet",
            parameters=1000,
            classes=CLASSES,
            colors=("#222222", "#888888", "#eeeeee"),
            contract=CONTRACT,
            mean=(120.0,) * 3,
            std=(60.0,) * 3,
            temperature=1.0,
        )
        path = tmp_path / f"{name}.edgemodel"
        write_bundle(path, manifest, {MODEL_MEMBER: model.SerializeToString()})
        return path

    return write


@pytest.fixture
def write_chips(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of chips as `edge-infer chips` does."""

    def write(
        chips: NDArray[np.uint8],
        classes: NDArray[np.int64],
        *,
        name: str = "chips",
        names: tuple[str, ...] = CLASSES,
        contract: ChipContract = CONTRACT,
        images: tuple[str, ...] = ("a.tif", "b.tif"),
    ) -> Path:
        folder = tmp_path / name
        with ChipWriter(folder) as writer:
            for number, (chip, label) in enumerate(zip(chips, classes, strict=True)):
                record = ChipRecord(
                    id=number,
                    source_fid=number,
                    label=names[label],
                    image=images[number % len(images)],
                    gsd_metres=0.5 if number % 3 else 0.3,
                    ground_metres=contract.ground_metres,
                    valid_fraction=1.0,
                    longitude=-94.5 + 0.001 * (number % 40),
                    latitude=37.0 + 0.001 * (number // 40),
                )
                writer.add(chip, record)
            writer.finish(contract, names, statuses={"ok": len(chips)}, options={})
        return folder

    return write


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, Path]:
    """A raster of soft blocks and 200 houses on it, with labels."""
    rng = np.random.default_rng(4)
    blocks = rng.normal(0, 25, (3, 60, 80)).repeat(8, 1).repeat(8, 2)
    levels = 55 + 70 * rng.integers(0, 3, (12, 16)).repeat(40, 0).repeat(40, 1)
    pixels = np.clip(levels + blocks, 0, 255).astype(np.uint8)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=640, height=480, count=3, dtype="uint8",
        crs="EPSG:32615", transform=from_origin(360_000, 4_100_000, 0.5, 0.5), photometric="RGB",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    x, y = rng.uniform(20, 300, 200), rng.uniform(20, 220, 200)
    houses = shapely.box(360_000 + x - 4, 4_100_000 - y - 4, 360_000 + x + 4, 4_100_000 - y + 4)
    pyogrio.raw.write(
        tmp_path / "houses.gpkg", shapely.to_wkb(houses),
        [np.array(["1", "2", "3", None] * 50, object)], np.array(["grade"]),
        geometry_type="Polygon", crs="EPSG:32615",
    )  # fmt: skip
    return tmp_path / "scene.tif", tmp_path / "houses.gpkg"
