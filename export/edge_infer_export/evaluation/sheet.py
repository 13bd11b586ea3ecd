"""Chips as pictures: in colours, under heat, and on sheets with a frame and a few words each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIDE = 184
"""Side of a chip on a sheet, in pixels of the sheet."""

_GAP, _FRAME, _LINE, _TEXT = 12, 5, 19, 14
_OPACITY = 0.55
"""Of the warmest part of an overlay."""
_INK, _FAINT, _PAPER = "#1c2630", "#5b6875", "#ffffff"


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One chip on a sheet."""

    picture: NDArray[np.uint8]
    """uint8, (S, S, 3)."""
    lines: tuple[str, ...]
    """Words below it, the first in bold."""
    color: str
    """Of its frame, `#rrggbb`."""


def to_rgb(chips: NDArray[np.uint8], bands: Sequence[str]) -> NDArray[np.uint8]:
    """Show chips uint8 (n, S, S, C) as pictures uint8 (n, S, S, 3).

    Bands called red, green and blue are taken as such; else the first three, or the first one as grey.
    """
    names = list(bands)
    if {"red", "green", "blue"} <= set(names):
        order = [names.index(name) for name in ("red", "green", "blue")]
    else:
        order = [0, 1, 2] if len(names) >= 3 else [0, 0, 0]
    return np.ascontiguousarray(chips[..., order])


def contact_sheet(tiles: Sequence[Tile], *, columns: int = 6) -> Image.Image:
    """Lay tiles out in rows, from left to right."""
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    words = max((len(tile.lines) for tile in tiles), default=0)
    step_x, step_y = SIDE + 2 * _FRAME + _GAP, SIDE + 2 * _FRAME + _GAP + _LINE * words
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    bold, plain = _font(bold=True), _font(bold=False)
    for number, tile in enumerate(tiles):
        x, y = _GAP + number % columns * step_x, _GAP + number // columns * step_y
        outer = SIDE + 2 * _FRAME
        draw.rectangle((x, y, x + outer - 1, y + outer - 1), fill=tile.color)
        chip = Image.fromarray(tile.picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(chip, (x + _FRAME, y + _FRAME))
        for place, line in enumerate(tile.lines):
            font = bold if place == 0 else plain
            text = _fitted(line, font, outer)
            draw.text((x, y + outer + 3 + place * _LINE), text, _FAINT if place else _INK, font)
    return sheet


def overlay(picture: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay heat (S, S), 0..1, over a picture uint8 (S, S, 3): cold parts stay as they are."""
    colors = np.asarray(colormaps["inferno"](heat)[..., :3]) * 255
    weight = (_OPACITY * heat)[..., None]
    return np.asarray(np.rint(picture * (1 - weight) + colors * weight), np.uint8)


def _font(*, bold: bool) -> ImageFont.FreeTypeFont:
    # Comes with matplotlib, and has Greek and Cyrillic letters too.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, _TEXT)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shorten a text in the middle until it is no wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        head = -(-kept // 2)
        shorter = f"{text[:head]}…{text[len(text) - kept + head :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "…"
