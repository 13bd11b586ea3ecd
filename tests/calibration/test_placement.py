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


def graph_of(*nodes: onnx.NodeProto, takes: str = "chips") -> onnx.ModelProto:
    """A graph whose weights are called w, v (of one axis less) and h (in half precision)."""
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0]),
        helper.make_tensor("v", TensorProto.FLOAT, [1, 1, 1], [1.0]),
        helper.make_tensor("h", TensorProto.FLOAT16, [1, 1, 1, 1], [1.0]),
        helper.make_tensor("b", TensorProto.FLOAT, [1], [1.0]),
    ]
    value = helper.make_tensor_value_info(takes, TensorProto.FLOAT, [1, 1, 4, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(list(nodes), "g", [value], [out], weights))


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
        helper.make_node("Conv", ["chips", "w"], ["h"], name="c"),
        helper.make_node("Erf", ["h"], ["y"], name="strange"),
    )
    with pytest.raises(BundleError, match=r"Erf \(strange\).*use it in FP32"):
        place(found)


def test_a_quantised_graph_is_refused() -> None:
    found = graph_of(
        helper.make_node("Conv", ["chips", "w"], ["h"], name="c"),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["y"], name="q"),
    )
    with pytest.raises(BundleError, match="quantised already"):
        place(found)


def test_a_graph_without_convolutions_is_refused() -> None:
    with pytest.raises(BundleError, match="no convolution"):
        place(graph_of(helper.make_node("Relu", ["chips"], ["y"], name="r")))


@pytest.mark.parametrize(
    ("inputs", "what"), [(["chips", "w2"], "weights of c are"), (["chips", "w", "w2"], "bias of c is")]
)
def test_computed_constants_are_refused(inputs: list[str], what: str) -> None:
    found = graph_of(
        helper.make_node("Identity", ["b"], ["w2"], name="m"),
        helper.make_node("Conv", inputs, ["y"], name="c"),
    )
    with pytest.raises(BundleError, match=f"the {what} computed"):
        place(found)


@pytest.mark.parametrize(
    ("weight", "group", "words"),
    [
        ("w", 2, "c is a convolution in 2 groups"),
        ("v", 1, "weights of 3 axes"),
        ("h", 1, "wanted one group and FP32 weights"),
    ],
)
def test_other_kinds_of_convolutions_are_refused(weight: str, group: int, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        place(graph_of(helper.make_node("Conv", ["chips", weight], ["y"], name="c", group=group)))


@pytest.mark.parametrize("shared", ["w", "b"])
def test_constants_that_two_nodes_read_are_refused(shared: str) -> None:
    """Rounding them for one would change the other."""
    found = graph_of(
        helper.make_node("Conv", ["chips", "w", "b"], ["t"], name="c"),
        helper.make_node("Mul", ["t", shared], ["y"], name="m"),
    )
    with pytest.raises(BundleError, match=f"c shares {shared} with another node"):
        place(found)


@pytest.mark.parametrize("names", [("", "r"), ("c", "c"), ("", "")])
def test_nodes_that_names_do_not_tell_apart_are_refused(names: tuple[str, str]) -> None:
    found = graph_of(
        helper.make_node("Conv", ["chips", "w"], ["t"], name=names[0]),
        helper.make_node("Relu", ["t"], ["y"], name=names[1]),
    )
    with pytest.raises(BundleError, match=r"nodes of model\.onnx have the name"):
        place(found)


def test_operators_of_others_and_other_inputs_are_refused() -> None:
    with pytest.raises(BundleError, match=r"c is an operator of 'my\.ops'"):
        place(graph_of(helper.make_node("Conv", ["chips", "w"], ["y"], name="c", domain="my.ops")))
    with pytest.raises(BundleError, match="takes pixels, wanted chips"):
        place(graph_of(helper.make_node("Conv", ["pixels", "w"], ["y"], name="c"), takes="pixels"))


def test_a_convolution_without_a_bias() -> None:
    (found,) = place(graph_of(helper.make_node("Conv", ["chips", "w", ""], ["y"], name="c"))).convolutions
    assert (found.source, found.weight, found.bias) == ("chips", "w", None)


@pytest.mark.parametrize("second", ["b", "chips"])
def test_an_add_that_is_no_residual_is_refused(second: str) -> None:
    nodes = [helper.make_node("Conv", ["chips", "w"], ["h"], name="c")]
    first = "h" if second == "b" else "chips"
    nodes.append(helper.make_node("Add", [first, second], ["y"], name="a"))
    with pytest.raises(BundleError, match="a adds"):
        place(graph_of(*nodes))


def test_the_exported_graph_has_the_names_that_reports_print(
    trained: Classifier, model: onnx.ModelProto
) -> None:
    modules = {name for name, _ in trained.network.named_modules()}
    assert {convolution.name for convolution in place(model).convolutions} <= modules
