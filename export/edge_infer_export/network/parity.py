"""The same chips through PyTorch, ONNX Runtime and OpenVINO: how far they agree."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from edge_infer.errors import EdgeInferError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_infer_export.network.graph import Classifier

TOLERANCE = 1e-3
"""Largest difference of a probability. Single precision in another order of summing gives about 1e-6."""

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Parity:
    """How far engines agree on the same chips."""

    chips: int
    max_difference: Mapping[str, float]
    """Largest absolute difference of a probability, by pair of engines: `pytorch_openvino`, ..."""
    labels_differ: int
    """Chips for which not all engines name the same class."""
    versions: Mapping[str, str]
    """Of the libraries, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def require(self) -> None:
        """Raise `EdgeInferError` with the figures unless the engines agree."""
        pair, worst = max(self.max_difference.items(), key=lambda item: item[1])
        if self.labels_differ or worst > TOLERANCE:
            raise EdgeInferError(
                f"the exported model does not do what the trained one does: on {self.chips} chips the "
                f"probabilities differ by up to {worst:.2g} ({pair.replace('_', ', ')}; wanted at most "
                f"{TOLERANCE:g}) and {self.labels_differ} labels differ; nothing was written"
            )


def measure(
    classifier: Classifier, model_onnx: bytes, chips: npt.NDArray[np.uint8]
) -> tuple[Parity, npt.NDArray[np.float32]]:
    """Run chips uint8 (n, S, S, C) through all three engines.

    Returns:
        How far they agree, and ONNX Runtime's probabilities float32 (n, K).

    """
    expected = run_onnxruntime(model_onnx, chips)
    outputs = {
        "pytorch": run_pytorch(classifier, chips),
        "onnxruntime": expected,
        "openvino": run_openvino(model_onnx, chips),
    }
    return compare(outputs), expected


def compare(outputs: Mapping[str, npt.NDArray[np.float32]]) -> Parity:
    """Compare probabilities (n, K) of several engines, by name. NaN counts as an infinite difference."""
    labels = np.stack([probabilities.argmax(axis=1) for probabilities in outputs.values()])
    return Parity(
        chips=labels.shape[1],
        max_difference={
            f"{first}_{second}": float(
                np.nan_to_num(np.abs(outputs[first] - outputs[second]), nan=np.inf, posinf=np.inf).max()
            )
            for first, second in combinations(outputs, 2)
        },
        labels_differ=int((labels != labels[0]).any(axis=0).sum()),
        versions={library: version(library) for library in ("onnx", "onnxruntime", "openvino", "torch")},
    )


def run_pytorch(classifier: Classifier, chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probabilities (n, K) by PyTorch, preprocessing included."""
    with torch.inference_mode():
        return np.concatenate(
            [classifier(torch.from_numpy(batch.copy())).numpy() for batch in _batches(chips)]
        )


def run_onnxruntime(model_onnx: bytes, chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probabilities (n, K) by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(model_onnx, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["probabilities"], {"chips": batch})[0] for batch in _batches(chips)])


def run_openvino(model_onnx: bytes, chips: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probabilities (n, K) by OpenVINO on the CPU, in single precision."""
    import openvino

    core = openvino.Core()
    # Left alone, CPUs with bfloat16 would use it unasked.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(io.BytesIO(model_onnx)), "CPU", options)
    return np.concatenate([np.array(compiled(batch)["probabilities"]) for batch in _batches(chips)])


def _batches(chips: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    return [chips[start : start + _BATCH] for start in range(0, len(chips), _BATCH)]
