"""What this installation is: its version, and the GPUs that its CUDA kernels were built for."""

from __future__ import annotations

from edge_infer import __version__
from edge_infer._native import _ext


def describe() -> str:
    """Say in one line which version this is and which CUDA kernels are built in, or why none are."""
    if not _ext.CUDA_ARCHITECTURES:
        return f"edge-infer {__version__} (without CUDA kernels: {_ext.CUDA_ABSENCE})"
    gpus = ", ".join(f"sm_{architecture}" for architecture in _ext.CUDA_ARCHITECTURES.split())
    return f"edge-infer {__version__} (CUDA kernels for {gpus}, made with nvcc {_ext.NVCC_VERSION})"
