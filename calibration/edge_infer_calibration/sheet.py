"""A sheet of the held-out chips whose class INT8 changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import OutputError
from edge_infer_export.chips.pictures import READ_SUFFIXES
from edge_infer_export.evaluation.sheet import Tile, contact_sheet, to_rgb

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer.manifest import Manifest
    from edge_infer_calibration.candidates import Candidates

MOST_SHOWN = 48


def refuse_picture(path: Path) -> None:
    """Refuse what cannot be written as a picture, before there is one.

    Raises:
        OutputError: its name does not end as a picture's does, it is a folder, or its folder is none.

    """
    if path.suffix.lower() not in READ_SUFFIXES or path.is_dir():
        raise OutputError(f"{path} is no name of a picture; name it such as flips.png")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it first")


def draw_flips(
    path: Path,
    candidates: Candidates,
    rows: NDArray[np.int64],
    outcome: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
    manifest: Manifest,
) -> None:
    """Write a picture of the chips that flip, the largest shift of probability first.

    Args:
        path: PNG to write.
        candidates: the held-out chips are of these.
        rows: int64, (n,): the held-out chips.
        outcome: FP32 and INT8 probabilities (f, K) of those that flip, and their positions in `rows`, (f,).
        manifest: names and colours of the classes; a frame has the colour of the INT8 class.

    Raises:
        OutputError: the picture cannot be written.

    """
    in_float, in_int8, flips = (values[:MOST_SHOWN] for values in outcome)
    chosen = rows[flips]
    tiles = []
    if len(flips):
        pictures = to_rgb(candidates.read(chosen), manifest.contract.bands)
        for picture, row, before, after in zip(pictures, chosen, in_float, in_int8, strict=True):
            lines = [_words("FP32", before, manifest), _words("INT8", after, manifest)]
            if candidates.targets is not None:
                lines.append(f"label {manifest.classes[candidates.targets[row]]}")
            tiles.append(Tile(picture, tuple(lines), manifest.colors[int(after.argmax())]))
    else:
        blank = np.full((8, 8, 3), 255, np.uint8)
        tiles.append(Tile(blank, ("no chip changes its class",), "#ffffff"))
    try:
        contact_sheet(tiles).save(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {error}; name a picture, such as flips.png") from error


def _words(title: str, probabilities: NDArray[np.float32], manifest: Manifest) -> str:
    best = int(probabilities.argmax())
    return f"{title} {manifest.classes[best]} {probabilities[best]:.2f}"
