from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import fields
from typing import Any

import fiona
import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from rasterio.transform import from_origin

from edge_infer.errors import ContractError, FootprintsError, ImageryError, OutputError, Refused
from edge_infer_export.chips.cut import ChipsRequest, cut_chips
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.pairs import Pair, read_pairs
from edge_infer_export.chips.split import SplitOptions, split_chips
from edge_infer_export.cli_chips import chips as chips_command
from edge_infer_export.town.files import LABEL_FIELD, write_town
from edge_infer_export.town.layout import Extent


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_town(tmp_path_factory.mktemp("town"), Extent(500.0, 170.0))


@pytest.fixture
def request_for(town, tmp_path):
    def make(**changes: Any) -> ChipsRequest:
        pair = {
            "imagery": (town.imagery,),
            "footprints": town.footprints,
            "label_field": LABEL_FIELD,
            **{field.name: changes.pop(field.name) for field in fields(Pair) if field.name in changes},
        }
        values = {"pairs": (Pair(**pair),), "out": tmp_path / "chips", "chip_pixels": 64}
        return ChipsRequest(**{**values, **changes})

    return make


@pytest.fixture
def small_scene(tmp_path):
    """Write an image of 0.5 m in UTM and square footprints on it, with labels."""

    def write(pixels, labels, *, mask=None, **profile):
        count, height, width = pixels.shape
        path = tmp_path / "image.tif"
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", driver="GTiff", width=width, height=height, count=count, dtype=pixels.dtype,
                crs="EPSG:32615", transform=from_origin(360_000, 4_100_000, 0.5, 0.5), **profile,
            ) as dataset,
        ):  # fmt: skip
            dataset.write(pixels)
            if mask is not None:
                dataset.write_mask(mask)
        footprints = tmp_path / "footprints.geojson"
        features = []
        for place, label in enumerate(labels):
            x, y = 360_020 + 30 * place, 4_099_980
            ring = [(x - 4, y - 4), (x + 4, y - 4), (x + 4, y + 4), (x - 4, y + 4), (x - 4, y - 4)]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": {"label": label}, "geometry": geometry})
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32615"}}
        footprints.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
        return {"imagery": (path,), "footprints": footprints, "label_field": "label", "ground_metres": 20.0}

    return write


def test_chips_are_pillows(town, request_for):
    cut_chips(request_for(imagery=(town.imagery / "west.tif",)), quiet=True)
    with rasterio.open(town.imagery / "west.tif") as image:
        picture = Image.fromarray(np.moveaxis(image.read(), 0, -1))
        to_image, grid = Transformer.from_crs("EPSG:4326", image.crs, always_xy=True), ~image.transform
    found = read_chips([request_for().out])
    with fiona.open(town.footprints) as layer:
        footprints = {int(row.id): row for row in layer}
    with fiona.open(request_for().out / "chips.gpkg") as index:
        fids = [row.properties["source_fid"] for row in index]
    whole = 0
    for chip, target, fid in zip(found.read(np.arange(len(found))), found.targets, fids, strict=True):
        assert found.classes[target] == footprints[fid].properties[LABEL_FIELD]
        outline = np.array(shapely.get_coordinates(shapely.geometry.shape(footprints[fid].geometry)))
        column, row = grid * to_image.transform(*outline.T)
        x, y = (column.min() + column.max()) / 2, (row.min() + row.max()) / 2
        half = 32 / 0.3 / 2 * 1.00025  # UTM's scale here
        box = (x - half, y - half, x + half, y + half)
        if box[0] < 0 or box[1] < 0 or box[2] > picture.width or box[3] > picture.height:
            continue
        wanted = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR, box=box)).astype(int)
        # The box is right to a hundredth of a pixel only, hence a few grey levels at edges.
        assert np.abs(wanted - chip).mean() < 0.5
        whole += 1
    assert whole > 15


def test_every_footprint_is_accounted_for(town, request_for):
    summary = cut_chips(request_for(), quiet=True)
    with fiona.open(town.footprints) as layer:
        labels = [row.properties[LABEL_FIELD] for row in layer]
    assert summary.statuses["bad_geometry"] == summary.statuses["outside_imagery"] == 1
    assert sum(summary.statuses.values()) == len(labels)
    assert sum(summary.classes.values()) == summary.statuses["ok"] == len(labels) - 2
    assert summary.contract.bands == ("red", "green", "blue")
    assert summary.contract.coarsest_gsd_metres == pytest.approx(0.3338 * 1.25, abs=0.002)
    text = summary.describe()
    assert "no chip: " in text
    assert "outside_imagery 1" in text
    facts = json.loads((request_for().out / "chips.json").read_text())
    assert facts["statuses"] == summary.statuses
    assert facts["options"]["pairs"][0]["label_field"] == LABEL_FIELD


def test_where_and_places(town, request_for):
    summary = cut_chips(request_for(where="district = 'west'"), quiet=True)
    assert set(summary.statuses) == {"ok"}
    assert summary.contract.coarsest_gsd_metres == pytest.approx(0.3 * 1.25, abs=0.002)
    found = read_chips([request_for().out])
    np.testing.assert_allclose(found.ground_metres, 32.0, atol=1e-6)
    with fiona.open(town.footprints) as layer:
        wests = [row for row in layer if row.properties["district"] == "west"]
    middles = np.array(
        [shapely.box(*shapely.geometry.shape(w.geometry).bounds).centroid.coords[0] for w in wests]
    )
    # The middle of the bounds in degrees is not quite that in UTM.
    np.testing.assert_allclose(np.stack([found.longitude, found.latitude], 1), middles, atol=1e-6)


def test_footprint_windows_grow_with_the_footprint(request_for):
    request = request_for(window="footprint", ground_metres=24.0, context=2.0, where="district = 'west'")
    assert cut_chips(request, quiet=True).contract.context_factor == 2.0
    sides = read_chips([request.out]).ground_metres
    assert sides.min() >= 24.0 - 1e-6
    assert sides.max() > 30.0


def test_labels_are_mapped_and_left_out(small_scene, request_for):
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), [1, 2, None, 9], photometric="RGB")
    with pytest.raises(Refused, match=r"label holds values without a class: '9' \(1\)"):
        cut_chips(request_for(**scene, classes={"1": "gone", "2": "there"}), quiet=True)
    summary = cut_chips(
        request_for(**scene, classes={"1": "gone", "2": "there"}, ignore_labels=("9",)), quiet=True
    )
    assert summary.classes == {"gone": 1, "there": 1}
    assert summary.statuses == {"ok": 2, "no_label": 1, "ignored_label": 1}


def test_blank_imagery_gives_no_chip(small_scene, request_for):
    mask = np.full((80, 300), 255, np.uint8)
    mask[:, 80:] = 0  # the second footprint's window lies on it
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["a", "b"], mask=mask, photometric="RGB")
    summary = cut_chips(request_for(**scene), quiet=True)
    assert summary.statuses == {"ok": 1, "no_data": 1}
    assert summary.classes == {"a": 1, "b": 0}
    every = cut_chips(request_for(**scene, min_valid=0.0, overwrite=True), quiet=True)
    assert every.statuses == {"ok": 1, "no_data": 1}  # nothing of the footprint itself is to be seen
    every = cut_chips(request_for(**scene, min_valid=0.0, min_covered=0.0, overwrite=True), quiet=True)
    assert every.statuses == {"ok": 2}


def test_a_footprint_that_lies_on_a_hole_gives_no_chip_as_in_a_run(small_scene, request_for):
    mask = np.full((80, 300), 255, np.uint8)
    mask[28:52, 28:52] = 0  # the first footprint, 16 pixels a side, in the middle of a window of 40
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["a", "b"], mask=mask, photometric="RGB")
    summary = cut_chips(request_for(**scene), quiet=True)
    assert summary.statuses == {"ok": 1, "no_data": 1}
    assert summary.classes == {"a": 0, "b": 1}


def test_chips_know_which_way_they_lie(small_scene, request_for):
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["a", "b"], photometric="RGB")
    cut_chips(request_for(**scene), quiet=True)
    # Grid north of UTM, 1.6 degrees west of the zone's middle.
    np.testing.assert_allclose(read_chips([request_for().out]).bearing, -0.95, atol=0.05)
    (path,) = scene["imagery"]
    with rasterio.open(path, "r+") as image:
        turned = Affine.translation(40, 40) * Affine.rotation(45) * Affine.translation(-40, -40)
        image.transform = image.transform * turned
    cut_chips(request_for(**scene, overwrite=True), quiet=True)
    bearing = read_chips([request_for().out]).bearing
    np.testing.assert_allclose((bearing + 0.95) % 90, 45, atol=0.05)


def test_sixteen_bits_need_a_value_range(small_scene, request_for):
    pixels = np.stack([np.full((80, 300), value, np.uint16) for value in (100, 600, 1100, 5000)])
    scene = small_scene(pixels, ["a"], photometric="MINISBLACK")
    with pytest.raises(ContractError, match="--value-range LOW HIGH"):
        cut_chips(request_for(**scene), quiet=True)
    summary = cut_chips(request_for(**scene, value_range=(100.0, 1100.0), bands=(4, 2, 1)), quiet=True)
    assert summary.contract.bands == ("band_4", "band_2", "band_1")
    assert summary.contract.dtype == "uint16"
    chip = read_chips([request_for().out]).read(np.array([0]))[0]
    np.testing.assert_array_equal(chip[32, 32], [255, 128, 0])


def test_a_broken_file_in_a_folder_is_passed_over(town, request_for, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a_broken.tif").write_bytes(b"II*\0 nothing")
    (folder / "west.tif").write_bytes((town.imagery / "west.tif").read_bytes())
    summary = cut_chips(request_for(imagery=(folder,), where="district = 'west'"), quiet=True)
    assert [path for path, _ in summary.skipped_images] == [str(folder / "a_broken.tif")]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"imagery": ("nothing.tif",)}, ImageryError, "nothing.tif"),
        ({"footprints": "nothing.gpkg"}, FootprintsError, "nothing.gpkg"),
        ({"label_field": "damage"}, FootprintsError, "damage"),
        ({"label_field": "built"}, Refused, "say what they mean: --classes"),
        ({"bands": (1, 2, 7)}, ContractError, "--bands says 1, 2, 7"),
        ({"bands": (9,)}, ContractError, r"has 3 bands \(red, green, blue\), --bands says 9"),
        ({"where": "district = 'north'"}, Refused, "no footprint gives a chip"),
        ({"coarsest_gsd_metres": 0.1}, ContractError, "0.1 m or finer"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_written(
    request_for, tmp_path, changes, error, text
):
    for name in ("imagery", "footprints"):
        if name in changes:
            value = changes[name]
            changes[name] = tmp_path / value if isinstance(value, str) else tuple(tmp_path / v for v in value)
    with pytest.raises(error, match=text) as refusal:
        cut_chips(request_for(**changes), quiet=True)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_existing_chips_are_kept(request_for):
    cut_chips(request_for(where="district = 'west'"), quiet=True)
    with pytest.raises(OutputError, match="--overwrite"):
        cut_chips(request_for(), quiet=True)


def test_the_command_says_what_it_did(town, tmp_path):
    out = tmp_path / "chips"
    arguments = ["--imagery", town.imagery, "--footprints", town.footprints, "--label-field", LABEL_FIELD]
    arguments += [
        "--out",
        out,
        "--chip-pixels",
        32,
        "--classes",
        "damaged=bad,no_visible_damage=good",
        "--quiet",
    ]
    result = CliRunner().invoke(chips_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "chips of 32 pixels, 32 m (fixed), red, green, blue" in result.output
    assert read_chips([out]).classes == ("bad", "good")
    wrong = CliRunner().invoke(chips_command, [*map(str, arguments), "--bands", "red"])
    assert wrong.exit_code == 2
    assert "wanted numbers" in wrong.output


def test_a_stated_coarsest_pixel_decides_which_images_count(town, request_for):
    summary = cut_chips(request_for(coarsest_gsd_metres=0.31), quiet=True)
    assert summary.contract.coarsest_gsd_metres == 0.31
    assert summary.statuses["too_coarse"] > 5  # the eastern image has pixels of 0.33 m


def test_classes_without_chips_are_told_of(small_scene, request_for):
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["1", "2", "1"], photometric="RGB")
    classes = {"1": "gone", "2": "there", "3": "hurt"}
    few = cut_chips(request_for(**scene, classes=classes), quiet=True)
    assert few.warnings == ("no chip is hurt: label some, or leave the class out",)
    assert "warning: no chip is hurt" in few.describe()
    options = {"classes": classes, "ignore_labels": ("2",), "overwrite": True}
    one = cut_chips(request_for(**scene, **options), quiet=True)
    assert one.warnings == ("all chips are gone: nothing can be trained on one class",)


def test_pairs_become_one_set(town, request_for, tmp_path):
    whole = cut_chips(request_for(out=tmp_path / "whole"), quiet=True)
    table = tmp_path / "pairs.csv"
    rows = [
        "imagery,footprints,where,event,place",
        *(f"{town.imagery},{town.footprints},district = '{name}',storm,{name}" for name in ("west", "east")),
    ]
    table.write_text("\n".join(rows) + "\n")
    pairs = read_pairs(table, label_field=LABEL_FIELD)
    both = cut_chips(ChipsRequest(pairs=pairs, out=tmp_path / "both", chip_pixels=64), quiet=True)
    assert both.classes == whole.classes
    assert both.contract == whole.contract
    one, other = read_chips([tmp_path / "whole"]), read_chips([tmp_path / "both"])
    assert set(other.event) == {"storm"}
    assert set(other.place) == {"west", "east"}
    order = [{fid: row for row, fid in enumerate(c.source_fid.tolist())} for c in (one, other)]
    assert order[0].keys() == order[1].keys()
    rows_of = [np.array([places[fid] for fid in sorted(places)]) for places in order]
    np.testing.assert_array_equal(one.read(rows_of[0]), other.read(rows_of[1]))


def test_an_image_counts_only_for_its_own_pair(town, request_for, tmp_path):
    west, east = town.imagery / "west.tif", town.imagery / "east.tif"
    table = tmp_path / "pairs.csv"
    table.write_text(
        "imagery,footprints,label_field,where\n"
        f"{west};{east},{town.footprints},{LABEL_FIELD},district = 'west'\n"
        f"{west},{town.footprints},{LABEL_FIELD},district = 'east'\n"
    )
    summary = cut_chips(ChipsRequest(pairs=read_pairs(table), out=tmp_path / "chips"), quiet=True)
    assert summary.statuses["outside_imagery"] > 5
    assert set(read_chips([tmp_path / "chips"]).image) == {str(west)}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("imagery,prints\n", "has the columns imagery, prints; wanted imagery, footprints"),
        ("imagery,footprints\n", "has no rows"),
        ("imagery,footprints\na.tif,\n", "line 2: footprints is empty"),
        ("imagery,footprints\na.tif,b.gpkg\n", "line 2: label_field is empty; fill it in"),
    ],
)
def test_bad_tables_of_pairs_are_refused(tmp_path, text, error):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(Refused, match=error):
        read_pairs(path)
    with pytest.raises(Refused, match="cannot be read as a CSV file"):
        read_pairs(tmp_path / "nothing.csv")


def test_a_buffer_is_ground_around_the_footprint(small_scene, request_for):
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["a", "b"], photometric="RGB")
    scene["ground_metres"] = 1.0
    request = request_for(**scene, window="footprint", context=1.0, buffer_metres=3.0)
    assert cut_chips(request, quiet=True).contract.buffer_metres == 3.0
    np.testing.assert_allclose(
        read_chips([request.out]).ground_metres, 8 * 1.0004 + 6, atol=0.01
    )  # UTM's scale
    with pytest.raises(Refused, match="needs --window footprint"):
        request_for(**scene, buffer_metres=3.0)


def test_blackened_chips_show_the_footprint_only(small_scene, request_for):
    scene = small_scene(np.full((3, 80, 300), 90, np.uint8), ["a", "b"], photometric="RGB")
    summary = cut_chips(request_for(**scene, blacken=True), quiet=True)
    assert "black outside of the footprint" in summary.describe()
    found = read_chips([request_for().out])
    assert found.contract.blacken
    chips = found.read(np.arange(2))
    share = (chips > 0).mean()
    assert share == pytest.approx((8 / 20) ** 2, abs=0.01)
    assert set(np.unique(chips)) == {0, 90}
    assert (chips[:, 32, 32] == 90).all()


def test_esri_metadata_fills_in_what_is_not_said(town, tmp_path):
    model = tmp_path / "model.emd"
    classes = [{"Value": "damaged", "Name": "Damaged"}, {"Value": "no_visible_damage", "Name": "Fine"}]
    facts = {"ModelType": "ObjectClassification", "ImageHeight": 48, "ImageWidth": 48, "Classes": classes}
    facts |= {"ExtractBands": [2, 1, 0], "BlackenAroundFeature": 1, "CropSizeFixed": 0}
    model.write_text(json.dumps(facts))
    arguments = ["--imagery", town.imagery, "--footprints", town.footprints, "--label-field", LABEL_FIELD]
    arguments += ["--emd", model, "-q", "--overwrite", "--out", tmp_path / "chips"]
    CliRunner().invoke(chips_command, list(map(str, arguments)), catch_exceptions=False)
    contract = read_chips([tmp_path / "chips"]).contract
    assert (contract.chip_pixels, contract.window_mode, contract.blacken) == (48, "footprint", True)
    assert contract.bands == ("blue", "green", "red")
    assert read_chips([tmp_path / "chips"]).classes == ("Damaged", "Fine")
    assert contract.context_factor == 1.0  # the rectangle around the feature, as Esri's tool cuts it
    wider = [*arguments, "--context", 1.2]
    CliRunner().invoke(chips_command, list(map(str, wider)), catch_exceptions=False)
    assert read_chips([tmp_path / "chips"]).contract.context_factor == 1.2
    said = [*arguments, "--no-blacken", "--chip-pixels", 32]
    CliRunner().invoke(chips_command, list(map(str, said)), catch_exceptions=False)
    contract = read_chips([tmp_path / "chips"]).contract
    assert (contract.chip_pixels, contract.blacken) == (32, False)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--imagery", "a.tif"], "wanted --imagery, --footprints and --label-field, or --pairs FILE"),
        (["--pairs", "p.csv", "--imagery", "a.tif", "--event", "x"], "leave out --imagery, --event"),
    ],
)
def test_what_to_cut_must_be_clear(tmp_path, arguments, error):
    with pytest.raises(Refused, match=error):
        CliRunner().invoke(chips_command, [*arguments, "--out", str(tmp_path / "c")], catch_exceptions=False)


def test_the_layout_for_others_takes_pictures_only(small_scene, request_for):
    pixels = np.stack([np.full((80, 300), value, np.uint8) for value in (10, 60, 110, 200)])
    scene = small_scene(pixels, ["a", "b"], photometric="MINISBLACK")
    with pytest.raises(Refused, match="holds pictures of 1 or 3 bands, the chips have 4"):
        cut_chips(request_for(**scene, layout="esri"), quiet=True)


def test_joplin_in_three_pairs(shared_data, tmp_path):
    joplin = shared_data / "joplin"
    with (joplin / "truth.csv").open(newline="") as stream:
        truth = {int(row["footprint"]): row for row in csv.DictReader(stream)}
    labelled = tmp_path / "labelled.gpkg"
    schema = {"geometry": "Polygon", "properties": {"label": "str", "tile": "str"}}
    with (
        fiona.open(joplin / "footprints" / "joplin.geojson") as source,
        fiona.open(labelled, "w", driver="GPKG", crs="EPSG:4326", schema=schema) as sink,
    ):
        sink.writerecords(
            {"geometry": row.geometry, "properties": {key: truth[k][key] for key in ("label", "tile")}}
            for k, row in enumerate(source)
            if k in truth
        )
    tiles = sorted({row["tile"] for row in truth.values()})
    table = tmp_path / "pairs.csv"
    rows = [f"{joplin}/post/{tile}.tif,labelled.gpkg,tile = '{tile}',{tile},tornado" for tile in tiles]
    table.write_text("\n".join(["imagery,footprints,where,place,event", *rows]) + "\n")
    arguments = ["--pairs", table, "--label-field", "label", "--out", tmp_path / "chips", "--chip-pixels", 32]
    arguments += ["--ignore-label", "disputed", "--ignore-label", "unclear", "-q"]
    CliRunner().invoke(chips_command, list(map(str, arguments)), catch_exceptions=False)
    found = read_chips([tmp_path / "chips"])
    assert found.counts() == {"damaged": 79, "destroyed": 150, "no_visible_damage": 34}
    wanted = Counter(row["tile"] for row in truth.values() if row["label"] in found.classes)
    assert Counter(found.place) == wanted
    for tile in tiles:
        split = split_chips(found, SplitOptions(test_areas=(tile,)))
        np.testing.assert_array_equal(split.test, np.flatnonzero(found.place == tile))
        assert len(split.training) > 2 * len(split.validation)
