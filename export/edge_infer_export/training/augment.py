"""Changes a chip in ways that leave its label true.

Where it lies: any of the eight views of a square, a small shift, now and then a free rotation. How it was
taken: light and the bands' balance. How it reached us: coarser pixels, blur or sharpening, JPEG. The last
three matter as much as the first: where one class was photographed on one day, sharpness and compression tell
the classes apart, and a network that sees them varied cannot lean on them.

Everything works on one uint8 chip and draws from one generator, so that loader threads may run it and a
chip's view depends on nothing but its generator.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Chip = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far a chip may be changed."""

    light: float = 0.25
    """Largest relative change of brightness and of contrast."""
    tint: float = 0.08
    """Largest relative change of one band against the others."""
    shift: float = 1 / 12
    """Largest shift in parts of the chip's side: footprints do not lie on their roofs to the metre."""
    rotation_share: float = 0.3
    """Share of the chips that are turned by any angle, not only by quarters."""
    zoom: float = 0.1
    """Largest relative change of size of those."""
    coarser_share: float = 0.25
    """Share of the chips that lose resolution."""
    coarser: float = 2.0
    """Largest factor by which pixels become coarser; the chip keeps its size."""
    filter_share: float = 0.3
    """Share of the chips that are blurred or sharpened, half each."""
    blur_pixels: float = 1.0
    """Largest radius of the Gaussian blur, and of the sharpening."""
    jpeg_share: float = 0.5
    """Share of the chips that pass through JPEG."""
    jpeg_quality: tuple[int, int] = (40, 95)
    """Lowest and highest quality, on the encoder's scale 1..100."""

    def __post_init__(self) -> None:
        """Refuse values that would not leave a chip."""
        for name in (
            "light",
            "tint",
            "zoom",
            "rotation_share",
            "coarser_share",
            "filter_share",
            "jpeg_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(f"augmentation: {name} is a share, 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.shift < 0.5:
            raise Refused(f"augmentation: shift lies in 0 to 0.5 chip sides, got {self.shift}")
        if not (1 <= self.coarser <= 8 and 0 <= self.blur_pixels <= 8):
            raise Refused(
                f"augmentation: pixels may get 1 to 8 times coarser and blur reach 8 pixels, got "
                f"{self.coarser} and {self.blur_pixels}"
            )
        low, high = self.jpeg_quality
        if not 1 <= low <= high <= 100:
            raise Refused(f"augmentation: JPEG quality lies in 1..100, got {low}..{high}")


def augment(chip: Chip, rng: np.random.Generator, how: Augmentation) -> Chip:
    """Show a chip as it might as well have been taken: uint8, (S, S, C), to the same.

    Args:
        chip: uint8, (S, S, C).
        rng: source of all randomness.
        how: how far to go.

    """
    free = rng.random() < how.rotation_share
    chip = rotate(chip, rng, how) if free else shift(chip, rng, how.shift)
    chip = relight(turn(chip, rng), rng, how)
    if rng.random() < how.coarser_share:
        chip = coarsen(chip, rng.uniform(1.0, how.coarser))
    if rng.random() < how.filter_share:
        radius = rng.uniform(0.2, max(how.blur_pixels, 0.2))
        chip = blur(chip, radius) if rng.random() < 0.5 else sharpen(chip, radius)
    if rng.random() < how.jpeg_share:
        low, high = how.jpeg_quality
        chip = compress(chip, int(rng.integers(low, high + 1)))
    return chip


def turn(chip: Chip, rng: np.random.Generator) -> Chip:
    """Show a chip (S, S, C) in one of the eight views that a square has; a view of its pixels."""
    view = int(rng.integers(8))
    if view & 1:
        chip = chip[:, ::-1]
    if view & 2:
        chip = chip[::-1]
    return chip.transpose(1, 0, 2) if view & 4 else chip


def shift(chip: Chip, rng: np.random.Generator, reach: float) -> Chip:
    """Move a chip (S, S, C) by whole pixels, at most `reach` sides; what comes in repeats the border."""
    side = len(chip)
    most = round(side * reach)
    down, right = rng.integers(-most, most + 1, 2).tolist()
    places = np.arange(side)
    rows, columns = np.clip(places + down, 0, side - 1), np.clip(places + right, 0, side - 1)
    return np.asarray(chip[rows][:, columns])


def rotate(chip: Chip, rng: np.random.Generator, how: Augmentation) -> Chip:
    """Turn a chip (S, S, C) by any angle about a point near its centre, slightly smaller or larger.

    Bilinear; what comes in at the edge is the chip mirrored.
    """
    side = len(chip)
    angle = rng.uniform(0, 2 * math.pi)
    scale = 1 + rng.uniform(-how.zoom, how.zoom)
    to_x, to_y = rng.uniform(-how.shift, how.shift, 2) * side
    # A square that turns reaches half its diagonal, which is 0.21 sides beyond its own edge.
    margin = math.ceil(side * (0.21 * scale + (scale - 1) / 2 + how.shift)) + 1
    padded = np.pad(chip, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    middle, place = side / 2, side / 2 + margin
    affine = (
        *(cos, -sin, place + to_x - cos * middle + sin * middle),
        *(sin, cos, place + to_y - sin * middle - cos * middle),
    )
    return _by_picture(
        padded,
        lambda p: p.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR),
    )


def relight(chip: Chip, rng: np.random.Generator, how: Augmentation) -> Chip:
    """Change brightness, contrast and the bands' balance of a chip (S, S, C)."""
    brightness, contrast = 1 + how.light * rng.uniform(-1, 1, 2)
    tints = [1 + how.tint * rng.uniform(-1, 1) for _ in range(chip.shape[2])]
    levels = np.arange(256, dtype=np.float32)
    out = np.empty_like(chip)
    for band, tint in enumerate(tints):
        plane = chip[..., band]
        middle = float(plane.mean())
        lit = (levels - middle) * contrast + middle * brightness * tint
        # A table of 256 levels is cheaper than arithmetic on every pixel.
        out[..., band] = np.clip(np.rint(lit), 0, 255).astype(np.uint8)[plane]
    return out


def coarsen(chip: Chip, factor: float) -> Chip:
    """Take detail from a chip (S, S, C): as if its pixels had been `factor` times as large."""
    side = len(chip)
    small = max(round(side / factor), 1)
    return _by_picture(
        chip,
        lambda p: p.resize((small, small), Image.Resampling.BOX).resize(
            (side, side), Image.Resampling.BILINEAR
        ),
    )


def blur(chip: Chip, radius: float) -> Chip:
    """Blur a chip (S, S, C) by a Gaussian of so many pixels."""
    return _by_picture(chip, lambda p: p.filter(ImageFilter.GaussianBlur(radius)))


def sharpen(chip: Chip, radius: float) -> Chip:
    """Sharpen a chip (S, S, C) by an unsharp mask of so many pixels."""
    return _by_picture(chip, lambda p: p.filter(ImageFilter.UnsharpMask(radius, percent=120, threshold=0)))


def compress(chip: Chip, quality: int) -> Chip:
    """Send a chip (S, S, C) through a JPEG of this quality, 1..100; three bands as a colour picture."""

    def through_jpeg(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        again = Image.open(stream)
        again.load()
        return again

    return _by_picture(chip, through_jpeg)


def _by_picture(chip: Chip, change: Callable[[Image.Image], Image.Image]) -> Chip:
    """Apply a change of pictures to a chip: three bands at once, any other number band by band."""
    if chip.shape[2] == 3:
        return np.asarray(change(Image.fromarray(np.ascontiguousarray(chip))))
    planes = [np.ascontiguousarray(chip[..., band]) for band in range(chip.shape[2])]
    return np.stack([np.asarray(change(Image.fromarray(plane))) for plane in planes], axis=2)
