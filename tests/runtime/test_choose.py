"""OpenVINO in INT8 is taken only if it gives the golden answers."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import numpy_helper

from edge_infer.bundle import open_bundle
from edge_infer.engine import choose
from edge_infer.engine.choose import COMPILATIONS, open_engine
from edge_infer.engine.golden import find_fault
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine


def wrong_model(bundle: Bundle) -> bytes:
    """The bundle's model with constants that make other answers of it."""
    model = onnx.load_from_string(bundle.read("model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0.5, tensor.name))
    return bytes(model.SerializeToString())


def test_int8_that_answers_wrongly_is_not_taken(golden: Callable[..., Path]) -> None:
    bundle = open_bundle(golden(model__int8__onnx=wrong_model(open_bundle(golden()))))
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert engine.facts.precision == "fp32"
        assert "in INT8 the golden chips' probabilities differ by up to" in engine.facts.why
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

    bundle = open_bundle(golden(model__int8__onnx=open_bundle(golden()).read("model.onnx")))
    monkeypatch.setattr(choose, "find_fault", find)
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert engine.facts.precision == "int8"
        assert engine is engines[-1]
    assert len({*map(id, engines)}) == wrong + 1


def test_without_golden_chips_nothing_is_held_against_it(make_bundle: Callable[..., Path]) -> None:
    bundle = open_bundle(make_bundle())
    with closing(open_engine(bundle, engine="openvino")) as engine:
        assert find_fault(engine, bundle) is None
