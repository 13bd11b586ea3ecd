"""A stand-in for TensorRT on the stand-in for CUDA: a plan is a pickle-free line of text, run by NumPy.

`brightness SIDE BANDS MOST` gives two probabilities, 1 - mean / 255 and mean / 255; `nan` in its place gives
no numbers. Execution contexts notice when they are used after their engine, or outlive the context.
"""

from __future__ import annotations

# mypy: ignore-errors
import ctypes
import enum
import os

import numpy as np

__version__ = "10.3.0"
_cuda = ctypes.CDLL("libcuda.so.1")
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

live = {"runtimes": 0, "engines": 0, "contexts": 0}
"""What has been made and not been destroyed."""
refuse: list[str] = []
"""Each entry makes one `create_execution_context` fail with this text."""
stumble: list[str] = []
"""Each entry makes one `execute_async_v3` fail with this text."""
shared_profiles = True
"""Whether every context has the one profile from the start, as from 10 on; 8.6 gives it to the first."""
null_runtimes: list[str] = []
"""Each entry makes one `Runtime` a null pointer, with this text; touching it ends the process."""


class DataType(enum.Enum):
    UINT8, FLOAT = range(2)


class Builder:
    """Only there to be found."""


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, text):
        raise NotImplementedError


def _need_context():
    assert _cuda.fake_count(b"stack") > 0, "TensorRT is used without a context"


class Runtime:
    def __init__(self, logger):
        _need_context()
        self.logger = logger
        live["runtimes"] += 1
        self.null = bool(null_runtimes)
        if self.null:
            logger.log(ILogger.Severity.INTERNAL_ERROR, null_runtimes.pop())

    def deserialize_cuda_engine(self, plan):
        if self.null:
            os.abort()
        words = plan.decode().split()
        if words[0] not in ("brightness", "nan"):
            self.logger.log(ILogger.Severity.ERROR, "the plan is for another TensorRT")
            return None
        return ICudaEngine(self, words[0], *map(int, words[1:]))

    def __del__(self):
        _need_context()
        assert live["engines"] == 0, "the runtime goes before its engine"
        live["runtimes"] -= 1


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, runtime, kind, side, bands, most):
        self.runtime, self.kind, self.shape, self.most = runtime, kind, (side, side, bands), most
        live["engines"] += 1

    def get_tensor_name(self, index):
        return ("chips", "probabilities")[index]

    def get_tensor_dtype(self, name):
        return DataType.UINT8 if name == "chips" else DataType.FLOAT

    def get_tensor_shape(self, name):
        return (-1, *self.shape) if name == "chips" else (-1, 2)

    def get_tensor_profile_shape(self, name, profile):
        assert (name, profile) == ("chips", 0)
        return [(number, *self.shape) for number in (1, self.most, self.most)]

    def create_execution_context(self):
        _need_context()
        if refuse:
            self.runtime.logger.log(ILogger.Severity.ERROR, refuse.pop())
            return None
        return IExecutionContext(self)

    def __del__(self):
        _need_context()
        assert live["contexts"] == 0, "the engine goes before its contexts"
        live["engines"] -= 1


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.addresses, self.batch, self.callbacks = engine, {}, None, []
        live["contexts"] += 1
        self.active_optimization_profile = 0 if shared_profiles or live["contexts"] == 1 else -1

    def set_optimization_profile_async(self, index, stream_handle):
        self.active_optimization_profile = index
        return isinstance(stream_handle, int)

    def set_input_shape(self, name, shape):
        assert name == "chips"
        if self.active_optimization_profile < 0:
            return False
        self.batch = shape[0]
        return shape[1:] == self.engine.shape and 1 <= self.batch <= self.engine.most

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        if stumble:
            self.engine.runtime.logger.log(ILogger.Severity.ERROR, stumble.pop())
            return False
        chips_at, probabilities_at = self.addresses["chips"], self.addresses["probabilities"]
        batch, shape, kind = self.batch, self.engine.shape, self.engine.kind

        def run(_):
            chips = _view(chips_at, (batch, *shape), np.uint8)
            bright = chips.reshape(batch, -1).mean(axis=1) / 255
            out = _view(probabilities_at, (batch, 2), np.float32)
            out[:, 0], out[:, 1] = 1 - bright, bright
            if kind == "nan":
                out[:] = np.nan

        callback = _CALLBACK(run)
        self.callbacks.append(callback)  # a graph may call any of them at any time
        return _cuda.fake_call(ctypes.c_void_p(stream_handle), callback, None) == 0

    def __del__(self):
        _need_context()
        live["contexts"] -= 1


def _view(address, shape, dtype):
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    assert _cuda.fake_lives(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)), "memory that is gone"
    return np.frombuffer((ctypes.c_char * size_bytes).from_address(address), dtype).reshape(shape)
