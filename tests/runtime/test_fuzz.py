"""Random damage and absurd figures, bounded in time: an error of ours, or a sound result."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import CRS

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.coverage import cover
from edge_infer.engine.onnx_file import check_self_contained
from edge_infer.errors import BundleError, ImageryError
from edge_infer.footprints import Footprints
from edge_infer.grid import Grid, metres_per_pixel
from edge_infer.imagery import Image, Imagery, Tile
from edge_infer.manifest import ChipContract, Manifest
from edge_infer.plan import plan
from edge_infer.sampler import sample
from edge_infer.stac import from_item, to_item
from edge_infer.windows import ground_windows

if TYPE_CHECKING:
    from pathlib import Path

QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- bundles


@pytest.fixture
def bundle(tmp_path, make_manifest) -> Path:
    return write_bundle(tmp_path / "town.edgemodel", make_manifest(), {"model.onnx": b"model" * 20}).path


@QUICK
@given(data=st.data())
def test_a_damaged_bundle_is_refused_or_the_same(bundle, data):
    content = bytearray(bundle.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "repeat", "insert"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 200))]
            case "repeat":
                content[place:place] = content[place : place + 200]
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=8))
        if not content:
            break
    damaged = bundle.with_name("damaged.edgemodel")
    damaged.write_bytes(content)
    try:
        opened = open_bundle(damaged)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert opened.manifest == open_bundle(bundle).manifest
        assert opened.read("model.onnx") == b"model" * 20


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([1e308, -1, 0, "", "uint8", "9" * 5000, 10**400]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths to values inside JSON, the whole excepted."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*path, key) for key, _ in inside]
    return found + [place for key, held in inside for place in places(held, (*path, key))]


@QUICK
@given(data=st.data())
def test_a_mutated_manifest_is_refused_or_sound(make_manifest, data):
    item = json.loads(json.dumps(to_item(make_manifest(), {})))
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from(places(item)))
        holder = item
        for parent in parents:
            holder = holder[parent]
        if data.draw(st.booleans()):
            holder[key] = data.draw(json_values)
        else:
            del holder[key]
        if not places(item):
            break
    try:
        manifest = from_item(item)
    except BundleError:
        return
    assert isinstance(manifest, Manifest)
    assert from_item(json.loads(json.dumps(to_item(manifest, {})))) == manifest


@QUICK
@given(content=st.binary(max_size=200), data=st.data())
def test_any_bytes_as_a_model_or_a_bundle(tmp_path, content, data):
    try:
        check_self_contained(content)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
    path = tmp_path / "any.edgemodel"
    with zipfile.ZipFile(path, "w") as archive:
        for name in data.draw(st.sets(st.sampled_from(["manifest.json", "checksums.json", "model.onnx"]))):
            archive.writestr(name, content)
    with pytest.raises(BundleError):
        open_bundle(path)


# ---- windows

absurd = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, -0.0, 5e-324, 1e-300, 1e300, 2.0**31, -(2.0**63), 1e18, 0.5]
)
positive = st.floats(min_value=5e-324, allow_infinity=False) | st.sampled_from([0.3, 30.0, 1e300])


def contracts() -> st.SearchStrategy[ChipContract]:
    return st.builds(
        ChipContract,
        window_mode=st.sampled_from(["fixed", "footprint"]),
        ground_metres=positive,
        context_factor=positive,
        chip_pixels=st.sampled_from([8, 224, 2048]),
        bands=st.just(("gray",)),
        coarsest_gsd_metres=st.just(1e300),
    )


@settings(QUICK, max_examples=500)
@given(
    bounds=arrays(np.float64, (4, 4), elements=absurd),
    metres=arrays(np.float64, (4, 2), elements=absurd | st.floats(0.1, 1)),
    contract=contracts(),
)
def test_a_window_is_sound_or_none(bounds, metres, contract):
    with np.errstate(all="ignore"):
        windows = ground_windows(bounds, metres, contract)
    known = np.isfinite(windows.boxes).all(axis=1)
    sides = windows.boxes[known, 2:]
    assert (sides > 0).all()
    stretch = 24_577 / contract.chip_pixels
    assert (sides[:, 0] <= stretch * sides[:, 1]).all()
    assert (sides[:, 1] <= stretch * sides[:, 0]).all()


def image_of(grid: Grid) -> Image:
    return Image("nowhere.tif", grid, (1,), "uint8", False, 256, 256, None, 0.5)


sizes = st.sampled_from([1, 7, 300, 65_535, 2_147_000_000])


@QUICK
@given(
    places=arrays(np.float64, (6, 2), elements=st.floats(0, 1)),
    extents=arrays(np.float64, (6, 2), elements=absurd | st.floats(0, 1e-3)),
    steps=st.tuples(*[st.sampled_from([0.5, 1e-9, 1e5, -1e-3, 0.1])] * 2),
    corner=st.tuples(st.floats(-181, 181), st.floats(-91, 91)),
    size=st.tuples(sizes, sizes),
    crs=st.sampled_from(["EPSG:4326", "EPSG:32615", "EPSG:3857"]),
    contract=contracts(),
)
def test_whatever_is_planned_can_be_sampled(places, extents, steps, corner, size, crs, contract):
    """From absurd footprints on absurd images to chips: every window is one that the sampler takes."""
    try:
        grid = Grid(CRS(crs), Affine(steps[0], 0, corner[0], 0, -steps[1], corner[1]), *size)
    except ImageryError:
        return
    x, y = grid.to_crs(*(places * size).T)
    with np.errstate(all="ignore"):
        ends = [np.column_stack([x, y]) + sign * extents for sign in (-1, 1)]
    shapes = np.array([shapely.MultiPoint(pair) for pair in np.stack(ends, axis=1)], dtype=object)
    usable = np.asarray(np.isfinite(shapely.bounds(shapes)).all(axis=1))
    footprints = Footprints(np.arange(6), shapes, CRS(crs), usable)
    images = (image_of(grid),)
    with np.errstate(all="ignore"):
        coverage = cover(footprints, Imagery(images), contract)
    rows = np.flatnonzero(coverage.status == "pending")
    jobs = plan(coverage, images, contract.chip_pixels, rows)
    assert sorted(np.concatenate([job.rows for job in jobs]).tolist() if jobs else []) == rows.tolist()
    side = contract.chip_pixels
    for job in jobs:
        assert 0 <= job.column < job.column + job.width <= size[0]
        assert 0 <= job.row < job.row + job.height <= size[1]
        tile_size = -(-job.height // job.decimation), -(-job.width // job.decimation)
        assert tile_size[0] * tile_size[1] <= 4_194_304
        pixels = np.zeros((1, *tile_size), np.uint8)
        scale = job.width / tile_size[1], job.height / tile_size[0]
        tile = Tile(pixels, None, float(job.column), float(job.row), *scale)
        box = job.boxes[:1]
        sample(tile, box, np.zeros((1, side, side, 1), np.uint8), np.zeros(1, np.float32))


@QUICK
@given(
    terms=arrays(np.float64, (6,), elements=absurd),
    centres=arrays(np.float64, (3, 2), elements=absurd),
    crs=st.sampled_from(["EPSG:4326", "EPSG:32615", "EPSG:3857", "EPSG:3031"]),
)
def test_metres_of_any_grid_are_positive_or_unknown(terms, centres, crs):
    with np.errstate(all="ignore"):
        try:
            grid = Grid(CRS(crs), Affine(*terms), 100, 100)
        except ImageryError:
            return
        metres = metres_per_pixel(grid, centres)
    assert (np.isnan(metres) | (metres >= 0)).all()
