"""INT8 against FP32 on this CPU: ResNet34 at 224 pixels through the engine of `edge-infer run`.

The file that a GPU gets runs here too. Ratios of neighbouring turns count: a machine's mood hits both alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch

from edge_infer.engine.load import fill_slots, keep_full
from edge_infer.engine.openvino import DEFAULT_BATCH, OpenVinoEngine
from edge_infer_calibration.activations import observe
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_calibration.ranges import find_ranges
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SHAPE = (224, 224, 3)
WANTED = 3.7
"""Times FP32's throughput, on a CPU with AVX512-VNNI."""
TURNS = 5
FP32_BATCHES, INT8_BATCHES = 12, 48


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    """FP32 and INT8 of one ResNet34 with random weights, ranges from chips of smooth noise."""
    torch.manual_seed(0)
    classifier = Classifier(ResNet(3), mean=(120.0,) * 3, std=(60.0,) * 3, temperature=1.0)
    content = export_graph(classifier.eval(), SHAPE)
    model = onnx.load_from_string(content)
    chips = np.random.default_rng(0).integers(0, 256, (8, 14, 14, 3)).repeat(16, 1).repeat(16, 2)
    seen = observe(model, place(model), [chips.astype(np.uint8)])
    ranges = find_ranges(seen.histograms, "minmax")
    return {"fp32": content, "int8": insert_qdq(model, ranges).SerializeToString()}


def test_int8_against_fp32(models: dict[str, bytes], benchmark: BenchmarkFixture) -> None:
    engines = {
        "fp32": OpenVinoEngine(models["fp32"], SHAPE, 3, precision="fp32", why="benchmark"),
        "int8": OpenVinoEngine(models["int8"], SHAPE, 3, precision="int8", why="benchmark"),
    }
    chips = np.random.default_rng(1).integers(0, 256, (4 * DEFAULT_BATCH, *SHAPE)).astype(np.uint8)
    slots = {name: fill_slots(engine, chips) for name, engine in engines.items()}
    for name, engine in engines.items():
        keep_full(engine, slots[name], batches=engine.depth)
    rates: dict[str, list[float]] = {"fp32": [], "int8": []}

    def turn() -> None:
        for name, batches in (("fp32", FP32_BATCHES), ("int8", INT8_BATCHES)):
            ends = keep_full(engines[name], slots[name], batches=batches)
            rates[name].append(len(ends) * DEFAULT_BATCH / float(ends[-1]))

    benchmark.pedantic(turn, rounds=TURNS)
    ratio = float(np.median(np.array(rates["int8"]) / np.array(rates["fp32"])))
    benchmark.extra_info.update(images_per_second=rates, ratio=ratio)
    print(f"\nfp32 {np.round(rates['fp32'], 1)}, int8 {np.round(rates['int8'], 1)} img/s, ratio {ratio:.2f}")
    for engine in engines.values():
        engine.close()
    if "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"INT8 is {ratio:.2f} times FP32 here; {WANTED} is wanted of CPUs with AVX512-VNNI")
    assert ratio >= WANTED
