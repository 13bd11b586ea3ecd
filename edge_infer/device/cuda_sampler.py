"""The sampler's kernels: chips of a tile in the GPU's memory, cut straight into an engine's input.

They run the arithmetic of `_native/sampling.h`, as the CPU does, without fused multiply-add.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from edge_infer._native import _ext
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.errors import EdgeInferError, EngineError

if TYPE_CHECKING:
    from edge_infer.device.cuda import CudaDevice
    from edge_infer.device.gpu import GpuFacts
    from edge_infer.shelf import ShelvedTile

BLOCK = (32, 8, 1)
"""Threads of a block over (chip columns, chip rows, 1): what `_native/sampler.cu` is written for."""

TEGRA = frozenset((53, 62, 72, 87, 110))
"""Architectures of Jetsons: TX1, TX2, Xavier, Orin, Thor."""

_ARGUMENTS = "PPiiiPiffPP"
"""pixels, valid, bands, height, width, boxes, side, low, factor, levels, valid_pixels."""


def why_not(gpu: GpuFacts) -> str | None:
    """Say why this installation has no kernels for a GPU; None where it has.

    Machine code runs on its own and on later minor versions of a major one, but a Tegra's on that Tegra alone
    and no other's on a Tegra (CUDA C++ programming guide, binary compatibility). Anything newer than the
    newest is compiled from PTX by the driver when it is loaded. Code of a newer major version of CUDA than
    the driver's is not loaded, nor PTX of any newer one.
    """
    if not _ext.CUDA_ARCHITECTURES:
        return f"this edge-infer has no CUDA kernels: {_ext.CUDA_ABSENCE}"
    built = [int(text) for text in _ext.CUDA_ARCHITECTURES.split()]
    own = gpu.architecture
    alike = own in built or any(
        one // 10 == own // 10 and one <= own and not {one, own} & TEGRA for one in built
    )
    if not alike and own <= max(built):
        return f"the CUDA kernels are for sm_{_ext.CUDA_ARCHITECTURES}, this GPU is sm_{own}"
    made, runs = (tuple(map(int, text.split(".")[:2])) for text in (_ext.NVCC_VERSION, gpu.driver))
    if (made[:1] > runs[:1]) if alike else (made > runs):
        return f"the CUDA kernels were made with nvcc {_ext.NVCC_VERSION}, the driver runs CUDA {gpu.driver}"
    return None


class CudaSampler:
    """Kernels loaded into the context of `device`, which must outlive them."""

    def __init__(
        self, device: CudaDevice, chip_shape: tuple[int, int, int], value_range: tuple[float, float]
    ) -> None:
        """Load the kernels for chips of `chip_shape` (S, S, C) whose 0 and 255 are `value_range`.

        Raises:
            EngineError: this installation has none for this GPU, or the driver does not take them.
            GpuMemoryError: there is no memory left for them.

        """
        reason = why_not(device.facts)
        if reason is not None:
            raise EngineError(f"{reason}; use --sample-on cpu")
        fatbin = (resources.files("edge_infer._native") / "sampler.fatbin").read_bytes()
        driver = device.driver
        try:
            with device.translated("loading the sampler's kernels"):
                module = driver.module_from_buffer(fatbin)
                self._kernels = {
                    value_bytes: module.get_function(name).prepare(_ARGUMENTS)
                    for value_bytes, name in ((1, "sample_uint8"), (2, "sample_uint16"))
                }
        except GpuMemoryError:
            raise
        except EdgeInferError as error:
            raise EngineError(
                f"the driver does not load the CUDA kernels ({error.__cause__}); use --sample-on cpu"
            ) from error
        low, high = value_range
        self._levels = low, 255.0 / (high - low)
        self._side, self._bands = chip_shape[0], chip_shape[2]

    def launch(
        self,
        tile: ShelvedTile,
        shelf_address: int,
        windows_address: int,
        windows: int,
        chips_address: int,
        valid_pixels_address: int,
        stream: Any,  # noqa: ANN401
    ) -> None:
        """Cut chips on a stream; errors are pycuda's.

        Args:
            tile: where its pixels and mask lie on the shelf.
            shelf_address: where the GPU sees the shelf.
            windows_address: float64 (windows, 4) in tile pixels, sound.
            windows: how many; at least one.
            chips_address: uint8 (windows, S, S, C); filled.
            valid_pixels_address: uint32 (windows,), zero before; gets each chip's number of valid pixels.
            stream: of pycuda.

        """
        across, down = (-(-self._side // length) for length in BLOCK[:2])
        self._kernels[tile.value_bytes].prepared_async_call(
            (across, down, windows),
            BLOCK,
            stream,
            shelf_address + tile.start,
            0 if tile.mask_start is None else shelf_address + tile.mask_start,
            self._bands,
            tile.height,
            tile.width,
            windows_address,
            self._side,
            *self._levels,
            chips_address,
            valid_pixels_address,
        )

    def close(self) -> None:
        """Unload the kernels; none may be running."""
        self._kernels.clear()
