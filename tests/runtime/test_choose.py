"""OpenVINO in INT8 is taken only if it passed its gate and gives the golden answers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER, open_bundle, write_bundle
from edge_infer.engine import choose
from edge_infer.engine.choose import COMPILATIONS, choose_model, open_engine
from edge_infer.engine.golden import find_fault
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine

PASSED = {"int8": "passed"}


def wrong_model(bundle: Bundle, times: float) -> bytes:
    """The bundle's model with constants that make other answers of it."""
    model = onnx.load_from_string(bundle.read("model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(times), tensor.name)
            )
    return bytes(model.SerializeToString())


def with_int8(path: Path, content: bytes | None = None, verdict: object = PASSED) -> Bundle:
    """The bundle at `path` with an INT8 model, by default its FP32 one, and what its gate said."""
    bundle = open_bundle(path)
    members = {name: bundle.read(name) for name in bundle.members}
    members[INT8_MEMBER] = content or members[MODEL_MEMBER]
    manifest = replace(bundle.manifest, facts={**bundle.manifest.facts, "int8": verdict})
    return write_bundle(path, manifest, members)


def test_what_passed_its_gate_is_taken(golden: Callable[..., Path]) -> None:
    bundle = with_int8(golden())
    assert choose_model(bundle, "auto") == (INT8_MEMBER, "int8", "int8: it passed its gate")
    assert choose_model(bundle, "fp32") == (MODEL_MEMBER, "fp32", "fp32: asked for")


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        ({}, "the bundle's INT8 model was not put to a gate"),
        (None, "the bundle's INT8 model was not put to a gate"),
        ("passed", "the bundle's INT8 model was not put to a gate"),
        ({"int8": "rejected", "reason": "recall"}, "INT8 did not pass its gate (recall)"),
        ({"int8": "rejected", "reason": "x" * 9999}, f"INT8 did not pass its gate ({'x' * 300})"),
    ],
)
def test_what_did_not_pass_a_gate_runs_only_if_asked_for(
    golden: Callable[..., Path], verdict: object, why: str
) -> None:
    bundle = with_int8(golden(), verdict=verdict)
    assert choose_model(bundle, "auto") == (MODEL_MEMBER, "fp32", f"fp32: {why}")
    assert choose_model(bundle, "int8") == (INT8_MEMBER, "int8", "int8: asked for")
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert engine.facts.precision == "fp32"


def test_a_bundle_without_int8_says_what_to_do(golden: Callable[..., Path]) -> None:
    bundle = open_bundle(golden())
    assert choose_model(bundle, "auto")[2] == "fp32: the bundle holds no INT8 model"
    with pytest.raises(EngineError, match=r"holds no INT8 model; make an .* `edge-infer calibrate`"):
        choose_model(bundle, "int8")
    with pytest.raises(EngineError, match="int8 or fp32, not fp16"):
        choose_model(bundle, "fp16")


@pytest.mark.parametrize(
    ("times", "fault"), [(0.5, "probabilities differ by up to"), (np.nan, "that are no numbers")]
)
def test_int8_that_answers_wrongly_is_not_taken(
    golden: Callable[..., Path], times: float, fault: str
) -> None:
    bundle = with_int8(golden(), wrong_model(open_bundle(golden()), times))
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert engine.facts.precision == "fp32"
        assert "fp32: in INT8 the golden chips" in engine.facts.why
        assert fault in engine.facts.why
        assert find_fault(engine, bundle) is None
    with pytest.raises(EngineError, match=r"in INT8 on this CPU the golden .*; use --precision fp32"):
        open_engine(bundle, engine="openvino", precision="int8")


@pytest.mark.parametrize("wrong", range(COMPILATIONS))
def test_a_wrong_compilation_is_followed_by_another(
    golden: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    faults: list[str | None] = ["the golden chips differ"] * wrong + [None]
    engines = []

    def find(engine: Engine, bundle: Bundle) -> str | None:
        engines.append(engine)
        return faults.pop(0)

    bundle = with_int8(golden())
    monkeypatch.setattr(choose, "find_fault", find)
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert engine.facts.precision == "int8"
        assert engine is engines[-1]
    assert len({*map(id, engines)}) == wrong + 1


def test_without_golden_chips_nothing_is_held_against_it(make_bundle: Callable[..., Path]) -> None:
    bundle = open_bundle(make_bundle())
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert find_fault(engine, bundle) is None
