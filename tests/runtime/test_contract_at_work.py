"""Whole runs on ground that says where it is, in every way that imagery and footprints can be turned round.

Each pixel of a scene holds its own place: red counts metres east of the scene's middle, green metres north,
and blue is bright within 5 m of a house. The model gives back the mean of each band. So the output itself
tells which ground reached the model, and how large its window was. Scenes are drawn with pyproj and rasterio,
footprints written with fiona; nothing of our own modules stands on that side.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from contextlib import closing
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import onnx
import pytest
import rasterio
import rasterio.shutil
import shapely
import shapely.geometry
from affine import Affine
from onnx import TensorProto, helper
from pyproj import CRS, Transformer
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC

from edge_infer.bundle import write_bundle
from edge_infer.classify import classify
from edge_infer.errors import ContractError, ImageryError
from edge_infer.manifest import ChipContract, Manifest
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer.summary import RunSummary

HOUSES = ((-40.0, -30.0), (0.0, 0.0), (35.0, 20.0), (-20.0, 45.0))
"""Metres east and north of the middle of a scene."""
RADIUS = 5.0
WINDOW = 20.0
RGB = ("red", "green", "blue")
JOPLIN, TROMSO, FIJI = (-94.5, 37.05), (18.95, 69.65), (180.0, -17.0)


def local(middle: tuple[float, float]) -> CRS:
    """True metres around a place (longitude, latitude)."""
    return CRS(f"+proj=aeqd +lon_0={middle[0]} +lat_0={middle[1]} +datum=WGS84 +units=m")


def write_model(path: Path, contract: ChipContract) -> Path:
    """Write a bundle of one class a band, whose probability is the mean of that band / 255."""
    bands = len(contract.bands)
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "top"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", *contract.chip_shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", bands])],
        [helper.make_tensor("top", TensorProto.FLOAT, [1], [255.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    manifest = Manifest(
        name="means",
        created="2025-06-01T12:00:00Z",
        architecture="mean",
        parameters=1,
        classes=contract.bands,
        colors=("#123456",) * bands,
        contract=contract,
        mean=(0.0,) * bands,
        std=(255.0,) * bands,
        temperature=1.0,
    )
    write_bundle(path, manifest, {"model.onnx": model.SerializeToString()})
    return path


def contract(**changes: Any) -> ChipContract:
    values: dict[str, Any] = {
        "ground_metres": WINDOW,
        "chip_pixels": 16,
        "bands": RGB,
        "coarsest_gsd_metres": 1.2,
    }
    return ChipContract(**(values | changes))


def draw(crs: CRS, transform: Affine, size: int, middle: tuple[float, float]) -> NDArray[np.uint8]:
    """Draw the scene in the pixels of a square image, (3, size, size)."""
    column, row = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    x, y = transform * (column.ravel(), row.ravel())
    east, north = Transformer.from_crs(crs, local(middle), always_xy=True).transform(x, y)
    near = np.min([np.hypot(east - e, north - n) for e, n in HOUSES], axis=0) < RADIUS
    noise = np.random.default_rng(0).uniform(
        -3, 3, (2, east.size)
    )  # so that rounded levels have the true mean
    bands = np.stack([128 + east + noise[0], 128 + north + noise[1], np.where(near, 255, 0)])
    assert np.abs(bands[:2] - 128).max() < 127
    return np.asarray(bands.round().astype(np.uint8).reshape(3, size, size))


def pixel_grid(
    crs: CRS, middle: tuple[float, float], size: int, step: tuple[float, float], angle: float
) -> Affine:
    """Lay pixels of `step` (in units of `crs`) around a place, turned by `angle` degrees."""
    x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(*middle)
    return (
        Affine.translation(x, y)
        * Affine.rotation(angle)
        * Affine.scale(*step)
        * Affine.translation(-size / 2, -size / 2)
    )


def write_scene(
    path: Path,
    code: Any,
    middle: tuple[float, float],
    *,
    step: tuple[float, float] = (0.5, -0.5),
    angle: float = 0,
    size: int = 320,
    order: Sequence[int] = (0, 1, 2),
    **profile: Any,
) -> Path:
    """Write the scene as an image; its bands are those of the drawing in `order`."""
    crs = CRS(code)
    transform = pixel_grid(crs, middle, size, step, angle)
    pixels = draw(crs, transform, size, middle)[list(order)]
    settings = {"driver": "GTiff", "dtype": "uint8", "photometric": "RGB", "crs": crs.to_wkt()} | profile
    with rasterio.open(
        path, "w", width=size, height=size, count=len(order), transform=transform, **settings
    ) as dataset:
        dataset.write(pixels)
    return path


def houses_in(code: Any, middle: tuple[float, float]) -> list[shapely.Polygon]:
    """Squares of 6 m in a reference system, x before y."""
    to_crs = Transformer.from_crs(local(middle), code, always_xy=True)
    squares = [shapely.box(e - 3, n - 3, e + 3, n + 3) for e, n in HOUSES]
    return [
        shapely.transform(square, lambda points: np.column_stack(to_crs.transform(*points.T)))
        for square in squares
    ]


def write_houses(path: Path, code: Any, geometries: Sequence[Any], driver: str = "GPKG") -> Path:
    schema = {"geometry": "Unknown", "properties": {"number": "int"}}
    with fiona.open(path, "w", driver=driver, crs_wkt=CRS(code).to_wkt(), schema=schema) as sink:
        for number, geometry in enumerate(geometries):
            sink.write({"geometry": shapely.geometry.mapping(geometry), "properties": {"number": number}})
    return path


def run(
    folder: Path, image: Path, houses: Path, model: ChipContract | None = None, **changes: Any
) -> RunSummary:
    bundle = write_model(folder / "means.edgemodel", model or contract())
    request = RunRequest(
        bundle=bundle, imagery=(image,), footprints=houses, out=folder / "out.gpkg", **changes
    )
    return classify(request, quiet=True)


def rows(folder: Path) -> list[dict[str, Any]]:
    with fiona.open(folder / "out.gpkg") as source:
        return [dict(feature.properties) for feature in source]


def assert_ground(
    folder: Path, *, metres: float = 0.5, expected: Sequence[tuple[float, float]] = HOUSES
) -> None:
    """Every window lay where its house is, to `metres`, and was as large as the contract says."""
    found = sorted(
        rows(folder), key=lambda row: int(row["number"])
    )  # some formats have an order of their own
    assert [row["status"] for row in found] == ["ok"] * len(expected)
    for row, (east, north) in zip(found, expected, strict=True):
        assert row["p_red"] * 255 - 128 == pytest.approx(east, abs=metres)
        assert row["p_green"] * 255 - 128 == pytest.approx(north, abs=metres)
        side = np.sqrt(np.pi * RADIUS**2 / row["p_blue"])
        assert side == pytest.approx(WINDOW, rel=0.03)
        assert (row["valid_fraction"], row["covered_fraction"], row["reason"]) == (1, 1, None)


# ---- geotransforms and reference systems


@pytest.mark.parametrize(
    ("code", "middle", "step", "angle"),
    [
        (32615, JOPLIN, (0.5, -0.5), 0),
        (32615, JOPLIN, (0.5, 0.5), 0),  # south up
        (32615, JOPLIN, (-0.5, -0.5), 0),  # mirrored
        (32615, JOPLIN, (0.5, -0.5), 30),
        (32615, JOPLIN, (0.5, -0.5), 90),  # columns run north
        (32615, JOPLIN, (0.4, -0.75), 0),  # pixels that are not square
        (2263, (-74.0, 40.7), (1.64, -1.64), 0),  # feet
        (3857, TROMSO, (1.4, -1.4), 0),  # 0.49 m on the ground
        (4326, JOPLIN, (5e-6, -4.5e-6), 0),
        (4326, TROMSO, (1.3e-5, -4.5e-6), 0),
        (4267, JOPLIN, (5e-6, -4.5e-6), 0),  # the image itself on another datum
    ],
)
def test_an_image_in_any_pixel_space(
    tmp_path: Path, code: int, middle: tuple[float, float], step: tuple[float, float], angle: float
) -> None:
    image = write_scene(tmp_path / "image.tif", code, middle, step=step, angle=angle)
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, middle))
    run(tmp_path, image, houses)
    assert_ground(tmp_path)


@pytest.mark.parametrize(
    ("driver", "suffix", "code"),
    [
        ("GPKG", "gpkg", 4326),
        ("GPKG", "gpkg", 3857),
        ("GeoJSON", "geojson", 4326),
        ("ESRI Shapefile", "shp", 26915),
        ("FlatGeobuf", "fgb", 4326),
        ("GPKG", "gpkg", 3035),  # north before east by authority
    ],
)
def test_footprints_in_any_reference_system(tmp_path: Path, driver: str, suffix: str, code: int) -> None:
    middle = (9.0, 48.0) if code == 3035 else JOPLIN
    image = write_scene(tmp_path / "image.tif", 32632 if code == 3035 else 32615, middle)
    write_houses(tmp_path / f"houses.{suffix}", code, houses_in(code, middle), driver)
    run(tmp_path, image, tmp_path / f"houses.{suffix}")
    assert_ground(tmp_path)


# ---- axis order


GML = """<?xml version="1.0"?>
<c:FeatureCollection xmlns:c="http://www.opengis.net/wfs" xmlns:gml="http://www.opengis.net/gml" xmlns:o="http://o">
{features}</c:FeatureCollection>
"""
MEMBER = """<gml:featureMember><o:house gml:id="h.{number}"><o:number>{number}</o:number><o:geom>
<gml:Polygon srsName="{srs}"><gml:exterior><gml:LinearRing><gml:posList>{ring}</gml:posList></gml:LinearRing>
</gml:exterior></gml:Polygon></o:geom></o:house></gml:featureMember>
"""


@pytest.mark.parametrize(
    ("srs", "latitude_first"),
    [
        ("urn:ogc:def:crs:EPSG::4326", True),
        ("http://www.opengis.net/def/crs/EPSG/0/4326", True),
        ("EPSG:4326", False),
        ("urn:ogc:def:crs:OGC:1.3:CRS84", False),
    ],
)
def test_gml_in_the_order_of_its_authority(tmp_path: Path, srs: str, latitude_first: bool) -> None:
    members = []
    for number, house in enumerate(houses_in(4326, JOPLIN)):
        points = shapely.get_coordinates(house)[:, ::-1] if latitude_first else shapely.get_coordinates(house)
        ring = " ".join(f"{value:.9f}" for value in points.ravel())
        members.append(MEMBER.format(number=number, srs=srs, ring=ring))
    (tmp_path / "houses.gml").write_text(GML.format(features="".join(members)), encoding="utf-8")
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN)
    run(tmp_path, image, tmp_path / "houses.gml")
    assert_ground(tmp_path)


def test_text_with_latitude_first_is_seen_to_lie_elsewhere(tmp_path: Path) -> None:
    """WKT in a table says nothing of its order: x comes first. Swapped, all of it lies off the image."""
    for swapped in (False, True):
        lines = ["number,WKT"]
        for number, house in enumerate(houses_in(4326, JOPLIN)):
            points = shapely.get_coordinates(house)
            lines.append(f'{number},"{shapely.Polygon(points[:, ::-1] if swapped else points).wkt}"')
        (tmp_path / "houses.csv").write_text("\n".join(lines), encoding="utf-8")
        image = write_scene(tmp_path / "image.tif", 32615, JOPLIN)
        summary = run(tmp_path, image, tmp_path / "houses.csv", footprints_crs="EPSG:4326", overwrite=True)
        if swapped:
            assert summary.counts.statuses == {"outside_imagery": 4}
            assert "no footprint lies on the imagery: check the CRS" in summary.describe()
            assert {row["reason"] for row in rows(tmp_path)} == {"no image lies under its centre"}
        else:
            assert_ground(tmp_path)


# ---- datums


@pytest.mark.parametrize(
    ("datum", "utm", "middle", "geocentric", "metres", "accuracy"),
    [
        (4267, 32615, JOPLIN, (-8.0, 159.0, 175.0), 0.5, 7),  # EPSG:1175, for the west of the United States
        # EPSG:1133, a mean for Europe. PROJ knows a better one for this country, a few metres from it.
        (4230, 32632, (9.0, 48.0), (-87.0, -98.0, -121.0), 8, None),
    ],
)
def test_footprints_in_another_datum(
    tmp_path: Path, datum: int, utm: int, middle: tuple[float, float],
    geocentric: tuple[float, float, float], metres: float, accuracy: float | None,
) -> None:  # fmt: skip
    """Houses shifted the textbook way: geodetic to geocentric, three constants, and back."""
    crs = CRS(datum)
    to_metres = Transformer.from_crs(4326, 4978, always_xy=True)
    dx, dy, dz = geocentric
    ellipsoid = crs.ellipsoid
    assert ellipsoid is not None
    from_metres = Transformer.from_pipeline(
        f"+proj=pipeline +step +inv +proj=cart +a={ellipsoid.semi_major_metre} "
        f"+rf={ellipsoid.inverse_flattening} +step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )

    def to_datum(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = to_metres.transform(points[:, 0], points[:, 1], np.zeros(len(points)))
        longitude, latitude, _ = from_metres.transform(x - dx, y - dy, z - dz)
        return np.column_stack([longitude, latitude])

    houses = [shapely.transform(house, to_datum) for house in houses_in(4326, middle)]
    centre = houses[1].centroid
    apart = Transformer.from_crs(4326, local(middle), always_xy=True).transform(centre.x, centre.y)
    assert np.hypot(*apart) > 10  # metres: what ignoring the datum would cost
    image = write_scene(tmp_path / "image.tif", utm, middle)
    summary = run(tmp_path, image, write_houses(tmp_path / "houses.gpkg", datum, houses))
    for row, (east, north) in zip(rows(tmp_path), HOUSES, strict=True):
        assert np.hypot(row["p_red"] * 255 - 128 - east, row["p_green"] * 255 - 128 - north) < metres
    if accuracy is None:
        assert summary.notes == ()
    else:
        (note,) = summary.notes
        assert f"to {accuracy} m only" in note
        assert note in summary.describe()
        with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database:
            (recorded,) = database.execute("SELECT notes FROM edge_runs").fetchone()
        assert json.loads(recorded) == [note] == summary.to_json()["notes"]


def test_a_datum_that_nothing_is_known_of_is_said(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN)
    unknown = "+proj=utm +zone=15 +ellps=GRS80 +units=m"
    houses = write_houses(tmp_path / "houses.gpkg", unknown, houses_in(32615, JOPLIN))
    summary = run(tmp_path, image, houses)
    assert_ground(tmp_path)
    (note,) = summary.notes
    assert "as if their datums were one" in note


def test_datums_that_fit_need_no_note(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN)
    assert run(tmp_path, image, write_houses(tmp_path / "a.gpkg", 4269, houses_in(4269, JOPLIN))).notes == ()


# ---- the antimeridian


def cut_at_the_date_line(house: shapely.Polygon) -> shapely.Geometry:
    """As RFC 7946 wants it: two parts, none beyond 180."""
    whole = shapely.transform(
        house, lambda p: np.column_stack([np.where(p[:, 0] < 0, p[:, 0] + 360, p[:, 0]), p[:, 1]])
    )
    west = shapely.intersection(whole, shapely.box(179, -90, 180, 90))
    east = shapely.intersection(whole, shapely.box(180, -90, 181, 90))
    east = shapely.transform(east, lambda p: p - (360, 0))
    return shapely.union(west, east)


@pytest.mark.parametrize(
    ("code", "step", "kind"),
    [
        *((32760, (0.5, -0.5), kind) for kind in ("cut", "beyond 180", "wrapped")),
        *((4326, (4.7e-6, -4.5e-6), kind) for kind in ("cut", "beyond 180", "wrapped")),
        (32701, (0.5, -0.5), "cut"),
        (3832, (0.5, -0.5), "wrapped"),
    ],
)
def test_footprints_across_the_date_line(
    tmp_path: Path, code: int, step: tuple[float, float], kind: str
) -> None:
    image = write_scene(tmp_path / "image.tif", code, FIJI, step=step)
    houses: list[Any] = houses_in(4326, FIJI)  # longitudes of both signs, in one house even
    assert {np.sign(house.bounds[0]) for house in houses} == {-1, 1}
    if kind == "cut":
        houses = [cut_at_the_date_line(house) for house in houses]
    elif kind == "beyond 180":
        houses = [
            shapely.transform(
                h, lambda p: np.column_stack([np.where(p[:, 0] < 0, p[:, 0] + 360, p[:, 0]), p[:, 1]])
            )
            for h in houses
        ]
    run(tmp_path, image, write_houses(tmp_path / "houses.gpkg", 4326, houses))
    assert_ground(tmp_path)


# ---- bands, depth, colours


@pytest.mark.parametrize("alpha", [False, True])
def test_bands_in_another_order_are_found_by_their_names(tmp_path: Path, alpha: bool) -> None:
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN, order=(2, 1, 0, 0) if alpha else (2, 1, 0))
    names = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    with rasterio.open(image, "r+") as dataset:
        dataset.colorinterp = names + [ColorInterp.alpha] * alpha
        if alpha:
            dataset.write(np.full((320, 320), 255, np.uint8), 4)
    run(tmp_path, image, write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN)))
    assert_ground(tmp_path)


def test_bands_without_names_are_chosen_by_number(tmp_path: Path) -> None:
    image = write_scene(
        tmp_path / "image.tif", 32615, JOPLIN, order=(2, 2, 0, 1, 0), photometric="MINISBLACK"
    )
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    with pytest.raises(ContractError, match=r"5 bands .* wants 3 .*say which ones with --bands"):
        run(tmp_path, image, houses)
    assert not (tmp_path / "out.gpkg").exists()
    run(tmp_path, image, houses, bands=(3, 4, 1))
    assert_ground(tmp_path)


def test_a_missing_band_is_refused(tmp_path: Path) -> None:
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN, order=(0, 1), photometric="MINISBLACK")
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    with pytest.raises(ContractError, match="has 2 bands"):
        run(tmp_path, image, houses)


@pytest.mark.parametrize("photometric", ["YCBCR", "RGB"])
def test_jpeg_whatever_its_colour_space(tmp_path: Path, photometric: str) -> None:
    image = write_scene(
        tmp_path / "image.tif", 32615, JOPLIN, compress="JPEG", photometric=photometric, JPEG_QUALITY=95,
        tiled=True, blockxsize=128, blockysize=128, interleave="pixel",
    )  # fmt: skip
    run(tmp_path, image, write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN)))
    assert_ground(tmp_path, metres=1.0)


def test_a_palette_is_refused_and_works_once_it_is_expanded(tmp_path: Path) -> None:
    """Numbers of colours are no levels. The way out that the message names is the right one."""
    scene = write_scene(tmp_path / "scene.tif", 32615, JOPLIN)
    with rasterio.open(scene) as dataset:
        pixels, profile = dataset.read() // 16 * 16, dataset.profile
    colours, numbers = np.unique(pixels.reshape(3, -1), axis=1, return_inverse=True)
    assert colours.shape[1] <= 256
    profile.update(count=1, photometric="PALETTE")
    with rasterio.open(tmp_path / "palette.tif", "w", **profile) as dataset:
        dataset.write(numbers.reshape(320, 320).astype(np.uint8), 1)
        dataset.write_colormap(1, {k: (*colour, 255) for k, colour in enumerate(colours.T.tolist())})
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    with pytest.raises(ContractError, match="a colour table is expanded with gdal_translate -expand rgb"):
        run(tmp_path, tmp_path / "palette.tif", houses)
    with rasterio.open(tmp_path / "palette.tif") as dataset:
        table = dataset.colormap(1)
        expanded = np.array([table[k][:3] for k in range(256)], np.uint8)[dataset.read(1)]
    profile.update(count=3, photometric="RGB")
    with rasterio.open(tmp_path / "rgb.tif", "w", **profile) as dataset:
        dataset.write(expanded.transpose(2, 0, 1))
    run(tmp_path, tmp_path / "rgb.tif", houses)
    for row, (east, north) in zip(rows(tmp_path), HOUSES, strict=True):  # levels were rounded down by 16
        assert row["p_red"] * 255 - 128 == pytest.approx(east - 7.5, abs=4)
        assert row["p_green"] * 255 - 128 == pytest.approx(north - 7.5, abs=4)


def test_sixteen_bits_are_scaled_by_the_contract_alone(tmp_path: Path) -> None:
    crs = CRS(32615)
    transform = pixel_grid(crs, JOPLIN, 320, (0.5, -0.5), 0)
    pixels = draw(crs, transform, 320, JOPLIN).astype(np.uint16) * 16 + 1000
    with rasterio.open(
        tmp_path / "image.tif", "w", driver="GTiff", width=320, height=320, count=3, dtype="uint16",
        crs=crs.to_wkt(), transform=transform, photometric="RGB",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    with pytest.raises(ContractError, match="holds uint16 pixels, the model wants uint8"):
        run(tmp_path, tmp_path / "image.tif", houses)
    deep = contract(dtype="uint16", value_range=(1000.0, 1000.0 + 255 * 16))
    run(tmp_path, tmp_path / "image.tif", houses, deep)
    assert_ground(tmp_path)


# ---- ground size


def test_too_coarse_is_refused_or_said_of_each_footprint(tmp_path: Path) -> None:
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    (tmp_path / "images").mkdir()
    coarse = write_scene(tmp_path / "images" / "coarse.tif", 32615, JOPLIN, step=(2, -2), size=80)
    with pytest.raises(ContractError, match=r"measure 2 m on the ground, the model wants 1\.2 m or finer"):
        run(tmp_path, coarse, houses)
    # In Web Mercator 2.9 "metres" are one metre of ground here; the east of the scene only.
    write_scene(tmp_path / "images" / "fine.tif", 32615, JOPLIN, size=320)
    with rasterio.open(tmp_path / "images" / "fine.tif") as dataset:
        window = rasterio.windows.Window(160, 0, 160, 320)
        pixels, profile = dataset.read(window=window), dataset.profile
        profile.update(width=160, transform=dataset.window_transform(window))
    with rasterio.open(tmp_path / "images" / "fine.tif", "w", **profile) as dataset:
        dataset.write(pixels)
    run(tmp_path, tmp_path / "images", houses)
    found = rows(tmp_path)
    east = [place[0] > 0 for place in HOUSES]
    for row, here in zip(found, east, strict=True):
        if here:
            assert (row["status"], row["gsd_m"]) == ("ok", pytest.approx(0.5, rel=0.01))
        elif row["number"] != 1:  # the house in the very middle may go either way
            assert row["status"] == "too_coarse"
            assert row["reason"] == "2 m a pixel, the model wants 1.2 m or finer"
            assert row["p_red"] is None


# ---- what is not placed


def test_control_points_and_rpcs_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    scene = write_scene(tmp_path / "scene.tif", 32615, JOPLIN)
    with rasterio.open(scene) as dataset:
        pixels, transform = dataset.read(), dataset.transform
    plain: dict[str, Any] = {"driver": "GTiff", "width": 320, "height": 320, "count": 3, "dtype": "uint8"}
    corners = [(column, row) for column in (0, 320) for row in (0, 320)]
    points = [GroundControlPoint(row, column, *(transform * (column, row))) for column, row in corners]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "gcps.tif", "w", photometric="RGB", **plain) as dataset:
            dataset.write(pixels)
            dataset.gcps = (points, rasterio.crs.CRS.from_epsg(32615))
        with rasterio.open(tmp_path / "rpcs.tif", "w", photometric="RGB", **plain) as dataset:
            dataset.write(pixels)
            dataset.rpcs = RPC(
                height_off=300, height_scale=500, lat_off=37.05, lat_scale=0.01, line_off=160, line_scale=160,
                long_off=-94.5, long_scale=0.01, samp_off=160, samp_scale=160,
                line_num_coeff=[0, 0, -1] + [0] * 17, line_den_coeff=[1] + [0] * 19,
                samp_num_coeff=[0, 1] + [0] * 18, samp_den_coeff=[1] + [0] * 19, err_bias=0, err_rand=0,
            )  # fmt: skip
    for name in ("gcps.tif", "rpcs.tif"):
        with pytest.raises(
            ImageryError, match=r"only control points or RPCs place it .*rectify it first: gdalwarp"
        ):
            run(tmp_path, tmp_path / name, houses)
    assert not (tmp_path / "out.gpkg").exists()


# ---- nodata, and the limits


def test_the_limits_on_window_and_footprint_with_their_reasons(tmp_path: Path) -> None:
    """West of 10 m east the image has no data; each limit decides by itself, as shapely's areas say."""
    scene = write_scene(tmp_path / "image.tif", 32615, JOPLIN, nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        to_local = Transformer.from_crs(32615, local(JOPLIN), always_xy=True)
        columns = np.arange(320) + 0.5
        east, _ = to_local.transform(*(dataset.transform * (columns, np.full(320, 160.0))))
        pixels = np.maximum(dataset.read(), 1)
        pixels[:, :, east < 10] = 0
        dataset.write(pixels)
    middles = (2.0, 8.5, 11.0, 17.0, 30.0)
    to_utm = Transformer.from_crs(local(JOPLIN), 32615, always_xy=True)
    houses = [
        shapely.transform(
            shapely.box(e - 3, -3, e + 3, 3), lambda points: np.column_stack(to_utm.transform(*points.T))
        )
        for e in middles
    ]
    path = write_houses(tmp_path / "houses.gpkg", 32615, houses)
    window = [np.clip((e + 10 - 10) / 20, 0, 1) for e in middles]
    itself = [np.clip((e + 3 - 10) / 6, 0, 1) for e in middles]
    for min_valid, min_covered in ((0.5, 0.5), (0.3, 0.9), (0.0, 0.0), (0.95, 0.0)):
        run(tmp_path, scene, path, min_valid=min_valid, min_covered=min_covered, overwrite=True)
        for row, valid, covered in zip(rows(tmp_path), window, itself, strict=True):
            assert row["valid_fraction"] == pytest.approx(valid, abs=0.07)
            assert row["covered_fraction"] == pytest.approx(covered, abs=0.1)
            low = row["valid_fraction"] < min_valid, row["covered_fraction"] < min_covered
            assert row["status"] == ("no_data" if any(low) else "ok")
            reason = row["reason"] or ""
            assert ("of its window is valid imagery, wanted" in reason) == low[0]
            assert ("of itself lies on valid imagery, wanted" in reason) == low[1]
    statuses = [row["status"] for row in rows(tmp_path)]
    assert statuses == ["no_data"] * 4 + ["ok"]


def test_half_a_house_beyond_the_edge(tmp_path: Path) -> None:
    """No mask at all: what lies off the image is not covered."""
    scene = write_scene(tmp_path / "image.tif", 32615, JOPLIN)
    with rasterio.open(scene) as dataset:
        west, south, east, north = dataset.bounds
    middle = (south + north) / 2
    long_house = shapely.box(west - 8, middle - 3, west + 12, middle + 3)
    corner_house = shapely.box(west - 5, north - 6, west + 7, north + 5)
    path = write_houses(tmp_path / "houses.gpkg", 32615, [long_house, corner_house])
    run(tmp_path, scene, path, min_valid=0.25)
    ground = shapely.box(west, south, east, north)
    first, second = rows(tmp_path)
    for row, house in ((first, long_house), (second, corner_house)):
        share = house.intersection(ground).area / house.area
        assert row["covered_fraction"] == pytest.approx(share, abs=0.03)
    assert (first["status"], second["status"]) == ("ok", "no_data")
    assert "of itself lies on valid imagery, wanted 50 %" in second["reason"]


def test_every_status_has_its_reason_and_its_count(tmp_path: Path) -> None:
    scene = write_scene(
        tmp_path / "image.tif", 32615, JOPLIN, tiled=True, blockxsize=64, blockysize=64, compress="DEFLATE"
    )
    with rasterio.open(scene) as dataset:
        west, _, _, north = dataset.bounds
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with scene.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 64)
    (tmp_path / "images").mkdir()
    scene = scene.rename(tmp_path / "images" / "image.tif")
    (tmp_path / "images" / "broken.tif").write_bytes(b"II*\0 and no more")
    unread = shapely.box(west + 46, north - 50, west + 50, north - 46)
    bow_tie = shapely.from_wkt(
        "POLYGON ((360000 4100000, 360002 4100002, 360002 4100000, 360000 4100002, 360000 4100000))"
    )
    shapes = [houses_in(32615, JOPLIN)[0], unread, shapely.box(0, 0, 9, 9), bow_tie]
    summary = run(tmp_path, tmp_path / "images", write_houses(tmp_path / "houses.gpkg", 32615, shapes))
    ok, read_error, outside, bad = rows(tmp_path)
    assert (ok["status"], ok["reason"]) == ("ok", None)
    assert read_error["status"] == "read_error"
    assert "cannot be read" in read_error["reason"]
    assert str(scene) not in read_error["reason"]  # it stands in the column beside
    assert (outside["status"], outside["reason"]) == (
        "outside_imagery",
        "no image that can be used lies under its centre, 1 could not be",
    )
    assert (bad["status"], bad["reason"]) == (
        "bad_geometry",
        "its outline crosses itself near 360001 4100001",
    )
    counts = {"ok": 1, "outside_imagery": 1, "bad_geometry": 1, "read_error": 1}
    assert summary.to_json()["statuses"] == dict(summary.counts.statuses) == counts
    with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database:
        recorded, skipped = database.execute("SELECT counts, skipped_images FROM edge_runs").fetchone()
    assert json.loads(recorded)["statuses"] == counts
    ((path, reason),) = json.loads(skipped)
    assert path == str(tmp_path / "images" / "broken.tif")
    assert "is no raster that GDAL can read here" in reason
    assert summary.exit_code == 3


@pytest.mark.parametrize("outside", [False, True])
def test_the_place_is_right_through_overviews_rounded_up(tmp_path: Path, outside: bool) -> None:
    """One column more than a multiple of 4: the overview has one more, and its pixels are narrower."""
    image = write_scene(tmp_path / "image.tif", 32615, JOPLIN, step=(0.25, -0.25), size=641)
    with rasterio.Env(TIFF_USE_OVR=outside), rasterio.open(image, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert image.with_name("image.tif.ovr").exists() == outside
    houses = write_houses(tmp_path / "houses.gpkg", 4326, houses_in(4326, JOPLIN))
    run(tmp_path, image, houses)
    assert_ground(tmp_path, metres=0.5)  # half a pixel of the overview


# ---- the point of resumption


@pytest.mark.parametrize("overviews", [(), (2, 4, 8)])
def test_what_is_still_to_do_changes_no_result(tmp_path: Path, overviews: tuple[int, ...]) -> None:
    """Chips from decimated tiles of an image of odd size, with holes, and halls larger than their window."""
    random = np.random.default_rng(5)
    levels = random.integers(1, 255, (3, 667, 751), dtype=np.uint8)
    holes = np.kron(random.random((27, 31)) < 0.2, np.ones((25, 25), bool))[:667, :751]
    levels[:, holes] = 0
    image = tmp_path / "image.tif"
    with rasterio.open(
        image, "w", driver="GTiff", width=751, height=667, count=3, dtype="uint8", crs="EPSG:32615", nodata=0,
        transform=Affine(0.2, 0, 360_000, 0, -0.2, 4_100_000), photometric="RGB", tiled=True, blockxsize=128,
        blockysize=128,
    ) as dataset:  # fmt: skip
        dataset.write(levels)
    with rasterio.open(image, "r+") as dataset:
        dataset.build_overviews(list(overviews), Resampling.average)
    halls = []
    for x, y in random.uniform(0, 1, (60, 2)) * (150, 133):
        width, height = random.choice([5, 12, 60], 2) / 2
        halls.append(
            shapely.box(
                360_000 + x - width, 4_100_000 - y - height, 360_000 + x + width, 4_100_000 - y + height
            )
        )
    source = write_houses(tmp_path / "houses.gpkg", 32615, halls)
    run(tmp_path, image, source)
    at_once = rows(tmp_path)
    assert {row["status"] for row in at_once} == {"ok", "no_data"}
    for _ in range(2):
        again = random.choice(np.arange(1, 61), 7, replace=False).tolist()
        with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database:
            for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
                database.create_function(name, 1, lambda _: 0)
            database.executemany(
                "UPDATE houses SET status = 'pending', reason = NULL, p_red = NULL WHERE fid = ?",
                [(fid,) for fid in again],
            )
            database.commit()
        run(tmp_path, image, source, resume=True)
        assert rows(tmp_path) == at_once
