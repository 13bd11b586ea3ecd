"""From float windows on a decoded tile to chips: the one function that makes every chip.

Training, calibration and run-time chips all come from `sample`, so they cannot differ. The arithmetic is in
`_native/sampling.h`; here stands what a caller may hand over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_infer._native import _ext
from edge_infer.manifest import MAX_BANDS

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.imagery import Tile

MAX_CHIP_PIXELS = 4096
"""Side of the largest chip."""
MAX_WINDOW_PIXELS = 65_536
MAX_POSITION = 2.0**31
"""Bounds of a window in tile pixels; `_native/sampler.cpp` holds the same."""
NOISE_PIXELS = 1e-6
"""What positions miss whole pixels by is noise of their arithmetic; `_native/sampling.h` holds the same."""


def sample(
    tile: Tile,
    boxes: npt.NDArray[np.float64],
    out: npt.NDArray[np.uint8],
    valid_fraction: npt.NDArray[np.float32],
    value_range: tuple[float, float] = (0.0, 255.0),
    threads: int = 1,
) -> None:
    """Cut one chip for each window out of a decoded tile, antialiased, into `out`.

    The filter is that of Pillow's `resize(..., BILINEAR, box=window)` on the tile's pixels; what lies outside
    the tile counts as outside the image. Invalid pixels weigh nothing. A chip pixel whose centre lies outside
    the tile or on an invalid pixel becomes 0. Levels are rounded after the filter. The result is the same to
    the last bit for any number of threads and on any machine. The GIL is released meanwhile: the arrays must
    not change.

    Args:
        tile: the decoded pixels, and where they lie.
        boxes: float64, (k, 4): x, y, width, height of each window in full-resolution pixels.
        out: uint8, (k, S, S, C), C-contiguous; filled.
        valid_fraction: float32, (k,), contiguous; filled with the share of chip pixels that are valid.
        value_range: source values that become 0 and 255; what lies outside is clipped.
        threads: how many threads share the windows.

    Raises:
        ValueError: an array has the wrong type, shape or layout, or a window is not finite, has no extent, is
            more than 65,536 tile pixels wide or high, or lies absurdly far away. Nothing is written then.

    """
    bands, height, width = _checked("tile.pixels", tile.pixels, (None, None, None), np.uint8, np.uint16)
    if not (1 <= bands <= MAX_BANDS and height and width):
        raise ValueError(
            f"tile.pixels must hold 1 to {MAX_BANDS} bands of pixels, got shape {tile.pixels.shape}"
        )
    if tile.valid is not None:
        _checked("tile.valid", tile.valid, (height, width), np.uint8)
    count, _ = _checked("boxes", boxes, (None, 4), np.float64, contiguous=False)
    _, side, _, _ = _checked("out", out, (count, None, None, bands), np.uint8, filled=True)
    if not 1 <= side <= MAX_CHIP_PIXELS or out.shape[2] != side:
        raise ValueError(
            f"chips must be square, of 1 to {MAX_CHIP_PIXELS} pixels, got out of shape {out.shape}"
        )
    _checked("valid_fraction", valid_fraction, (count,), np.float32, filled=True)
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be finite and rise, got {low}..{high}")
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, got {threads}")

    windows = _windows_on(tile, boxes)
    _ext.sample(tile.pixels, tile.valid, windows, out, valid_fraction, low, high, threads, _ext.PATHS[-1])


def sound_windows(tile: Tile, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Move windows from full-resolution to tile pixels, for a sampler that checks nothing itself.

    Args:
        tile: where the decoded pixels lie.
        boxes: float64, (k, 4): x, y, width, height of each window in full-resolution pixels.

    Returns:
        float64, (k, 4), C-contiguous.

    Raises:
        ValueError: a window is one that `sample` would refuse.

    """
    windows = _windows_on(tile, boxes)
    near = np.abs(windows[:, :2]) <= MAX_POSITION
    sound = (windows[:, 2:] > 0) & (windows[:, 2:] <= MAX_WINDOW_PIXELS)
    if not (near.all() and sound.all()):
        raise ValueError(
            "a window's sides must be positive and at most "
            f"{MAX_WINDOW_PIXELS} tile pixels, and its position within 2^31"
        )
    return windows


def _windows_on(tile: Tile, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    origin = np.array([tile.column, tile.row, 0.0, 0.0])
    scale = np.array([tile.scale_x, tile.scale_y] * 2)
    if not (np.isfinite(origin).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(
            f"the tile lies at {origin[:2]} with scales {scale[:2]}; wanted finite, positive scales"
        )
    with np.errstate(all="ignore"):  # what overflows is refused as a window that is not finite
        # A decoded tile begins at a whole pixel of its own grid. Subtracted as such it leaves no trace: a
        # window is the same to the last bit whichever tile it is cut from.
        origin = origin / scale
        whole = np.rint(origin)
        return np.ascontiguousarray(
            boxes / scale - np.where(np.abs(origin - whole) < NOISE_PIXELS, whole, origin)
        )


def _checked(
    name: str,
    array: object,
    shape: tuple[int | None, ...],
    *dtypes: type[np.generic],
    contiguous: bool = True,
    filled: bool = False,
) -> tuple[int, ...]:
    """Return the shape of an array that is as wanted; None in `shape` stands for any length."""
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be an array of {' or '.join(d.__name__ for d in dtypes)}, got {found}")
    if array.ndim != len(shape) or any(
        wanted not in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    ):
        text = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
        raise ValueError(f"{name} must have shape ({text}), got {array.shape}")
    if contiguous and not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous; np.ascontiguousarray makes it so")
    if filled and not array.flags.writeable:
        raise ValueError(f"{name} is read-only, but it is to be filled")
    return tuple(array.shape)
