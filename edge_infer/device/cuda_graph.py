"""CUDA graphs by the driver API: a batch's kernels, launched by one call. pycuda does not have them.

Signatures are those of `cuda.h`; cuGraphInstantiateWithFlags is in drivers since CUDA 11.4.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_ulonglong, c_void_p
from functools import lru_cache
from typing import TYPE_CHECKING

from edge_infer.device.gpu import DRIVER_LIBRARY

if TYPE_CHECKING:
    from collections.abc import Callable

_CAPTURE_MODE_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile neither harms nor is harmed."""


class CaptureError(Exception):
    """The work cannot be captured; it can be enqueued as before."""


class GraphLaunchError(Exception):
    """A captured graph could not be launched."""


class CudaGraph:
    """What was enqueued on a stream once, to be launched again; its memory must stay where it is."""

    def __init__(self, executable: int) -> None:
        """Take over a CUgraphExec."""
        self._executable: int | None = executable

    def launch(self, stream_handle: int) -> None:
        """Enqueue it all on a stream.

        Raises:
            GraphLaunchError: the driver refuses.

        """
        result = _driver().cuGraphLaunch(self._executable, stream_handle)
        if result != 0:
            raise GraphLaunchError(f"cuGraphLaunch gave {error_name(result)}")

    def close(self) -> None:
        """Destroy it; none of its launches may be under way. A second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            _driver().cuGraphExecDestroy(executable)


def capture(stream_handle: int, enqueue: Callable[[], bool]) -> CudaGraph:
    """Capture what `enqueue` puts on a stream.

    It must have run there once before, since what a library sets up at its first use cannot be captured.

    Args:
        stream_handle: a CUstream other than the default one, of the context that is current.
        enqueue: enqueues on that stream and tells whether it succeeded; nothing runs meanwhile.

    Raises:
        CaptureError: something in it cannot be captured. The stream is as it was.

    """
    driver = _driver()
    result = driver.cuStreamBeginCapture_v2(stream_handle, _CAPTURE_MODE_THREAD_LOCAL)
    if result != 0:
        raise CaptureError(f"cuStreamBeginCapture gave {error_name(result)}")
    graph, executable = c_void_p(), c_void_p()
    enqueued = False
    try:
        try:
            enqueued = enqueue()
        finally:  # a capture that is begun must be ended, or the stream is lost
            result = driver.cuStreamEndCapture(stream_handle, ctypes.byref(graph))
        if not enqueued or result != 0 or not graph.value:
            raise CaptureError(error_name(result) if result else "it could not be enqueued")
        result = driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
        if result != 0 or executable.value is None:
            raise CaptureError(f"cuGraphInstantiate gave {error_name(result)}")
    finally:
        if graph.value:
            driver.cuGraphDestroy(graph)
    return CudaGraph(executable.value)


def error_name(result: int) -> str:
    """Name a CUresult, as in CUDA_ERROR_OUT_OF_MEMORY."""
    name = c_char_p()
    found = _driver().cuGetErrorName(result, ctypes.byref(name)) == 0 and name.value is not None
    return name.value.decode() if found and name.value is not None else f"error {result}"


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL(DRIVER_LIBRARY)
    for name, arguments in {
        "cuStreamBeginCapture_v2": (c_void_p, c_int),
        "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
        "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
        "cuGraphDestroy": (c_void_p,),
        "cuGraphLaunch": (c_void_p, c_void_p),
        "cuGraphExecDestroy": (c_void_p,),
        "cuGetErrorName": (c_int, POINTER(c_char_p)),
    }.items():
        function = getattr(driver, name)
        function.argtypes, function.restype = arguments, c_int
    return driver
