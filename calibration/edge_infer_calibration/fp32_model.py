"""The FP32 model of a bundle, which may come from anywhere: read, and checked before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from edge_infer.bundle import MODEL_MEMBER
from edge_infer.engine.onnx_file import read_model
from edge_infer.errors import BundleError

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle

ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)
"""What ONNX Runtime raises for a model that it cannot load or run; they have no base of their own."""


def read_fp32(bundle: Bundle) -> onnx.ModelProto:
    """Read and check the FP32 model.

    Raises:
        BundleError: it is no ONNX file, keeps weights elsewhere, uses operators that are not ONNX's own, is
            no valid graph, or holds weights that are infinite or no numbers; the text names the tensor.

    """
    content = read_model(bundle, MODEL_MEMBER)
    where = f"{bundle.path}: {MODEL_MEMBER}"
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{where} is no valid ONNX model ({reason}); export it again") from error
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise BundleError(
                f"{where}: tensor {tensor.name} holds infinite values, or none at all (NaN); the model is "
                "damaged: train again"
            )
    return model
