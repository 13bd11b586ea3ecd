"""What several tests of the runtime share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from edge_infer.manifest import ChipContract, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Make a valid manifest of a model for 16 pixel chips with three bands and two classes."""

    def make(**changes: Any) -> Manifest:
        values: dict[str, Any] = {
            "name": "town",
            "created": "2025-06-01T12:00:00Z",
            "architecture": "ResNet34",
            "parameters": 21_285_698,
            "classes": ("no visible damage", "damaged"),
            "colors": ("#1a9850", "#d73027"),
            "contract": ChipContract(
                ground_metres=30, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
            ),
            "mean": (120.5, 110.0, 100.25),
            "std": (60.0, 61.5, 62.0),
            "temperature": 1.25,
            "facts": {"training": {"epochs": 3}, "parity": {"chips": 8}},
        }
        return Manifest(**{**values, **changes})

    return make


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels (C, H, W) as a raster of 0.5 m in UTM, unless the profile says otherwise."""

    def write(
        name: str,
        pixels: NDArray[Any],
        *,
        mask: NDArray[np.bool_] | None = None,
        overviews: tuple[int, ...] = (),
        tags: dict[str, str] | None = None,
        **profile: Any,
    ) -> Path:
        count, height, width = pixels.shape
        settings = {
            "driver": "GTiff",
            "crs": "EPSG:32615",
            "transform": from_origin(360_000, 4_100_000, 0.5, 0.5),
            "photometric": "RGB" if count >= 3 else "MINISBLACK",
            **profile,
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(
                path, "w", width=width, height=height, count=count, dtype=pixels.dtype, **settings
            ) as dataset:
                dataset.write(pixels)
                dataset.update_tags(**(tags or {}))
                if mask is not None:
                    dataset.write_mask(mask)
            if overviews:
                with rasterio.open(path, "r+") as dataset:
                    dataset.build_overviews(list(overviews), Resampling.average)
        return path

    return write
