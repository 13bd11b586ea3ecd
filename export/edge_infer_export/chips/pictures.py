"""The pictures that chips are stored as: PNG, TIFF or JPEG, written and read by Pillow.

Chips of one or three bands are plain pictures. Any other number of bands stand side by side in one grey one.
Every function here may be called from any number of threads.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PictureFormat = Literal["png", "tiff", "jpeg"]

SUFFIXES: dict[PictureFormat, str] = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}
READ_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
"""What counts as a picture in a folder, in lower case."""

JPEG_QUALITY = 90
"""Of JPEG chips, where nothing else is said."""

_TAIL_BYTES = 64
_END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}

_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, MemoryError, LookupError, TypeError, struct.error),
    Image.DecompressionBombError,
)
"""What Pillow raises for damaged files."""


class UnreadableChip(Refused):
    """The picture of one chip cannot be read."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself."""

    width: int
    height: int
    bands: int
    """Without alpha; a palette counts as three."""
    eight_bit: bool


def read_header(path: Path) -> Header:
    """Read what a picture is; pixels are decoded only where its end looks cut off.

    Raises:
        UnreadableChip: it cannot be opened, or not decoded to its end.

    """
    try:
        with Image.open(path) as picture:
            if not _looks_whole(picture, path):
                picture.load()
            bands = 3 if picture.mode == "P" else len(picture.getbands())
            with_alpha = picture.mode in {"LA", "RGBA", "PA"}
            eight_bit = picture.mode in {"L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr"}
            return Header(picture.width, picture.height, bands - with_alpha, eight_bit)
    except _DAMAGE as error:
        raise UnreadableChip(f"{path} cannot be read ({_words(error)})") from error


def read_chip(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode one chip: uint8, of the (S, S, C) given. Alpha is left out.

    Raises:
        UnreadableChip: it cannot be decoded, or is no chip of that shape.

    """
    side, _, bands = shape
    try:
        with Image.open(path) as picture:
            wanted = {"P": "RGB", "RGBA": "RGB", "LA": "L", "PA": "RGB"}.get(picture.mode)
            values = np.asarray(picture if wanted is None else picture.convert(wanted))
    except _DAMAGE as error:
        raise UnreadableChip(
            f"{path} cannot be read ({_words(error)}); restore the file, or take its row out of the table"
        ) from error
    if values.ndim == 2:
        if bands == 1 or values.shape != (side, side * bands):
            values = values[:, :, None]
        else:
            values = np.stack(np.split(values, bands, axis=1), axis=2)
    if values.dtype != np.uint8 or values.shape != shape:
        raise UnreadableChip(f"{path} is {values.dtype} {values.shape}, wanted uint8 {shape}; cut it again")
    return values


def stored_size(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give width, height and bands of the picture that holds a chip of shape (S, S, C)."""
    side, _, bands = shape
    return (side, side, bands) if bands in {1, 3} else (side * bands, side, 1)


def write_chip(path: Path, chip: NDArray[np.uint8], form: PictureFormat, quality: int = JPEG_QUALITY) -> None:
    """Write one chip, uint8 (S, S, C); `quality` is that of JPEG. Raises OSError where the disk refuses."""
    bands = chip.shape[2]
    flat = chip if bands == 3 else np.concatenate(list(np.moveaxis(chip, 2, 0)), axis=1)
    picture = Image.fromarray(flat)
    content = io.BytesIO()  # so that a full disk is told of by the system, not by an encoder
    if form == "png":
        picture.save(content, "PNG", compress_level=1)
    elif form == "tiff":
        picture.save(content, "TIFF", compression="tiff_adobe_deflate")
    else:
        # Colour at full resolution: roofs are a few pixels wide.
        picture.save(content, "JPEG", quality=quality, subsampling=0)
    path.write_bytes(content.getvalue())


def _looks_whole(picture: Image.Image, path: Path) -> bool:
    """Whether the file ends where such files do: a cheap look that finds what a broken copy leaves behind."""
    mark = _END_MARKS.get(picture.format or "")
    if mark is None:
        return False
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - _TAIL_BYTES))
        return mark in stream.read()


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
