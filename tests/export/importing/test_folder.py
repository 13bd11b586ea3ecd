from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from pyproj import Transformer

from edge_infer.errors import Refused
from edge_infer_export.chips.cut import ChipsRequest, cut_chips
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.pairs import Pair
from edge_infer_export.chips.split import SplitOptions, split_chips
from edge_infer_export.cli_import import import_chips as import_command
from edge_infer_export.importing.folder import ImportRequest, import_chips
from edge_infer_export.town.files import LABEL_FIELD, write_town
from edge_infer_export.town.layout import Extent


@pytest.fixture(scope="module")
def town_chips(tmp_path_factory):
    """Chips of one town in three layouts; its two images have different reference systems."""
    folder = tmp_path_factory.mktemp("town")
    town = write_town(folder / "town", Extent(400.0, 130.0))
    pair = Pair(imagery=(town.imagery,), footprints=town.footprints, label_field=LABEL_FIELD, event="storm")
    for layout in ("own", "esri", "imagenet"):
        request = ChipsRequest(pairs=(pair,), out=folder / layout, chip_pixels=32, layout=layout)
        cut_chips(request, quiet=True)
    return folder


@pytest.fixture
def take_over(tmp_path):
    def run(folder, **options: Any):
        request = ImportRequest(folder=folder, out=tmp_path / "out", overwrite=True, **options)
        summary = import_chips(request, quiet=True)
        return summary, read_chips([tmp_path / "out"])

    return run


@pytest.fixture
def tiles(tmp_path):
    """Write Labeled_Tiles by hand, as ArcGIS Pro 2.x leaves them: numbers for names, world files, no CRS."""

    def write(labels, sizes=((16, 16),), *, emd=None, stats=None, world=True, mode="RGB"):
        folder = tmp_path / "tiles"
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for k, label in enumerate(labels):
            picture = folder / f"images/{k:09d}.png"
            rng = np.random.default_rng(k)
            width, height = sizes[k % len(sizes)]
            shape = (height, width) if mode in {"L", "I;16"} else (height, width, len(mode))
            values = rng.integers(1, 255, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
            Image.fromarray(values).save(picture)
            if world:
                x, y = 360_000 + 100 * (k % 7), 4_100_000 + 100 * (k // 7)
                picture.with_suffix(".pgw").write_text(f"0.5\n0.0\n0.0\n-0.5\n{x}\n{y}\n")
            objects = "".join(f"<object><name>{name}</name></object>" for name in str(label).split("+"))
            if label is not None:
                (folder / f"labels/{k:09d}.xml").write_text(f"<annotation>{objects}</annotation>")
        if emd is not None:
            (folder / "esri_model_definition.emd").write_text(json.dumps(emd))
        if stats is not None:
            (folder / "esri_accumulated_stats.json").write_text(json.dumps(stats))
        return folder

    return write


NAMED = {
    "Classes": [{"Value": 1, "Name": "Damaged"}, {"Value": 2, "Name": "Undamaged"}],
    "InputRastersProps": {"BandNames": ["Red", "Green", "Blue"]},
}
UTM = {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32615}}
PLACED = {**NAMED, "MinCellSize": UTM, "MaxCellSize": UTM}


def test_esri_and_back(town_chips, take_over):
    own = read_chips([town_chips / "own"])
    summary, back = take_over(town_chips / "esri", event="storm")
    assert summary.warnings == ()
    assert summary.contract.ground_metres == own.contract.ground_metres
    assert (back.classes, len(back)) == (own.classes, len(own))
    np.testing.assert_array_equal(back.read(np.arange(len(own))), own.read(np.arange(len(own))))
    np.testing.assert_array_equal(back.targets, own.targets)
    np.testing.assert_allclose(back.longitude, own.longitude, atol=1e-9)
    np.testing.assert_allclose(back.latitude, own.latitude, atol=1e-9)
    np.testing.assert_allclose(back.ground_metres, own.ground_metres, atol=1e-3)
    np.testing.assert_allclose(back.gsd_metres, 1.0, atol=1e-3)
    assert set(back.event) == {"storm"}
    assert split_chips(back, SplitOptions()).kind == "place"


def test_esri_chips_are_georeferenced_for_others(town_chips):
    own = read_chips([town_chips / "own"])
    systems = set()
    for k, path in enumerate(sorted((town_chips / "esri/images").glob("*.png"))):
        with rasterio.open(path) as picture:
            systems.add(picture.crs.to_epsg())
            x, y = picture.transform * (16, 16)
            to_degrees = Transformer.from_crs(picture.crs, 4326, always_xy=True)
        np.testing.assert_allclose(to_degrees.transform(x, y), (own.longitude[k], own.latitude[k]), atol=1e-9)
    assert len(systems) == 2


def test_esri_side_files_are_what_prepare_data_reads(town_chips):
    own = read_chips([town_chips / "own"])
    folder = town_chips / "esri"
    lines = (folder / "map.txt").read_text().splitlines()
    images, labels = zip(*(line.replace("\\", "/").split() for line in lines), strict=True)
    assert all((folder / name).is_file() for name in (*images, *labels))
    emd = json.loads((folder / "esri_model_definition.emd").read_text())
    assert [entry["Name"] for entry in emd["Classes"]] == list(own.classes)
    assert "Color" not in emd["Classes"][0]
    pixels = own.read(np.arange(len(own))).reshape(-1, 3)
    for band, stats in enumerate(emd["AllTilesStats"]):
        assert stats["Mean"] == pytest.approx(pixels[:, band].mean())
        assert stats["StdDev"] == pytest.approx(pixels[:, band].std())
        assert (stats["Min"], stats["Max"]) == (pixels[:, band].min(), pixels[:, band].max())
    stats = json.loads((folder / "esri_accumulated_stats.json").read_text())
    assert stats["FeatureStats"]["NumImagesPerClass"] == list(own.counts().values())
    assert f"images = {len(own)} *3*32*32" in (folder / "stats.txt").read_text()


def test_class_folders_and_back(town_chips, take_over):
    own = read_chips([town_chips / "own"])
    folder = town_chips / "imagenet"
    summary, back = take_over(folder, chip_table=folder / "chips.csv", ground_metres=32.0)
    assert summary.classes == own.counts()
    mine, theirs = np.argsort(own.longitude), np.argsort(back.longitude)
    np.testing.assert_array_equal(back.read(theirs), own.read(mine))
    np.testing.assert_array_equal(back.longitude[theirs], own.longitude[mine])
    assert set(back.event) == {"storm"}


def test_an_export_that_hung_is_still_of_use(tiles, take_over):
    summary, found = take_over(tiles(["damaged", "fine"] * 6), gsd_metres=0.5)
    assert found.classes == ("damaged", "fine")
    assert summary.contract.ground_metres == 8.0
    assert "12 chips have no place on the ground" in summary.warnings[0]  # world files, but of which system?
    with pytest.raises(Refused, match=r"12 of 12 chips .* do not say how much ground .*--gsd-metres"):
        take_over(tiles(["damaged", "fine"] * 6))


def test_numbers_are_never_guessed(tiles, take_over):
    with pytest.raises(Refused, match=r"holds '1' \(6\), '2' \(6\); say what they mean: --classes"):
        take_over(tiles([1, 2] * 6), gsd_metres=0.5)
    half_filled = {"Classes": [{"Value": 1, "Name": "1"}, {"Value": 2, "Name": "2"}]}
    with pytest.raises(Refused, match="say what they mean"):
        take_over(tiles([1, 2] * 6, emd=half_filled), gsd_metres=0.5)
    _, found = take_over(tiles(["1.0", 2] * 6, emd=PLACED))
    assert found.counts() == {"Damaged": 6, "Undamaged": 6}
    swapped = {"1": "fine", "2": "gone"}  # the user wins
    _, found = take_over(tiles([1, 2] * 6, emd=PLACED), classes=swapped)
    assert found.classes == ("fine", "gone")
    assert found.targets.tolist() == [0, 1] * 6
    _, found = take_over(tiles([1, 2] * 6, emd=PLACED), classes={"Damaged": "gone", "Undamaged": "fine"})
    assert found.counts() == {"gone": 6, "fine": 6}
    with pytest.raises(Refused, match=r"values without a class: '7' \(4\)"):
        take_over(tiles([1, 2, 7] * 4, emd=PLACED), classes=swapped)


def test_places_and_ground_come_from_world_files(tiles, take_over):
    summary, found = take_over(tiles([1, 2] * 4, emd=PLACED))
    assert summary.warnings == ()
    to_degrees = Transformer.from_crs(32615, 4326, always_xy=True)
    k = np.arange(8)
    # A world file tells the centre of the first pixel.
    middle = 360_000 - 0.25 + 100 * (k % 7) + 4, 4_100_000 + 0.25 + 100 * (k // 7) - 4
    np.testing.assert_allclose([found.longitude, found.latitude], to_degrees.transform(*middle), atol=1e-9)
    np.testing.assert_allclose(found.ground_metres, 8.0, rtol=1e-3)
    assert summary.contract.coarsest_gsd_metres == pytest.approx(0.625, abs=0.002)
    said, _ = take_over(tiles([1, 2] * 4, emd=PLACED), ground_metres=30.0)
    assert said.contract.ground_metres == 30.0
    assert "georeferenced as 8.00" in said.warnings[0]
    assert "what was said counts" in said.warnings[0]


@pytest.mark.parametrize(("wkid", "known"), [(32615, True), (3857, False), (4326, False), (2263, True)])
def test_cell_sizes_count_where_they_are_metres_on_the_ground(tiles, take_over, wkid, known):
    cell = {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": wkid}}
    folder = tiles([1, 2] * 4, emd={**NAMED, "MinCellSize": cell, "MaxCellSize": cell}, world=False)
    if known:
        unit = 1200 / 3937 if wkid == 2263 else 1.0  # US survey feet
        assert take_over(folder)[0].contract.ground_metres == pytest.approx(8 * unit, abs=0.006)
    else:
        with pytest.raises(Refused, match="do not say how much ground"):
            take_over(folder)


def test_labels_that_are_not_as_they_should_be_are_counted(tiles, take_over):
    folder = tiles(["1+2", 1, 2, None, 2, 2], emd=PLACED)
    (folder / "labels/000000004.xml").write_text("<annotation><object>")
    bomb = '<!DOCTYPE a [<!ENTITY b "1">]><annotation><object><name>&b;</name></object></annotation>'
    (folder / "labels/000000005.xml").write_text(bomb)
    summary, found = take_over(folder)
    assert found.counts() == {"Damaged": 2, "Undamaged": 1}
    several, without = summary.warnings
    assert several == "1 chips hold several objects; the first one counts, as in ArcGIS"
    assert without.startswith("3 pictures are left out, as they have no label: 000000003.png, 000000004.png")


def test_unreadable_pictures_are_named_and_counted(tiles, take_over):
    folder = tiles([1, 2] * 3, emd=PLACED)
    path = folder / "images/000000002.png"
    path.write_bytes(path.read_bytes()[:-100])
    summary, found = take_over(folder)
    assert len(found) == 5
    assert summary.statuses == {"ok": 5, "unreadable": 1}
    assert re.match(
        r"1 chips cannot be read and are left out: .*000000002\.png cannot be read", summary.warnings[0]
    )
    for path in (folder / "images").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(Refused, match=r"no chip .* can be used: unreadable 6"):
        take_over(folder)


def test_pictures_that_break_when_they_are_resized_are_counted_too(tiles, take_over):
    folder = tiles([1, 2] * 3, emd=PLACED)
    path = folder / "images/000000002.png"
    content = path.read_bytes()
    path.write_bytes(content[:300] + b"broken" + content[306:])  # its header and its end are as they were
    Image.new("P", (16, 16)).save(folder / "images/000000003.png")
    summary, found = take_over(folder, chip_pixels=8)
    assert len(found) == sum(summary.classes.values()) == 4
    assert summary.statuses == {"ok": 4, "unreadable": 2}
    assert re.match(
        r"2 chips cannot be read and are left out: .*002\.png cannot be read .*003\.png has a palette",
        summary.warnings[-1],
    )
    for path in (folder / "images").glob("*.png"):
        Image.new("P", (16, 16)).save(path)
    with pytest.raises(Refused, match=r"no chip of .* can be used: 6 chips cannot be read .* palette"):
        take_over(folder, chip_pixels=8)


@pytest.mark.parametrize(
    ("names", "bands", "warned"),
    [
        (["NearInfrared", "Red", "Green"], ("nir", "red", "green"), False),
        (["Red", "Green", "Blue"], ("red", "green", "blue"), False),
        (["Band_1", "Band_2", "Band_3"], ("red", "green", "blue"), True),
        (["Red", "Green", "Blue", "NearInfrared"], ("red", "green", "blue"), True),  # which of them?
        (None, ("red", "green", "blue"), True),
    ],
)
def test_bands_are_what_the_export_says(tiles, take_over, names, bands, warned):
    folder = tiles([1, 2] * 3, emd={**PLACED, "InputRastersProps": {"BandNames": names}})
    summary, found = take_over(folder)
    assert found.contract.bands == bands
    assert warned == ("nothing says which the three bands are" in " ".join(summary.warnings))


def test_one_band_is_named_or_a_number(tiles, take_over):
    named = {**PLACED, "InputRastersProps": {"BandNames": ["Red_Edge"]}}
    assert take_over(tiles([1, 2], emd=named, mode="L"))[1].contract.bands == ("rededge",)
    nameless = {**PLACED, "InputRastersProps": None}
    assert take_over(tiles([1, 2], emd=nameless, mode="L"))[1].contract.bands == ("band_1",)


def test_pictures_of_other_kinds_are_told_of(tiles, take_over):
    folder = tiles([1, 2] * 3, emd=PLACED)
    (folder / "images/000000002.png").rename(folder / "images/000000002.bmp")
    (folder / "images/000000003.png").rename(folder / "images/000000003.mrf")
    lines = [f"images\\{k:09d}.png  labels\\{k:09d}.xml \n" for k in range(8)]
    (folder / "map.txt").write_text("".join(lines))
    summary, found = take_over(folder)
    assert len(found) == 4
    passed, missing = summary.warnings
    assert (
        passed
        == "2 files are passed over (.bmp 1, .mrf 1); convert pictures to .png, .tif, .tiff, .jpg, .jpeg"
    )
    names = ", ".join(f"images/{k:09d}" for k in (2, 3, 6, 7))
    assert missing == f"4 pictures that map.txt or labels/ name are not there to be read: {names}"
    facts = json.loads((Path(found.file[0]).parent.parent / "chips.json").read_text())
    assert len(facts["options"]["imported"]["map_sha256"]) == 64


def test_mixed_sizes_need_a_word(tiles, take_over):
    sizes = ((16, 16), (16, 10))
    with pytest.raises(Refused, match=r"chips of 2 sizes: 16 x 16 \(3\), 16 x 10 \(3\); .*--chip-pixels"):
        take_over(tiles([1, 2] * 3, sizes, emd=PLACED))
    folder = tiles([1, 2] * 3, sizes, emd={**PLACED, "CropTileMode": "Variable_Size"})
    summary, found = take_over(folder, chip_pixels=16)
    assert found.contract.window_mode == "footprint"
    assert "padded with black" in summary.warnings[0]
    original = np.asarray(Image.open(folder / "images/000000001.png").convert("RGB"))
    padded = found.read(np.array([1]))[0]
    np.testing.assert_array_equal(padded[3:13], original)
    assert not padded[:3].any()
    assert not padded[13:].any()
    halved = take_over(folder, chip_pixels=8)[1].read(np.array([0]))[0]
    with Image.open(folder / "images/000000000.png") as picture:
        wanted = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(halved, wanted)


@pytest.mark.parametrize(
    ("mode", "text"), [("I;16", "6 not of 8 bits"), ("RGB", "bands: 6 with 3, 1 with 1")]
)
def test_mixed_or_deep_bands_are_refused(tiles, take_over, mode, text):
    folder = tiles([1, 2] * 3, emd=PLACED, mode=mode)
    if mode == "RGB":
        Image.new("L", (16, 16)).save(folder / "images/000000006.png")
        (folder / "labels/000000006.xml").write_text((folder / "labels/000000001.xml").read_text())
    with pytest.raises(Refused, match=text):
        take_over(folder)


def test_alpha_is_left_out(tiles, take_over):
    folder = tiles([1, 2] * 3, emd=PLACED, mode="RGBA")
    _, found = take_over(folder)
    with Image.open(folder / "images/000000000.png") as picture:
        wanted = np.asarray(picture)[:, :, :3]
    np.testing.assert_array_equal(found.read(np.array([0]))[0], wanted)


def test_blackened_exports_say_so(tiles, take_over):
    summary, found = take_over(tiles([1, 2] * 3, emd={**PLACED, "BlackenAroundFeature": 1}))
    assert found.contract.blacken
    assert "black outside of the footprint" in summary.describe()


def test_imagenet_exports_of_esri(tiles, take_over):
    folder = tiles([1, 2] * 3, emd={**PLACED, "MetaDataMode": "Imagenet"})
    for path in sorted((folder / "images").iterdir()):
        target = folder / "images" / str(1 + int(path.stem) % 2) / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    for path in (folder / "labels").iterdir():
        path.unlink()
    (folder / "labels").rmdir()
    (folder / "map.txt").write_text(
        f"images\\1\\{1:09d}.png \nimages\\1\\{0:09d}.png\n".replace("1\\", "2\\", 1)
    )
    summary, found = take_over(folder)
    assert summary.warnings == ()
    assert found.counts() == {"Damaged": 3, "Undamaged": 3}
    facts = json.loads((Path(found.file[0]).parent.parent / "chips.json").read_text())
    assert facts["options"]["imported"]["metadata_mode"] == "Imagenet"
    (folder / "map.txt").write_text("images\\1\\999999999.png \n")
    missing = "1 pictures that map.txt or labels/ name are not there to be read: images/1/999999999"
    assert take_over(folder)[0].warnings == (missing,)
    np.testing.assert_allclose(found.ground_metres, 8.0, rtol=1e-3)
    assert np.isfinite(found.longitude).all()


def test_exports_of_another_kind_are_refused(tiles, take_over):
    with pytest.raises(Refused, match="an export of RCNN_Masks, wanted Labeled_Tiles"):
        take_over(tiles([1], emd={"MetaDataMode": "RCNN_Masks"}))


@pytest.fixture
def folders(tmp_path):
    """Pictures in folders by class, named LON_LAT as in the hurricane data set."""
    root = tmp_path / "pictures"
    for k in range(12):
        path = root / ("damage" if k % 2 else "no_damage") / f"-95.{k:03d}_30.{k:03d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 * k, np.uint8)).save(path)
    return root


def test_coordinates_in_file_names(folders, take_over):
    summary, found = take_over(folders, ground_metres=60.0, coordinates_from_name=True)
    np.testing.assert_allclose(sorted(found.longitude), np.sort(-95 - np.arange(12) / 1000))
    np.testing.assert_array_equal(found.targets, [0] * 6 + [1] * 6)
    assert "12 chips are JPEG" in summary.warnings[1]
    copied = Path(found.file[0]).read_bytes()
    assert copied == sorted((folders / "damage").iterdir())[0].read_bytes()  # as it was, byte by byte
    for path in folders.rglob("*.jpeg"):
        path.rename(path.with_name("x" + path.name))
    with pytest.raises(Refused, match="name that begins with LON_LAT"):
        take_over(folders, ground_metres=60.0, coordinates_from_name=True)


def test_a_table_gives_places_and_events(folders, take_over, tmp_path):
    paths = sorted(path.relative_to(folders).as_posix() for path in folders.rglob("*.jpeg"))
    table = tmp_path / "table.csv"

    def write(rows, columns=("path", "lon", "lat", "event", "class")):
        with table.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(rows)

    write(
        [(path, k, -k, f"e{k % 2}", "") for k, path in enumerate(paths[:10])] + [("gone.jpeg", 1, 1, "", "")]
    )
    summary, found = take_over(folders, ground_metres=60.0, chip_table=table)
    assert found.longitude.tolist() == list(range(10))
    assert found.event.tolist() == ["e0", "e1"] * 5
    assert summary.warnings[0] == "1 files that table.csv names are not there, the first: gone.jpeg"
    assert summary.warnings[1] == "2 pictures are left out: table.csv lacks them"
    for rows, columns, text in (
        ([], ("file", "lon"), "has no column lat or latitude or y"),
        (
            [("other.jpeg", 1, 1)],
            ("file", "lon", "lat"),
            "names no file of .*; the first it names is other.jpeg",
        ),
        ([(paths[0], "west", 1)], ("file", "lon", "lat"), "line 2: no coordinates in degrees"),
        ([(paths[0], 1, 1)] * 2, ("file", "lon", "lat"), "line 3: .* stands there twice"),
    ):
        write(rows, columns)
        with pytest.raises(Refused, match=text):
            take_over(folders, ground_metres=60.0, chip_table=table)


def test_a_name_that_several_files_have_is_refused(folders, take_over, tmp_path):
    for name in ("damage", "no_damage"):
        Image.new("RGB", (16, 16)).save(folders / name / "0.png")
    table = tmp_path / "table.csv"
    table.write_text("path,lon,lat\n0.png,1,2\n")
    with pytest.raises(
        Refused, match=r"line 2: 0\.png may be any of 2 files \(damage/0\.png, no_damage/0\.png\)"
    ):
        take_over(folders, ground_metres=60.0, chip_table=table)
    table.write_text("path,lon,lat\ndamage/0.png,1,2\nno_damage/0.png,3,4\n")
    _, found = take_over(folders, ground_metres=60.0, chip_table=table)
    assert dict(zip(found.targets, found.longitude, strict=True)) == {0: 1.0, 1: 3.0}


def test_folders_that_are_no_classes(folders, take_over, tmp_path):
    (folders / "__MACOSX" / "damage").mkdir(parents=True)
    for name in (
        "__MACOSX/damage/0.png",
        ".thumbs.png",
        "damage/._0.png",
        "damage/.DS_Store",
        "damage/Thumbs.db",
    ):
        (folders / name).write_bytes(b"")
    (folders / ".cache").mkdir()
    Image.new("RGB", (16, 16)).save(folders / ".cache" / "0.png")
    summary, found = take_over(folders, ground_metres=60.0)
    assert found.counts() == {"damage": 6, "no_damage": 6}
    assert "unreadable" not in summary.statuses
    (folders / "damage" / "more.webp").write_bytes(b"")
    assert "1 files are passed over (.webp 1)" in take_over(folders, ground_metres=60.0)[0].warnings[0]
    parent = tmp_path / "parts"
    parent.mkdir()
    folders.rename(parent / "train")
    with pytest.raises(Refused, match=r"parts: train hold folders of pictures, .* such as .*parts/train$"):
        take_over(parent, ground_metres=60.0)
    with pytest.raises(Refused, match="chips that need no import"):
        take_over(tmp_path / "out", ground_metres=60.0)


def test_names_of_many_digits_are_no_feature_ids(tmp_path, take_over):
    for k, name in enumerate(("0" * 17 + "7", "9" * 21)):
        path = tmp_path / "pictures" / f"class {k}" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    _, found = take_over(tmp_path / "pictures", ground_metres=60.0)
    assert found.source_fid.tolist() == [7, 1]


def test_hurricane_chips(shared_data, take_over, tmp_path):
    folder = shared_data / "hurricane"
    lines = (folder / "index.csv").read_text().splitlines()
    table = tmp_path / "some.csv"
    table.write_text("\n".join([lines[0], *lines[1::6]]) + "\n")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kinds = Counter(row["class"] for row in rows)
    summary, found = take_over(
        folder, ground_metres=60.0, chip_table=table, ignore_labels=("bad_images",), event="Harvey 2017"
    )
    assert summary.classes == {"damage": kinds["damage"], "no_damage": kinds["no_damage"]}
    assert summary.statuses == {"ok": len(found), "ignored_label": kinds["bad_images"]}
    assert summary.warnings[0] == f"{4120 - len(rows):,} pictures are left out: some.csv lacks them"
    longitudes = [float(row["lon"]) for row in rows if row["class"] != "bad_images"]
    np.testing.assert_allclose(sorted(found.longitude), sorted(longitudes))
    split = split_chips(found, SplitOptions(test_areas=("-180,-90,-95.6,90",)))
    np.testing.assert_array_equal(split.test, np.flatnonzero(found.longitude < -95.6))
    assert found.read(split.test[:2]).shape == (2, 128, 128, 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ground_metres": 1.0, "gsd_metres": 1.0}, "give one of them"),
        ({"coordinates_from_name": True, "chip_table": Path("a.csv")}, "give one of them"),
    ],
)
def test_contradictions_are_refused(tmp_path, options, text):
    with pytest.raises(Refused, match=text):
        ImportRequest(folder=tmp_path, out=tmp_path / "out", **options)


def test_folders_without_chips_are_refused(tmp_path, take_over):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds no chips: wanted images/ and labels/"):
        take_over(tmp_path / "empty")
    with pytest.raises(Refused, match="cannot be read"):
        take_over(tmp_path / "nothing")


def test_train_points_to_the_import(folders, tiles):
    for folder in (folders, tiles([1, 2])):
        with pytest.raises(Refused, match=r"edge-infer import-chips .* --out"):
            read_chips([folder])


def test_the_command_says_what_it_did(folders, tmp_path):
    out = tmp_path / "out"
    arguments = [
        folders,
        "--out",
        out,
        "--gsd-metres",
        0.5,
        "--coordinates-from-name",
        "-q",
        "--table",
        "parquet",
    ]
    arguments += ["--classes", "damage=hurt,no_damage=fine", "--event", "Harvey"]
    result = CliRunner().invoke(import_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "12 chips of 16 pixels, 8 m (fixed), red, green, blue" in result.output
    found = read_chips([out])
    assert found.classes == ("hurt", "fine")
    assert set(found.event) == {"Harvey"}
    assert json.loads((out / "chips.json").read_text())["options"]["imported"]["layout"] == "Imagenet"
