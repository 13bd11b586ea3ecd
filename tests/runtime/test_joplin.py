"""The whole run on real tiles, in degrees and in UTM, held against fiona, shapely and rasterio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import pytest
import rasterio
import shapely.geometry
from pyproj import Geod
from rasterio.windows import Window

from edge_infer.classify import classify
from edge_infer.manifest import ChipContract
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

GROUND_METRES = 36.0


@pytest.fixture
def joplin(shared_data: Path) -> Path:
    return shared_data / "joplin"


def run(joplin: Path, bundle: Path, out: Path, *imagery: str) -> list[dict[str, Any]]:
    """Rows of the output, in the order of the footprints."""
    classify(
        RunRequest(
            bundle=bundle,
            imagery=tuple(joplin / name for name in imagery),
            footprints=joplin / "footprints" / "joplin.geojson",
            out=out,
        ),
        quiet=True,
    )
    with fiona.open(out) as source:
        return [dict(feature.properties) for feature in source]


def middles(joplin: Path) -> list[tuple[float, float]]:
    """Middle of each footprint's bounds, longitude and latitude."""
    with fiona.open(joplin / "footprints" / "joplin.geojson") as source:
        bounds = [shapely.geometry.shape(feature.geometry).bounds for feature in source]
    return [((west + east) / 2, (south + north) / 2) for west, south, east, north in bounds]


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(
        ChipContract(
            ground_metres=GROUND_METRES,
            chip_pixels=64,
            bands=("red", "green", "blue"),
            coarsest_gsd_metres=0.8,
        )
    )


def test_every_footprint_on_three_tiles_in_degrees(joplin: Path, bundle: Path, tmp_path: Path) -> None:
    rows = run(joplin, bundle, tmp_path / "out.gpkg", "post")
    assert len(rows) == 2823
    assert [row["source_fid"] for row in rows] == list(range(2823))
    geod = Geod(ellps="WGS84")
    datasets = {path: rasterio.open(path) for path in sorted((joplin / "post").glob("*.tif"))}
    pixels = {path: dataset.read() for path, dataset in datasets.items()}
    seen = 0
    for row, (longitude, latitude) in zip(rows, middles(joplin), strict=True):
        on = [
            path
            for path, dataset in datasets.items()
            if dataset.bounds.left <= longitude < dataset.bounds.right
            and dataset.bounds.bottom < latitude <= dataset.bounds.top
        ]
        assert (row["status"] == "outside_imagery") == (not on)
        if not on or row["status"] != "ok":
            continue
        assert Path(row["image"]).resolve() in [path.resolve() for path in on]
        path = next(path for path in on if path.resolve() == Path(row["image"]).resolve())
        dataset = datasets[path]
        # The window's sides by geodesics from its middle, not by metres per pixel.
        east, _, _ = geod.fwd(longitude, latitude, 90, GROUND_METRES / 2)
        _, north, _ = geod.fwd(longitude, latitude, 0, GROUND_METRES / 2)
        column, line = ~dataset.transform * (longitude, latitude)
        half_width = (east - longitude) / dataset.transform.a
        half_height = (latitude - north) / dataset.transform.e
        window = Window(column - half_width, line - half_height, 2 * half_width, 2 * half_height)
        left, top = max(round(window.col_off), 0), max(round(window.row_off), 0)
        right, bottom = round(window.col_off + window.width), round(window.row_off + window.height)
        cut = pixels[path][:, top:bottom, left:right]
        share = cut[0].size / (round(window.width) * round(window.height))
        assert row["valid_fraction"] == pytest.approx(min(share, 1), abs=0.04)
        # What is off the image is black in the chip; whole pixels at the rim make the rest of the difference.
        assert row["p_bright"] == pytest.approx(cut.mean() / 255 * row["valid_fraction"], abs=0.03)
        assert row["gsd_m"] == pytest.approx(0.67, abs=0.02)
        seen += 1
    for dataset in datasets.values():
        dataset.close()
    assert seen == pytest.approx(350, abs=40)


def test_a_reprojected_tile_shows_the_same(joplin: Path, bundle: Path, tmp_path: Path) -> None:
    degrees = run(joplin, bundle, tmp_path / "degrees.gpkg", "post/tile_31500-5137.tif")
    metres = run(joplin, bundle, tmp_path / "metres.gpkg", "reprojected/post_tile_31500-5137_epsg32615.tif")
    both = [
        (one["p_bright"], other["p_bright"])
        for one, other in zip(degrees, metres, strict=True)
        if one["valid_fraction"] == other["valid_fraction"] == 1
    ]
    assert len(both) > 100
    assert np.abs(np.subtract(*np.transpose(both))).max() < 0.02


def test_before_and_after_in_one_folder_of_two_crs(joplin: Path, bundle: Path, tmp_path: Path) -> None:
    rows = run(joplin, bundle, tmp_path / "out.gpkg", "post", "pre")
    finer = {Path(row["image"]).parent.name for row in rows if row["valid_fraction"] == 1}
    assert finer == {"pre", "post"}
    # Where both show the whole window the finer wins: 0.6 m before the storm, 0.67 m after it.
    after = {
        row["source_fid"]
        for row in run(joplin, bundle, tmp_path / "after.gpkg", "post")
        if row["valid_fraction"] == 1
    }
    before = {
        row["source_fid"]
        for row in run(joplin, bundle, tmp_path / "before.gpkg", "pre")
        if row["valid_fraction"] == 1
    }
    shared = after & before
    assert len(shared) > 50
    assert {Path(row["image"]).parent.name for row in rows if row["source_fid"] in shared} == {"pre"}
