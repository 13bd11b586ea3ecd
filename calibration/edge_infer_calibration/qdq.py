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

    from edge_infer_calibration.placement import Convolution, Placement

LEVELS = 127
"""Largest integer on either side of zero."""

_MOST_BIAS = 2.0**30
"""Steps that a bias may have: ONNX Runtime adds it to the sums of 8 bit products, in 32 bits, where it would
overflow. Half of them leave room for the sums."""


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
    quantised_reads = {(c.name, c.source) for c in kept} | {(skip.add, skip.source) for skip in skips}
    carriers = _carriers(graph, placement, quantised_reads)
    for convolution in kept:
        bias = (biases or {}).get(convolution.name)
        if bias is not None and convolution.bias is not None:
            _constant(graph, convolution.bias).CopyFrom(numpy_helper.from_array(bias, convolution.bias))

    steps = {carrier: _step(ranges[placement.carriers[source]]) for source, carrier in carriers.items()}
    weights = {c.weight: _store_weight(graph, c, steps[carriers[c.source]]) for c in kept}
    # Across a max pooling it is the pooling that reads the pair.
    pooled = {carrier for source, carrier in carriers.items() if carrier != source}

    nodes = list(weights.values())
    pairs = {tensor: _pair(graph, tensor, step) for tensor, step in steps.items()}
    for node in graph.node:
        for index, tensor in enumerate(node.input):
            reads_pair = (node.name, tensor) in quantised_reads and carriers[tensor] == tensor
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


def quantise_weight(
    weight: NDArray[np.float32], least: NDArray[np.float64] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights (out, in, k, k) to int8, with the scale (out,) of each output channel.

    Args:
        weight: the weights.
        least: smallest scale that each channel may have, float64 (out,).

    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64)
    scale = _above_zero(np.maximum(largest / LEVELS, least))
    levels = np.rint(weight / scale[:, None, None, None])
    return np.clip(levels, -LEVELS, LEVELS).astype(np.int8), scale


def _above_zero(scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Give 1 for a scale that is 0, or as good as 0: any will do where all values are 0, but not 0 itself."""
    return np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)


def _step(largest: float) -> NDArray[np.float32]:
    """Find the scale, (), of activations of that largest magnitude."""
    return _above_zero(np.asarray(largest / LEVELS))


def _carriers(
    graph: onnx.GraphProto, placement: Placement, quantised_reads: Collection[tuple[str, str]]
) -> dict[str, str]:
    """Tensors that are read in INT8, each with the tensor that carries its pair.

    Where a node in float reads a pooled tensor too, the pair stands after the pooling, for the others only.
    """
    read = {source for _, source in quantised_reads}
    in_float = {
        tensor for node in graph.node for tensor in node.input if (node.name, tensor) not in quantised_reads
    }
    return {
        source: source if source in in_float else carrier
        for source, carrier in placement.carriers.items()
        if source in read
    }


def _constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    return tensors[name]


def _store_weight(
    graph: onnx.GraphProto, convolution: Convolution, step: NDArray[np.float32]
) -> onnx.NodeProto:
    """Replace a convolution's weights by int8, with `step` as the scale of what they are multiplied with."""
    name, least = convolution.weight, np.zeros(1)
    if convolution.bias is not None:
        # A channel of next to no weights may have any bias.
        bias = numpy_helper.to_array(_constant(graph, convolution.bias))
        least = np.abs(bias.astype(np.float64)) / (step.astype(np.float64) * _MOST_BIAS)
    tensor = _constant(graph, name)
    levels, scale = quantise_weight(numpy_helper.to_array(tensor), least)
    tensor.CopyFrom(numpy_helper.from_array(levels, name))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}.zero"))
    return helper.make_node(
        "DequantizeLinear",
        [name, f"{name}.scale", f"{name}.zero"],
        [f"{name}.dq"],
        name=f"{name}.dequantize",
        axis=0,
    )


def _pair(graph: onnx.GraphProto, tensor: str, step: NDArray[np.float32]) -> list[onnx.NodeProto]:
    scale, zero = f"{tensor}.scale", f"{tensor}.zero"
    graph.initializer.append(numpy_helper.from_array(step, scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), zero))
    return [
        helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}.q"], name=f"{tensor}.quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{tensor}.q", scale, zero], [f"{tensor}.dq"], name=f"{tensor}.dequantize"
        ),
    ]
