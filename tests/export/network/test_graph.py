from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edge_infer_export.network.graph import export_graph
from edge_infer_export.network.parity import run_onnxruntime, run_pytorch

# Single precision, summed in another order, through seven convolutions.
TOLERANCE = 2e-6


@pytest.mark.parametrize("bands", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_graph_does_what_the_classifier_does(make_classifier, make_chips, bands, temperature):
    classifier, chips = make_classifier(bands=bands, temperature=temperature), make_chips(bands=bands)
    found = run_onnxruntime(export_graph(classifier, chips.shape[1:]), chips)
    expected = run_pytorch(classifier, chips)
    assert np.ptp(expected, axis=0).max() > 0.05  # else there is nothing to compare
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_graph_by_the_reference_of_onnx(make_classifier, make_chips):
    classifier, chips = make_classifier(), make_chips(count=2)
    model = onnx.load_from_string(export_graph(classifier, chips.shape[1:]))
    found = ReferenceEvaluator(model).run(None, {"chips": chips})
    assert isinstance(found, list)
    np.testing.assert_allclose(found[0], run_pytorch(classifier, chips), rtol=0, atol=TOLERANCE)


@pytest.fixture
def model(make_classifier):
    return onnx.load_from_string(export_graph(make_classifier(), (32, 32, 3)))


def test_input_and_output(model):
    def signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[Any]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]

    assert [signature(value) for value in model.graph.input] == [
        ("chips", onnx.TensorProto.UINT8, ["N", 32, 32, 3])
    ]
    assert [signature(value) for value in model.graph.output] == [
        ("probabilities", onnx.TensorProto.FLOAT, ["N", 3])
    ]


def test_versions_that_old_parsers_take(model):
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8


def test_nothing_of_the_training_is_left(model):
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} == {
        "Add",
        "Cast",
        "Conv",
        "Div",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "MaxPool",
        "Relu",
        "Softmax",
        "Sub",
        "Transpose",
    }


def test_nodes_bear_the_names_of_modules(model, make_network):
    modules = {name for name, module in make_network().named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {node.name for node in model.graph.node if node.op_type == "Conv"} == modules
    assert "layer2.0.downsample.0" in modules
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_size(make_classifier, make_chips, count):
    chips = make_chips(count=count)
    model_onnx = export_graph(make_classifier(), chips.shape[1:])
    together = run_onnxruntime(model_onnx, chips)
    alone = np.concatenate([run_onnxruntime(model_onnx, chip[np.newaxis]) for chip in chips])
    assert together.shape == (count, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)


def test_equal_networks_give_equal_bytes(make_classifier):
    assert export_graph(make_classifier(), (32, 32, 3)) == export_graph(make_classifier(), (32, 32, 3))
