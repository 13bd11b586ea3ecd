"""Draws the town's polygons into one image, natively on that image's own grid.

Shapes are carried to the pixel grid as vectors and drawn several times too large, then averaged down, so
their edges are as clean as a camera's. Only grain and the smooth tone of the ground are made on pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from edge_infer_export.town.layout import smooth_noise
from edge_infer_export.town.shapes import GROUND, SHADOW, SOOT, STANDING

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edge_infer_export.town.layout import Field, Town
    from edge_infer_export.town.shapes import Shapes

    ToPixels = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_OVERSAMPLING = 3
_TILE = 1024
_MARGIN = 16
"""Pixels drawn round each tile, more than the shadows' blur reaches."""
_SOOT_COLOUR = (50, 46, 43)
_GRASS, _SOIL, _SOOT = np.array([[104, 112, 70], [164, 146, 116], [84, 76, 68]], np.float32)


@dataclass(frozen=True, slots=True)
class Camera:
    """How one image renders light: the two images of the town were not taken by the same hand."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0
    """Added to every band, grey levels."""
    noise: float = 2.0
    """Deviation of the sensor's noise, grey levels."""


def paint(
    town: Town, shapes: Shapes, to_pixels: ToPixels, *, width: int, height: int, camera: Camera, seed: int
) -> NDArray[np.uint8]:
    """Draw one image of the town.

    Args:
        town: for the fire and the dryness of the open ground.
        shapes: what stands in it.
        to_pixels: carries (k, 2) ground metres to (k, 2) pixels (column, row); near affine over the image.
        width: columns of the image.
        height: rows of the image.
        camera: colours and noise.
        seed: of the grain, which differs between images.

    Returns:
        uint8, (height, width, 3).

    """
    rng = np.random.default_rng(seed)
    grain = smooth_noise(rng, (height, width), (5.0, 2.0, 1.0))[..., None]
    pixels = to_pixels(shapes.points)
    low = np.minimum.reduceat(pixels, shapes.starts[:-1])
    high = np.maximum.reduceat(pixels, shapes.starts[:-1])
    image = np.empty((height, width, 3), np.uint8)
    for row in range(0, height, _TILE):
        for column in range(0, width, _TILE):
            place = np.s_[row : min(row + _TILE, height), column : min(column + _TILE, width)]
            rows, columns = grain[place].shape[:2]
            corner = np.array([column - _MARGIN, row - _MARGIN])
            size = (columns + 2 * _MARGIN, rows + 2 * _MARGIN)
            seen = np.flatnonzero(np.all((high > corner) & (low < corner + size), axis=1))
            ground = _open_ground(town, to_pixels, corner, size)
            inner = np.s_[_MARGIN : _MARGIN + rows, _MARGIN : _MARGIN + columns]
            light, rough = (part[inner] for part in _draw(shapes, seen, pixels - corner, ground))
            light = light * (1.0 + 0.30 * rough * grain[place]) + 9.0 * rough * grain[place]
            light = light * np.asarray(camera.gain, np.float32) + camera.haze
            light += rng.normal(0, camera.noise, light.shape).astype(np.float32)
            image[place] = np.clip(np.round(light), 0, 255)
    return image


def _draw(
    shapes: Shapes, seen: NDArray[np.int64], pixels: NDArray[np.float64], ground: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the polygons numbered `seen` over open ground.

    Args:
        shapes: all polygons.
        seen: which of them to draw, back to front.
        pixels: (v, 2) their points in pixels of the tile.
        ground: (rows, columns, 3).

    Returns:
        Light, 0..255, (rows, columns, 3), and roughness, 0..1, (rows, columns, 1), both float32.

    """
    rows, columns, _ = ground.shape
    large = (columns * _OVERSAMPLING, rows * _OVERSAMPLING)
    colour = Image.fromarray(ground).resize(large, Image.Resampling.NEAREST)
    rough = Image.new("L", large, 110)
    soot, shadow = Image.new("L", large, 0), Image.new("L", large, 0)
    on_colour, on_rough = ImageDraw.Draw(colour), ImageDraw.Draw(rough)
    on_mask = {SOOT: ImageDraw.Draw(soot), SHADOW: ImageDraw.Draw(shadow)}
    scaled = pixels * _OVERSAMPLING - 0.5

    def draw(layer: int) -> None:
        for index in seen[shapes.layers[seen] == layer]:
            ring = scaled[shapes.starts[index] : shapes.starts[index + 1]].ravel().tolist()
            if layer in on_mask:
                on_mask[layer].polygon(ring, fill=int(shapes.colours[index, 0]))
            else:
                on_colour.polygon(ring, fill=tuple(shapes.colours[index].tolist()))
                on_rough.polygon(ring, fill=int(shapes.roughness[index]))

    draw(GROUND)
    draw(SOOT)
    colour.paste(_SOOT_COLOUR, mask=_blur(soot, 5.0))
    draw(SHADOW)
    # Sky light fills a shadow with blue.
    dark = colour.point([round(v * share) for share in (0.34, 0.38, 0.46) for v in range(256)])
    colour.paste(dark, mask=_blur(shadow, 0.5))
    draw(STANDING)
    light = np.asarray(colour.reduce(_OVERSAMPLING), np.float32)
    return light, np.asarray(rough.reduce(_OVERSAMPLING), np.float32)[..., None] / np.float32(255)


def _blur(mask: Image.Image, pixels: float) -> Image.Image:
    """Soften a mask drawn large by a radius in pixels of the finished image."""
    small = mask.reduce(_OVERSAMPLING) if pixels >= 1 else mask
    radius = pixels if pixels >= 1 else pixels * _OVERSAMPLING
    return small.filter(ImageFilter.BoxBlur(radius)).resize(mask.size, Image.Resampling.BILINEAR)


def _open_ground(
    town: Town, to_pixels: ToPixels, corner: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Tone of the ground where nothing is drawn: uint8, (rows, columns, 3)."""
    dry = _resample(town.dryness, to_pixels, corner, size)[..., None]
    heat = _resample(town.fire, to_pixels, corner, size)[..., None]
    tone = _GRASS * (1 - dry) + _SOIL * dry
    tone = tone + (_SOOT - tone) * np.clip(heat * (0.55 + 0.6 * dry), 0, 0.9)
    return np.asarray(np.clip(tone, 0, 255), np.uint8)


def _resample(
    field: Field, to_pixels: ToPixels, corner: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Read a ground field on the tile's pixels: float32, (rows, columns)."""
    # Three ground points give the affine from ground to pixels; its inverse places each pixel on the lattice.
    reach = 1000.0
    zero, east, north = to_pixels(np.array([(0.0, 0.0), (reach, 0.0), (0.0, reach)]))
    to_ground = np.linalg.inv(np.stack([(east - zero) / reach, (north - zero) / reach], axis=1))
    offset = (to_ground @ (corner - zero) - field.origin) / field.cell_metres + 0.5
    (a, b), (c, d) = to_ground / field.cell_metres
    picture = Image.fromarray(field.values)
    data = (a, b, offset[0], c, d, offset[1])
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC))
