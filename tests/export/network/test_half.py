from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_infer.engine.onnx_file import check_self_contained
from edge_infer.errors import EdgeInferError
from edge_infer_export.network.bundle import export_bundle
from edge_infer_export.network.graph import export_graph
from edge_infer_export.network.half import compare_half, half_graph
from edge_infer_export.network.parity import run_onnxruntime


@pytest.fixture
def model_onnx(make_classifier):
    return export_graph(make_classifier(), (32, 32, 3))


def types_of(content: bytes) -> dict[str, int]:
    """Element type of every tensor, by ONNX's own shape inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    values = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output)
    }
    return values | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_the_body_is_in_half_precision_and_both_ends_are_not(model_onnx):
    content = half_graph(model_onnx)
    check_self_contained(content)
    model, types = onnx.load_from_string(content), types_of(content)
    for node in model.graph.node:
        half = node.op_type in ("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten")
        wanted = TensorProto.FLOAT16 if half or node.name == "half.enter" else TensorProto.FLOAT
        assert types[node.output[0]] == wanted, node.name
        if node.op_type == "Conv":
            assert {types[name] for name in node.input[1:]} == {TensorProto.FLOAT16}
    ports = [*model.graph.input, *model.graph.output]
    assert [(port.name, port.type.tensor_type.elem_type) for port in ports] == [
        ("chips", TensorProto.UINT8), ("probabilities", TensorProto.FLOAT),
    ]  # fmt: skip
    # uint8 is for TensorRT a type of inputs only: the Cast takes it up at once.
    assert [node.op_type for node in model.graph.node if "chips" in node.input] == ["Cast"]
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert len(content) < 0.6 * len(model_onnx)


def test_it_says_nearly_the_same(model_onnx, make_chips):
    chips = make_chips(20)
    full, half = run_onnxruntime(model_onnx, chips), run_onnxruntime(half_graph(model_onnx), chips)
    parity = compare_half(model_onnx, half_graph(model_onnx), chips)
    assert parity.max_probability_shift == pytest.approx(np.abs(full - half).max())
    assert 0 < parity.max_probability_shift < 0.005
    assert (parity.chips, parity.labels_differ, parity.passed) == (20, 0, True)
    # ONNX's own evaluator rounds after every node, in its way.
    (reference,) = ReferenceEvaluator(half_graph(model_onnx)).run(None, {"chips": chips})
    assert np.abs(half - np.asarray(reference)).max() < 0.005


def with_weights(content: bytes, factor: float) -> bytes:
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name == "conv1.weight":
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name)
            )
    written: bytes = model.SerializeToString()
    return written


@pytest.mark.parametrize("factor", [1e5, 1e7])
def test_values_beyond_half_precision_are_found(model_onnx, make_chips, factor):
    """At the smaller factor the weights still fit, and what they give does not."""
    large = with_weights(model_onnx, factor)
    parity = compare_half(large, half_graph(large), make_chips())
    assert parity.max_probability_shift == np.inf
    assert not parity.passed
    values = parity.to_json()
    assert (values["max_probability_shift"], values["passed"], values["chips"]) == (None, False, 5)


def test_a_graph_of_another_hand_is_refused():
    graph = helper.make_graph([], "none", [], [])
    with pytest.raises(EdgeInferError, match=r"no nodes preprocess\.transpose and flatten"):
        half_graph(helper.make_model(graph).SerializeToString())


def test_the_bundle_holds_it_with_its_figures(run, tmp_path):
    bundle = export_bundle(run, tmp_path / "town.edgemodel")
    assert bundle.read("model.fp16.onnx") == half_graph(bundle.read("model.onnx"))
    facts = bundle.manifest.facts["fp16"]
    assert (facts["chips"], facts["passed"]) == (32, True)
    assert facts["max_probability_shift"] < 0.005


def test_a_network_beyond_half_precision_goes_without_it(run, tmp_path, make_network):
    state = make_network().state_dict()
    state["bn1.weight"] *= 1e6
    state["bn1.bias"] *= 1e6
    torch.save(state, run / "model.pt")
    bundle = export_bundle(run, tmp_path / "town.edgemodel")
    assert "model.fp16.onnx" not in bundle.members
    facts = bundle.manifest.facts["fp16"]
    assert (facts["max_probability_shift"], facts["passed"]) == (None, False)
