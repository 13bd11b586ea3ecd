"""The compiled sampler. `edge_infer.sampler` checks what goes in; here only what would crash is refused."""

import enum

import numpy as np
import numpy.typing as npt

class Path(enum.Enum):
    """A way to the same chips."""

    PIXELWISE = 0
    """One pixel after the other, as a CUDA kernel works: the reference."""
    BASELINE = 1
    """Vectors that every processor of this kind has."""
    AVX2 = 2

PATHS: tuple[Path, ...]
"""What this machine can run, slowest first."""

CUDA_ARCHITECTURES: str
"""Compute capabilities that sampler.fatbin has machine code for, as in "80 87 90"; empty: no CUDA."""
NVCC_VERSION: str
"""The CUDA compiler's version; empty: no CUDA."""
CUDA_ABSENCE: str
"""Why the kernels were left out; empty where they were not."""

def sample(
    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    valid: npt.NDArray[np.uint8] | None,
    boxes: npt.NDArray[np.float64],
    out: npt.NDArray[np.uint8],
    valid_fraction: npt.NDArray[np.float32],
    low: float,
    high: float,
    threads: int,
    path: Path,
) -> None:
    """Fill out (k, S, S, C) and valid_fraction (k,) from pixels (C, h, w) and boxes (k, 4) in tile pixels."""
