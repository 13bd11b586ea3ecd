"""A ResNet34 in all three precisions, made by the office's own code: random weights, but answers that differ.

python tests/gpu/model.py resnet34.edgemodel [WIDTH]      needs torch, onnx, onnxruntime; half a minute

It has 154 MB; with a WIDTH of 32 in place of 64 the network is a quarter of that, where a file must travel.

A network with merely random weights gives every chip the same answer, and any engine would pass. So chips
differ as a whole (brightness, contrast, grain), batch normalisation holds the statistics of real activations,
as after training, and the last layer asks for the direction in which the features of chips differ most.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import torch

    from edge_infer_export.network.resnet import ResNet

SIDE, CLASSES, GOLDEN = 224, 2, 32
MEAN, STD = (128.0,) * 3, (60.0,) * 3
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 8e-2}
"""Of a probability, against another engine: FP32 differs by the order of sums; FP16 keeps 11 bits; INT8
rounds elsewhere than the other (OpenVINO and ONNX Runtime are 0.03 apart on this model's INT8 file)."""


def make_chips(count: int, seed: int = 0) -> np.ndarray:
    """Chips of any brightness, contrast and grain, uint8 (count, S, S, 3)."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(60, 190, (count, 1, 1, 3)).repeat(SIDE, axis=1).repeat(SIDE, axis=2)
    for cells in (4, 28, 112):
        strength = rng.uniform(0, 50, (count, 1, 1, 1))
        coarse = strength * rng.normal(0, 1, (count, cells, cells, 3))
        levels += coarse.repeat(SIDE // cells, axis=1).repeat(SIDE // cells, axis=2)
    return levels.clip(0, 255).astype(np.uint8)


def make_network(chips: np.ndarray, width: int) -> ResNet:
    """Random weights, but for what makes answers differ: see above."""
    import torch

    from edge_infer_export.network.resnet import ResNet

    torch.manual_seed(0)
    network = ResNet(CLASSES, in_channels=3, width=width)
    images = ((torch.from_numpy(chips).float() - MEAN[0]) / STD[0]).permute(0, 3, 1, 2)
    pooled: list[torch.Tensor] = []
    network.fc.register_forward_pre_hook(lambda _module, features: pooled.append(features[0]))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of these chips are those to keep
    with torch.no_grad():
        network.train()(images)
        network.eval()(images)
        features = pooled[-1]
        centre = features.mean(0)
        direction = torch.linalg.svd(features - centre, full_matrices=False).Vh[0]
        direction *= 1.5 / ((features - centre) @ direction).std()  # log-odds of two classes, halved
        network.fc.weight.copy_(torch.stack([direction, -direction]))
        network.fc.bias.copy_(network.fc.weight @ -centre)
    return network.eval()


def write_model(path: Path, width: int = 64) -> None:
    """Write the bundle; where its INT8 or FP16 file comes from is what `calibrate` and `export` use."""
    import onnx

    from edge_infer_calibration.activations import observe
    from edge_infer_calibration.placement import place
    from edge_infer_calibration.qdq import insert_qdq
    from edge_infer_calibration.ranges import find_ranges
    from edge_infer_export.network.graph import Classifier, export_graph
    from edge_infer_export.network.half import half_graph

    chips = make_chips(GOLDEN + 64)
    contract = ChipContract(
        ground_metres=60, chip_pixels=SIDE, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
    )
    network = make_network(chips[GOLDEN:], width)
    classifier = Classifier(network, mean=MEAN, std=STD, temperature=1.0)
    model_onnx = export_graph(classifier, contract.chip_shape)
    model = onnx.load_from_string(model_onnx)
    activations = observe(model, place(model), np.split(chips[GOLDEN:], 8))
    int8 = insert_qdq(model, find_ranges(activations.histograms, "minmax")).SerializeToString()
    half = half_graph(model_onnx)
    expected, by_half, by_int8 = (answers(content, chips[:GOLDEN]) for content in (model_onnx, half, int8))
    assert np.ptp(expected[:, 0]) > 10 * max(TOLERANCE.values())
    assert np.ptp(by_int8[:, 0]) > 10 * TOLERANCE["int8"]  # INT8 has not lost what tells chips apart
    assert np.abs(by_half - expected).max() < TOLERANCE["fp16"] / 2  # room for another engine's rounding
    for name, found in (("FP16", by_half), ("INT8", by_int8)):
        print(f"{name} shifts a probability by {np.abs(found - expected).max():.4f} at most")
    manifest = Manifest(
        name="resnet34-random",
        created="2025-06-01T12:00:00Z",
        architecture="ResNet34",
        parameters=sum(weight.numel() for weight in network.parameters()),
        classes=("a", "b"),
        colors=("#000000", "#ffffff"),
        contract=contract,
        mean=MEAN,
        std=STD,
        temperature=1.0,
        facts={"int8": {"int8": "passed"}},
    )
    members = {
        MODEL_MEMBER: model_onnx,
        INT8_MEMBER: int8,
        FP16_MEMBER: half,
        GOLDEN_CHIPS_MEMBER: _npy(chips[:GOLDEN]),
        GOLDEN_EXPECTED_MEMBER: _npy(expected),
    }
    write_bundle(path, manifest, members)


def answers(model_onnx: bytes, chips: np.ndarray) -> np.ndarray:
    """Probabilities by ONNX Runtime, float32 (n, K)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model_onnx, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"chips": chips})[0])


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), *map(int, sys.argv[2:]))
