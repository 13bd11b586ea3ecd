"""The inspector's JSON in the forms that TensorRT 8, 10 and 11 give it."""

from __future__ import annotations

import json

import pytest

from edge_infer.engine.tensorrt.layers import LayerReport, read_report
from edge_infer.errors import EngineError

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
FP16 = "Channel major FP16 format where channel % 8 == 0"


def convolution(weights: str | None, **fields: object) -> dict[str, object]:
    layer = {
        "Name": "layer1.0.conv1",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        **fields,
    }
    return layer if weights is None else {**layer, "Weights": {"Type": weights, "Count": 36864}}


def tensors(field: str, *texts: str) -> list[dict[str, object]]:
    return [{"Name": "x", "Location": "Device", "Dimensions": [8, 64, 56, 56], field: text} for text in texts]


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (convolution("Int8", Inputs=tensors("Format/Datatype", INT8)), "int8"),
        (convolution("Half", Inputs=tensors("Format/Datatype", "N/A due to dynamic shapes")), "fp16"),
        (convolution("Float", Inputs=tensors("Format/Datatype", "Row major linear FP32")), "fp32"),
        # Fused with the pooling after it.
        (
            {"LayerType": "ConvActPool", "ConvParameterType": "Convolution", "ConvWeights": {"Type": "Int8"}},
            "int8",
        ),
        # No weights told: the input counts, and of two the first, the other being the residual.
        (convolution(None, Inputs=tensors("Format/Datatype", INT8, FP16)), "int8"),
        (convolution(None, Inputs=tensors("Format/Datatype", FP16)), "fp16"),
        # TensorRT 11 says type and format apart.
        (convolution(None, Inputs=tensors("DataType", "Half")), "fp16"),
        (convolution(None, Inputs=tensors("DataType", "INT8")), "int8"),
        (convolution(None, Inputs=tensors("Format/Datatype", "N/A due to dynamic shapes")), "other"),
        (convolution(None), "other"),
        (convolution("BF16"), "other"),
        (convolution("FP8"), "fp8"),
    ],
)
def test_a_convolution_counts_by_its_weights_then_its_input(layer, kind):
    assert read_report(json.dumps({"Layers": [layer]})) == LayerReport(1, {kind: 1})


def test_what_is_no_convolution_is_not_counted_as_one():
    layers = [
        {"Name": "conv1.weight + QuantizeLinear", "LayerType": "Reformat", "ParameterType": "Reformat"},
        {"Name": "fc", "LayerType": "gemm", "Inputs": tensors("Format/Datatype", INT8)},
        {"Name": "pool", "LayerType": "CaskPooling", "ParameterType": "Pooling"},
        convolution("Int8"),
        convolution("Int8"),
        convolution("Float"),
    ]
    report = read_report(json.dumps({"Layers": layers, "Bindings": ["chips", "probabilities"]}))
    assert report == LayerReport(6, {"fp32": 1, "int8": 2})
    assert report.describe() == "6 layers; convolutions: 2 in int8, 1 in fp32"
    assert LayerReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_names_only_tell_nothing_of_precision():
    report = read_report(json.dumps({"Layers": ["conv1 + relu", "fc"]}))
    assert (report.layers, report.describe()) == (2, "2 layers; convolutions: none found")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"Layers": 5}', '{"Layers": [{"LayerType": "conv", "Inputs": 3}]}']
)
def test_another_form_is_said_to_be_one(text):
    with pytest.raises(EngineError, match="layer report is not understood"):
        read_report(text)
