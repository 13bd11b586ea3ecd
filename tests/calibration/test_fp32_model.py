"""Models that came from anywhere: refused in one line, with the bundle as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_infer.bundle import MODEL_MEMBER, open_bundle, write_bundle
from edge_infer.cli import main
from edge_infer_calibration.fp32_model import read_fp32

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Edit = Callable[[onnx.ModelProto], bytes | None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def fill(name: str, value: float, count: int | None = None) -> Edit:
    """Set the first `count` values of a constant, or all."""

    def edit(model: onnx.ModelProto) -> None:
        found = tensor(model, name)
        values: NDArray[np.float32] = numpy_helper.to_array(found).copy()
        values.reshape(-1)[:count] = value
        found.CopyFrom(numpy_helper.from_array(values, name))

    return edit


def garbage(_: onnx.ModelProto) -> bytes:
    return b"no ONNX file at all"


def framed_garbage(_: onnx.ModelProto) -> bytes:
    """A graph, by the frame of the file, whose name is no text."""
    return b"\x3a\x04\x12\x02\xff\xfe"


def keep_weights_elsewhere(model: onnx.ModelProto) -> None:
    found = tensor(model, "layer2.0.conv1.weight")
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    found.external_data.add(key="location", value="weights.bin")


def use_another_domain(model: onnx.ModelProto) -> None:
    node(model, "maxpool").domain = "my.ops"


def rename_the_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = node(model, "preprocess.cast").input[0] = "pixels"


def take_the_names(model: onnx.ModelProto) -> None:
    for found in model.graph.node:
        found.name = ""


def part_into_groups(model: onnx.ModelProto) -> None:
    found = tensor(model, "layer2.1.conv1.weight")
    values = numpy_helper.to_array(found)
    found.CopyFrom(numpy_helper.from_array(values[:, : values.shape[1] // 2].copy(), found.name))
    convolution = node(model, "layer2.1.conv1")
    kept = [attribute for attribute in convolution.attribute if attribute.name != "group"]
    del convolution.attribute[:]
    convolution.attribute.extend([*kept, helper.make_attribute("group", 2)])


def compute_a_bias(model: onnx.ModelProto) -> None:
    convolution = node(model, "layer2.0.conv1")
    model.graph.node.insert(0, helper.make_node("Identity", [convolution.input[2]], ["b"], name="copy"))
    convolution.input[2] = "b"


def cut_a_wire(model: onnx.ModelProto) -> None:
    node(model, "relu").input[0] = "nothing"


def contradict_shapes(model: onnx.ModelProto) -> None:
    found = tensor(model, "fc.weight")
    found.CopyFrom(numpy_helper.from_array(np.ones((3, 7), np.float32), found.name))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (garbage, "is no ONNX file, or a damaged one"),
        (framed_garbage, "is no valid ONNX model"),
        (keep_weights_elsewhere, "keeps weights outside of its file"),
        (use_another_domain, "uses operators of 'my.ops'"),
        (rename_the_input, "takes pixels, wanted chips"),
        (take_the_names, "have the name ''"),
        (part_into_groups, "layer2.1.conv1 is a convolution in 2 groups"),
        (compute_a_bias, "the bias of layer2.0.conv1 is computed"),
        (cut_a_wire, "is no valid ONNX model"),
        (contradict_shapes, "is no valid ONNX model"),
        (fill("layer4.0.conv2.bias", np.nan, 1), "tensor layer4.0.conv2.bias holds infinite values, or none"),
        (fill("fc.bias", np.nan, 1), "tensor fc.bias holds infinite values, or none"),
        (fill("conv1.weight", np.inf, 1), "tensor conv1.weight holds infinite values, or none"),
        # Finite, and the sums are not: infinite before the last block's Relu, and no number in the head.
        (fill("layer4.0.conv2.weight", 3e38), "tensor layer4.0.relu2.out holds infinite values, or none"),
        (fill("fc.weight", 3e38), "tensor fc.out holds infinite values, or none"),
    ],
)
def test_a_model_that_cannot_be_quantised_is_refused_in_one_line(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]],
    capsys: pytest.CaptureFixture[str],
    edit: Edit,
    words: str,
) -> None:
    path, chips = write_model(model), write_chips(*imagery_chips(70))
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    content = edit(broken)
    members = {MODEL_MEMBER: broken.SerializeToString() if content is None else content}
    write_bundle(path, open_bundle(path).manifest, members)
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", str(path), "--chips", str(chips), "--count", "32", "--method", "minmax", "-q"])
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert words in error[-1]
    assert not any("Traceback" in line for line in error)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir() if "partial" in entry.name] == []


def test_a_good_model_is_read_as_it_is(model: onnx.ModelProto, write_model: Callable[..., Path]) -> None:
    assert read_fp32(open_bundle(write_model(model))) == model
