"""What the tests against real TensorRT code share.

They run by `make test-tensorrt`, through TensorRT's own parser and builder, without a GPU (tools/
tensorrt_without_gpu.py says with which libraries). They prove that models parse, that networks, types and
profiles are what TensorRT wants, that plans are built, stopped and kept as promised, and what TensorRT's
errors become. They do not prove which kernels a GPU runs, how fast, or what a plan answers: tests/gpu does.
The GPU of these tests is made up; nothing asks a driver for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.device.gpu import GpuFacts
from edge_infer.engine.tensorrt.bindings import load_tensorrt
from edge_infer.manifest import ChipContract, Manifest
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.half import half_graph
from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.engine.tensorrt.bindings import TensorRt

SMALL, LARGE = ((1, 2, 1, 1), 8, 32), ((3, 4, 6, 3), 64, 224)
"""Blocks, width and chip side: a network that builds in a blink, and ResNet34 at 224 pixels."""


@pytest.fixture(scope="session")
def library() -> TensorRt:
    return load_tensorrt("13.0")


@pytest.fixture
def gpu() -> GpuFacts:
    return GpuFacts(
        name="Made-up GPU",
        compute_capability=(8, 7),
        multiprocessors=8,
        integrated=False,
        total_bytes=8 << 30,
        free_bytes=4 << 30,
        driver="13.0",
    )


def models_of(blocks: tuple[int, int, int, int], width: int, side: int, *, seed: int = 0) -> dict[str, bytes]:
    """ONNX members of a network with random weights: FP32, FP16, and INT8 by the calibration's inserter."""
    torch.manual_seed(seed)
    network = ResNet(2, in_channels=3, blocks=blocks, width=width)
    model = export_graph(
        Classifier(network, mean=[110.0] * 3, std=[55.0] * 3, temperature=1.5), (side, side, 3)
    )
    graph = onnx.load_from_string(model)
    ranges = dict.fromkeys(place(graph).tensors, 4.0)
    return {
        "model.onnx": model,
        "model.fp16.onnx": half_graph(model),
        "model.int8.onnx": insert_qdq(graph, ranges).SerializeToString(),
    }


@pytest.fixture
def make_models() -> Callable[..., dict[str, bytes]]:
    return models_of


@pytest.fixture(scope="session")
def small_models() -> dict[str, bytes]:
    return models_of(*SMALL)


@pytest.fixture(scope="session")
def large_models() -> dict[str, bytes]:
    return models_of(*LARGE)


@pytest.fixture
def make_bundle(tmp_path: Path, small_models: dict[str, bytes]) -> Callable[..., Bundle]:
    """Write a bundle of the small network, or of other models for chips of another side."""

    def make(
        models: dict[str, bytes] | None = None, *, side: int = SMALL[2], file: str = "town", **changes: object
    ) -> Bundle:
        manifest = Manifest(
            name="town",
            created="2025-06-01T12:00:00Z",
            architecture="ResNet",
            parameters=1,
            classes=("intact", "damaged"),
            colors=("#1a9850", "#d73027"),
            contract=ChipContract(
                ground_metres=30, chip_pixels=side, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
            ),
            mean=(110.0,) * 3,
            std=(55.0,) * 3,
            temperature=1.5,
            facts={"int8": {"int8": "passed"}},
        )
        path = tmp_path / f"{file}.edgemodel"
        write_bundle(path, replace(manifest, **changes), models or small_models)  # type: ignore[arg-type]
        return open_bundle(path)

    return make
