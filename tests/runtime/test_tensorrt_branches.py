"""Messages, and the branch for TensorRT 8.6.

No machine of ours has 8.6, so a stand-in shows which calls are made for which version. It says nothing about
TensorRT; the calls of 10 and 11 are held by tests/tensorrt.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest

from edge_infer.engine.tensorrt import builder as builder_module
from edge_infer.engine.tensorrt.bindings import TensorRt
from edge_infer.engine.tensorrt.builder import BuildRequest, build_plan
from edge_infer.engine.tensorrt.messages import MOST_MESSAGES, Message, Messages, collected
from edge_infer.engine.tensorrt.network import parse_network
from edge_infer.errors import EngineError


def said(*messages: Message) -> Messages:
    collection = Messages()
    for message in messages:
        collection.add(message)
    return collection


def test_errors_are_told_once_in_one_line():
    told = said(Message(True, "first\n  error"), Message(False, "a warning"), *[Message(True, "second")] * 3)
    assert told.reason() == "first error; second"
    assert (told.errors(), told.warnings()) == (["first\n  error", "second"], ["a warning"])
    assert said().reason() == "it gives no reason"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("[resizePhysical::127] Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", True),
        ("Error Code 1: Cuda Runtime (out of memory)", True),
        ("Error Code 1: Cuda Driver (CUDA_ERROR_OUT_OF_MEMORY)", True),
        ("[defaultAllocator.cpp] cudaErrorMemoryAllocation: 2", True),
        ("Requested amount of GPU memory (4294967296 bytes) could not be allocated.", True),
        ("GPU memory allocation failed for layer conv1", True),
        ("Skipping tactic 3 due to insufficient memory on requested size of 9126805504", True),
        ("Error Code 10: Internal Error (Could not find any implementation for node conv1.)", False),
    ],
)
def test_full_memory_is_recognised(text, full):
    assert said(Message(True, text)).out_of_memory() == full
    assert not said(Message(False, text)).out_of_memory()


def test_messages_are_bounded():
    assert (
        len(said(*[Message(True, str(number)) for number in range(2 * MOST_MESSAGES)]).errors())
        == MOST_MESSAGES
    )


def test_collections_within_each_other_end_each_for_itself():
    with collected() as outer:
        with collected():
            pass
        with collected() as inner:
            assert inner is not outer
    with collected() as after:
        assert after.errors() == []


@pytest.fixture
def trt86() -> SimpleNamespace:
    """The names that the branch for 8.6 uses; an IProgressMonitor is not among them."""
    return SimpleNamespace(
        Builder=MagicMock(),
        OnnxParser=MagicMock(),
        ILogger=SimpleNamespace(Severity=SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
        BuilderFlag=SimpleNamespace(INT8="INT8", FP16="FP16", TF32="TF32"),
        TacticSource=SimpleNamespace(EDGE_MASK_CONVOLUTIONS=3, JIT_CONVOLUTIONS=4),
        PreviewFeature=SimpleNamespace(PROFILE_SHARING_0806="sharing"),
    )


@pytest.mark.parametrize(
    ("precision", "flags", "cleared"),
    [("int8", ["INT8", "FP16"], []), ("fp16", ["FP16"], []), ("fp32", [], ["TF32"])],
)
def test_8_6_is_told_by_flags_and_10_by_the_file(trt86, precision, flags, cleared):
    request = BuildRequest(
        model_onnx=b"",
        chip_shape=(32, 32, 3),
        classes=2,
        precision=precision,
        batch=8,
        workspace_bytes=1 << 30,
    )
    for version, wanted, sources, previews in (
        ((8, 6, 0), flags, [call(1 << 3 | 1 << 4)], [call("sharing", True)]),
        ((10, 3, 0), [], [], []),
    ):
        builder, config = MagicMock(), MagicMock()
        config.add_optimization_profile.return_value = 0
        builder_module._configure(TensorRt(trt86, "stand-in", version), builder, config, request)
        assert [made.args[0] for made in config.set_flag.call_args_list] == wanted
        assert [made.args[0] for made in config.clear_flag.call_args_list] == cleared
        assert config.set_tactic_sources.call_args_list == sources
        assert config.set_preview_feature.call_args_list == previews
        config.set_memory_pool_limit.assert_called_once_with("workspace", 1 << 30)
        profile = builder.create_optimization_profile.return_value
        profile.set_shape.assert_called_once_with("chips", (1, 32, 32, 3), (8, 32, 32, 3), (8, 32, 32, 3))


def test_a_profile_that_is_refused(trt86):
    config = MagicMock()
    config.add_optimization_profile.return_value = -1
    request = BuildRequest(
        model_onnx=b"", chip_shape=(32, 32, 3), classes=2, precision="fp32", batch=8, workspace_bytes=1
    )
    with pytest.raises(EngineError, match="refuses batches of 1 to 8 chips"):
        builder_module._configure(TensorRt(trt86, "10.3.0", (10, 3, 0)), MagicMock(), config, request)


def test_8_6_names_a_node_by_its_number(trt86, monkeypatch):
    monkeypatch.setattr("edge_infer.engine.tensorrt.network.shared_logger", lambda _: None)
    error = SimpleNamespace(node=lambda: 12, desc=lambda: "no importer\nfound")
    parser = trt86.OnnxParser.return_value
    parser.parse.return_value, parser.num_errors, parser.get_error.return_value = False, 1, error
    builder = MagicMock()
    with pytest.raises(
        EngineError, match=r"TensorRT 8\.6\.1 cannot take this model: node 12: no importer found; "
    ):
        parse_network(TensorRt(trt86, "8.6.1", (8, 6, 1)), builder, b"", chip_shape=(32, 32, 3), classes=2)
    builder.create_network.assert_called_once_with(1)


def test_8_6_without_cuda_gives_no_builder(trt86, monkeypatch):
    monkeypatch.setattr(builder_module, "shared_logger", lambda _: None)
    trt86.Builder.side_effect = TypeError("pybind11::init(): factory function returned nullptr")
    request = BuildRequest(
        model_onnx=b"", chip_shape=(32, 32, 3), classes=2, precision="fp32", batch=8, workspace_bytes=1
    )
    with pytest.raises(
        EngineError, match="cannot start on this GPU: it gives no reason; driver and TensorRT"
    ):
        build_plan(TensorRt(trt86, "8.6.1", (8, 6, 1)), request, timings=b"", say=pytest.fail)
