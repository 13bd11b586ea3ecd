"""A ResNet34 with random weights in all three precisions, made by the office's own code.

python tests/gpu/model.py resnet34.edgemodel      needs torch, onnx, onnxruntime; half a minute
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from edge_infer.bundle import (
    FP16_MEMBER,
    GOLDEN_CHIPS_MEMBER,
    GOLDEN_EXPECTED_MEMBER,
    INT8_MEMBER,
    MODEL_MEMBER,
    write_bundle,
)
from edge_infer.manifest import ChipContract, Manifest

SIDE, CLASSES, GOLDEN = 224, 2, 32


def make_chips(count: int, seed: int = 0) -> np.ndarray:
    """Chips with structure at several scales, uint8 (count, S, S, 3)."""
    rng = np.random.default_rng(seed)
    levels = np.full((count, SIDE, SIDE, 3), 128.0)
    for cells in (4, 28, 112):
        coarse = rng.normal(0, 30, (count, cells, cells, 3))
        levels += coarse.repeat(SIDE // cells, axis=1).repeat(SIDE // cells, axis=2)
    return levels.clip(0, 255).astype(np.uint8)


def write_model(path: Path) -> None:
    """Write the bundle; where its INT8 or FP16 file comes from is what `calibrate` and `export` use."""
    import onnx
    import onnxruntime
    import torch

    from edge_infer_calibration.activations import observe
    from edge_infer_calibration.placement import place
    from edge_infer_calibration.qdq import insert_qdq
    from edge_infer_calibration.ranges import find_ranges
    from edge_infer_export.graph import Classifier, export_graph
    from edge_infer_export.half import half_graph
    from edge_infer_export.resnet import ResNet

    torch.manual_seed(0)
    contract = ChipContract(
        ground_metres=60, chip_pixels=SIDE, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
    )
    mean, std = (128.0,) * 3, (60.0,) * 3
    classifier = Classifier(ResNet(CLASSES, in_channels=3), mean=mean, std=std, temperature=1.0)
    model_onnx = export_graph(classifier.eval(), contract.chip_shape)
    model = onnx.load_from_string(model_onnx)
    chips = make_chips(GOLDEN + 64)
    activations = observe(model, place(model), np.split(chips[GOLDEN:], 8))
    int8 = insert_qdq(model, find_ranges(activations.histograms, "minmax")).SerializeToString()
    session = onnxruntime.InferenceSession(model_onnx, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"chips": chips[:GOLDEN]})
    manifest = Manifest(
        name="resnet34-random", created="2025-06-01T12:00:00Z", architecture="ResNet34",
        parameters=21_285_698, classes=("a", "b"), colors=("#000000", "#ffffff"), contract=contract,
        mean=mean, std=std, temperature=1.0,
    )  # fmt: skip
    members = {
        MODEL_MEMBER: model_onnx,
        INT8_MEMBER: int8,
        FP16_MEMBER: half_graph(model_onnx),
        GOLDEN_CHIPS_MEMBER: _npy(chips[:GOLDEN]),
        GOLDEN_EXPECTED_MEMBER: _npy(expected),
    }
    write_bundle(path, manifest, members)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
