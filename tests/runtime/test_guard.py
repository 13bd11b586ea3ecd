"""A run is resumed as the same run, or refused with every difference named."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import affine
import fiona
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
import shapely.geometry
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from edge_infer.bundle import write_bundle
from edge_infer.classify import classify
from edge_infer.cli import main
from edge_infer.errors import OutputError
from edge_infer.fingerprint import SAMPLE_BYTES, fingerprint, vector_files
from edge_infer.footprints import read_footprints
from edge_infer.guard import begun
from edge_infer.lock import sole_run
from edge_infer.output import create_output
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.manifest import Manifest
    from edge_infer.summary import RunSummary

WEST, NORTH = 360_000.0, 4_100_000.0


def write_image(path: Path, *, level: int = 200, place: int = 0, **profile: Any) -> Path:
    """100 m of one grey level, `place` times 100 m further east."""
    settings = {
        "driver": "GTiff", "width": 200, "height": 200, "count": 3, "dtype": "uint8", "crs": "EPSG:32615",
        "transform": from_origin(WEST + 100 * place, NORTH, 0.5, 0.5), "photometric": "RGB",
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, "w", **(settings | profile)) as dataset:
        dataset.write(np.full((3, 200, 200), level, np.uint8))
    return path


def write_houses(path: Path, *, driver: str = "GPKG", shift: float = 0.0, name: str = "house") -> Path:
    schema = {"geometry": "Polygon", "properties": {"name": "str"}}
    with fiona.open(path, "w", driver=driver, crs="EPSG:32615", schema=schema) as sink:
        for x in (20, 50, 150):
            house = shapely.box(WEST + x + shift, NORTH - 50, WEST + x + shift + 9, NORTH - 41)
            sink.write({"geometry": shapely.geometry.mapping(house), "properties": {"name": name}})
    return path


@pytest.fixture
def job(tmp_path: Path, make_bundle: Callable[..., Path]) -> RunRequest:
    """A run of two images and three houses, done."""
    write_image(tmp_path / "images" / "a.tif")
    write_image(tmp_path / "images" / "b.tif", level=90, place=1)
    request = RunRequest(
        bundle=make_bundle(),
        imagery=(tmp_path / "images",),
        footprints=write_houses(tmp_path / "houses.gpkg"),
        out=tmp_path / "out.gpkg",
    )
    assert done(request).counts.statuses == {"ok": 3}
    return request


def done(request: RunRequest, **changes: Any) -> RunSummary:
    return classify(replace(request, **changes), quiet=True)


def refusal(request: RunRequest, **changes: Any) -> str:
    """Try to resume; return what was said, in one line, after a look that nothing was changed."""
    before = {path.name: path.read_bytes() for path in request.out.parent.iterdir() if path.is_file()}
    with pytest.raises(OutputError) as caught:
        done(request, resume=True, **changes)
    after = {path.name: path.read_bytes() for path in request.out.parent.iterdir() if path.is_file()}
    assert after == before
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def last_run(out: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(out)) as database:
        database.row_factory = sqlite3.Row
        return dict(database.execute("SELECT * FROM edge_runs ORDER BY run_id DESC LIMIT 1").fetchone())


# ---- what is the same


def test_the_same_run_is_resumed(job: RunRequest) -> None:
    summary = done(job, resume=True, batch=1, threads=1)
    assert (summary.exit_code, summary.classified_now, summary.overridden) == (0, 0, ())


def test_copies_are_the_same(job: RunRequest, tmp_path: Path) -> None:
    """A copied disk: new times everywhere, the footprints in another place under another name."""
    assert job.footprints is not None
    for path in (*job.imagery[0].iterdir(), job.bundle):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(job.footprints, elsewhere / "copy.gpkg")
    shutil.move(job.bundle, elsewhere / "model.edgemodel")
    summary = done(job, resume=True, footprints=elsewhere / "copy.gpkg", bundle=elsewhere / "model.edgemodel")
    assert summary.overridden == ()


def test_the_images_named_one_by_one_are_those_of_the_folder(job: RunRequest) -> None:
    images = sorted(job.imagery[0].iterdir())
    assert done(job, resume=True, imagery=tuple(images)).overridden == ()


def test_a_look_at_the_footprints_in_a_gis_changes_nothing(job: RunRequest) -> None:
    assert job.footprints is not None
    before = job.footprints.read_bytes()
    for mode in ("wal", "delete"):  # QGIS opens a GeoPackage so, and leaves it so
        with closing(sqlite3.connect(job.footprints)) as database:
            database.execute(f"PRAGMA journal_mode = {mode}")
    assert job.footprints.read_bytes() != before
    assert done(job, resume=True).overridden == ()


def test_a_style_saved_in_the_source_is_the_same(job: RunRequest) -> None:
    assert job.footprints is not None
    with closing(sqlite3.connect(job.footprints)) as database, database:
        database.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, styleQML TEXT)")
        database.execute("INSERT INTO layer_styles (styleQML) VALUES ('red')")
    assert done(job, resume=True).overridden == ()


def test_an_option_that_says_what_is_so_anyway_is_the_same(job: RunRequest) -> None:
    said = {"layer": "houses", "imagery_crs": "EPSG:32615", "precision": "fp32"}
    assert done(job, resume=True, **said).overridden == ()


def test_what_others_put_into_a_folder_of_footprints_is_none(job: RunRequest, tmp_path: Path) -> None:
    folder = tmp_path / "town"
    folder.mkdir()
    write_houses(folder / "houses.shp", driver="ESRI Shapefile")
    inside: dict[str, Any] = {"footprints": folder, "out": folder / "out.gpkg"}
    done(job, **inside)
    (folder / "houses.qpj").write_text("QGIS")
    assert done(job, resume=True, **inside).overridden == ()
    write_houses(folder / "houses.shp", driver="ESRI Shapefile", name="edited")
    assert "have other content" in refusal(replace(job, **inside))


def test_an_image_that_nothing_stands_on_may_be_replaced(job: RunRequest) -> None:
    """A torn tile that was copied again."""
    b = job.imagery[0] / "b.tif"
    whole = b.read_bytes()
    b.write_bytes(whole[:-60_000])
    torn = done(job, overwrite=True)
    assert (torn.exit_code, torn.counts.statuses) == (3, {"ok": 2, "read_error": 1})
    b.write_bytes(whole)
    mended = done(job, resume=True)
    assert (mended.counts.statuses, mended.classified_now) == ({"ok": 3}, 1)


# ---- what is not


@pytest.mark.parametrize("suffix", [".tfw", ".msk"])
def test_a_side_file_that_moves_or_masks_an_image(job: RunRequest, suffix: str) -> None:
    b = job.imagery[0] / "b.tif"
    with pytest.warns(NotGeoreferencedWarning):
        write_image(b, level=90, place=1, transform=None)
    place = from_origin(WEST + 100, NORTH, 0.5, 0.5)
    side = b.with_suffix(".tfw")
    side.write_text(affine.dumpsw(place))
    done(job, overwrite=True)
    assert done(job, resume=True).overridden == ()
    if suffix == ".tfw":
        side.write_text(affine.dumpsw(place * place.translation(1, 0)))
    else:
        with rasterio.open(
            f"{b}.msk", "w", driver="GTiff", width=200, height=200, count=1, dtype="uint8", transform=place
        ) as mask:
            mask.write(np.full((1, 200, 200), 255, np.uint8))
    assert f"image {b} has other content" in refusal(job)


EDITS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
    database.create_function(name, 1, lambda _: 1)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA wal_autocheckpoint = 0")
for name in ("edited", "house"):
    database.execute("UPDATE houses SET name = ? WHERE fid = 2", (name,))
    print(name, flush=True)
    sys.stdin.readline()
"""


def test_edits_that_are_still_in_the_log(job: RunRequest) -> None:
    """Another program, QGIS say, has the footprints open."""
    assert job.footprints is not None
    with subprocess.Popen(
        [sys.executable, "-c", EDITS, str(job.footprints)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as editor:
        assert editor.stdin is not None
        assert editor.stdout is not None
        assert editor.stdout.readline() == "edited\n"
        before = job.footprints.read_bytes()
        with pytest.raises(OutputError, match="have other content"):
            done(job, resume=True)
        editor.stdin.write("\n")
        editor.stdin.flush()
        assert editor.stdout.readline() == "house\n"
        assert done(job, resume=True).overridden == ()
        assert job.footprints.read_bytes() == before
        editor.communicate("\n", timeout=20)


def test_what_a_virtual_source_points_to(job: RunRequest, tmp_path: Path) -> None:
    source, table = tmp_path / "houses.vrt", tmp_path / "houses.csv"
    square = f"POLYGON (({WEST + 20} {NORTH - 50}, {WEST + 29} {NORTH - 50}, {WEST + 29} {NORTH - 41}, "
    table.write_text(f'id,place\n1,"{square}{WEST + 20} {NORTH - 50}))"\n')
    source.write_text(
        '<OGRVRTDataSource><OGRVRTLayer name="houses">'
        '<SrcDataSource relativeToVRT="1">houses.csv</SrcDataSource>'
        '<LayerSRS>EPSG:32615</LayerSRS><GeometryField encoding="WKT" field="place"/></OGRVRTLayer>'
        "</OGRVRTDataSource>"
    )
    done(job, footprints=source, overwrite=True)
    assert done(job, footprints=source, resume=True).overridden == ()
    table.with_suffix(".csvt").write_text('"Real","String"\n')
    assert "have other content" in refusal(job, footprints=source)
    table.with_suffix(".csvt").unlink()
    table.write_text(table.read_text().replace("1,", "2,", 1))
    assert "have other content" in refusal(job, footprints=source)


@pytest.mark.parametrize("sql", ["DELETE FROM houses WHERE fid = 3", "INSERT INTO houses (fid) VALUES (4)"])
def test_a_last_row_that_was_lost_or_gained_is_refused_for_good(job: RunRequest, sql: str) -> None:
    with closing(sqlite3.connect(job.out)) as database, database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 1)
        database.execute(sql)
    for option in ("resume", "force_resume"):
        with pytest.raises(
            OutputError, match=r"had 3 footprints when its run began and has [24]; bring back"
        ):
            done(job, **{option: True})


def test_an_image_that_was_skipped_and_is_mended(job: RunRequest) -> None:
    b = job.imagery[0] / "b.tif"
    whole = b.read_bytes()
    b.write_bytes(whole[:100])
    assert done(job, overwrite=True).counts.statuses == {"ok": 2, "outside_imagery": 1}
    with fiona.open(job.out) as rows:
        assert [row.properties["reason"] for row in rows] == [
            None, None, "no image that can be used lies under its centre, 1 could not be",
        ]  # fmt: skip
    b.write_bytes(whole)
    assert f"image {b} is new, as it could not be used then" in refusal(job)
    mended = done(job, force_resume=True)
    assert (mended.counts.statuses, mended.classified_now) == ({"ok": 3}, 1)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM edge_images",
        "UPDATE edge_runs SET options = '{'",
        "UPDATE edge_runs SET footprints = '{}'",
        "UPDATE edge_runs SET images = '3'",
    ],
)
def test_a_record_that_was_edited(job: RunRequest, sql: str) -> None:
    with closing(sqlite3.connect(job.out)) as database, database:
        database.execute(sql)
    assert "its record of runs was edited (" in refusal(job)


def test_every_difference_is_named_at_once(
    job: RunRequest, tmp_path: Path, make_bundle: Callable[..., Path], make_manifest: Callable[..., Manifest]
) -> None:
    assert job.footprints is not None
    a, b = sorted(job.imagery[0].iterdir())
    a.unlink()
    write_image(b, level=91, place=1)
    write_image(b.with_name("c.tif"), place=2)
    write_houses(job.footprints, name="edited")
    make_bundle(replace(make_manifest().contract, ground_metres=13, chip_pixels=16))
    said = refusal(job, min_valid=0.25, min_covered=0.75, where="fid < 3", bands=(3, 2, 1))
    for part in (
        "--min-valid was 0.5 and is 0.25",
        "--min-covered was 0.5 and is 0.75",
        "--where was not given and is fid < 3",
        "--bands was not given and is 3,2,1",
        "the model was brightness with other content (sha256 ",
        f"image {a} is gone",
        f"image {b.with_name('c.tif')} is new",
        f"image {b} has other content",
        f"the footprints {job.footprints} have other content than when the run began",
        "--force-resume",
        "--overwrite",
    ):
        assert part in said


@pytest.mark.parametrize("driver", ["GPKG", "GeoJSON", "ESRI Shapefile"])
@pytest.mark.parametrize("change", [{"shift": 0.001}, {"name": "edited"}])
def test_edited_footprints(job: RunRequest, tmp_path: Path, driver: str, change: dict[str, Any]) -> None:
    """In a shapefile the geometries and the names lie in different files."""
    suffix = {"GPKG": "gpkg", "GeoJSON": "json", "ESRI Shapefile": "shp"}[driver]
    source = write_houses(tmp_path / f"source.{suffix}", driver=driver)
    done(job, footprints=source, overwrite=True)
    assert done(job, footprints=source, resume=True).overridden == ()
    for part in tmp_path.glob("source.*"):
        part.unlink()
    write_houses(source, driver=driver, **change)
    assert f"the footprints {source} have other content" in refusal(job, footprints=source)


def test_footprints_that_are_gone_or_never_were(job: RunRequest) -> None:
    assert job.footprints is not None
    assert f"the footprints were {job.footprints} and are the images" in refusal(job, footprints=None)
    job.footprints.unlink()
    assert f"the footprints {job.footprints} cannot be read to be compared" in refusal(job)


def test_a_geometry_edited_in_the_output(job: RunRequest) -> None:
    with closing(sqlite3.connect(job.out)) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute("UPDATE houses SET geom = (SELECT geom FROM houses WHERE fid = 1) WHERE fid = 2")
        database.execute("UPDATE houses SET name = 'a name may be mended'")
        database.commit()
    assert "the geometries in the output were edited after the run began" in refusal(job)


def test_images_that_moved(job: RunRequest, tmp_path: Path) -> None:
    job.imagery[0].rename(tmp_path / "other disk")
    said = refusal(job, imagery=(tmp_path / "other disk",))
    assert (
        f"2 images moved from {tmp_path / 'images'} to {tmp_path / 'other disk'}, with the same names and"
        " contents"
    ) in said
    assert "is gone" not in said


def test_images_in_another_order(job: RunRequest) -> None:
    images = sorted(job.imagery[0].iterdir(), reverse=True)
    assert "the images come in another order" in refusal(job, imagery=tuple(images))


def test_many_images_are_counted(job: RunRequest) -> None:
    for number in range(7):
        write_image(job.imagery[0] / f"new{number}.tif", place=number)
    said = refusal(job)
    assert said.count("is new") == 5
    assert "2 images more likewise" in said


def test_a_source_of_a_mosaic(job: RunRequest, tmp_path: Path) -> None:
    mosaic = tmp_path / "mosaic.vrt"
    rasterio.shutil.copy(job.imagery[0] / "a.tif", mosaic, driver="VRT")
    done(job, imagery=(mosaic,), overwrite=True)
    assert done(job, imagery=(mosaic,), resume=True).overridden == ()
    write_image(job.imagery[0] / "a.tif", level=201)
    assert f"image {mosaic} has other content" in refusal(job, imagery=(mosaic,))


def test_another_precision(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(job.out)) as database:
        database.execute("UPDATE edge_runs SET precision = 'int8'")
        database.commit()
    assert done(job, resume=True).engine is None  # nothing is left that it could be told by
    assert "the engine ran in int8 and runs in fp32" in refusal(job, precision="fp32")
    assert done(job, force_resume=True, precision="fp32").overridden == (
        "the engine ran in int8 and runs in fp32 (--precision chooses)",
    )


# ---- whose output it is


def test_what_is_there_is_looked_at_under_the_lock(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another run may make the output between the look and the lock, and this one replace it."""
    looked = []

    def look(out: Path) -> bool:
        with pytest.raises(OutputError, match="another run is writing"), sole_run(out):
            pass
        looked.append(out)
        return begun(out)

    monkeypatch.setattr("edge_infer.classify.begun", look)
    done(job, resume=True)
    assert looked == [job.out]


def test_an_output_behind_a_link(job: RunRequest, tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real.gpkg", tmp_path / "link.gpkg"
    real.parent.mkdir()
    link.symlink_to(real)
    done(job, out=link)
    before = real.stat().st_ino
    with sole_run(real), pytest.raises(OutputError, match="another run is writing"):
        done(job, out=link, resume=True)
    done(job, out=link, overwrite=True)
    assert link.is_symlink()
    assert real.stat().st_ino != before
    assert done(job, out=link, resume=True).classified_now == 0
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_the_outlines_of_images_need_no_other_place(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(job.out / "none"))
    out = job.out.with_name("images.gpkg")
    assert done(job, footprints=None, out=out).counts.statuses == {"ok": 2}
    assert [path.name for path in out.parent.glob("images.gpkg*")] == [out.name]


def test_nobody_listens(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        *("run", "--model", str(job.bundle), "--imagery", str(job.imagery[0]), "--out", str(job.out)),
        *("--footprints", str(job.footprints)),
    ]
    for options, code in ((("--overwrite",), 0), (("--min-valid", "0.4", "--resume"), 2)):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr("sys.stdout", full)
            monkeypatch.setattr("sys.stderr", full)
            with pytest.raises(SystemExit) as ended:
                main([*command, *options])
        assert ended.value.code == code
    assert last_run(job.out)["ended"]


# ---- in spite of it


def test_a_difference_can_be_overridden_and_is_on_record(
    job: RunRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(job.out)) as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute("UPDATE houses SET status = 'pending' WHERE fid = 1")
        database.commit()
    b = write_image(job.imagery[0] / "b.tif", level=91, place=1)
    command = [
        *("run", "--model", str(job.bundle), "--imagery", str(job.imagery[0]), "--out", str(job.out)),
        *("--footprints", str(job.footprints), "--min-valid", "0.4", "-q", "--force-resume"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0
    told = capsys.readouterr()
    differences = ["--min-valid was 0.5 and is 0.4", f"image {b} has other content"]
    facts = json.loads(told.out)
    assert (facts["overridden"], facts["classified_now"]) == (differences, 1)
    assert told.err.splitlines() == [f"resumed in spite of this: {difference}" for difference in differences]
    assert json.loads(last_run(job.out)["overridden"]) == differences

    # It is now this run that the next is compared with.
    assert done(job, resume=True, min_valid=0.4).overridden == ()
    assert "--min-valid was 0.4 and is 0.5" in refusal(job)
    text = done(job, force_resume=True).describe()
    assert "resumed in spite of this: --min-valid was 0.4 and is 0.5" in text


def test_force_resume_begins_where_there_is_nothing_yet(job: RunRequest, tmp_path: Path) -> None:
    summary = done(job, out=tmp_path / "new.gpkg", force_resume=True)
    assert (summary.classified_now, summary.overridden) == (3, ())


def test_other_classes_have_no_columns(job: RunRequest, make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest()
    write_bundle(job.bundle, manifest, {"model.onnx": b"never looked into"})
    before = job.out.read_bytes()
    for option in ("resume", "force_resume"):
        with pytest.raises(
            OutputError, match="has columns for the classes dark, bright, the model has no vis"
        ):
            done(job, **{option: True})
    assert job.out.read_bytes() == before


def test_an_output_of_an_earlier_version(job: RunRequest) -> None:
    with closing(sqlite3.connect(job.out)) as database:
        schema = json.loads(database.execute("SELECT schema FROM edge_schema").fetchone()[0])
        del schema["columns"]["reason"]
        database.execute("UPDATE edge_schema SET schema = ?", (json.dumps(schema),))
        database.commit()
    assert "lacks the columns reason; an earlier version made it" in refusal(job)


def test_a_copy_that_no_run_has_begun_with_is_made_anew(job: RunRequest, tmp_path: Path) -> None:
    """A power cut between the copy and the first record: whose footprints these are, nothing says."""
    other = write_houses(tmp_path / "other.geojson", driver="GeoJSON")
    create_output(
        job.out, other, read_footprints(other),
        class_names=("dark", "bright"), class_colors=("#000000", "#ffffff"), overwrite=True,
    )  # fmt: skip
    assert done(job, resume=True).classified_now == 3
    with fiona.open(job.out) as rows:
        assert rows.name == "houses"


# ---- fingerprints


def test_a_fingerprint_sees_the_size_the_start_the_middle_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    content = bytearray(np.random.default_rng(0).bytes(10 * SAMPLE_BYTES))
    path.write_bytes(content)
    first = fingerprint([path])
    assert first is not None
    assert first.size_bytes == len(content)
    marks = {first.content}
    for place in (0, len(content) // 2, len(content) - 1):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        mark = fingerprint([path])
        assert mark is not None
        marks.add(mark.content)
    path.write_bytes(content + b"\0")
    longer = fingerprint([path])
    assert longer is not None
    assert len(marks | {longer.content}) == 5
    path.write_bytes(content)
    assert fingerprint([path.rename(tmp_path / "copy.TIF")]) == first
    assert fingerprint([path]) is None


def test_the_parts_of_a_shapefile_in_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_houses(tmp_path / "houses.shp", driver="ESRI Shapefile")

    def fail(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "iterdir", fail)
    monkeypatch.setattr(os, "scandir", fail)
    names = {path.name for path in vector_files(source)}
    assert names == {f"houses{suffix}" for suffix in (".shp", ".shx", ".dbf", ".prj", ".cpg")}
