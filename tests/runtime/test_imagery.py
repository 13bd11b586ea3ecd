from __future__ import annotations

import contextlib
import http.server
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.windows import Window

from edge_infer.errors import ContractError, EdgeInferError, ImageryError, ReadError
from edge_infer.grid import Grid
from edge_infer.imagery import Image, Reader, Tile, open_imagery
from edge_infer.imagery.environment import bound_cache, gdal_environment
from edge_infer.imagery.header import read_header
from edge_infer.manifest import ChipContract

RGB = ("red", "green", "blue")


def contract(**changes: Any) -> ChipContract:
    values: dict[str, Any] = {
        "ground_metres": 30.0,
        "chip_pixels": 64,
        "bands": RGB,
        "coarsest_gsd_metres": 1e6,
    }
    return ChipContract(**{**values, **changes})


def noise(bands: int, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(7).integers(1, top, (bands, height, width), dtype=dtype, endpoint=True)


def open_one(path: Path, **options: Any) -> Image:
    (image,) = open_imagery([path], options.pop("contract", contract()), **options).images
    return image


# ---- what a header says


def test_a_header_is_described_as_rasterio_has_it(shared_data):
    path = shared_data / "geotiff_cases/rasterio/cogeo.tif"
    image = open_one(path)
    with rasterio.open(path) as dataset:
        assert image.path == str(path.resolve())
        assert (image.grid.width, image.grid.height) == (dataset.width, dataset.height)
        assert image.grid.transform == dataset.transform
        assert image.grid.crs.to_epsg() == 3857
        assert (image.block_height, image.block_width) == dataset.block_shapes[0]
    assert image.band_indexes == (1, 2, 3)
    assert image.has_mask  # a mask of its own
    assert image.dtype == "uint8"


def test_the_joplin_tiles_measure_what_their_source_says(shared_data):
    post = open_imagery([shared_data / "joplin/post"], contract()).images
    pre = open_imagery([shared_data / "joplin/pre"], contract()).images
    assert [Path(image.path).name for image in post] == [
        "tile_31500-5137.tif",
        "tile_31500-6161.tif",
        "tile_32524-5137.tif",
    ]
    assert [image.gsd_metres for image in post] == pytest.approx([0.666] * 3, abs=1e-3)
    assert [image.gsd_metres for image in pre] == pytest.approx([0.6] * 2, abs=1e-3)
    assert not any(image.has_mask for image in post + pre)


@pytest.mark.parametrize(
    ("interpretation", "bands", "found"),
    [
        ("red green blue", RGB, (1, 2, 3)),
        ("blue green red", RGB, (3, 2, 1)),
        ("blue green red nir", RGB, (3, 2, 1)),
        ("blue green red nir", ("nir", "red", "green"), (4, 3, 2)),
        ("alpha red green blue", RGB, (2, 3, 4)),
        ("gray undefined undefined", RGB, (1, 2, 3)),
        ("gray undefined undefined alpha", RGB, (1, 2, 3)),
        ("red green blue undefined", (*RGB, "nir"), (1, 2, 3, 4)),
        ("gray", ("gray",), (1,)),
        ("gray alpha", ("pan",), (1,)),
    ],
)
def test_bands_are_found_by_name_or_in_order(write_raster, interpretation, bands, found):
    names = interpretation.split()
    path = write_raster("a.tif", noise(len(names), 8, 8))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    assert open_one(path, contract=contract(bands=bands)).band_indexes == found


@pytest.mark.parametrize(
    ("interpretation", "bands"),
    [
        ("gray", RGB),
        ("gray alpha", RGB),
        ("red green blue", ("gray",)),
        ("red green blue nir", (*RGB, "swir")),
        ("blue undefined red", RGB),
        ("red green blue undefined undefined", (*RGB, "nir")),
    ],
)
def test_bands_that_do_not_fit_are_refused(write_raster, interpretation, bands):
    names = interpretation.split()
    path = write_raster("a.tif", noise(len(names), 8, 8))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    with pytest.raises(ContractError, match=rf"has {len(names)} bands .*wants {len(bands)} .*--bands"):
        open_imagery([path], contract(bands=bands))


def test_bands_named_by_the_user_win(write_raster):
    path = write_raster("a.tif", noise(4, 8, 8))
    assert open_one(path, bands=(4, 1, 1)).band_indexes == (4, 1, 1)
    for wrong in ((1, 2), (0, 1, 2), (1, 2, 5)):
        with pytest.raises(ContractError, match="--bands says"):
            open_imagery([path], contract(), bands=wrong)


def test_a_colour_table_is_refused_with_the_way_out(shared_data):
    with pytest.raises(ContractError, match="gdal_translate -expand rgb"):
        open_imagery([shared_data / "geotiff_cases/rio-tiler/cog_cmap.tif"], contract())


@pytest.mark.parametrize(("has", "wants"), [("uint16", "uint8"), ("uint8", "uint16"), ("float32", "uint8")])
def test_another_bit_depth_is_refused(write_raster, has, wants):
    path = write_raster("a.tif", np.ones((3, 8, 8), has))
    with pytest.raises(ContractError, match=f"holds {has} pixels, the model wants {wants}"):
        open_imagery([path], contract(dtype=wants, value_range=(0, 100)))


def test_masks_are_seen(write_raster):
    pixels = noise(3, 32, 32)
    assert not open_one(write_raster("plain.tif", pixels)).has_mask
    assert open_one(write_raster("nodata.tif", pixels, nodata=0)).has_mask
    assert open_one(write_raster("mask.tif", pixels, mask=np.ones((32, 32), bool))).has_mask
    assert open_one(write_raster("alpha.tif", noise(4, 32, 32), alpha="YES")).has_mask


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2011:05:24 13:05:10", "2011-05-24T13:05:10"),
        ("2011:05:24", "2011-05-24T00:00:00"),
        ("2017:08:21 15:08:70", None),
        ("last Tuesday", None),
        ("", None),
    ],
)
def test_the_date_is_read(write_raster, text, date):
    assert open_one(write_raster("a.tif", noise(3, 4, 4), tags={"TIFFTAG_DATETIME": text})).date == date


@pytest.mark.parametrize("text", ["2014-03-10T09:48:03+02:00", "2014-03-10 07:48:03", "2014-03-10T07:48:03Z"])
def test_the_date_of_acquisition_wins(write_raster, text):
    path = write_raster("a.tif", noise(3, 4, 4), tags={"TIFFTAG_DATETIME": "2020:01:01 00:00:00"})
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=text)
    assert open_one(path).date == "2014-03-10T07:48:03"


# ---- what is refused


def test_imagery_without_a_place_is_refused(shared_data):
    cases = shared_data / "geotiff_cases"
    with pytest.raises(ImageryError, match=r"control points.*gdalwarp"):
        open_imagery([cases / "rio-tiler/cog_gcps.tif"], contract(bands=("gray",), dtype="uint16"))
    with pytest.raises(ImageryError, match="control points or RPCs"):
        open_imagery([shared_data / "tiff_cases/gdal/byte_rpc.tif"], contract(bands=("gray",)))
    with pytest.raises(ImageryError, match="no geotransform"):
        open_imagery([shared_data / "tiff_cases/pillow/hopper_lzw.tif"], contract())
    with pytest.raises(ImageryError, match=r"rotated\.tif: it states no reference system.*--imagery-crs"):
        open_imagery([cases / "rasterio/rotated.tif"], contract(bands=("gray",)))


def test_a_reference_system_can_be_supplied(shared_data):
    path = shared_data / "geotiff_cases/rasterio/rotated.tif"
    image = open_one(path, contract=contract(bands=("gray",)), crs="EPSG:32615")
    assert image.grid.crs.to_epsg() == 32615
    assert image.grid.transform.b != 0
    with pytest.raises(ImageryError, match="--imagery-crs nonsense"):
        open_imagery([path], contract(bands=("gray",)), crs="nonsense")


def test_the_reference_system_of_the_file_wins(write_raster):
    image = open_one(write_raster("a.tif", noise(3, 4, 4)), crs="EPSG:3857")
    assert image.grid.crs.to_epsg() == 32615


def test_control_points_do_not_excuse(write_raster, tmp_path):
    corners = [GroundControlPoint(row, col, 3e5 + col, 4e6 - row) for row in (0, 8) for col in (0, 8)]
    path = tmp_path / "gcp.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=8, height=8, count=3, dtype="uint8", gcps=corners, crs="EPSG:32615"
    ) as dataset:
        dataset.write(noise(3, 8, 8))
    with pytest.raises(ImageryError, match="control points"):
        open_imagery([path], contract())


def test_coarse_imagery_is_refused_only_when_there_is_no_other(write_raster):
    fine = write_raster("fine.tif", noise(3, 8, 8))
    coarse = write_raster("coarse.tif", noise(3, 8, 8), transform=Affine(2, 0, 360_000, 0, -2, 4_100_000))
    wanted = contract(coarsest_gsd_metres=0.5)
    assert len(open_imagery([coarse, fine], wanted).images) == 2  # half a metre in UTM is 0.4999 or 0.5001
    with pytest.raises(ContractError, match=r"coarse\.tif measure 2 m on the ground, the model wants 0\.5 m"):
        open_imagery([coarse], wanted)


def test_what_is_no_raster(tmp_path):
    with pytest.raises(ImageryError, match="no imagery is named"):
        open_imagery([], contract())
    with pytest.raises(ImageryError, match="does not exist"):
        open_imagery([tmp_path / "absent.tif"], contract())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageryError, match=r"holds no raster \(\.tif"):
        open_imagery([tmp_path / "empty"], contract())
    for name, content in (("text.tif", b"no image"), ("zero.tif", b""), ("a b#c?.tif", b"II*\0")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageryError, match="is no raster that GDAL can read here"):
            open_imagery([path], contract())


def test_blocks_too_large_to_decode_are_refused(tmp_path):
    # A sparse file: the header claims one block of 2 GB, the file has a few hundred bytes.
    path = tmp_path / "bomb.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=32768,
        height=32768,
        count=3,
        dtype="uint8",
        crs="EPSG:32615",
        transform=Affine(0.5, 0, 360_000, 0, -0.5, 4_100_000),
        tiled=True,
        blockxsize=32768,
        blockysize=32768,
        compress="deflate",
        interleave="pixel",
        sparse_ok=True,
    ):
        pass
    before = peak_kilobytes()
    with pytest.raises(ImageryError, match="blocks of 32768 x 32768 pixels, 3,072 MB when decoded"):
        open_imagery([path], contract())
    assert peak_kilobytes() - before < 200_000


def peak_kilobytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def test_a_huge_raster_costs_nothing_to_open_and_little_to_read(write_raster, tmp_path):
    path = tmp_path / "huge.vrt"
    small = write_raster("small.tif", noise(1, 16, 16))
    path.write_text(
        '<VRTDataset rasterXSize="2147000000" rasterYSize="65535"><SRS>EPSG:3857</SRS>'
        "<GeoTransform>0,0.001,0,5000000,0,-0.001</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{small.name}</SourceFilename><SourceBand>1</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="16" ySize="16"/><DstRect xOff="0" yOff="0" xSize="16" ySize="16"/>'
        "</SimpleSource></VRTRasterBand></VRTDataset>",
        encoding="ascii",
    )
    before = peak_kilobytes()
    image = open_one(path, contract=contract(bands=("gray",)))
    with Reader() as reader:
        tile = reader.read(image, column=2_146_999_000, row=65_000, width=1000, height=500)
    assert tile.pixels.shape == (1, 500, 1000)
    assert peak_kilobytes() - before < 100_000


# ---- every odd file there is


@pytest.mark.parametrize(
    ("folder", "bands", "least"),
    [
        ("geotiff_cases", RGB, 9),
        ("geotiff_cases", ("gray",), 1),
        ("tiff_cases", RGB, 30),
        ("tiff_cases", ("gray",), 30),
    ],
)
def test_every_odd_file_opens_or_is_refused_in_one_line(shared_data, folder, bands, least):
    started = time.monotonic()
    opened = []
    for path in rasters_below(shared_data / folder):
        outcome = attempt(lambda path=path: open_one(path, contract=contract(bands=bands)))
        if isinstance(outcome, Image):
            opened.append(outcome)
        else:
            assert "\n" not in str(outcome)
            assert path.name in str(outcome)
    assert len(opened) >= least
    for image in opened:
        size = min(64, image.grid.width), min(64, image.grid.height)
        outcome = attempt(lambda image=image, size=size: read(image, 0, 0, *size))
        assert isinstance(outcome, Tile) or "\n" not in str(outcome)
    assert time.monotonic() - started < 30


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_broken_pixels_are_read_errors(shared_data):
    """Most of the broken files have no place on the ground; here they get one."""
    failed = 0
    for path in rasters_below(shared_data / "tiff_cases"):
        image = placed(path)
        if image is not None:
            size = min(256, image.grid.width), min(256, image.grid.height)
            outcome = attempt(lambda image=image, size=size: read(image, 0, 0, *size))
            if isinstance(outcome, ReadError):
                failed += 1
                assert f"{path.name}: {size[0]} x {size[1]} pixels at column 0, row 0 cannot" in str(outcome)
    assert failed >= 5


def attempt(work: Any) -> Any:
    try:
        return work()
    except EdgeInferError as error:
        return error


def rasters_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.tif*") if path.suffix in {".tif", ".tiff"})


def placed(path: Path) -> Image | None:
    try:
        with rasterio.open(path) as dataset:
            if dataset.dtypes[0] not in {"uint8", "uint16"} or dataset.count > 16:
                return None
            grid = Grid(CRS(32615), Affine(0.5, 0, 0, 0, -0.5, 0), dataset.width, dataset.height)
            block_height, block_width = dataset.block_shapes[0]
            return Image(
                str(path), grid, (1,), dataset.dtypes[0], False, block_width, block_height, None, 0.5
            )
    except (rasterio.errors.RasterioError, CPLE_BaseError):
        return None


# ---- folders


def test_a_folder_is_searched_in_order_and_each_file_taken_once(write_raster, tmp_path):
    pixels = noise(3, 4, 4)
    for name in ("f/b.tif", "f/a/z.TIFF", "f/c.png.txt", "f/.hidden.tif", "f/a.tif"):
        write_raster(name, pixels)
    (tmp_path / "f/a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>", encoding="ascii")
    (tmp_path / "f/link.tif").symlink_to("b.tif")
    (tmp_path / "f/notes.tif").write_text("not an image", encoding="ascii")
    imagery = open_imagery([tmp_path / "f/b.tif", tmp_path / "f", str(tmp_path / "f")], contract())
    names = [Path(image.path).relative_to(tmp_path / "f").as_posix() for image in imagery.images]
    assert names == ["b.tif", "a/z.TIFF", "a.tif"]
    ((path, reason),) = imagery.skipped
    assert Path(path).name == "notes.tif"
    assert "no raster" in reason


def test_a_file_named_itself_is_not_skipped(write_raster, tmp_path):
    write_raster("f/a.tif", noise(3, 4, 4))
    write_raster("f/grey.tif", noise(1, 4, 4))
    assert [Path(path).name for path, _ in open_imagery([tmp_path / "f"], contract()).skipped] == ["grey.tif"]
    with pytest.raises(ContractError, match=r"grey\.tif"):
        open_imagery([tmp_path / "f", tmp_path / "f/grey.tif"], contract())


def test_a_folder_of_which_nothing_is_left_says_why(write_raster, tmp_path):
    write_raster("f/a.tif", noise(1, 4, 4))
    with pytest.raises(ContractError, match=r"^\S*a\.tif has 1 bands"):
        open_imagery([tmp_path / "f"], contract())
    write_raster("f/b.tif", noise(1, 4, 4))
    with pytest.raises(ContractError, match=r"none of the 2 rasters found can be used; the first: \S*a\.tif"):
        open_imagery([tmp_path / "f"], contract())


def test_a_mosaic_is_one_image(write_raster, tmp_path):
    west = write_raster("west.tif", noise(3, 8, 8))
    open_one(west)
    path = tmp_path / "mosaic.vrt"
    rasterio.shutil.copy(west, path, driver="VRT")
    assert open_one(path).path == str(path)


def test_many_images_need_few_handles(write_raster, tmp_path):
    template = write_raster("f/0.tif", noise(3, 4, 4))
    for number in range(1, 400):
        shutil.copy(template, tmp_path / f"f/{number}.tif")
    images = open_imagery([tmp_path / "f"], contract()).images
    assert len(images) == 400
    assert len({id(image.grid.crs) for image in images}) == 1
    before = handles()
    with Reader(open_limit=3) as reader:
        for image in images[:50]:
            reader.read(image, column=0, row=0, width=4, height=4)
        assert handles() <= before + 3
    assert handles() == before


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- pixels


def read(image: Image, column: int, row: int, width: int, height: int, decimation: int = 1) -> Any:
    with Reader() as reader:
        return reader.read(image, column=column, row=row, width=width, height=height, decimation=decimation)


@given(data=st.data())
def test_a_tile_is_what_rasterio_reads(shared_data, data):
    path = shared_data / "joplin/post/tile_31500-5137.tif"
    image = open_one(path)
    column, row = data.draw(st.integers(0, 1023)), data.draw(st.integers(0, 1023))
    width, height = data.draw(st.integers(1, 1024 - column)), data.draw(st.integers(1, 1024 - row))
    tile = read(image, column, row, width, height)
    with rasterio.open(path) as dataset:
        assert np.array_equal(tile.pixels, dataset.read(window=Window(column, row, width, height)))
    assert tile.pixels.flags.c_contiguous
    assert tile.valid is None
    assert (tile.column, tile.row, tile.scale_x, tile.scale_y) == (column, row, 1, 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("decimation", [2, 4, 8])
def test_a_decimated_tile_is_the_mean_of_its_blocks(write_raster, dtype, decimation):
    pixels = noise(4, 256, 192, dtype)
    image = open_one(
        write_raster("a.tif", pixels, tiled=True, blockxsize=64, blockysize=64),
        contract=contract(dtype=dtype),
        bands=(3, 1, 2),
    )
    tile = read(image, 64, 32, 128, 192, decimation)
    wanted = block_mean(pixels[[2, 0, 1], 32:224, 64:192], decimation)
    assert tile.pixels.dtype == dtype
    assert np.abs(tile.pixels - wanted).max() <= 0.5 + 1e-6
    assert (tile.scale_x, tile.scale_y) == (decimation, decimation)


def block_mean(pixels: np.ndarray, side: int) -> np.ndarray:
    bands, height, width = pixels.shape
    return np.asarray(pixels.reshape(bands, height // side, side, width // side, side).mean(axis=(2, 4)))


@pytest.mark.parametrize("decimation", [1, 2, 4, 8])
def test_decimated_tiles_come_from_overviews(shared_data, decimation):
    path = shared_data / "geotiff_cases/rasterio/cogeo.tif"
    tile = read(open_one(path), 0, 0, 1024, 1024, decimation)
    with rasterio.open(path) as dataset:
        size = 1024 // decimation
        overview = dataset.read(out_shape=(size, size), resampling=rasterio.enums.Resampling.average)
    assert np.array_equal(tile.pixels, overview)


@pytest.mark.parametrize("masked", [False, True])
def test_a_pixel_of_a_tile_does_not_depend_on_the_tile(write_raster, masked):
    """Blocks that are cut short by the image's edge are their own mean; none of the others is stretched."""
    pixels = noise(3, 101, 203)
    pixels[:, 90:, 30:120] = 0
    image = open_one(write_raster("a.tif", pixels, nodata=0 if masked else None))
    whole = read(image, 0, 0, 203, 101, 4)
    assert whole.pixels.shape == (3, 26, 51)
    assert (whole.scale_x, whole.scale_y) == (4, 4)
    assert np.abs(whole.pixels[:, :22, :50] - block_mean(pixels[:, :88, :200], 4)).max() <= 0.5 + 1e-6
    corner = pixels[:, 100:, 200:].mean(axis=(1, 2))
    assert np.abs(whole.pixels[:, -1, -1] - corner).max() <= 0.5 + 1e-6
    for column, row, width, height in (
        (0, 0, 100, 60),
        (100, 40, 103, 61),
        (200, 100, 3, 1),
        (40, 80, 80, 21),
    ):
        tile = read(image, column, row, width, height, 4)
        there = np.s_[row // 4 : -(-(row + height) // 4), column // 4 : -(-(column + width) // 4)]
        assert np.array_equal(tile.pixels, whole.pixels[:, there[0], there[1]])
        if masked and tile.valid is not None:
            assert np.array_equal(tile.valid, whole.valid[there])


def masked_rasters(write_raster: Any) -> dict[str, tuple[Path, np.ndarray]]:
    valid = np.zeros((128, 128), bool)
    valid[17:100, 30:90] = True
    pixels = noise(3, 128, 128)
    alpha = np.concatenate([pixels, valid[None] * np.uint8(255)])
    return {
        "nodata": (write_raster("nodata.tif", pixels * valid, nodata=0), valid),
        "alpha": (write_raster("alpha.tif", alpha, alpha="YES"), valid),
        "mask": (write_raster("mask.tif", pixels, mask=valid), valid),
        "mask with overviews": (write_raster("o.tif", pixels, mask=valid, overviews=(2, 4)), valid),
    }


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask", "mask with overviews"])
def test_masks_are_read_with_the_pixels(write_raster, kind):
    path, valid = masked_rasters(write_raster)[kind]
    image = open_one(path)
    tile = read(image, 10, 5, 100, 100)
    assert tile.valid.dtype == np.uint8
    assert np.array_equal(tile.valid, valid[5:105, 10:110])
    assert read(image, 40, 20, 30, 40).valid is None
    for decimation in (2, 4, 8):
        tile = read(image, 0, 0, 128, 128, decimation)
        share = block_mean(valid[None], decimation)[0]
        assert (tile.valid[share == 1] == 1).all()
        assert (tile.valid[share == 0] == 0).all()
        with Reader() as reader:
            alone = reader.read_valid(image, column=0, row=0, width=128, height=128, decimation=decimation)
        assert alone.valid is not None
        assert np.array_equal(alone.valid, tile.valid)
        assert (alone.column, alone.row, alone.scale_x, alone.scale_y) == (0, 0, decimation, decimation)


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask"])
def test_averages_leave_out_what_is_not_valid(write_raster, kind):
    path, valid = masked_rasters(write_raster)[kind]
    tile = read(open_one(path), 0, 0, 128, 128, 4)
    with rasterio.open(path) as dataset:
        pixels = dataset.read([1, 2, 3]) * valid
    with np.errstate(invalid="ignore"):
        wanted = block_mean(pixels, 4) / block_mean(valid[None], 4)
    assert np.nanmax(np.abs(np.where(tile.valid, tile.pixels - wanted, np.nan))) <= 0.5 + 1e-6


def test_a_colour_with_a_zero_is_no_nodata(write_raster):
    pixels = noise(3, 8, 8)
    pixels[0] = 0
    pixels[:, 0, 0] = 0
    tile = read(open_one(write_raster("a.tif", pixels, nodata=0)), 0, 0, 8, 8)
    assert tile.valid.sum() == 63
    assert tile.valid[0, 0] == 0


def test_a_jpeg_cog_comes_as_rgb(write_raster, tmp_path):
    smooth = np.linspace(0, 255, 256)
    pixels = np.stack(np.broadcast_arrays(smooth, smooth[:, None], smooth[::-1])).astype(np.uint8)
    path = tmp_path / "cog.tif"
    rasterio.shutil.copy(write_raster("a.tif", pixels), path, driver="COG", COMPRESS="JPEG", QUALITY=95)
    tile = read(open_one(path), 0, 0, 256, 256)
    assert np.abs(tile.pixels.astype(int) - pixels).mean() < 2


# ---- what goes wrong while reading


def test_a_truncated_file_is_a_read_error_where_it_is_cut(write_raster, tmp_path):
    path = tmp_path / "a.tif"
    rasterio.shutil.copy(
        write_raster("b.tif", noise(3, 512, 512)),
        path,
        driver="GTiff",
        TILED=True,
        BLOCKXSIZE=128,
        BLOCKYSIZE=128,
    )
    image = open_one(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with Reader() as reader:
        assert reader.read(image, column=0, row=0, width=128, height=128).pixels.any()
        with pytest.raises(
            ReadError, match=r"a\.tif: 100 x 50 pixels at column 400, row 450 cannot be read: \w"
        ):
            reader.read(image, column=400, row=450, width=100, height=50)
        assert reader.read(image, column=0, row=0, width=128, height=128).pixels.any()


def test_a_file_that_goes_or_changes_is_a_read_error(write_raster):
    path = write_raster("a.tif", noise(3, 16, 16))
    image = open_one(path)
    write_raster("a.tif", noise(3, 8, 8))
    with Reader() as reader:
        with pytest.raises(ReadError, match="its size has changed"):
            reader.read(image, column=0, row=0, width=8, height=8)
        path.unlink()
        with pytest.raises(ReadError, match="No such file"):
            reader.read_valid(image, column=0, row=0, width=8, height=8)


@pytest.mark.parametrize(
    "rectangle", [(0, 0, 17, 16), (-1, 0, 4, 4), (0, 15, 4, 2), (0, 0, 0, 16), (20, 0, 1, 1)]
)
def test_a_rectangle_outside_of_the_image_is_a_mistake(write_raster, rectangle):
    image = open_one(write_raster("a.tif", noise(3, 16, 16)))
    with pytest.raises(ValueError, match="do not lie inside the 16 x 16 pixels"):
        read(image, *rectangle)


def test_a_reader_belongs_to_one_thread(write_raster):
    image = open_one(write_raster("a.tif", noise(3, 8, 8)))
    reader = Reader()
    with pytest.raises(RuntimeError, match="the thread that entered it"):
        reader.read(image, column=0, row=0, width=8, height=8)
    with reader:
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                reader.read(image, column=0, row=0, width=8, height=8)
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(caught) == 1


def test_readers_in_threads_see_the_same_pixels(shared_data):
    image = open_one(shared_data / "geotiff_cases/rasterio/cogeo.tif")
    whole = read(image, 0, 0, 1024, 1024).pixels
    wrong: list[int] = []

    def work(seed: int) -> None:
        places = np.random.default_rng(seed).integers(0, 960, (40, 2))
        with Reader() as reader:
            for column, row in places.tolist():
                tile = reader.read(image, column=column, row=row, width=64, height=64)
                if not np.array_equal(tile.pixels, whole[:, row : row + 64, column : column + 64]):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- what stays as it was


def test_nothing_is_written_beside_the_imagery(shared_data, tmp_path):
    for path in sorted((shared_data / "geotiff_cases").rglob("*.tif"))[:12]:
        shutil.copy(path, tmp_path)
    shutil.copy(shared_data / "tiff_cases/gdal/byte_nogeoref.tif", tmp_path)
    shutil.copy(shared_data / "tiff_cases/gdal/byte_nogeoref.tif.aux.xml", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for bands in (RGB, ("gray",)):
        for image in open_imagery([tmp_path], contract(bands=bands)).images:
            read(image, 0, 0, image.grid.width, image.grid.height, 8)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_side_files_place_an_image(write_raster, tmp_path):
    tif = write_raster("a.tif", noise(3, 8, 8))
    rasterio.shutil.copy(tif, tmp_path / "esri.png", driver="PNG")
    assert (tmp_path / "esri.png.aux.xml").exists()
    assert open_one(tmp_path / "esri.png").grid.crs.to_epsg() == 32615
    rasterio.shutil.copy(tif, tmp_path / "world.jpg", driver="JPEG", WORLDFILE="YES")
    (tmp_path / "world.jpg.aux.xml").unlink()
    image = open_one(tmp_path / "world.jpg", crs="EPSG:26915")
    assert image.grid.crs.to_epsg() == 26915
    assert image.grid.transform.almost_equals(open_one(tif).grid.transform)


def test_a_mosaic_with_a_source_on_the_network_stays_offline(tmp_path):
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for prefix in ("/vsicurl/", ""):
            source = f"{prefix}http://127.0.0.1:{server.server_port}/a.tif"
            path = tmp_path / "net.vrt"
            path.write_text(
                '<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>EPSG:32615</SRS>'
                "<GeoTransform>0,1,0,0,0,-1</GeoTransform>"
                '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
                f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>"
                '<SourceProperties RasterXSize="8" RasterYSize="8" DataType="Byte" '
                'BlockXSize="8" BlockYSize="8"/>'
                "</SimpleSource></VRTRasterBand></VRTDataset>",
                encoding="ascii",
            )
            with pytest.raises(ImageryError, match="may only point to files on this machine"):
                open_imagery([path], contract(bands=("gray",)))
            # And were it not refused, GDAL's settings would still keep it offline.
            with gdal_environment():
                image = read_header(path, contract(bands=("gray",)))
            with contextlib.suppress(ReadError):  # GDAL does not always say that it could not look there
                assert not read(image, 0, 0, 8, 8).pixels.any()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == []


def test_the_bound_of_the_cache_outlives_those_who_read(monkeypatch):
    before = get_gdal_config("GDAL_CACHEMAX")
    try:
        monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
        bound_cache(48 * 2**20)
        with gdal_environment(), gdal_environment():
            assert get_gdal_config("GDAL_CACHEMAX") == 48 * 2**20
        assert get_gdal_config("GDAL_CACHEMAX") == 48 * 2**20
        monkeypatch.setenv("GDAL_CACHEMAX", "64")
        bound_cache(2**20)
        assert get_gdal_config("GDAL_CACHEMAX") == 48 * 2**20
    finally:
        set_gdal_config("GDAL_CACHEMAX", before)
