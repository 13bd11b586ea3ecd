"""Which precision the layers of a plan run in, by TensorRT's engine inspector.

Reading it needs the GPU that the plan was built for. The inspector's JSON has differed between versions:
`Format/Datatype` in 8 and 10, `DataType` or `Format` in 11; a convolution's `Weights`, or `ConvWeights` where
it is fused with its pooling. What is not understood counts as `other`, not as something it may not be.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_infer.engine.tensorrt.messages import collected, shared_logger
from edge_infer.engine.tensorrt.network import INPUT
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_infer.engine.tensorrt.bindings import TensorRt

_KINDS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("half", "fp16"),
    ("fp16", "fp16"),
    ("float", "fp32"),
    ("fp32", "fp32"),
)
"""What a description of a type holds in lower case, and our word for it; the first that is found counts."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What a plan's layers run in."""

    layers: int
    convolutions: Mapping[str, int]
    """Convolutions by the type of their weights and input: int8, fp16, fp32, other."""

    def describe(self) -> str:
        """Say it in a few words: 36 convolutions in int8, 1 in fp32."""
        counts = sorted(self.convolutions.items(), key=lambda item: -item[1])
        told = ", ".join(f"{count} in {kind}" for kind, count in counts)
        return f"{self.layers} layers; convolutions: {told or 'none found'}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"layers": self.layers, "convolutions": dict(self.convolutions)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LayerReport:
        """Read what `to_json` gave; `KeyError`, `TypeError` or `ValueError` where it is none."""
        counts = {str(kind): int(count) for kind, count in dict(values["convolutions"]).items()}
        return cls(int(values["layers"]), counts)


def inspect_plan(
    library: TensorRt, plan: bytes, *, batch: int, chip_shape: tuple[int, int, int]
) -> LayerReport:
    """Load a plan on the current GPU, which must have been found by `probe_gpu`, and ask for its layers.

    Raises:
        EngineError: TensorRT cannot load the plan or does not tell.

    """
    trt = library.module
    runtime = engine = context = inspector = None
    with collected() as messages:
        try:
            runtime = trt.Runtime(shared_logger(trt))
            # After an error it may be a null pointer, which must not be touched.
            engine = None if messages.errors() else runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(f"TensorRT {library.text} cannot load the plan: {messages.reason()}")
            # Types of tensors are told for shapes that are known only.
            context = engine.create_execution_context()
            inspector = engine.create_engine_inspector()
            if context is not None and context.set_input_shape(INPUT, (batch, *chip_shape)):
                inspector.execution_context = context
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        finally:
            # What was made last goes first, and a frame that raises holds none: TensorRT crashes else.
            del inspector, context, engine, runtime
    return read_report(text)


def read_report(text: str) -> LayerReport:
    """Count the convolutions in an inspector's JSON.

    Raises:
        EngineError: it is not of the form that is known.

    """
    try:
        layers = json.loads(text)["Layers"]
        convolutions = [layer for layer in layers if isinstance(layer, dict) and _is_convolution(layer)]
        counts = Counter(_precision(layer) for layer in convolutions)
        return LayerReport(len(layers), dict(sorted(counts.items())))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"TensorRT's layer report is not understood ({error!r})") from error


def _is_convolution(layer: Mapping[str, Any]) -> bool:
    kinds = (layer.get("LayerType"), layer.get("ParameterType"), layer.get("ConvParameterType"))
    return any("conv" in str(kind).lower() for kind in kinds)


def _precision(layer: Mapping[str, Any]) -> str:
    weights = layer.get("Weights") or layer.get("ConvWeights") or {}
    told = [weights.get("Type", "")]
    told += [
        tensor.get(field, "")
        for tensor in layer.get("Inputs", [])[:1]
        for field in ("Format/Datatype", "DataType", "Format")
    ]
    for text in told:
        for word, kind in _KINDS:
            if word in str(text).lower():
                return kind
    return "other"
