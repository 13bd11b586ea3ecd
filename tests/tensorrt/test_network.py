from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from edge_infer.engine.tensorrt.messages import shared_logger
from edge_infer.engine.tensorrt.network import parse_network
from edge_infer.errors import EngineError

CHIP = (32, 32, 3)


def parse(library, model_onnx, classes=2):
    builder = library.module.Builder(shared_logger(library.module))
    network = parse_network(library, builder, model_onnx, chip_shape=CHIP, classes=classes)
    return builder, network


def types_of_convolutions(library, model_onnx):
    """What the network itself says of its convolutions: types of input, weights and output."""
    trt = library.module
    builder, network = parse(library, model_onnx)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    found = {(layer.get_input(0).dtype.name, layer.get_output(0).dtype.name) for layer in convolutions}
    quantised = sum(layer.type == trt.LayerType.QUANTIZE for layer in layers)
    del network, builder
    return len(convolutions), found, quantised


@pytest.mark.parametrize(
    ("member", "types"),
    [
        ("model.onnx", {("FLOAT", "FLOAT")}),
        ("model.fp16.onnx", {("HALF", "HALF")}),
        ("model.int8.onnx", {("FLOAT", "FLOAT")}),
    ],
)
def test_a_strongly_typed_network_takes_the_types_of_the_file(library, small_models, member, types):
    count, found, quantised = types_of_convolutions(library, small_models[member])
    onnx_nodes = [node.op_type for node in onnx.load_from_string(small_models[member]).graph.node]
    assert (count, found) == (onnx_nodes.count("Conv"), types)
    assert quantised == onnx_nodes.count("QuantizeLinear")
    assert (quantised > 0) == (member == "model.int8.onnx")


def test_input_and_output_are_ours(library, small_models):
    _builder, network = parse(library, small_models["model.fp16.onnx"])
    trt = library.module
    assert (network.get_input(0).dtype, tuple(network.get_input(0).shape)) == (trt.uint8, (-1, 32, 32, 3))
    assert (network.get_output(0).dtype, tuple(network.get_output(0).shape)) == (trt.float32, (-1, 2))


def graph_of(nodes, *, kind=TensorProto.UINT8, classes=2):
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("chips", kind, ["N", *CHIP])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def refusal(library, model_onnx, classes=2):
    with pytest.raises(EngineError) as caught:
        parse(library, model_onnx, classes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_operator_that_tensorrt_lacks_is_named_with_its_node(library):
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Det", ["levels"], ["a"], name="first.odd"),
        helper.make_node("Bernoulli", ["a"], ["b"], name="second.odd"),
        helper.make_node("Reshape", ["b", "shape"], ["probabilities"], name="reshape"),
    ]
    message = refusal(library, graph_of(nodes))
    for word in ("first.odd", "(Det)", "second.odd", "(Bernoulli)", "export it again", "TensorRT 11.4"):
        assert word in message


def test_another_input_or_output_is_refused(library, small_models):
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels"], ["probabilities"], axes=[1, 2], keepdims=0, name="mean"),
    ]
    assert "probabilities FLOAT [-1, 3], wanted chips UINT8 [-1, 32, 32, 3]" in refusal(
        library, graph_of(nodes)
    )
    assert "chips FLOAT" in refusal(library, graph_of(nodes, kind=TensorProto.FLOAT))
    assert "wanted chips UINT8 [-1, 32, 32, 3]; probabilities FLOAT [-1, 5]" in refusal(
        library, small_models["model.onnx"], classes=5
    )


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08" * 1000])
def test_what_is_no_onnx_file_is_refused(library, content):
    assert any(
        text in refusal(library, content) for text in ("cannot take this model", "takes and gives nothing")
    )


def test_a_zero_point_that_is_not_zero_is_refused_in_tensorrts_words(library, small_models):
    model = onnx.load_from_string(small_models["model.int8.onnx"])
    quantised = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == quantised.input[2])
    zero.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(zero) + 1, zero.name))
    assert "ero zero point is not supported" in refusal(library, model.SerializeToString())
