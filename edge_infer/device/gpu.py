"""What NVIDIA GPU there is, asked of the driver itself: no pycuda, no TensorRT, nothing left behind.

The driver must be asked first: without one a TensorRT Runtime is a null pointer that crashes when used.
Numbers and signatures are those of the CUDA driver API's `cuda.h`, the same from CUDA 11 to 13.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

from edge_infer.errors import EngineError

DRIVER_LIBRARY = "libcuda.so.1"

_MAJOR, _MINOR, _INTEGRATED, _MULTIPROCESSORS = 75, 76, 18, 16
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR, _INTEGRATED and _MULTIPROCESSOR_COUNT."""

_INIT_HINTS = {
    3: "the driver is not initialised or is shutting down: restart the program",
    34: "the library found is a stub for linking: take its folder off LD_LIBRARY_PATH",
    100: "no GPU is visible: check `nvidia-smi`; a container needs --gpus all or --runtime nvidia, and "
    "CUDA_VISIBLE_DEVICES must not be empty",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there: check `nvidia-smi -L`",
    802: "the GPU's fabric is not ready yet: wait for nvidia-fabricmanager",
    803: "the kernel's driver and the CUDA library differ in version: reboot after a driver update, or "
    "install the driver's own library (in a container: the one that --gpus brings)",
    804: "this GPU cannot run the compatibility library on LD_LIBRARY_PATH (cuda-compat): take it off",
    999: "the driver failed: check `nvidia-smi` and the kernel log (`dmesg`); after a suspend reload "
    "nvidia_uvm",
}
"""What to do about CUresult codes that `cuInit` is known to give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """The GPU that this process may use, as its driver describes it."""

    name: str
    """In its maker's words."""
    compute_capability: tuple[int, int]
    """(9, 0) is what compilers call sm_90."""
    multiprocessors: int
    """Tells apart what has one name: every Jetson Orin is called Orin."""
    integrated: bool
    """Shares the host's memory, as on a Jetson."""
    total_bytes: int
    free_bytes: int
    """As the driver counts at the time of asking; on a Jetson it leaves out what the system could free."""
    driver: str
    """Newest CUDA version that the driver runs, as in 12.6."""

    @property
    def architecture(self) -> int:
        """As in sm_90: 90."""
        return self.compute_capability[0] * 10 + self.compute_capability[1]

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}, sm_{self.architecture}, {self.total_bytes / 2**30:.1f} GiB, CUDA {self.driver}"


def probe_gpu() -> GpuFacts:
    """Ask the driver for its first visible GPU (CUDA_VISIBLE_DEVICES chooses among several).

    Free memory can only be asked from within a context. The primary context is retained for that and released
    again, so that whoever comes next finds the GPU as it was; where it is in use already, that use goes on.

    Raises:
        EngineError: no driver, no GPU, or one that cannot be used; the text says which, and what to do.

    """
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        raise EngineError(
            f"no NVIDIA driver was found ({DRIVER_LIBRARY}); install one (a Jetson's comes with JetPack; a "
            "container needs --gpus all or --runtime nvidia), or use --engine openvino"
        ) from None
    _check(cuda, "cuInit", cuda.cuInit(ctypes.c_uint(0)))
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(cuda, "cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(version)))
    _check(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise EngineError(f"the NVIDIA driver works but shows no GPU; {_visible()}{_INIT_HINTS[100]}")
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(0)))
    name = ctypes.create_string_buffer(256)
    _check(cuda, "cuDeviceGetName", cuda.cuDeviceGetName(name, ctypes.c_int(len(name)), device))
    free_bytes, total_bytes = _memory(cuda, device)
    return GpuFacts(
        name=name.value.decode(errors="replace"),
        compute_capability=(_attribute(cuda, _MAJOR, device), _attribute(cuda, _MINOR, device)),
        multiprocessors=_attribute(cuda, _MULTIPROCESSORS, device),
        integrated=bool(_attribute(cuda, _INTEGRATED, device)),
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _attribute(cuda: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    result = cuda.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device)
    _check(cuda, "cuDeviceGetAttribute", result)
    return value.value


def _memory(cuda: ctypes.CDLL, device: ctypes.c_int) -> tuple[int, int]:
    """Free and total bytes."""
    context, popped = ctypes.c_void_p(), ctypes.c_void_p()
    free_bytes, total_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    retained = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    _check(cuda, "cuDevicePrimaryCtxRetain", retained)
    try:
        _check(cuda, "cuCtxPushCurrent", cuda.cuCtxPushCurrent_v2(context))
        try:
            told = cuda.cuMemGetInfo_v2(ctypes.byref(free_bytes), ctypes.byref(total_bytes))
            _check(cuda, "cuMemGetInfo", told)
        finally:
            cuda.cuCtxPopCurrent_v2(ctypes.byref(popped))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    return free_bytes.value, total_bytes.value


def _check(cuda: ctypes.CDLL, function: str, result: int) -> None:
    if result == 0:
        return
    text = ctypes.c_char_p()
    named = cuda.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text)) == 0 and text.value
    name = text.value.decode() if named and text.value else "an unknown error"
    hint = _INIT_HINTS.get(result, "check `nvidia-smi`, or use --engine openvino")
    raise EngineError(f"the NVIDIA driver's {function} gave {name} ({result}); {_visible()}{hint}")


def _visible() -> str:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if devices is None else f"CUDA_VISIBLE_DEVICES is {devices!r}; "
