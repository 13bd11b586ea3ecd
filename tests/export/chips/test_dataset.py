from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import fiona
import numpy as np
import pyarrow.parquet
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_infer.errors import OutputError, Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.table import ChipRecord
from edge_infer_export.chips.writer import ChipWriter, OwnLayout, refuse_folder
from edge_infer_export.importing.esri import EsriLayout
from edge_infer_export.importing.imagenet import ImagenetLayout

CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=8, bands=("red", "green", "blue"), coarsest_gsd_metres=0.4
)
CLASSES = ("damaged", "intact")


def record(fid, label="damaged"):
    return ChipRecord(
        id=fid,
        source_fid=100 + fid,
        label=label,
        image="town.tif",
        source="town.gpkg",
        place="west",
        event=f"storm {fid % 2}",
        gsd_metres=0.3,
        ground_metres=20.0,
        valid_fraction=0.75,
        longitude=-117.0 + fid / 1000,
        latitude=34.5,
        bearing=12.5,
    )


def write(folder, chips, labels, *, contract=CONTRACT, classes=CLASSES, **options):
    with ChipWriter(folder, **options) as writer:
        for place, (chip, label) in enumerate(zip(chips, labels, strict=True)):
            writer.add(chip, record(place + 1, label))
        writer.finish(contract, classes, statuses={"ok": len(labels)}, options={"layer": None})
    return folder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)
@given(
    bands=st.integers(1, 16),
    seed=st.integers(0, 99),
    picture=st.sampled_from(["png", "tiff"]),
    table=st.sampled_from(["gpkg", "parquet"]),
)
def test_what_is_written_is_read(tmp_path, bands, seed, picture, table):
    chips = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, bands), dtype=np.uint8)
    contract = replace(CONTRACT, bands=tuple(f"band_{k}" for k in range(bands)))
    labels = ["intact", "damaged", "intact"]
    how = {"picture": picture, "layout": OwnLayout(table), "overwrite": True}
    found = read_chips([write(tmp_path / "chips", chips, labels, contract=contract, **how)])
    np.testing.assert_array_equal(found.read(np.array([2, 0, 2])), chips[[2, 0, 2]])
    assert found.read(np.arange(0)).shape == (0, 8, 8, bands)
    assert found.targets.tolist() == [1, 0, 1]
    assert found.contract == contract
    assert found.ground_metres.tolist() == [20.0, 20.0, 20.0]
    assert found.gsd_metres.tolist() == [0.3, 0.3, 0.3]
    np.testing.assert_allclose(found.longitude, [-116.999, -116.998, -116.997])
    assert found.event.tolist() == ["storm 1", "storm 0", "storm 1"]
    assert found.place.tolist() == ["west"] * 3
    assert found.source_fid.tolist() == [101, 102, 103]
    assert found.counts() == {"damaged": 1, "intact": 2}
    assert found.counts(np.array([0, 1])) == {"damaged": 1, "intact": 1}
    assert found.warnings() == ()


def test_jpeg_chips_are_near_and_small(tmp_path):
    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    chip = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 90), axis=2).astype(np.uint8)
    contract = replace(CONTRACT, chip_pixels=64)
    folder = write(tmp_path / "chips", [chip], ["intact"], contract=contract, picture="jpeg", quality=92)
    found = read_chips([folder]).read(np.array([0]))[0]
    assert np.abs(found.astype(int) - chip).mean() < 2
    assert (folder / "chips/000000001.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert json.loads((folder / "chips.json").read_text())["picture"] == {
        "format": "jpeg",
        "jpeg_quality": 92,
    }
    with pytest.raises(Refused, match=r"JPEG quality must lie in 1\.\.95, got 96"):
        ChipWriter(tmp_path / "other", quality=96)


def test_chips_without_a_place_are_kept(tmp_path, pixels):
    for table in ("gpkg", "parquet"):
        with ChipWriter(tmp_path / table, layout=OwnLayout(table)) as writer:
            writer.add(pixels[0], replace(record(1), longitude=math.nan, latitude=math.nan))
            writer.add(pixels[1], record(2))
            writer.finish(CONTRACT, CLASSES, statuses={}, options={})
        found = read_chips([tmp_path / table])
        assert np.isnan(found.longitude).tolist() == [True, False]
        assert found.latitude[1] == 34.5


def test_index_and_pictures_are_for_others_too(tmp_path, pixels):
    labels = ["intact", "damaged", "intact", "intact"]
    folder = write(tmp_path / "chips", pixels, labels)
    with fiona.open(folder / "chips.gpkg", layer="chips") as layer:
        rows = list(layer)
        assert layer.crs.to_epsg() == 4326
    assert dict(rows[1].properties) == {
        "chip": "chips/000000002.png",
        "id": 2,
        "source": "town.gpkg",
        "source_fid": 102,
        "class": "damaged",
        "place": "west",
        "event": "storm 0",
        "image": "town.tif",
        "gsd_m": 0.3,
        "ground_m": 20.0,
        "bearing": 12.5,
        "valid_fraction": 0.75,
        "x": pytest.approx(-116.998),
        "y": 34.5,
    }
    assert rows[1].geometry.coordinates == pytest.approx((-116.998, 34.5))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "chips/000000002.png")), pixels[1])
    facts = json.loads((folder / "chips.json").read_text())
    assert facts["counts"] == {"damaged": 1, "intact": 3}
    assert facts["statuses"] == {"ok": 4}


def test_geoparquet_is_what_the_standard_says(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels[:2], ["intact", "damaged"], layout=OwnLayout("parquet"))
    assert not (folder / "chips.gpkg").exists()
    table = pyarrow.parquet.read_table(folder / "chips.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column == {"encoding": "WKB", "geometry_types": ["Point"]}  # no crs: longitude, latitude
    points = shapely.from_wkb(table.column("geometry").to_pylist())
    np.testing.assert_allclose(shapely.get_coordinates(points), [[-116.999, 34.5], [-116.998, 34.5]])


def test_several_folders_become_one_set(tmp_path, pixels):
    one = write(tmp_path / "one", pixels[:2], ["damaged", "intact"])
    coarser = replace(CONTRACT, coarsest_gsd_metres=0.7)
    other = write(
        tmp_path / "other", pixels[2:], ["damaged", "intact"], contract=coarser, classes=CLASSES[::-1]
    )
    both = read_chips([one, other])
    assert both.classes == CLASSES
    assert both.targets.tolist() == [0, 1, 0, 1]
    assert both.contract.coarsest_gsd_metres == 0.7
    np.testing.assert_array_equal(both.read(np.arange(4)), pixels)


def test_folders_that_do_not_fit_together_are_refused(tmp_path, pixels):
    one = write(tmp_path / "one", pixels[:2], ["damaged", "intact"])
    larger = write(
        tmp_path / "larger", pixels[2:], ["damaged", "intact"], contract=replace(CONTRACT, ground_metres=40)
    )
    with pytest.raises(Refused, match=r"different contracts \(ground_metres 40.0 against 20"):
        read_chips([one, larger])
    named = write(tmp_path / "named", pixels[2:], ["burnt", "intact"], classes=("burnt", "intact"))
    with pytest.raises(Refused, match=r"has the classes burnt, intact, .*one has damaged, intact"):
        read_chips([one, named])
    with pytest.raises(Refused, match="no folder of chips was named"):
        read_chips([])


def test_a_folder_is_whole_or_not_there(tmp_path, pixels):
    with ChipWriter(tmp_path / "chips") as writer:
        writer.add(pixels[0], record(1))
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_kept(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels[:1], ["intact"])
    with pytest.raises(OutputError, match="exists; name another folder or say --overwrite"):
        ChipWriter(folder)
    write(folder, pixels[1:2], ["intact"], overwrite=True)
    np.testing.assert_array_equal(read_chips([folder]).read(np.arange(1)), pixels[1:2])

    letters = tmp_path / "letters"
    letters.mkdir()
    ChipWriter(letters)  # empty: may be taken
    (letters / "from_her.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds other things \(no chips.json of ours in it\)"):
        ChipWriter(letters, overwrite=True)
    with pytest.raises(OutputError, match="is a file, wanted a folder"):
        ChipWriter(letters / "from_her.txt", overwrite=True)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        ChipWriter(letters / "from_her.txt" / "chips"),
    ):
        pass


def test_a_name_alone_makes_no_folder_ours(tmp_path, pixels):
    for layout, others in (
        (EsriLayout(CONTRACT), "map.txt"),
        (ImagenetLayout(), "chips.csv"),
        (OwnLayout(), "chips.json"),
    ):
        theirs = tmp_path / f"their {others}"
        theirs.mkdir()
        (theirs / others).write_text('{"format": 2}')
        (theirs / "thesis.txt").write_text("three years")
        with pytest.raises(OutputError, match="of ours in it"):
            ChipWriter(theirs, overwrite=True, layout=layout)

        folder = tmp_path / f"our {others}"
        write(folder, pixels[:1], ["intact"], layout=layout)
        write(folder, pixels[1:2], ["intact"], layout=layout, overwrite=True)
        assert len(list(folder.rglob("*.png"))) == 1
        (folder / "thesis.txt").write_text("three years")
        (folder / "notes").mkdir()
        with pytest.raises(
            OutputError, match=r"holds notes, thesis.txt besides chips, and --overwrite would"
        ):
            ChipWriter(folder, overwrite=True, layout=layout)
        assert (folder / "thesis.txt").read_text() == "three years"


def test_an_evaluation_never_replaces_a_training_run(tmp_path):
    refuse = partial(
        refuse_folder, tmp_path, marker="evaluation.json", keys=("model", "runs_on"), overwrite=True
    )
    (tmp_path / "evaluation.json").write_text(json.dumps({"model": "storm", "runs_on": {}}))  # by `train`
    with pytest.raises(OutputError, match=r"no evaluation\.json of ours"):
        refuse()
    (tmp_path / "evaluation.json").write_text(json.dumps({"model": "storm", "runs_on": {"engine": "a"}}))
    refuse()


def test_a_folder_counts_once(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels, ["damaged", "intact"] * 2)
    with pytest.raises(Refused, match=r"chips is named twice .*; name it once"):
        read_chips([folder, tmp_path / "chips" / "." / ".." / "chips"])


def test_tables_from_before_bearings_are_read(tmp_path, pixels):
    for form in ("gpkg", "parquet"):
        folder = write(tmp_path / form, pixels[:1], ["intact"], layout=OwnLayout(form))
        assert read_chips([folder]).bearing.tolist() == [12.5]
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "chips.parquet")
    pyarrow.parquet.write_table(table.drop_columns("bearing"), tmp_path / "parquet" / "chips.parquet")
    with sqlite3.connect(tmp_path / "gpkg" / "chips.gpkg") as base:
        for (trigger,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            base.execute(f'DROP TRIGGER "{trigger}"')  # they want functions that only GDAL has
        base.execute("ALTER TABLE chips DROP COLUMN bearing")
    base.close()
    for form in ("gpkg", "parquet"):
        assert np.isnan(read_chips([tmp_path / form]).bearing).all()


def damage_json(folder):
    (folder / "chips.json").write_text("{")


def drop_json(folder):
    (folder / "chips.json").unlink()


def future_json(folder):
    facts = json.loads((folder / "chips.json").read_text())
    (folder / "chips.json").write_text(json.dumps({**facts, "format": 99}))


def forget_a_class(folder):
    facts = json.loads((folder / "chips.json").read_text())
    (folder / "chips.json").write_text(json.dumps({**facts, "classes": ["damaged"]}))


def drop_index(folder):
    (folder / "chips.gpkg").unlink()


def damage_index(folder):
    (folder / "chips.gpkg").write_bytes(b"no database")


def break_all(folder):
    for path in (folder / "chips").iterdir():
        path.write_bytes(path.read_bytes()[:60])


def shrink_chip(folder):
    Image.new("RGB", (7, 7)).save(folder / "chips/000000001.png")


def grey_chip(folder):
    Image.new("L", (8, 8)).save(folder / "chips/000000001.png")


def drop_column(folder):
    table = pyarrow.parquet.read_table(folder / "chips.parquet").drop_columns(["event", "x"])
    pyarrow.parquet.write_table(table, folder / "chips.parquet")


def garble_index(folder):
    path = folder / "chips.gpkg"
    path.write_bytes(path.read_bytes().replace(b"town.tif", b"\xff\xfe\xfd\xfc.tif"))


def damage_parquet(folder):
    (folder / "chips.parquet").write_bytes(b"PAR1 nothing")


@pytest.mark.parametrize(
    ("table", "damage", "text"),
    [
        ("gpkg", damage_json, "incomplete or malformed"),
        ("gpkg", drop_json, "wanted a folder that `edge-infer chips` made"),
        ("gpkg", future_json, "chips format 99, wanted 2"),
        ("gpkg", forget_a_class, r"holds classes that chips.json does not name: intact \(2\)"),
        ("gpkg", drop_index, "chips.gpkg cannot be read"),
        ("gpkg", damage_index, "chips.gpkg cannot be read"),
        ("gpkg", garble_index, "chips.gpkg cannot be read"),
        ("parquet", damage_parquet, "chips.parquet cannot be read"),
        ("parquet", drop_column, "chips.parquet lacks the columns event, x"),
        ("gpkg", break_all, "no chip in .* can be read: 000000001.png: "),
        (
            "gpkg",
            shrink_chip,
            r"1 of 3 chips .*: 000000001.png: 7 x 7, 3 bands; wanted 8 x 8 pixels, 3 bands",
        ),
        ("gpkg", grey_chip, r"1 of 3 chips .*: 000000001.png: 8 x 8, 1 bands; wanted 8 x 8 pixels, 3 bands"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path, pixels, table, damage, text):
    labels = ["damaged", "intact", "intact"]
    folder = write(tmp_path / "chips", pixels[:3], labels, layout=OwnLayout(table))
    damage(folder)
    with pytest.raises(Refused, match=text) as refusal:
        read_chips([folder])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("picture", ["png", "jpeg", "tiff"])
def test_unreadable_chips_are_named_and_counted(tmp_path, pixels, picture):
    side = np.kron(pixels, np.ones((1, 4, 4, 1), np.uint8))  # large enough to be cut off in the middle
    contract = replace(CONTRACT, chip_pixels=32)
    labels = ["damaged", "intact", "intact", "damaged"]
    folder = write(tmp_path / "chips", side, labels, contract=contract, picture=picture)
    first, second, third, _ = sorted((folder / "chips").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-200])
    third.write_bytes(b"")
    found = read_chips([folder])
    assert [file for file, _ in found.unreadable] == [str(first), str(second), str(third)]
    assert len(found) == 1
    np.testing.assert_array_equal(found.targets, [0])
    assert found.source_fid.tolist() == [104]
    (warning,) = found.warnings()
    assert warning.startswith(f"3 of 4 chips are left out: {first.name}: cannot be read (No such file")
    assert all(path.name in warning for path in (first, second, third))


def test_a_chip_that_breaks_later_is_named(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels, ["damaged", "intact", "intact", "intact"])
    found = read_chips([folder])
    (folder / "chips/000000003.png").write_bytes(b"\x89PNG gone")
    with pytest.raises(Refused, match=r"000000003\.png cannot be read .*restore the file"):
        found.read(np.arange(4))
    assert found.read(np.array([0, 1])).shape == (2, 8, 8, 3)


def test_threads_read_the_same_chips(tmp_path):
    chips = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    found = read_chips([write(tmp_path / "chips", chips, ["damaged", "intact"] * 30)])
    rows = [np.random.default_rng(seed).permutation(60) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for chosen, read in zip(rows, pool.map(found.read, rows), strict=True):
            np.testing.assert_array_equal(read, chips[chosen])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_leaves_nothing(tmp_path, pixels, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("edge_infer_export.chips.writer.write_chip", refuse)
    with pytest.raises(OutputError, match=os.strerror(code)) as refusal:
        write(tmp_path / "chips", pixels, ["damaged"] * 4)
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_some_chips_of_a_set(tmp_path, pixels):
    found = read_chips([write(tmp_path / "chips", pixels, ["damaged", "intact", "intact", "damaged"])])
    some = found.take(np.array([3, 1]))
    assert some.targets.tolist() == [0, 1]
    np.testing.assert_array_equal(some.read(np.arange(2)), pixels[[3, 1]])


def test_chips_refuse_columns_that_do_not_fit(tmp_path, pixels):
    found = read_chips([write(tmp_path / "chips", pixels, ["damaged", "intact", "intact", "damaged"])])
    for bad in (
        {"latitude": np.zeros(3)},
        {"ground_metres": np.array([1, 0, 1, 1.0])},
        {"ground_metres": np.array([1, math.nan, 1, 1])},
        {"event": np.full(5, "", object)},
        {"targets": np.array([0, 1, 2, 0])},
        {"targets": np.array([0, -1, 1, 0])},
    ):
        with pytest.raises(Refused, match=next(iter(bad))):
            replace(found, **bad)
