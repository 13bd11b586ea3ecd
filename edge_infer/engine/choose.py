"""Which engine and precision run a bundle on this machine. Nothing is substituted silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER
from edge_infer.engine.onnx_file import check_self_contained
from edge_infer.errors import BundleError, EngineError

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine, EngineChoice, Precision, PrecisionChoice


def open_engine(
    bundle: Bundle,
    *,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    batch: int | None = None,
) -> Engine:
    """Open the engine that was asked for, or the best of those present for `auto`.

    Raises:
        EngineError: the engine or the precision is not to be had; the text says what is.
        BundleError: the model is not contained in the bundle, or uses operators that are not ONNX's own.

    """
    if engine == "tensorrt":
        raise EngineError("this edge-infer has no TensorRT engine; use --engine openvino")
    from edge_infer.engine.openvino import DEFAULT_BATCH, OpenVinoEngine

    member, taken, why = choose_model(bundle, precision)
    asked = "asked for" if engine == "openvino" else "the only engine of this version"
    model_onnx = bundle.read(member)
    try:
        check_self_contained(model_onnx)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {member}: {error}") from error
    return OpenVinoEngine(
        model_onnx,
        bundle.manifest.contract.chip_shape,
        len(bundle.manifest.classes),
        batch=batch or DEFAULT_BATCH,
        precision=taken,
        why=f"openvino: {asked}; {why}",
    )


def choose_model(bundle: Bundle, precision: PrecisionChoice) -> tuple[str, Precision, str]:
    """Name the bundle member to run on a CPU, its precision, and why.

    Raises:
        EngineError: the bundle or the CPU has no such precision.

    """
    has_int8 = INT8_MEMBER in bundle.members
    if precision == "fp16":
        raise EngineError("OpenVINO on a CPU runs int8 or fp32, not fp16; use --precision auto")
    if precision == "int8" and not has_int8:
        raise EngineError(
            f"{bundle.path.name} holds no INT8 model; make one with `edge-infer calibrate`, "
            "or use --precision fp32"
        )
    if precision == "int8" or (precision == "auto" and has_int8):
        return INT8_MEMBER, "int8", f"int8: {'asked for' if precision == 'int8' else 'the bundle has it'}"
    why = "asked for" if precision == "fp32" else "the bundle holds no INT8 model"
    return MODEL_MEMBER, "fp32", f"fp32: {why}"
