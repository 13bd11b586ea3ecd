"""Writes Q/DQ nodes into an FP32 graph.

Symmetric int8 with zero point 0: activations with one scale a tensor, weights with one scale an output
channel, stored as int8 with a DequantizeLinear (the file is a quarter as large). Opset and IR version stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_infer_calibration.placement import place

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

LEVELS = 127
"""Largest integer on either side of zero."""

_LEAST = float(np.finfo(np.float32).tiny) * LEVELS
"""A tensor that is zero everywhere still needs a scale above zero."""


def insert_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, float],
    *,
    in_float: Collection[str] = (),
    biases: Mapping[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """Return a quantised copy of a model.

    Args:
        model: the FP32 model.
        ranges: largest magnitude of each tensor that may carry a pair (`Placement.tensors`).
        in_float: names of convolutions to leave in FP32.
        biases: other biases, (out channels,), by name of the convolution; for those that are quantised.

    Raises:
        BundleError: as `place`.
        KeyError: a tensor that carries a pair has no range.

    """
    placement = place(model)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    kept = [c for c in placement.convolutions if c.name not in in_float]
    names = {c.name for c in kept}
    skips = [skip for skip in placement.skips if skip.main in names]
    for convolution in kept:
        bias = (biases or {}).get(convolution.name)
        if bias is not None and convolution.bias is not None:
            _constant(graph, convolution.bias).CopyFrom(numpy_helper.from_array(bias, convolution.bias))

    rewired = {(c.name, c.source): placement.carriers[c.source] for c in kept}
    rewired |= {(skip.add, skip.source): placement.carriers[skip.source] for skip in skips}
    weights = {c.weight: _store_weight(graph, c.weight) for c in kept}
    carrying = set(rewired.values())
    # Across a max pooling it is the pooling that reads the pair.
    pooled = {carrier for (_, source), carrier in rewired.items() if carrier != source}

    nodes = [node for name in weights for node in weights[name]]
    pairs: dict[str, list[onnx.NodeProto]] = {
        tensor: _pair(graph, tensor, ranges[tensor]) for tensor in placement.tensors if tensor in carrying
    }
    for node in graph.node:
        for index, tensor in enumerate(node.input):
            reads_pair = rewired.get((node.name, tensor)) == tensor
            pools_pair = node.op_type == "MaxPool" and tensor in pooled
            if reads_pair or pools_pair or (node.name in names and tensor in weights):
                node.input[index] = f"{tensor}.dq"
        nodes.append(node)
        for tensor in node.output:
            nodes += pairs.pop(tensor, [])
    new = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(new)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def quantise_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights (out, in, k, k) to int8, with the scale (out,) of each output channel."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = (np.maximum(largest, _LEAST) / LEVELS).astype(np.float32)
    levels = np.rint(weight / scale[:, None, None, None])
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scale


def _constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    return tensors[name]


def _store_weight(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    tensor = _constant(graph, name)
    levels, scale = quantise_weight(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(levels, name))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}.zero"))
    return [
        helper.make_node(
            "DequantizeLinear",
            [name, f"{name}.scale", f"{name}.zero"],
            [f"{name}.dq"],
            name=f"{name}.dequantize",
            axis=0,
        )
    ]


def _pair(graph: onnx.GraphProto, tensor: str, largest: float) -> list[onnx.NodeProto]:
    scale, zero = f"{tensor}.scale", f"{tensor}.zero"
    step = np.asarray(max(largest, _LEAST) / LEVELS, np.float32)
    graph.initializer.append(numpy_helper.from_array(step, scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), zero))
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}.q"], name=f"{tensor}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{tensor}.q", scale, zero], [f"{tensor}.dq"], name=f"{tensor}.dequantize"
        ),
    ]
