"""INT8 graphs as OpenVINO loads them: the same numbers, by its own graph and by arithmetic."""

from __future__ import annotations

import io
import os
import pickle
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_infer.engine import openvino as openvino_engine
from edge_infer.engine.int8_on_cpu import leave_signed_in_float, retype_unsigned
from edge_infer.engine.openvino import OpenVinoEngine
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
    found = run_engine(qdq_model(relu=True, scale=0.7).SerializeToString(), chips)
    np.testing.assert_allclose(found, expected(chips, 0.7, relu=True, pooled=False), atol=1e-3)


def convolution_model() -> onnx.ModelProto:
    """Chips -> minus 100 -> Q/DQ -> convolution of large weights, Relu -> Q/DQ -> another: three sums."""
    rng = np.random.default_rng(2)
    weights = {"first": rng.integers(60, 128, (16, 3, 3, 3)), "second": rng.integers(60, 128, (3, 16, 1, 1))}
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "hundred"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    constants = {"hundred": np.float32(100), "none": np.int8(0)}
    source = "planes"
    for name, step in (("first", 1.3), ("second", 600.0)):
        constants |= {f"{name}.step": np.float32(step), f"{name}.weight": weights[name].astype(np.int8)}
        constants |= {f"{name}.scale": np.full(len(weights[name]), 0.1, np.float32)}
        constants |= {f"{name}.zero": np.zeros(len(weights[name]), np.int8)}
        quantised = [f"{name}.q", f"{name}.step", "none"]
        stored = [f"{name}.{part}" for part in ("weight", "scale", "zero")]
        nodes += [
            helper.make_node("QuantizeLinear", [source, *quantised[1:]], quantised[:1]),
            helper.make_node("DequantizeLinear", quantised, [f"{name}.dq"]),
            helper.make_node("DequantizeLinear", stored, [f"{name}.w"], axis=0),
            helper.make_node("Conv", [f"{name}.dq", f"{name}.w"], [f"{name}.sums"]),
            helper.make_node("Relu", [f"{name}.sums"], [f"{name}.out"]),
        ]
        source = f"{name}.out"
    nodes.append(helper.make_node("ReduceMean", [source], ["probabilities"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def exact_sums(chips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the model says by ONNX Runtime, in float from the rounded values: nothing can overflow."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        convolution_model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"chips": chips})[0])


def run_engine(content: bytes, chips: NDArray[np.uint8]) -> NDArray[np.float32]:
    engine = OpenVinoEngine(content, (SIDE, SIDE, 3), 3, batch=8, precision="int8", why="t")
    slot = BatchSlot.allocate(8, (SIDE, SIDE, 3), engine.memory)
    slot.chips[: len(chips)], slot.count = chips, len(chips)
    engine.submit(slot)
    _, found = engine.collect()
    engine.close()
    return found


def test_only_signed_tensors_are_left_in_float(chips: NDArray[np.uint8]) -> None:
    model = openvino.Core().read_model(io.BytesIO(convolution_model().SerializeToString()))
    assert retype_unsigned(model) == 1
    assert leave_signed_in_float(model) == 1
    assert leave_signed_in_float(model) == 0
    np.testing.assert_allclose(run(model, chips), exact_sums(chips), rtol=0.02)


@pytest.mark.parametrize("exactly", [True, False])
def test_the_engine_asks_the_cpu(
    chips: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, *, exactly: bool
) -> None:
    left: list[int] = []

    def leave(model: openvino.Model) -> int:
        left.append(leave_signed_in_float(model))
        return left[-1]

    monkeypatch.setattr(openvino_engine, "sums_exactly", lambda _: exactly)
    monkeypatch.setattr(openvino_engine, "leave_signed_in_float", leave)
    run_engine(convolution_model().SerializeToString(), chips)
    assert left == ([] if exactly else [1])


AT_WORK = """
import pickle, sys
from edge_infer.engine.int8_on_cpu import sums_exactly
import openvino
sys.path.insert(0, sys.argv[1])
from test_int8_on_cpu import convolution_model, run, run_engine
import io
chips = pickle.loads(sys.stdin.buffer.read())
content = convolution_model().SerializeToString()
plain = run(openvino.Core().read_model(io.BytesIO(content)), chips)
sys.stdout.buffer.write(pickle.dumps((sums_exactly(openvino.Core()), plain, run_engine(content, chips))))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 has 8 bit instructions that clip")
def test_a_cpu_without_vnni_gives_the_same_numbers(chips: NDArray[np.uint8]) -> None:
    """By oneDNN's switch that keeps it to older instructions. OpenVINO's own loading is far off there."""
    chips = np.maximum(chips, 180)
    done = subprocess.run(
        [sys.executable, "-c", AT_WORK, str(Path(__file__).parent)],
        input=pickle.dumps(chips),
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        check=True,
    )
    exactly, plain, found = pickle.loads(done.stdout)
    wanted = exact_sums(chips)
    assert not exactly
    assert np.abs(plain / wanted - 1).max() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=0.02)
