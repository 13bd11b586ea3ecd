"""The exported graph once more in half precision, for engines that take types as the graph states them.

TensorRT 11, and TensorRT 10 with strongly typed networks, choose no types: what is to run in FP16 must be
FP16 in the file. So the network's body (convolutions, residual sums, pooling) gets half-precision weights and
values here. Both ends stay FP32: levels 0..255 are normalised before they are rounded, and the last layer,
temperature and softmax cost nothing and decide everything.

    chips -> Cast -> Sub -> Div -> Transpose --Cast--> body in FP16 --Cast--> fc -> Div -> Softmax
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_infer.errors import EdgeInferError
from edge_infer_export.network.parity import run_onnxruntime

if TYPE_CHECKING:
    import numpy.typing as npt

LARGEST_SHIFT = 0.02
"""Of a probability, against FP32; a model that shifts more (beyond 65504 it does) is not offered in FP16."""

FIRST, LAST = "preprocess.transpose", "flatten"
"""The nodes of `edge_infer_export.network.graph` whose outputs enter and leave half precision."""


@dataclass(frozen=True, slots=True)
class HalfParity:
    """How far the FP16 graph is from the FP32 one on the same chips."""

    chips: int
    max_probability_shift: float
    """Largest absolute difference of a probability; infinite where FP16 gives no number."""
    labels_differ: int
    """Chips whose class is another in FP16."""

    @property
    def passed(self) -> bool:
        """Whether the FP16 graph may be used."""
        return self.max_probability_shift <= LARGEST_SHIFT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite shift is null."""
        finite = np.isfinite(self.max_probability_shift)
        shift = self.max_probability_shift if finite else None
        return {**asdict(self), "max_probability_shift": shift, "passed": self.passed}


def half_graph(model_onnx: bytes) -> bytes:
    """Write the FP16 twin of a graph that `export_graph` wrote.

    Weights are rounded to the nearest half-precision number. Input and output are as before: `chips` uint8
    (N, S, S, C), `probabilities` float32 (N, K).

    Raises:
        EdgeInferError: the graph is not of that form.

    """
    model = onnx.load_from_string(model_onnx)
    nodes = {node.name: node for node in model.graph.node}
    if FIRST not in nodes or LAST not in nodes:
        raise EdgeInferError(f"the graph has no nodes {FIRST} and {LAST}; wanted one of `edge-infer export`")
    entry, leave = nodes[FIRST].output[0], nodes[LAST].output[0]
    rounded = _body_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name in rounded:
            # Beyond 65504 this gives infinity, which the comparison of probabilities finds.
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    written = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in (entry, leave):
                node.input[index] = f"{name}.cast"
        written.append(node)
        if node.name == FIRST:
            written.append(_cast("half.enter", entry, TensorProto.FLOAT16))
        elif node.name == LAST:
            written.append(_cast("half.leave", leave, TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(written)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def compare_half(model_onnx: bytes, half_onnx: bytes, chips: npt.NDArray[np.uint8]) -> HalfParity:
    """Run chips uint8 (n, S, S, C) through both graphs by ONNX Runtime."""
    full, half = run_onnxruntime(model_onnx, chips), run_onnxruntime(half_onnx, chips)
    shift = np.nan_to_num(np.abs(full - half), nan=np.inf, posinf=np.inf)
    return HalfParity(
        chips=len(chips),
        max_probability_shift=float(shift.max()),
        labels_differ=int((full.argmax(axis=1) != half.argmax(axis=1)).sum()),
    )


def _body_weights(model: onnx.ModelProto) -> set[str]:
    """Names of the constants that the nodes between the two casts take in."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [node.name for node in model.graph.node]
    body = model.graph.node[names.index(FIRST) + 1 : names.index(LAST) + 1]
    return {name for node in body for name in node.input} & constants


def _cast(name: str, tensor: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [tensor], [f"{tensor}.cast"], name=name, to=to)
