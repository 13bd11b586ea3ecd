"""Signed tensors made unsigned at load: the same numbers, by OpenVINO's own graph and by arithmetic."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_infer.engine.openvino import OpenVinoEngine, retype_unsigned
from edge_infer.ring import BatchSlot

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 8


def qdq_model(*, relu: bool, pooled: bool = False, scale: float = 2.0) -> onnx.ModelProto:
    """Chips -> minus 100 -> [Relu] -> [MaxPool] -> Q/DQ -> mean of each band: probabilities (N, 3)."""
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "hundred"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu" if relu else "Identity", ["planes"], ["positive"]),
        helper.make_node("MaxPool", ["positive"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["pooled" if pooled else "positive", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("ReduceMean", ["dq"], ["probabilities"], axes=[2, 3], keepdims=0),
    ]
    constants = {
        "hundred": np.float32(100), "scale": np.float32(scale), "zero": np.int8(0)
    }  # fmt: skip
    graph = helper.make_graph(
        nodes if pooled else [node for node in nodes if node.op_type != "MaxPool"],
        "g",
        [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: openvino.Model, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(chips)["probabilities"])


@pytest.fixture
def chips() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3)).astype(np.uint8)


def expected(chips: NDArray[np.uint8], scale: float, *, relu: bool, pooled: bool) -> NDArray[np.float64]:
    values = chips.astype(np.float64) - 100
    if relu:
        values = np.maximum(values, 0)
    if pooled:
        values = values.reshape(-1, SIDE // 2, 2, SIDE // 2, 2, 3).max(axis=(2, 4))
    return np.asarray((np.clip(np.rint(values / scale), -128, 127) * scale).mean(axis=(1, 2)))


@pytest.mark.parametrize("scale", [0.5, 2.0, 0.7])
@pytest.mark.parametrize("pooled", [False, True])
def test_values_are_the_same_clipped_ones_too(
    chips: NDArray[np.uint8], scale: float, *, pooled: bool
) -> None:
    """With a scale of 0.5 what lies above 63.5 is clipped, as int8 clips it: a byte alone would not."""
    content = qdq_model(relu=True, pooled=pooled, scale=scale).SerializeToString()
    core = openvino.Core()
    plain, retyped = (core.read_model(io.BytesIO(content)) for _ in range(2))
    assert retype_unsigned(retyped) == 1
    wanted = expected(chips, scale, relu=True, pooled=pooled)
    # A value that lies between two levels may be rounded to either; 2.0 and 0.5 have ties, 0.7 has none.
    slack = scale if scale == 0.7 else scale / 2
    np.testing.assert_allclose(run(retyped, chips), run(plain, chips), atol=1e-3 + slack / SIDE)
    np.testing.assert_allclose(run(retyped, chips), wanted, atol=1e-3 + slack / SIDE)


def test_the_tensor_is_a_byte_without_zero_point() -> None:
    model = openvino.Core().read_model(io.BytesIO(qdq_model(relu=True).SerializeToString()))
    before = {node.get_element_type().get_type_name() for node in model.get_ops()}
    retype_unsigned(model)
    kinds = [
        node.get_element_type().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "Convert"
    ]
    assert "i8" in before
    assert kinds.count("u8") == 1
    assert "Clamp" in {node.get_type_name() for node in model.get_ops()}


def test_what_may_be_negative_stays_signed(chips: NDArray[np.uint8]) -> None:
    model = openvino.Core().read_model(io.BytesIO(qdq_model(relu=False).SerializeToString()))
    assert retype_unsigned(model) == 0
    np.testing.assert_allclose(
        run(model, chips), expected(chips, 2.0, relu=False, pooled=False), atol=1e-3 + 1 / SIDE
    )


def test_the_engine_does_it(chips: NDArray[np.uint8]) -> None:
    engine = OpenVinoEngine(
        qdq_model(relu=True, scale=0.7).SerializeToString(),
        (SIDE, SIDE, 3),
        3,
        batch=8,
        precision="int8",
        why="t",
    )
    slot = BatchSlot.allocate(8, (SIDE, SIDE, 3), engine.memory)
    slot.chips[:6], slot.count = chips, 6
    engine.submit(slot)
    _, found = engine.collect()
    engine.close()
    np.testing.assert_allclose(found, expected(chips, 0.7, relu=True, pooled=False), atol=1e-3)
