"""The whole run, held against fiona, rasterio and shapely, which know nothing of our modules."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import fiona
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
import shapely.geometry
from rasterio.transform import from_origin
from rasterio.warp import transform_geom
from rasterio.windows import from_bounds

from edge_infer.classify import classify
from edge_infer.engine.openvino import OpenVinoEngine
from edge_infer.errors import EdgeInferError, OutputError, ReadError, Refused, Stopped
from edge_infer.imagery import Reader
from edge_infer.manifest import ChipContract
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.imagery import Image, Tile
    from edge_infer.summary import RunSummary

WEST, NORTH, GSD = 360_000.0, 4_100_000.0, 0.5
STEP_METRES = 20.0
UTM = "EPSG:32615"


def write_checkerboard(path: Path, *, cells: int = 12, shift: int = 0, **profile: Any) -> Path:
    """Draw squares of 20 m, each of one grey level that its column and row give."""
    side = round(STEP_METRES / GSD)
    level = (np.add.outer(np.arange(cells) * 37, np.arange(cells) * 91) + shift) % 256
    band = np.kron(level, np.ones((side, side))).astype(np.uint8)
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "width": band.shape[1],
        "height": band.shape[0],
        "crs": UTM,
        "transform": from_origin(WEST, NORTH, GSD, GSD),
        "photometric": "RGB",
        "tiled": True,
        "blockxsize": 128,
        "blockysize": 128,
    }
    with rasterio.open(path, "w", **{**settings, **profile}) as dataset:
        for number in range(1, 4):
            dataset.write(band, number)
    return path


def cell_square(column: int, row: int, metres: float = 8.0) -> shapely.Polygon:
    """Footprint in the middle of a cell, in UTM."""
    x, y = WEST + (column + 0.5) * STEP_METRES, NORTH - (row + 0.5) * STEP_METRES
    return shapely.box(x - metres / 2, y - metres / 2, x + metres / 2, y + metres / 2)


def write_footprints(path: Path, geometries: list[Any], *, crs: str = "EPSG:4326") -> Path:
    """Write UTM geometries (or None) in another CRS, each with its number and a name."""
    records = []
    for number, geometry in enumerate(geometries):
        mapped = None
        if geometry is not None:
            mapped = shapely.geometry.mapping(geometry)
            if not geometry.is_empty and crs != UTM:
                mapped = transform_geom(UTM, crs, mapped)
        records.append({"geometry": mapped, "properties": {"number": number, "name": f"house '{number}'"}})
    schema = {"geometry": "Unknown", "properties": {"number": "int", "name": "str"}}
    with fiona.open(path, "w", driver="GPKG", crs=crs, schema=schema, layer="houses") as sink:
        sink.writerecords(records)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    with fiona.open(path) as source:
        return [dict(feature.properties) for feature in source]


def request(tmp_path: Path, bundle: Path, *imagery: Path, **changes: Any) -> RunRequest:
    values: dict[str, Any] = {
        "bundle": bundle,
        "imagery": imagery,
        "footprints": tmp_path / "houses.gpkg",
        "out": tmp_path / "out.gpkg",
    }
    return RunRequest(**{**values, **changes})


def run(*args: Any, **changes: Any) -> RunSummary:
    return classify(request(*args, **changes), quiet=True)


def mean_level(image: Path, footprint: shapely.Polygon, metres: float = 12.0) -> float:
    """Mean grey level of the window around a footprint, read by rasterio."""
    x, y = footprint.centroid.x, footprint.centroid.y
    half = metres / 2
    with rasterio.open(image) as dataset:
        window = from_bounds(x - half, y - half, x + half, y + half, dataset.transform)
        return float(dataset.read(window=window, boundless=True, fill_value=0).mean())


@pytest.fixture
def town(tmp_path: Path) -> list[shapely.Polygon]:
    write_checkerboard(tmp_path / "image.tif")
    squares = [cell_square(column, row) for row in range(12) for column in range(12)]
    write_footprints(tmp_path / "houses.gpkg", squares)
    return squares


def test_every_footprint_gets_what_its_window_shows(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    image = tmp_path / "image.tif"
    summary = run(tmp_path, make_bundle(), image)
    rows = read_rows(tmp_path / "out.gpkg")
    assert summary.exit_code == 0
    assert [row["number"] for row in rows] == list(range(144))
    for row, footprint in zip(rows, town, strict=True):
        expected = mean_level(image, footprint) / 255
        # Windows lie on half pixels here; one grey level is 0.004.
        assert row["p_bright"] == pytest.approx(expected, abs=0.006)
        assert row["p_dark"] == pytest.approx(1 - row["p_bright"], abs=1e-5)
        assert row["class_label"] == ("bright" if row["p_bright"] > 0.5 else "dark")
        assert row["confidence"] == max(row["p_bright"], row["p_dark"])
        assert (row["status"], row["valid_fraction"], row["image"]) == ("ok", 1.0, str(image))
        assert row["gsd_m"] == pytest.approx(GSD, rel=1e-3)
        assert row["name"] == f"house '{row['number']}'"


def test_the_output_is_one_sound_file_with_the_record_of_its_run(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    summary = run(tmp_path, make_bundle(), tmp_path / "image.tif")
    assert summary.one_file
    assert not [path.name for path in tmp_path.glob("out.gpkg?*")]
    with sqlite3.connect(tmp_path / "out.gpkg") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        engine, precision, counts, options, ended = database.execute(
            "SELECT engine, precision, counts, options, ended FROM edge_runs"
        ).fetchone()
        images = database.execute("SELECT path, footprints FROM edge_images").fetchall()
    database.close()
    assert (engine, precision) == ("openvino", "fp32")
    assert json.loads(counts)["statuses"] == {"ok": 144}
    assert json.loads(options)["min_valid"] == 0.5
    assert ended is not None
    assert images == [(str(tmp_path / "image.tif"), 144)]
    with fiona.open(tmp_path / "out.gpkg") as source:
        assert source.crs.to_epsg() == 4326


def test_odd_footprints_keep_their_row_and_say_why(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    write_checkerboard(tmp_path / "image.tif")
    bow_tie = shapely.Polygon([(WEST, NORTH), (WEST + 9, NORTH - 9), (WEST + 9, NORTH), (WEST, NORTH - 9)])
    write_footprints(
        tmp_path / "houses.gpkg",
        [
            cell_square(3, 3),
            None,
            shapely.Polygon(),
            bow_tie,
            cell_square(300, 3),
            cell_square(5, 5).centroid,
            shapely.LineString([(WEST + 20, NORTH - 20), (WEST + 30, NORTH - 20)]),
        ],
    )
    summary = run(tmp_path, make_bundle(), tmp_path / "image.tif")
    rows = read_rows(tmp_path / "out.gpkg")
    assert [row["status"] for row in rows] == [
        "ok",
        "bad_geometry",
        "bad_geometry",
        "bad_geometry",
        "outside_imagery",
        "ok",
        "ok",
    ]
    assert [row["class_label"] is None for row in rows] == [row["status"] != "ok" for row in rows]
    assert summary.counts.statuses == {"ok": 3, "outside_imagery": 1, "bad_geometry": 3}
    assert summary.exit_code == 0


def test_windows_half_off_the_image_or_on_nodata(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    image = write_checkerboard(tmp_path / "image.tif", nodata=0)
    with rasterio.open(image, "r+") as dataset:
        blank = np.zeros((3, 40, 40), np.uint8)
        dataset.write(blank, window=((40, 80), (40, 80)))
    corner = shapely.box(WEST - 1, NORTH - 3, WEST + 3, NORTH + 1)  # its centre 1 m inside the corner
    write_footprints(tmp_path / "houses.gpkg", [cell_square(1, 1), cell_square(3, 3), corner], crs=UTM)
    run(tmp_path, make_bundle(), image)
    blank_row, whole_row, corner_row = read_rows(tmp_path / "out.gpkg")
    assert (blank_row["status"], blank_row["valid_fraction"]) == ("no_data", 0.0)
    assert whole_row["status"] == "ok"
    # The window reaches from -5 m to 7 m in both directions, and a cell of level 0 is nodata here.
    assert corner_row["status"] == "no_data"


def test_images_of_mixed_crs_and_no_reprojection(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    west = write_checkerboard(tmp_path / "a.tif")
    # The same ground levels again, 240 m further east, in degrees that are not square on the ground.
    with rasterio.open(west) as dataset:
        levels = dataset.read()
    box = shapely.box(WEST + 240, NORTH - 240, WEST + 480, NORTH)
    degrees = shapely.geometry.shape(transform_geom(UTM, "EPSG:4326", shapely.geometry.mapping(box)))
    left, bottom, right, top = degrees.bounds
    write_checkerboard(
        tmp_path / "b.tif",
        crs="EPSG:4326",
        transform=rasterio.transform.from_bounds(left, bottom, right, top, levels.shape[2], levels.shape[1]),
    )
    squares = [cell_square(column, 6) for column in (2, 14)]
    write_footprints(tmp_path / "houses.gpkg", squares, crs="EPSG:3857")
    summary = run(tmp_path, make_bundle(), tmp_path)
    rows = read_rows(tmp_path / "out.gpkg")
    assert [Path(row["image"]).name for row in rows] == ["a.tif", "b.tif"]
    assert summary.counts.statuses == {"ok": 2}
    # Both show the cell in the third column of their image; the UTM grid is turned by under 1 degree there.
    assert rows[0]["p_bright"] == pytest.approx(rows[1]["p_bright"], abs=0.02)
    assert rows[1]["gsd_m"] == pytest.approx(0.5, abs=0.02)


def test_without_footprints_each_image_is_one_object(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_checkerboard(folder / "a.tif")
    write_checkerboard(folder / "b.tif", shift=128)  # on the same ground: each is judged by itself
    summary = run(tmp_path, make_bundle(), folder, footprints=None)
    rows = read_rows(tmp_path / "out.gpkg")
    assert [Path(row["source"]).name for row in rows] == ["a.tif", "b.tif"]
    assert [Path(row["image"]).name for row in rows] == ["a.tif", "b.tif"]
    assert summary.counts.statuses == {"ok": 2}


def test_an_empty_layer_is_a_run_with_no_rows(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    write_checkerboard(tmp_path / "image.tif")
    write_footprints(tmp_path / "houses.gpkg", [])
    summary = run(tmp_path, make_bundle(), tmp_path / "image.tif")
    assert summary.exit_code == 0
    assert read_rows(tmp_path / "out.gpkg") == []


def test_a_bad_block_harms_only_its_footprints(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    image = write_checkerboard(tmp_path / "image.tif", compress="DEFLATE")
    with rasterio.open(image) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with image.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * 64)
    summary = run(tmp_path, make_bundle(), image)
    rows = read_rows(tmp_path / "out.gpkg")
    block = shapely.box(WEST + 64, NORTH - 128, WEST + 128, NORTH - 64)
    for row, footprint in zip(rows, town, strict=True):
        window = footprint.centroid.buffer(6, cap_style="square")
        margin = window.buffer(2, cap_style="square")  # the filter looks a little beyond the window
        if window.intersects(block.buffer(-0.1)):
            assert row["status"] == "read_error"
        elif not margin.intersects(block):
            assert row["status"] == "ok"
    assert summary.exit_code == 3
    assert summary.counts.statuses["ok"] > 80


def test_sixteen_bit_imagery_is_scaled_as_the_contract_says(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    image = tmp_path / "image.tif"
    with rasterio.open(
        image, "w", driver="GTiff", width=100, height=100, count=4, dtype="uint16", crs=UTM,
        transform=from_origin(WEST, NORTH, GSD, GSD),
    ) as dataset:  # fmt: skip
        for number, value in enumerate((1000, 2100, 3000, 9000), start=1):
            dataset.write(np.full((100, 100), value, np.uint16), number)
    contract = ChipContract(
        ground_metres=12,
        chip_pixels=16,
        bands=("red", "green", "blue", "nir"),
        dtype="uint16",
        value_range=(0.0, 4000.0),
        coarsest_gsd_metres=1,
    )
    write_footprints(tmp_path / "houses.gpkg", [cell_square(1, 1)])
    run(tmp_path, make_bundle(contract), image, bands=(1, 2, 3, 4))
    (row,) = read_rows(tmp_path / "out.gpkg")
    levels = [round(value * 255 / 4000) for value in (1000, 2100, 3000)] + [255]
    assert row["p_bright"] == pytest.approx(np.mean(levels) / 255, abs=1e-4)


@pytest.mark.parametrize("changes", [{"batch": 1}, {"batch": 64, "threads": 1}, {"threads": 4}])
def test_batch_and_threads_change_nothing(
    tmp_path: Path,
    town: list[shapely.Polygon],
    make_bundle: Callable[..., Path],
    changes: dict[str, Any],
) -> None:
    bundle, image = make_bundle(), tmp_path / "image.tif"
    run(tmp_path, bundle, image)
    run(tmp_path, bundle, image, out=tmp_path / "again.gpkg", **changes)
    assert read_rows(tmp_path / "again.gpkg") == read_rows(tmp_path / "out.gpkg")


def test_a_stopped_run_goes_on_to_the_same_rows(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle, image = make_bundle(), tmp_path / "image.tif"
    write_footprints(tmp_path / "houses.gpkg", town * 100, crs=UTM)
    run(tmp_path, bundle, image)
    command = [
        *(str(Path(sys.executable).with_name("edge-infer")), "run", "--model", str(bundle)),
        *("--imagery", str(image), "--footprints", str(tmp_path / "houses.gpkg")),
        *("--out", str(tmp_path / "stopped.gpkg"), "--batch", "1"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_results(tmp_path / "stopped.gpkg", process)
    process.send_signal(signal.SIGTERM)
    told, complained = process.communicate(timeout=60)
    assert process.returncode == 4, complained
    assert "stopped early by SIGTERM" in told
    assert not list(tmp_path.glob("stopped.gpkg?*"))
    before = Counter(row["status"] for row in read_rows(tmp_path / "stopped.gpkg"))
    assert before["ok"] > 0
    assert before["pending"] > 0
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert read_rows(tmp_path / "stopped.gpkg") == read_rows(tmp_path / "out.gpkg")


def _wait_for_results(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            done = reader.execute("SELECT count(*) FROM houses WHERE status = 'ok'").fetchone()[0]
            reader.close()
            if done:
                return
        time.sleep(0.01)
    pytest.fail("the run gave no result")


def test_resume_refuses_another_job(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle, image = make_bundle(), tmp_path / "image.tif"
    run(tmp_path, bundle, image)
    rows = read_rows(tmp_path / "out.gpkg")
    with pytest.raises(OutputError, match=r"--min-valid was 0\.5 and is 0\.9"):
        run(tmp_path, bundle, image, resume=True, min_valid=0.9)
    other = ChipContract(
        ground_metres=13, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=2
    )
    with pytest.raises(OutputError, match="the model was brightness with other content"):
        run(tmp_path, make_bundle(other), image, resume=True)
    assert read_rows(tmp_path / "out.gpkg") == rows


def test_resume_of_a_finished_run_changes_nothing(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle, image = make_bundle(), tmp_path / "image.tif"
    run(tmp_path, bundle, image)
    before = (tmp_path / "out.gpkg").read_bytes()

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("an engine is opened")

    summary = classify(request(tmp_path, bundle, image, resume=True), quiet=True, opener=refuse)
    assert (summary.exit_code, summary.classified_now) == (0, 0)
    assert (summary.counts.statuses, summary.to_json()["engine"]) == ({"ok": 144}, None)
    assert "nothing was left to do: the file is as it was" in summary.describe()
    assert (tmp_path / "out.gpkg").read_bytes() == before
    assert not list(tmp_path.glob("out.gpkg?*"))


@pytest.mark.parametrize("change", ["PRAGMA journal_mode = wal", "UPDATE edge_runs SET ended = NULL"])
def test_resume_ends_a_run_that_was_cut_off_after_its_last_row(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path], change: str
) -> None:
    """All rows are done, but the file is in SQLite's log mode still, or the record has no end."""
    bundle, image = make_bundle(), tmp_path / "image.tif"
    run(tmp_path, bundle, image)
    with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database, database:
        database.execute(change)
    assert run(tmp_path, bundle, image, resume=True).classified_now == 0
    with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        ends = database.execute("SELECT ended IS NOT NULL FROM edge_runs").fetchall()
    assert ends[-1] == (1,)


def test_resume_refuses_other_images(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle, folder = make_bundle(), tmp_path / "images"
    folder.mkdir()
    write_checkerboard(folder / "b.tif")
    run(tmp_path, bundle, folder)
    write_checkerboard(folder / "a.tif")
    with pytest.raises(OutputError, match=r"image .*a\.tif is new"):
        run(tmp_path, bundle, folder, resume=True)


def test_resume_refuses_an_output_with_rows_taken_out(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle, image = make_bundle(), tmp_path / "image.tif"
    run(tmp_path, bundle, image)
    with sqlite3.connect(tmp_path / "out.gpkg") as database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute("DELETE FROM houses WHERE fid = 7")
    database.close()
    with pytest.raises(OutputError, match="lost or gained rows"):
        run(tmp_path, bundle, image, resume=True)


def test_resume_tries_again_what_could_not_be_read(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle()
    image = write_checkerboard(tmp_path / "image.tif", compress="DEFLATE")
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    broken = run(tmp_path, bundle, image)
    assert broken.exit_code == 3
    ((path, failed, reason),) = broken.read_failures
    assert (path, failed) == (str(image), broken.counts.statuses["read_error"])
    assert str(image) in reason
    assert "--resume tries again" in broken.describe()
    image.write_bytes(whole)
    with pytest.raises(OutputError, match=rf"image {image} has other content"):
        run(tmp_path, bundle, image, resume=True)
    mended = run(tmp_path, bundle, image, force_resume=True)
    assert (mended.exit_code, mended.classified_now) == (0, failed)
    run(tmp_path, bundle, image, out=tmp_path / "at_once.gpkg")
    assert read_rows(tmp_path / "out.gpkg") == read_rows(tmp_path / "at_once.gpkg")


def test_a_signal_is_heard_while_nothing_can_be_read(
    tmp_path: Path,
    town: list[shapely.Polygon],
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = itertools.count(1)

    def fail(self: Reader, image: Image, **rectangle: int) -> Tile:
        time.sleep(0.05)  # a disk that is gone takes its time
        if next(reads) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        raise ReadError(f"{image.path}: the disk is gone")

    monkeypatch.setattr(Reader, "read", fail)
    summary = run(tmp_path, make_bundle(), tmp_path / "image.tif", threads=1)
    assert next(reads) < 150  # of 287
    assert (summary.exit_code, summary.stopped_by) == (4, "SIGTERM")
    assert summary.counts.statuses["read_error"] > 0
    assert summary.counts.statuses["pending"] > 0


def test_a_signal_before_the_first_result_leaves_no_half_made_output(
    tmp_path: Path,
    town: list[shapely.Polygon],
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_infer.output._add_columns", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"):
        run(tmp_path, make_bundle(), tmp_path / "image.tif")
    assert not list(tmp_path.glob("out.gpkg*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_reader_that_dies_ends_the_run_with_its_error(
    tmp_path: Path,
    town: list[shapely.Polygon],
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_infer.cutter.sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, make_bundle(), tmp_path / "image.tif")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader-")]
    assert {row["status"] for row in read_rows(tmp_path / "out.gpkg")} == {"pending"}


def test_an_engine_that_fails_leaves_what_was_done(
    tmp_path: Path,
    town: list[shapely.Polygon],
    make_bundle: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collect = OpenVinoEngine.collect
    batches = iter(range(5))

    def collect_five(self: OpenVinoEngine) -> Any:
        if next(batches, None) is None:
            raise RuntimeError("out of memory")
        return collect(self)

    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEngine, "collect", collect_five)
        with pytest.raises(EdgeInferError, match=r"broke off: .*out of memory.*--resume goes on"):
            run(tmp_path, make_bundle(), tmp_path / "image.tif", batch=4)
    assert Counter(row["status"] for row in read_rows(tmp_path / "out.gpkg")) == {"ok": 20, "pending": 124}
    summary = run(tmp_path, tmp_path / "brightness.edgemodel", tmp_path / "image.tif", resume=True)
    assert (summary.exit_code, summary.classified_now) == (0, 124)


def test_an_image_is_never_overwritten(
    tmp_path: Path, town: list[shapely.Polygon], make_bundle: Callable[..., Path]
) -> None:
    image = tmp_path / "image.gpkg"
    with rasterio.open(tmp_path / "image.tif") as dataset:
        rasterio.shutil.copy(dataset, image, driver="GPKG")
    before = image.read_bytes()
    with pytest.raises(OutputError, match="is an input of this run"):
        run(tmp_path, make_bundle(), image, out=image, overwrite=True)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_valid": float("nan")}, "--min-valid is a share"),
        ({"min_covered": 1.5}, "--min-covered is a share"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"force_resume": True, "overwrite": True}, "give one of them"),
        ({"footprints": None, "layer": "a", "where": "b"}, "--layer, --where says something of footprints"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        request(tmp_path, tmp_path / "model.edgemodel", tmp_path / "image.tif", **changes)


def test_memory_is_not_the_images_size(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    """A sparse image of 30 gigapixels, 1,000 footprints all over it, in a process that may take 1.5 GB."""
    image = tmp_path / "huge.tif"
    side = 100_000
    with rasterio.open(
        image, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs=UTM,
        transform=from_origin(WEST, NORTH, GSD, GSD), tiled=True, sparse_ok=True, bigtiff="YES",
        photometric="RGB",
    ):  # fmt: skip
        pass
    rng = np.random.default_rng(1)
    squares = [cell_square(*place) for place in rng.integers(1, 2499, (1000, 2)).tolist()]
    write_footprints(tmp_path / "houses.gpkg", squares, crs=UTM)
    code = (
        "import resource, sys\n"
        "from edge_infer.cli import commands\n"
        "commands.main(sys.argv[1:], standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [
        sys.executable, "-c", code, "run", "--model", str(make_bundle()), "--imagery", str(image),
        "--footprints", str(tmp_path / "houses.gpkg"), "--out", str(tmp_path / "out.gpkg"), "-q",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1_500_000  # KiB
