from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from edge_infer.engine.tensorrt import builder as builder_module
from edge_infer.engine.tensorrt.builder import BuildRequest, build_plan, workspace_for
from edge_infer.engine.tensorrt.layers import inspect_plan
from edge_infer.engine.tensorrt.messages import collected
from edge_infer.errors import EngineError

MEMBERS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def request_for(models, precision, *, side=32, batch=8, classes=2):
    return BuildRequest(
        model_onnx=models[MEMBERS[precision]],
        chip_shape=(side, side, 3),
        classes=classes,
        precision=precision,
        batch=batch,
        workspace_bytes=1 << 30,
    )


def build(library, request, say=lambda _: None, timings=b"", **options):
    return build_plan(library, request, timings=timings, say=say, **options)


@pytest.fixture(scope="module")
def large_plans(library, large_models):
    return {name: build(library, request_for(large_models, name, side=224, batch=32)) for name in MEMBERS}


def test_plans_of_resnet34_hold_their_weights_in_their_precision(large_plans, large_models):
    sizes = {name: len(plan.content) for name, plan in large_plans.items()}
    weights = len(large_models["model.onnx"])
    assert weights < sizes["fp32"] < 1.05 * weights
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"] / 3
    assert all(plan.seconds > 0 for plan in large_plans.values())


@pytest.mark.parametrize("precision", MEMBERS)
@pytest.mark.parametrize("batch", [1, 3, 256])
def test_every_precision_builds_for_any_batch(library, small_models, precision, batch):
    built = build(library, request_for(small_models, precision, batch=batch))
    assert len(built.content) > 100_000


def test_a_batch_of_nothing_is_refused(small_models):
    with pytest.raises(EngineError, match="at least one chip, got 0"):
        request_for(small_models, "fp32", batch=0)


def test_a_model_that_does_not_parse_is_an_error_of_ours(library, small_models):
    with pytest.raises(EngineError, match="cannot take this model"):
        build(library, replace(request_for(small_models, "fp32"), model_onnx=b"nothing"))


def test_the_wait_tells_the_time(library, large_models, monkeypatch):
    monkeypatch.setattr(builder_module, "HEARTBEAT_SECONDS", 0.05)
    said: list[str] = []
    build(library, request_for(large_models, "int8", side=224), said.append, last_seconds=95.4)
    assert len(said) > 3
    assert said[0] == "still building, 0 s so far; the last such build took 95 s"


class Interruption(BaseException):
    """As a signal's handler raises it in the thread that waits."""


def test_a_stop_ends_the_build_at_once(library, large_models, monkeypatch):
    monkeypatch.setattr(builder_module, "HEARTBEAT_SECONDS", 0.02)
    begun = threading.Event()
    make_monitor = builder_module._make_monitor

    def make_noticing_monitor(library, stopping):
        monitor = make_monitor(library, stopping)
        monitor.phase_start = lambda *_: begun.set()
        return monitor

    monkeypatch.setattr(builder_module, "_make_monitor", make_noticing_monitor)

    def say(_):
        if begun.is_set():
            raise Interruption

    with collected() as messages, pytest.raises(Interruption):
        build(library, request_for(large_models, "fp32", side=224), say)
    assert "BuildCanceled" in messages.reason()
    assert "tensorrt-build" not in {thread.name for thread in threading.enumerate()}
    assert build(library, request_for(large_models, "int8", side=224)).content


def test_what_tensorrt_learnt_is_given_back(library, small_models):
    built = build(library, request_for(small_models, "fp16"))
    assert built.timings
    again = build(library, request_for(small_models, "fp16"), timings=built.timings)
    assert again.content
    # TensorRT itself refuses what it does not know, and builds all the same; what it learns is not lost.
    built = build(library, request_for(small_models, "fp16"), timings=b"no timing cache")
    assert built.content
    assert built.timings


def test_a_plan_that_cannot_be_loaded_here_is_an_error_of_ours(library, small_models):
    plan = build(library, request_for(small_models, "fp16")).content
    with pytest.raises(EngineError, match=r"cannot load the plan: .*cudaError 35"):
        inspect_plan(library, plan, batch=8, chip_shape=(32, 32, 3))


def test_scratch_memory_is_a_share_of_what_is_free(gpu):
    assert workspace_for(gpu) == 3 << 30
    assert workspace_for(replace(gpu, integrated=True)) == 1 << 30
    # A Jetson tells too little: what the system could free is not in it.
    assert workspace_for(replace(gpu, integrated=True, free_bytes=10 << 20)) == 256 << 20
