"""Where Q/DQ pairs go, against the rules that TensorRT's documentation gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from edge_infer.errors import BundleError
from edge_infer_calibration.placement import place

if TYPE_CHECKING:
    from edge_infer_export.network.graph import Classifier


def graph_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph whose weights are called w."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(list(nodes), "g", [value], [out], [weight]))


def test_every_convolution_and_every_skip_is_found(model: onnx.ModelProto) -> None:
    placement = place(model)
    operators = [node.op_type for node in model.graph.node]
    assert len(placement.convolutions) == operators.count("Conv")
    assert len(placement.skips) == operators.count("Add")
    # conv1's input, the pooled tensor, two in each of five blocks but for the last sum, three projections.
    assert len(placement.tensors) == 1 + 1 + 2 * 5 - 1 + 3
    assert list(placement.tensors)[:2] == ["preprocess.transpose.out", "relu.out"]


def test_the_skip_is_the_identity_or_the_projection_never_the_main_branch(model: onnx.ModelProto) -> None:
    skips = {skip.add: skip for skip in place(model).skips}
    assert skips["layer1.0.add"].source == "maxpool.out"
    assert skips["layer2.0.add"].source == "layer2.0.downsample.0.out"
    assert skips["layer2.1.add"].source == "layer2.0.relu2.out"
    assert all(skip.main.endswith("conv2") for skip in skips.values())


def test_the_pair_of_a_pooled_tensor_stands_before_the_pooling(model: onnx.ModelProto) -> None:
    assert place(model).carriers["maxpool.out"] == "relu.out"


def test_a_projection_and_its_neighbour_are_one_unit(model: onnx.ModelProto) -> None:
    units = place(model).units
    assert [unit for unit in units if len(unit) > 1] == [
        (f"layer{stage}.0.downsample.0", f"layer{stage}.0.conv1") for stage in (2, 3, 4)
    ]
    assert sorted(name for unit in units for name in unit) == sorted(
        c.name for c in place(model).convolutions
    )


def test_nothing_from_the_global_pooling_on(model: onnx.ModelProto) -> None:
    tensors = set(place(model).tensors)
    assert not tensors & {"layer4.0.relu2.out", "avgpool.out", "flatten.out", "fc.out", "scale.out"}


def test_unknown_operators_are_named() -> None:
    found = graph_of(
        helper.make_node("Conv", ["x", "w"], ["h"], name="c"),
        helper.make_node("Erf", ["h"], ["y"], name="strange"),
    )
    with pytest.raises(BundleError, match=r"Erf \(strange\).*use it in FP32"):
        place(found)


def test_a_quantised_graph_is_refused() -> None:
    found = graph_of(
        helper.make_node("Conv", ["x", "w"], ["h"], name="c"),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["y"], name="q"),
    )
    with pytest.raises(BundleError, match="quantised already"):
        place(found)


def test_a_graph_without_convolutions_is_refused() -> None:
    with pytest.raises(BundleError, match="no convolution"):
        place(graph_of(helper.make_node("Relu", ["x"], ["y"], name="r")))


def test_computed_weights_are_refused() -> None:
    found = graph_of(
        helper.make_node("Mul", ["w", "w"], ["w2"], name="m"),
        helper.make_node("Conv", ["x", "w2"], ["y"], name="c"),
    )
    with pytest.raises(BundleError, match="weights of c are computed"):
        place(found)


@pytest.mark.parametrize("second", ["w", "x"])
def test_an_add_that_is_no_residual_is_refused(second: str) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], name="c")]
    first = "h" if second == "w" else "x"
    nodes.append(helper.make_node("Add", [first, second], ["y"], name="a"))
    with pytest.raises(BundleError, match="a adds"):
        place(graph_of(*nodes))


def test_the_exported_graph_has_the_names_that_reports_print(
    trained: Classifier, model: onnx.ModelProto
) -> None:
    modules = {name for name, _ in trained.network.named_modules()}
    assert {convolution.name for convolution in place(model).convolutions} <= modules
