"""The hold that one thread has on the GPU: pycuda's primary context, and the memory made in it.

One `CudaDevice` a process, made, used and closed in one thread; no other thread of ours calls CUDA (TensorRT
builds on one of its own, in the same primary context). Any thread may read and write pinned memory, but only
this one frees it, at the latest when the device is closed; by then nobody may use it any more.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.device.gpu import DRIVER_LIBRARY
from edge_infer.errors import EdgeInferError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from edge_infer.device.gpu import GpuFacts

_STREAM_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: does not wait for the default stream, which TensorRT's initialisation uses."""
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_SCHEDULE_SPIN = 1
"""CU_CTX_SCHED_SPIN."""


class GpuMemoryError(EdgeInferError):
    """The GPU has no memory left for this; a smaller batch may fit."""


class CudaDevice:
    """The primary context of the first visible GPU, current in this thread until `close`."""

    def __init__(self, facts: GpuFacts) -> None:
        """Retain and push the primary context of the GPU that `probe_gpu` found.

        Raises:
            EngineError: pycuda is missing or does not fit the driver, or the driver refuses; that the GPU is
                full already is such a reason, as no smaller batch helps there.

        """
        self.facts = facts
        self.driver = load_pycuda()
        self._pinned: dict[int, Any] = {}
        self._mapped: dict[int, int] = {}
        try:
            with self.translated("starting"):
                self._start()
        except EdgeInferError as error:
            raise EngineError(str(error)) from error

    def _start(self) -> None:
        self.driver.init()
        self._context: Any = self.driver.Device(0).retain_primary_context()
        try:
            self._context.push()
        except BaseException:
            self._release()
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._context is None

    def close(self) -> None:
        """Free the pinned memory, then pop and release the context; a second call does nothing.

        Everything else made in the context must be gone: TensorRT's objects, streams, events, device memory.
        """
        if self._context is None:
            return
        for address in list(self._pinned):
            self._free(address)
        self.driver.Context.pop()
        self._release()

    def _release(self) -> None:
        self._context.detach()
        self._context = None
        # pycuda pushes what it releases, and CUDA then takes other contexts off the stack, not the primary.
        ctypes.CDLL(DRIVER_LIBRARY).cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn pycuda's errors into ours; `doing` says in the message what was going on.

        Raises:
            GpuMemoryError: the GPU or the pinned memory is full.
            EdgeInferError: anything else that CUDA reports.

        """
        try:
            yield
        except self.driver.MemoryError as error:
            raise GpuMemoryError(
                f"the GPU ({self.facts}) has no memory left for {doing} ({error}); "
                "use a smaller --batch, or end what else uses the GPU (`nvidia-smi`)"
            ) from error
        except self.driver.Error as error:
            raise EdgeInferError(
                f"the GPU ({self.facts}) failed at {doing}: {error}; look for Xid lines in `dmesg`, "
                "and use --engine openvino if it goes on"
            ) from error

    # --- what is made in the context; errors are pycuda's ---

    def stream(self) -> Any:  # noqa: ANN401 - pycuda has no types
        """Make a stream of its own order."""
        return self.driver.Stream(_STREAM_NON_BLOCKING)

    def event(self, *, sleeping: bool) -> Any:  # noqa: ANN401
        """Make an event without time; who waits for it sleeps, or does what `spin` says."""
        return self.driver.Event(_EVENT_DISABLE_TIMING | (_EVENT_BLOCKING_SYNC if sleeping else 0))

    def spin(self) -> None:
        """Have whoever waits spin, to be awake a little sooner; a Jetson's driver may let it sleep else.

        A driver that refuses costs microseconds, and nothing more.
        """
        ctypes.CDLL(DRIVER_LIBRARY).cuDevicePrimaryCtxSetFlags_v2(
            ctypes.c_int(0), ctypes.c_uint(_SCHEDULE_SPIN)
        )

    def timed_event(self) -> Any:  # noqa: ANN401
        """Make an event that notes the time."""
        return self.driver.Event(0)

    def device_memory(self, size_bytes: int) -> Any:  # noqa: ANN401
        """Allocate memory of the GPU; `int()` of it is its address, `free()` ends it."""
        return self.driver.mem_alloc(size_bytes)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike, *, mapped: bool) -> np.ndarray[Any, Any]:
        """Allocate zeroed page-locked host memory, C-contiguous, which the device's end frees.

        Args:
            shape: of the array; not empty.
            dtype: of the array.
            mapped: whether the GPU is to read and write it in place, at `device_address`.

        """
        driver = self.driver
        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        array: np.ndarray[Any, Any] = driver.pagelocked_empty(shape, np.dtype(dtype), mem_flags=flags)
        allocation: Any = array.base
        address = array.ctypes.data
        self._pinned[address] = allocation
        if mapped:
            self._mapped[address] = int(allocation.get_device_pointer())
        array.fill(0)
        return array

    def free_pinned(self, array: np.ndarray[Any, Any]) -> None:
        """Free what `pinned` gave; nobody may use it any more."""
        self._free(array.ctypes.data)

    def _free(self, address: int) -> None:
        self._mapped.pop(address, None)
        self._pinned.pop(address).free()

    def device_address(self, array: np.ndarray[Any, Any]) -> int | None:
        """Tell where the GPU sees a mapped array that `pinned` made; None for any other."""
        return self._mapped.get(array.ctypes.data)


class PinnedMemory:
    """`Memory` of a GPU: what it hands out lives until it is closed."""

    def __init__(self, device: CudaDevice, *, mapped: bool) -> None:
        """Take memory from `device`, which the GPU reads in place where `mapped`."""
        self._device, self._mapped = device, mapped
        self._arrays: list[np.ndarray[Any, Any]] = []
        self.reserved: list[np.ndarray[Any, Any]] = []
        """Allocated, and not handed out yet."""

    def reserve(self, count: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Allocate so many arrays now, for `allocate` to hand out later.

        Raises:
            GpuMemoryError: there is not memory enough.

        """
        self.reserved += [self._make(shape, dtype) for _ in range(count)]

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        """Give a zeroed C-contiguous array of page-locked memory: a reserved one where one is alike.

        Raises:
            GpuMemoryError: there is none left.

        """
        for place, array in enumerate(self.reserved):
            if (array.shape, array.dtype) == (tuple(shape), np.dtype(dtype)):
                return self.reserved.pop(place)
        return self._make(shape, dtype)

    def _make(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        with self._device.translated(f"pinned memory of shape {shape}"):
            array = self._device.pinned(shape, dtype, mapped=self._mapped)
        self._arrays.append(array)
        return array

    def close(self) -> None:
        """Free all of it, in the device's thread; nobody may use it any more."""
        self.reserved.clear()
        while self._arrays:
            self._device.free_pinned(self._arrays.pop())


def load_pycuda() -> Any:  # noqa: ANN401
    """Import `pycuda.driver`; it starts nothing.

    Raises:
        EngineError: it is missing, or was built for a newer driver.

    """
    try:
        from pycuda import driver
    except ModuleNotFoundError as error:
        raise EngineError(
            f"pycuda was not found (no Python module {error.name}); `pip install pycuda` where CUDA's "
            "headers are (a Jetson: put /usr/local/cuda/bin on PATH first), or use --engine openvino"
        ) from None
    except ImportError as error:  # an undefined symbol: built with headers newer than the driver
        reason = (str(error).strip().splitlines() or ["it does not load"])[0]
        raise EngineError(
            f"pycuda was found but does not fit this driver ({reason}); build it anew with CUDA headers no "
            "newer than the driver (`pip install --no-cache-dir --force-reinstall pycuda`), or use "
            "--engine openvino"
        ) from None
    return driver
