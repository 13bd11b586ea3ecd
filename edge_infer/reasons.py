"""Why a footprint has no class, in a few plain words with figures. Pure; one function or constant a cause."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_WINDOW = "no window makes sense here: the image's pixels are stretched without bound (a pole, say)"
NO_AREA = "it has no area, and the model judges only what lies within an outline"

LONGEST = 300
"""Characters kept of what a reader of imagery says."""

_PLAIN_WORDS = {
    "Self-intersection": "its outline crosses itself",
    "Ring Self-intersection": "its outline touches itself",
    "Too few points in geometry component": "it has too few points",
    "Hole lies outside shell": "a hole lies outside of it",
}
"""GEOS's words for what is invalid; those that are not here speak for themselves."""


def outside(skipped: int) -> str:
    """No image lies there; `skipped` images could not be used, wherever they lie."""
    if not skipped:
        return "no image lies under its centre"
    return f"no image that can be used lies under its centre, {skipped:,} could not be"


def too_coarse(gsd_metres: float, coarsest_metres: float) -> str:
    """Only imagery beyond the model's coarsest GSD lies there."""
    return f"{gsd_metres:.3g} m a pixel, the model wants {coarsest_metres:g} m or finer"


def too_little(valid: float, min_valid: float, covered: float, min_covered: float) -> str:
    """Too little of the window, or of the footprint, lies on valid pixels. Shares, 0 to 1."""
    found = []
    if valid < min_valid:
        found.append(f"{_percent(valid)} of its window is valid imagery, wanted {_percent(min_valid)}")
    if covered < min_covered:
        found.append(f"{_percent(covered)} of itself lies on valid imagery, wanted {_percent(min_covered)}")
    return "; ".join(found)


def unread(message: str, path: str) -> str:
    """Shorten what the reader said of an image at `path`, which has a column of its own."""
    text = " ".join(message.removeprefix(f"{path}: ").split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def doubtful_place(footprints_crs: str, images_crs: str, accuracy_metres: float | None) -> str:
    """Two datums fit each other badly on this machine; None: nothing is known of how they fit."""
    how = (
        "as if their datums were one, since PROJ knows no way between them"
        if accuracy_metres is None
        else f"to {accuracy_metres:g} m only, as PROJ has no better way between their datums on this machine"
    )
    return (
        f"footprints in {footprints_crs} are placed on images in {images_crs} {how}; "
        "look at the result before you trust it, or bring the footprints into the images' system beforehand"
    )


def bad_geometries(geometries: NDArray[Any]) -> list[str]:
    """Say of each geometry, object (k,), what makes it unusable."""
    return [_bad_geometry(geometry) for geometry in geometries]


def _bad_geometry(geometry: shapely.Geometry | None) -> str:
    if geometry is None:
        return "it has no geometry, or none that can be read"
    if shapely.is_empty(geometry):
        return "its geometry is empty"
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        return "its coordinates are not all finite"
    found = re.fullmatch(r"(.*?)(?:\[(.*)\])?", shapely.is_valid_reason(geometry), re.DOTALL)
    assert found is not None, "the pattern takes any text"
    words, place = found.groups()
    return _PLAIN_WORDS.get(words, words.lower()) + (f" near {place}" if place else "")


def _percent(share: float) -> str:
    # Rounded down, so that what falls short of a limit never reads as the limit itself.
    return f"{math.floor(share * 1000 + 1e-6) / 10:g} %"
