"""A pixel of a tile is the same whatever rectangle it was read with, and lies where the tile says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from edge_infer.imagery import Image, Reader, Tile, open_imagery
from edge_infer.imagery.levels import SQUARE, Span
from edge_infer.manifest import ChipContract
from edge_infer.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CONTRACT = ChipContract(
    ground_metres=30, chip_pixels=64, bands=("red", "green", "blue"), coarsest_gsd_metres=1e6
)
MASKS = ("none", "nodata", "alpha", "mask", "mask beside", "mask without overviews")


@dataclass(frozen=True, slots=True)
class Pyramid:
    """How a raster and its overviews are written."""

    width: int
    height: int
    factors: tuple[int, ...]
    mask: str = "none"
    outside: bool = False
    """Overviews in a file beside it."""
    jpeg: bool = False
    resampling: Resampling = Resampling.average

    def write(self, path: Path, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> Path:
        alpha = self.mask == "alpha"
        bands = np.concatenate([pixels, valid[None] * np.uint8(255)]) if alpha else pixels
        if self.mask == "nodata":
            bands = np.maximum(bands, 1) * valid
        profile: dict[str, Any] = {"compress": "deflate", "photometric": "RGB"}
        if self.jpeg and not alpha:
            profile = {"compress": "jpeg", "photometric": "YCBCR", "interleave": "pixel"}
        if alpha:
            profile["alpha"] = "YES"
        outside = self.outside or self.mask == "mask without overviews"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=self.mask != "mask beside", TIFF_USE_OVR=outside):
            with rasterio.open(
                path, "w", driver="GTiff", width=self.width, height=self.height, count=len(bands),
                dtype=pixels.dtype, tiled=True, blockxsize=64, blockysize=64, crs="EPSG:32615",
                transform=from_origin(360_000, 4_100_000, 0.5, 0.5),
                nodata=0 if self.mask == "nodata" else None, **profile,
            ) as dataset:  # fmt: skip
                dataset.write(bands)
                if "mask" in self.mask:
                    dataset.write_mask(valid)
            if self.factors:
                with rasterio.open(path, "r+") as dataset:
                    dataset.build_overviews(list(self.factors), self.resampling)
        return path


def noise(width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    random = np.random.default_rng(width * 1000 + height)
    holes = np.kron(random.random((height // 17 + 1, width // 17 + 1)) < 0.2, np.ones((17, 17), bool))
    return random.integers(0, 256, (3, height, width), dtype=np.uint8), ~holes[:height, :width]


def open_one(path: Path) -> Image:
    with rasterio.open(path) as dataset:
        contract = replace(CONTRACT, dtype=dataset.dtypes[0])
    (image,) = open_imagery([path], contract).images
    return image


def write_mosaic(
    path: Path, parts: Sequence[tuple[Path, tuple[float, float, float, float]]], size: Any
) -> Path:
    """Write a VRT of whole sources, each at a rectangle (x, y, width, height), as gdalbuildvrt does."""
    with rasterio.open(parts[0][0]) as dataset:
        kind = "Byte" if dataset.dtypes[0] == "uint8" else "UInt16"
    bands = []
    for band, name in enumerate(("Red", "Green", "Blue"), start=1):
        sources = []
        for source, (x, y, width, height) in parts:
            with rasterio.open(source) as dataset:
                columns, rows = dataset.width, dataset.height
            sources.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">{source.name}'
                f"</SourceFilename><SourceBand>{band}</SourceBand>"
                f'<SrcRect xOff="0" yOff="0" xSize="{columns}" ySize="{rows}"/>'
                f'<DstRect xOff="{x}" yOff="{y}" xSize="{width}" ySize="{height}"/></SimpleSource>'
            )
        bands.append(
            f'<VRTRasterBand dataType="{kind}" band="{band}"><ColorInterp>{name}</ColorInterp>'
            f"{''.join(sources)}</VRTRasterBand>"
        )
    path.write_text(
        f'<VRTDataset rasterXSize="{size[0]}" rasterYSize="{size[1]}"><SRS>EPSG:32615</SRS>'
        f"<GeoTransform>360000,0.5,0,4100000,0,-0.5</GeoTransform>{''.join(bands)}</VRTDataset>",
        encoding="ascii",
    )
    return path


def read(reader: Reader, image: Image, rectangle: tuple[int, int, int, int], decimation: int) -> Tile:
    column, row, width, height = rectangle
    return reader.read(image, column=column, row=row, width=width, height=height, decimation=decimation)


def assert_same_everywhere(
    image: Image, rectangles: list[tuple[int, int, int, int]], decimation: int
) -> None:
    """Every tile is a part of that of the whole image; it covers its rectangle and less than a pixel more."""
    with Reader() as reader:
        whole = read(reader, image, (0, 0, image.grid.width, image.grid.height), decimation)
        scale = np.array([whole.scale_x, whole.scale_y])
        assert (scale >= 1).all()
        assert (scale <= decimation * 1.01).all()
        assert (whole.column, whole.row) == (0, 0)
        for rectangle in rectangles:
            tile = read(reader, image, rectangle, decimation)
            assert tile.pixels.flags.c_contiguous
            assert (tile.scale_x, tile.scale_y) == tuple(scale)
            low = np.array([tile.column, tile.row])
            high = np.minimum(low + scale * tile.pixels.shape[:0:-1], (image.grid.width, image.grid.height))
            corner, extent = np.array(rectangle[:2]), np.array(rectangle[2:])
            assert (low <= corner + 1e-9).all()
            assert (low > corner - scale).all()
            assert (high >= corner + extent - 1e-6).all()
            assert (high < corner + extent + scale).all()
            left, top = np.rint(low / scale).astype(int).tolist()
            assert np.allclose([left, top] * scale, low, rtol=1e-12)
            _, height, width = tile.pixels.shape
            there = np.s_[top : top + height, left : left + width]
            assert np.array_equal(tile.pixels, whole.pixels[:, there[0], there[1]])
            if tile.valid is None:
                assert whole.valid is None or whole.valid[there].all()
            else:
                assert whole.valid is not None
                assert np.array_equal(tile.valid, whole.valid[there])


def draw_rectangles(data: Any, width: int, height: int) -> list[tuple[int, int, int, int]]:
    found = []
    for _ in range(4):
        column, row = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        found.append(
            (column, row, data.draw(st.integers(1, width - column)), data.draw(st.integers(1, height - row)))
        )
    return found


@settings(max_examples=60, deadline=None)
@given(
    pyramid=st.builds(
        Pyramid,
        width=st.integers(5, 400),
        height=st.integers(5, 400),
        factors=st.sampled_from([(), (2, 4, 8), (2, 4, 8), (4,), (3, 9), (8, 2), (5,)]),
        mask=st.sampled_from(MASKS),
        outside=st.booleans(),
        jpeg=st.booleans(),
        resampling=st.sampled_from([Resampling.average, Resampling.nearest]),
    ),
    decimation=st.sampled_from([1, 2, 4, 8, 16]),
    data=st.data(),
)
def test_a_pixel_does_not_depend_on_the_rectangle(tmp_path_factory, pyramid, decimation, data):
    pixels, valid = noise(pyramid.width, pyramid.height)
    image = open_one(pyramid.write(tmp_path_factory.mktemp("pyramid") / "a.tif", pixels, valid))
    rectangles = draw_rectangles(data, pyramid.width, pyramid.height)
    assert_same_everywhere(image, rectangles, decimation)


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """VRTs of sources with overviews that do not fit their grids, nor each other's."""
    folder = tmp_path_factory.mktemp("mosaics")
    for name, width, height, factors in (
        ("a", 751, 667, (2, 4)),
        ("b", 640, 667, (2, 4)),
        ("c", 333, 291, ()),
    ):
        Pyramid(width, height, factors).write(folder / f"{name}.tif", *noise(width, height))
    a, b, c = (folder / f"{name}.tif" for name in "abc")
    one = write_mosaic(folder / "one.vrt", [(a, (0, 0, 751, 667))], (751, 667))
    two = write_mosaic(folder / "two.vrt", [(a, (0, 0, 751, 667)), (b, (737, 0, 640, 667))], (1377, 667))
    shifted = write_mosaic(
        folder / "shifted.vrt", [(a, (0.4, 0, 751, 667)), (c, (400.3, 70.7, 999, 574.2))], (1399, 667)
    )
    nested = write_mosaic(folder / "nested.vrt", [(two, (3, 0, 1377, 667))], (1380, 667))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(two, "r+") as dataset:
        dataset.build_overviews([2, 8], Resampling.average)
    return [open_one(path) for path in (one, two, shifted, nested)]


@settings(max_examples=25, deadline=None)
@given(number=st.integers(0, 3), decimation=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_a_pixel_of_a_mosaic_does_not_depend_on_the_rectangle(mosaics, number, decimation, data):
    image = mosaics[number]
    rectangles = draw_rectangles(data, image.grid.width, image.grid.height)
    assert_same_everywhere(image, rectangles, decimation)


# ---- where a pixel lies


@pytest.mark.parametrize(
    ("kind", "bias", "tolerance"),
    [
        ("inside", 0, 0.01),
        ("beside", 0, 0.01),
        ("thirds", 0, 0.01),
        ("mosaic", 0, 0.02),
        ("JPEG", 0, 0.3),  # of eight bits only
        ("JP2OpenJPEG", -0.3, 0.2),  # wavelets sample at the corner of a block
        ("nearest", -0.5, 0.5),  # so does GDAL here, and each overview in the one before
    ],
)
def test_a_pixel_lies_where_the_tile_says(tmp_path, kind, bias, tolerance):
    """Red rises to the east and green to the south; sizes are one more than a multiple of all factors."""
    width, height, slope = 1601, 1209, 40.0
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([column * slope, row * slope, column * 0])
    if kind == "JPEG":  # few levels: each of them eight pixels wide, and rounded at random
        slope = 1 / 8
        pixels = pixels / 320 + np.random.default_rng(0).uniform(0, 1, pixels.shape)
    pixels = pixels.astype(np.uint8 if kind == "JPEG" else np.uint16)
    factors = {"thirds": (3,), "JPEG": (), "JP2OpenJPEG": ()}.get(kind, (2, 4, 8))
    resampling = Resampling.nearest if kind == "nearest" else Resampling.average
    pyramid = Pyramid(width, height, factors, outside=kind == "beside", resampling=resampling)
    path = pyramid.write(tmp_path / "a.tif", pixels, np.ones((height, width), bool))
    if kind == "mosaic":
        parts = [(path, (0.0, 0.0, width, height)), (path, (width, 0.0, width, height))]
        path = write_mosaic(tmp_path / "a.vrt", parts, (2 * width, height))
    elif not factors:
        options = (
            {"QUALITY": "100", "REVERSIBLE": "YES", "YCC": "NO"}
            if kind == "JP2OpenJPEG"
            else {"QUALITY": "98"}
        )
        path = tmp_path / f"a.{kind}"
        rasterio.shutil.copy(tmp_path / "a.tif", path, driver=kind, **options)
    image = open_one(path)
    assert (image.overviews == ()) == (kind == "mosaic")
    for decimation in (2, 4, 8):
        with Reader() as reader:
            tile = read(reader, image, (900, 700, 701, 509), decimation)
        _, rows, columns = tile.pixels.shape
        x = tile.column + (np.arange(columns) + 0.5) * tile.scale_x
        y = tile.row + (np.arange(rows) + 0.5) * tile.scale_y
        shift_x = tile.pixels[0].mean(axis=0) / slope - x
        shift_y = tile.pixels[1].mean(axis=1) / slope - y
        for shift in (shift_x[:-1], shift_y[:-1]):  # of the last pixel there may be less than a whole
            for part in np.array_split(shift / decimation, 3):
                assert part.mean() == pytest.approx(bias, abs=tolerance)


@given(
    size=st.integers(1, 5000),
    full=st.integers(1, 40_000),
    decimation=st.sampled_from([1, 2, 4, 8, 64]),
    data=st.data(),
)
def test_spans_cover_and_divide(size, full, decimation, data):
    full = max(full, size)
    low = data.draw(st.integers(0, full - 1))
    length = data.draw(st.integers(1, full - low))
    span = Span.covering(low, length, decimation, Fraction(full, size), size)
    assert 0 <= span.start < span.stop <= size
    assert span.start % span.step == 0
    assert span.stop % span.step == 0 or span.stop == size
    for square in (False, True):
        wide = span.whole_squares(size) if square else span
        pieces = wide.pieces(square)
        assert pieces[0][0] == wide.start
        assert [start + length for start, length in pieces] == [start for start, _ in pieces[1:]] + [
            wide.stop
        ]
        assert all(length % span.step == 0 or length < span.step for _, length in pieces)
        within = span.within(wide)
        assert wide.start + within.start * span.step == span.start
        assert within.stop - within.start == -(-(span.stop - span.start) // span.step)
        if square:
            assert all(length <= SQUARE * span.step for _, length in pieces)


# ---- which overview is taken


def test_the_coarsest_overview_that_is_fine_enough_is_taken(tmp_path):
    """Each overview is of one colour, so that a tile says where it comes from."""
    width, height = 750, 666
    path = Pyramid(width, height, (3, 8)).write(tmp_path / "a.tif", *noise(width, height))
    for level, value in ((0, 30), (1, 80)):
        with rasterio.open(path, "r+", OVERVIEW_LEVEL=level) as dataset:
            dataset.write(np.full((3, dataset.height, dataset.width), value, np.uint8))
    image = open_one(path)
    assert image.overviews == (3, 8)
    with Reader() as reader:
        tiles = {d: read(reader, image, (0, 0, width, height), d) for d in (1, 2, 4, 8, 16)}
    assert {d: tile.scale_x for d, tile in tiles.items()} == pytest.approx(
        {1: 1, 2: 2, 4: 3, 8: 750 / 94, 16: 2 * 750 / 94}
    )
    assert [np.unique(tiles[d].pixels).tolist() for d in (4, 8, 16)] == [[30], [80], [80]]
    assert min(np.unique(tiles[d].pixels).size for d in (1, 2)) > 30


def test_an_overview_that_lacks_the_mask_is_not_taken(tmp_path):
    pixels, valid = noise(256, 192)
    pyramid = Pyramid(256, 192, (2, 4), mask="mask")
    with_mask = open_one(pyramid.write(tmp_path / "a.tif", pixels, valid))
    without = open_one(
        replace(pyramid, mask="mask without overviews").write(tmp_path / "b.tif", pixels, valid)
    )
    assert with_mask.overviews == without.overviews == (2, 4)
    share = valid.reshape(48, 4, 64, 4).mean(axis=(1, 3))
    with Reader() as reader:
        tile = read(reader, without, (0, 0, 256, 192), 4)
        assert tile.valid is not None
        assert (tile.valid[share == 1] == 1).all()
        assert (tile.valid[share == 0] == 0).all()
        assert (
            reader.read_valid(with_mask, column=0, row=0, width=256, height=192, decimation=4).valid
            is not None
        )


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_overviews_need_few_handles(tmp_path):
    images = []
    for number in range(12):
        path = Pyramid(99, 77, (2, 4), outside=True).write(tmp_path / f"{number}.tif", *noise(99, 77))
        images.append(open_one(path))
    before = handles()
    with Reader(open_limit=3) as reader:
        for image in images:
            for decimation in (1, 2, 4):
                read(reader, image, (0, 0, 99, 77), decimation)
        assert handles() <= before + 3 * 2
    assert handles() == before


# ---- what is cut from it


def test_a_chip_does_not_depend_on_the_tile(tmp_path):
    """Not by a bit: windows lie on the grid of the overview alike, whatever tile holds them."""
    width, height = 1801, 1403
    image = open_one(Pyramid(width, height, (2, 4)).write(tmp_path / "a.tif", *noise(width, height)))
    random = np.random.default_rng(3)
    boxes = np.hstack([random.uniform(300, 900, (40, 2)), random.uniform(130, 250, (40, 1))])
    boxes = boxes[:, [0, 1, 2, 2]]
    chips = []
    with Reader() as reader:
        for low in (0, 100, 293):
            tile = read(reader, image, (low, low, width - low, height - low), 4)
            assert tile.scale_x != 4
            out, valid_fraction = np.empty((40, 32, 32, 3), np.uint8), np.empty(40, np.float32)
            sample(tile, boxes, out, valid_fraction)
            chips.append(out)
    assert np.array_equal(chips[0], chips[1])
    assert np.array_equal(chips[0], chips[2])
