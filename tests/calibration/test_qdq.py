"""The quantised graph: its form, and its numbers."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import numpy_helper

from edge_infer_calibration.activations import observe
from edge_infer_calibration.gate import run_model
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import LEVELS, insert_qdq, quantise_weight
from edge_infer_calibration.ranges import find_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer_calibration.activations import Activations


def read(model: onnx.ModelProto) -> openvino.Model:
    return openvino.Core().read_model(io.BytesIO(model.SerializeToString()))


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def test_each_convolution_reads_quantised_values_and_weights(quantised: onnx.ModelProto) -> None:
    made_by = producers(quantised)
    for node in (node for node in quantised.graph.node if node.op_type == "Conv"):
        kinds = [made_by[name].op_type if name in made_by else "constant" for name in node.input]
        # The first convolution of layer 1 reads a pooled pair.
        assert kinds in (["DequantizeLinear"] * 2 + ["constant"], ["MaxPool", "DequantizeLinear", "constant"])
        if kinds[0] == "MaxPool":
            assert made_by[made_by[node.input[0]].input[0]].op_type == "DequantizeLinear"


def test_each_add_is_a_convolution_and_a_dequantised_skip(quantised: onnx.ModelProto) -> None:
    made_by = producers(quantised)
    for node in (node for node in quantised.graph.node if node.op_type == "Add"):
        kinds = sorted(made_by[name].op_type for name in node.input)
        assert kinds in (["Conv", "DequantizeLinear"], ["Conv", "MaxPool"])


def test_nothing_stands_between_a_convolution_and_its_relu_or_add(
    model: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    made_by = producers(quantised)
    for node in quantised.graph.node:
        if node.op_type == "QuantizeLinear":
            maker = made_by[node.input[0]]
            assert maker.op_type != "Conv" or maker.name.endswith("downsample.0")
    assert [n.name for n in quantised.graph.node if "quantize" not in n.name] == [
        n.name for n in model.graph.node
    ]


def test_one_pair_a_tensor_symmetric_int8_and_weights_by_channel(quantised: onnx.ModelProto) -> None:
    values = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    kinds = Counter(node.op_type for node in quantised.graph.node)
    convolutions = kinds["Conv"]
    assert kinds["DequantizeLinear"] == kinds["QuantizeLinear"] + convolutions
    assert kinds["QuantizeLinear"] == len(place_of(quantised))
    for node in quantised.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero, scale = values[node.input[2]], values[node.input[1]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        if node.input[0] in values:
            weight = values[node.input[0]]
            assert weight.dtype == np.int8
            assert scale.shape == (len(weight),)
            assert onnx.helper.get_node_attr_value(node, "axis") == 0
            assert np.abs(weight.astype(int)).max() == LEVELS
        else:
            assert scale.shape == ()


def place_of(quantised: onnx.ModelProto) -> list[str]:
    return [node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"]


def test_biases_last_layer_opset_and_ports_are_untouched(
    model: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    before = {t.name: t for t in model.graph.initializer}
    after = {t.name: t for t in quantised.graph.initializer}
    for name in (n for n in before if not n.endswith("conv1.weight") and "layer" not in n):
        assert after[name] == before[name]
    assert all(after[n] == before[n] for n in before if n.endswith("bias"))
    assert quantised.opset_import == model.opset_import
    assert [o.version for o in quantised.opset_import] == [17]
    assert quantised.ir_version == model.ir_version
    assert quantised.graph.input == model.graph.input
    assert quantised.graph.output == model.graph.output


def test_the_bytes_reach_the_first_convolution_by_one_pair(quantised: onnx.ModelProto) -> None:
    made_by, path = producers(quantised), []
    node = next(n for n in quantised.graph.node if n.name == "conv1")
    while node.input[0] in made_by:
        node = made_by[node.input[0]]
        path.append(node.op_type)
    assert path == ["DequantizeLinear", "QuantizeLinear", "Transpose", "Div", "Sub", "Cast"]


def test_rounded_weights_lie_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(7, 5, 3, 3)).astype(np.float32) * rng.uniform(0.01, 10, (7, 1, 1, 1)).astype(
        np.float32
    )
    weight[3] = 0
    levels, scale = quantise_weight(weight)
    assert np.abs(levels * scale[:, None, None, None] - weight).max(axis=(1, 2, 3)) == pytest.approx(
        np.zeros(7), abs=float(scale.max()) * 0.501
    )
    assert (np.abs(levels * scale[:, None, None, None] - weight) <= scale[:, None, None, None] * 0.501).all()
    assert not levels[3].any()
    assert (np.abs(levels[[0, 1, 2, 4, 5, 6]].astype(int)).max(axis=(1, 2, 3)) == LEVELS).all()


def test_what_stays_in_float_is_exactly_that(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    ranges = dict.fromkeys(place(model).tensors, 3.0)
    names = [convolution.name for convolution in place(model).convolutions]
    one = insert_qdq(model, ranges, in_float=["layer2.1.conv2"])
    assert Counter(n.op_type for n in one.graph.node)["Conv"] == len(names)
    weights = {t.name: t.data_type for t in one.graph.initializer if t.name.endswith("weight")}
    floats = {name for name, kind in weights.items() if kind == onnx.TensorProto.FLOAT}
    assert floats == {"layer2.1.conv2.weight", "fc.weight"}
    # Its Add is in float as well, so its skip is not quantised for it.
    add = next(n for n in one.graph.node if n.name == "layer2.1.add")
    assert list(add.input) == ["layer2.1.conv2.out", "layer2.0.relu2.out"]
    none = insert_qdq(model, ranges, in_float=names)
    assert [n.name for n in none.graph.node] == [n.name for n in model.graph.node]


@pytest.mark.parametrize("in_float", ["layer1.0.conv1", "layer1.0.conv2"])
def test_what_stays_in_float_reads_no_pooled_pair(model: onnx.ModelProto, in_float: str) -> None:
    """The block's other branch is quantised: its pair stands after the pooling, for that branch alone."""
    found = insert_qdq(model, dict.fromkeys(place(model).tensors, 3.0), in_float=[in_float])
    nodes = {node.name: node for node in found.graph.node}
    pooling = nodes["maxpool"]
    assert list(pooling.input) == ["relu.out"]
    convolution, add = nodes["layer1.0.conv1"], nodes["layer1.0.add"]
    reads = {convolution.name: convolution.input[0], add.name: add.input[1]}
    in_int8, floats = (add, convolution) if in_float.endswith("conv1") else (convolution, add)
    assert reads == {in_int8.name: "maxpool.out.dq", floats.name: "maxpool.out"}
    values = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    assert values["maxpool.out.scale"] == np.float32(3 / LEVELS)
    assert "relu.out.scale" not in values


def test_other_biases_are_for_what_is_quantised(model: onnx.ModelProto) -> None:
    placement = place(model)
    ranges = dict.fromkeys(placement.tensors, 3.0)
    biases = {
        c.name: np.full(8, 7, np.float32) for c in placement.convolutions if c.name.startswith("layer1")
    }
    found = insert_qdq(model, ranges, in_float=["layer1.0.conv1"], biases=biases)
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, found))
    np.testing.assert_array_equal(after["layer1.0.conv2.bias"], 7)
    np.testing.assert_array_equal(after["layer1.0.conv1.bias"], before["layer1.0.conv1.bias"])
    np.testing.assert_array_equal(after["conv1.bias"], before["conv1.bias"])


def test_int8_is_near_float_and_openvino_near_onnxruntime(
    model: onnx.ModelProto,
    quantised: onnx.ModelProto,
    imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> None:
    chips, _ = imagery_chips(64, seed=9)
    outputs = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"chips": chips}
        )[0]
        for m in (model, quantised)
    ]
    assert np.abs(outputs[0] - outputs[1]).max() < 0.1
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() > 0.95
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-6  # it is quantised at all
    by_engine = run_model(
        quantised.SerializeToString(), (32, 32, 3), outputs[1].shape[1], [chips], precision="int8"
    )
    # Rounding halves and the order of sums differ.
    assert np.abs(by_engine - outputs[1]).max() < 0.05


def edited(model: onnx.ModelProto, changes: dict[str, Callable[[np.ndarray], None]]) -> onnx.ModelProto:
    """A copy in which functions have changed constants in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changes:
            values = numpy_helper.to_array(tensor).copy()
            changes[tensor.name](values)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def put(channels: int | slice, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[channels] = value

    return change


EVERY = slice(None)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv1.weight": put(0, 0), "conv1.bias": put(0, 2)},
        {"layer1.0.conv1.weight": put(0, 0), "layer1.0.conv1.bias": put(0, 2)},
        {"layer2.0.conv2.weight": put(3, 1e-12), "layer2.0.conv2.bias": put(3, 2)},
        {"layer2.0.conv2.weight": put(3, 1e-30), "layer2.0.conv2.bias": put(3, -1)},
        {"layer2.1.conv1.weight": put(EVERY, 0), "layer2.1.conv1.bias": put(EVERY, -1)},  # a dead tensor
        {"layer2.1.conv1.weight": put(EVERY, 0), "layer2.1.conv1.bias": put(EVERY, 1)},  # a constant one
    ],
)
def test_channels_and_tensors_of_nothing_keep_their_bias(
    model: onnx.ModelProto,
    imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]],
    changes: dict[str, Callable[[np.ndarray], None]],
) -> None:
    """ONNX Runtime, optimised, holds a bias in steps of both scales and in 32 bits, where it may overflow."""
    spoilt, (chips, _) = edited(model, changes), imagery_chips(16, seed=9)
    ranges = find_ranges(observe(spoilt, place(spoilt), [chips]).histograms, "minmax")
    content = insert_qdq(spoilt, ranges).SerializeToString()
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected, found = (
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(
            None, {"chips": chips}
        )[0]
        for options in (plain, onnxruntime.SessionOptions())
    )
    # Halves may be rounded either way, which moves single chips; a bias that overflows moves them all.
    assert np.abs(found - expected).mean() < 0.05
    by_engine = run_model(content, (32, 32, 3), found.shape[1], [chips], precision="int8")
    assert np.abs(by_engine - expected).mean() < 0.05
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(content).graph.initializer}
    for convolution in place(spoilt).convolutions:
        carrier = place(spoilt).carriers[convolution.source]
        steps = values[f"{carrier}.scale"].astype(np.float64) * values[f"{convolution.weight}.scale"]
        assert np.abs(values[str(convolution.bias)] / steps).max() < 2**31


def test_scales_are_never_below_what_a_float_can_hold() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[:, :, 0, 0] = np.array([[0, 0], [1e-44, 0], [2, 1]])
    levels, scale = quantise_weight(weight)
    np.testing.assert_array_equal(scale, np.array([1, 1, 2 / LEVELS], np.float32))
    assert levels[:, 0].ravel().tolist() == [0, 0, LEVELS]


def convolutions_in_openvino(model: onnx.ModelProto) -> dict[str, str]:
    """The kernel of each convolution, by its name."""
    network = read(model)
    network.reshape({"chips": [4, 32, 32, 3]})
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ops()
    return {
        node.get_friendly_name().removesuffix("/WithoutBiases"): node.get_rt_info()["primitiveType"].astype(
            str
        )
        for node in nodes
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    }


def test_openvino_runs_every_convolution_in_int8(quantised: onnx.ModelProto) -> None:
    kernels = convolutions_in_openvino(quantised)
    assert kernels.keys() == {n.name for n in quantised.graph.node if n.op_type == "Conv"}
    assert all(kernel.endswith("I8") for kernel in kernels.values())


def test_openvino_runs_each_unit_in_int8_alone_and_the_rest_without_it(
    model: onnx.ModelProto, activations: Activations
) -> None:
    """What it computes in float from rounded weights, it sometimes computes wrongly."""
    placement, ranges = place(model), find_ranges(activations.histograms, "minmax")
    everything = {convolution.name for convolution in placement.convolutions}
    for unit in placement.units:
        for in_float in (everything - {*unit}, {*unit}):
            kernels = convolutions_in_openvino(insert_qdq(model, ranges, in_float=in_float))
            in_int8 = {name for name, kernel in kernels.items() if kernel.endswith("I8")}
            assert in_int8 == everything - in_float
