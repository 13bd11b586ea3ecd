"""The names of `pycuda.driver` that edge-infer uses, by ctypes; see fake_cuda.cpp for what lies below.

Like pycuda's, whose calls are no frames of Python, these let go of their stream before they can fail.
"""

from __future__ import annotations

# mypy: ignore-errors
import ctypes
import struct
from ctypes import byref, c_float, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import ClassVar

import numpy as np

_cuda = ctypes.CDLL("libcuda.so.1")


class Error(Exception):
    pass


class MemoryError(Error):  # noqa: A001 - pycuda's name
    pass


class LogicError(Error):
    pass


def _call(name, *arguments):
    code = getattr(_cuda, name)(*arguments)
    if code:
        raise (MemoryError if code == 2 else LogicError)(f"{name} failed: {code}")


class host_alloc_flags:
    DEVICEMAP = 2


def init():
    _call("cuInit", c_uint(0))


class Context:
    _stack: ClassVar[list[Context]] = []

    def __init__(self, handle):
        self._handle = handle

    def push(self):
        _call("cuCtxPushCurrent_v2", self._handle)
        Context._stack.append(self)

    @staticmethod
    def pop():
        Context._stack.pop()
        _call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def detach(self):
        _call("cuCtxPushCurrent_v2", self._handle)
        _call("cuDevicePrimaryCtxRelease_v2", c_int(0))


class Device:
    def __init__(self, number):
        assert number == 0

    def retain_primary_context(self):
        handle = c_void_p()
        _call("cuDevicePrimaryCtxRetain", byref(handle), c_int(0))
        return Context(handle)


class Stream:
    def __init__(self, flags=0):
        stream = c_void_p()
        _call("cuStreamCreate", byref(stream), c_uint(flags))
        self.handle = stream.value

    def synchronize(self):
        handle = c_void_p(self.handle)
        del self
        _call("cuStreamSynchronize", handle)

    def wait_for_event(self, event):
        _call("cuStreamWaitEvent", c_void_p(self.handle), event._event, c_uint(0))

    def __del__(self):
        if getattr(self, "handle", None):
            _call("cuStreamDestroy_v2", c_void_p(self.handle))


class Event:
    def __init__(self, flags=0):
        self._event = c_void_p()
        _call("cuEventCreate", byref(self._event), c_uint(flags))

    def record(self, stream=None):
        _call("cuEventRecord", self._event, c_void_p(stream.handle))
        return self

    def synchronize(self):
        handle = self._event
        del self
        _call("cuEventSynchronize", handle)

    def time_till(self, other):
        milliseconds = c_float()
        _call("cuEventElapsedTime", byref(milliseconds), self._event, other._event)
        return milliseconds.value

    def __del__(self):
        if self._event:
            _call("cuEventDestroy_v2", self._event)


class DeviceAllocation:
    def __init__(self, size_bytes):
        self._at = c_ulonglong()
        _call("cuMemAlloc_v2", byref(self._at), c_size_t(size_bytes))

    def __int__(self):
        return self._at.value

    def free(self):
        at, self._at = self._at, c_ulonglong()
        _call("cuMemFree_v2", at)

    def __del__(self):
        if self._at.value:
            self.free()


def mem_alloc(size_bytes):
    return DeviceAllocation(size_bytes)


class HostAllocation:
    def __init__(self, size_bytes, flags):
        self.at = c_void_p()
        _call("cuMemHostAlloc", byref(self.at), c_size_t(size_bytes), c_uint(flags))

    def get_device_pointer(self):
        at = c_ulonglong()
        _call("cuMemHostGetDevicePointer_v2", byref(at), self.at, c_uint(0))
        return at.value

    def free(self):
        assert self.at, "freed twice"
        _call("cuMemFreeHost", self.at)
        self.at = None


class _Pinned(np.ndarray):
    """pycuda's arrays have the allocation itself as `base`."""

    base = None


def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
    dtype = np.dtype(dtype)
    assert order == "C"
    allocation = HostAllocation(int(np.prod(shape)) * dtype.itemsize, mem_flags)
    memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(allocation.at.value)
    array = np.frombuffer(memory, dtype).reshape(shape).view(_Pinned)
    array.base = allocation
    return array


def memcpy_htod_async(dest, src, stream=None):
    assert src.flags.c_contiguous
    stream, source = c_void_p(stream.handle), c_void_p(src.ctypes.data)
    _call("cuMemcpyHtoDAsync_v2", c_ulonglong(int(dest)), source, c_size_t(src.nbytes), stream)


def memcpy_dtoh_async(dest, src, stream=None):
    assert dest.flags.c_contiguous
    stream, target = c_void_p(stream.handle), c_void_p(dest.ctypes.data)
    _call("cuMemcpyDtoHAsync_v2", target, c_ulonglong(int(src)), c_size_t(dest.nbytes), stream)


def memset_d32_async(dest, data, size, stream=None):
    _call("cuMemsetD32Async", c_ulonglong(dest), c_uint(data), c_size_t(size), c_void_p(stream.handle))


def memset_d8_async(dest, data, size, stream=None):
    _call("cuMemsetD8Async", c_ulonglong(dest), c_ubyte(data), c_size_t(size), c_void_p(stream.handle))


class Function:
    def __init__(self, module, name):
        self._module, self._function, self._format = module, c_void_p(), ""
        _call("cuModuleGetFunction", byref(self._function), module.handle, name.encode())

    def prepare(self, arg_types):
        self._format = arg_types
        return self

    def prepared_async_call(self, grid, block, stream, *arguments):
        packed = struct.pack(self._format, *arguments)
        size = c_size_t(len(packed))
        extra = (c_void_p * 5)(1, ctypes.cast(packed, c_void_p), 2, ctypes.addressof(size), 0)
        shape = [c_uint(number) for number in (*grid, *block, 0)]
        _call("cuLaunchKernel", self._function, *shape, c_void_p(stream.handle), None, extra)


class Module:
    def __init__(self, image):
        self.handle = c_void_p()
        _call("cuModuleLoadDataEx", byref(self.handle), image, c_uint(0), None, None)

    def get_function(self, name):
        return Function(self, name)

    def __del__(self):
        if self.handle:
            _call("cuModuleUnload", self.handle)


def module_from_buffer(buffer):
    return Module(buffer)
