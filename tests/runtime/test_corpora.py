"""Every odd, broken and foreign file of the corpora through `edge-infer run`.

Whatever the file: exit 0, 2 or 3 in time and within memory, no traceback, no signal, and an output that is
whole or not there. `pytest -rP` on this file prints the table of outcomes.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import sqlite3
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import from_origin

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.errors import BundleError
from edge_infer.manifest import ChipContract

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 25.0
MOST_BYTES = 2 << 30
METRES_PER_DEGREE = 111_320


@dataclass(slots=True)
class Case:
    """One run, and what came of it."""

    group: str
    name: str
    arguments: list[str]
    footprints: int | None = None
    """How many there are, where that is known."""
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.arguments[self.arguments.index("--out") + 1])

    @property
    def kind(self) -> str:
        """The message without what differs from file to file."""
        text = self.outcome["stderr"].strip().removeprefix("edge-infer: ")
        text = re.sub(r"(/[^ :;,]+)+|'[^']*'|[0-9][0-9.,]*", "*", text)
        return text[:90]

    def complaints(self) -> list[str]:
        status, stderr = self.outcome["status"], self.outcome["stderr"]
        found = []
        if self.outcome["hung"]:
            found.append(f"hung for {SECONDS:g} s")
        elif status not in (0, 2, 3):
            found.append(f"exit {status}")
        if "Traceback" in stderr or "Fatal Python error" in stderr:
            found.append("traceback")
        if self.outcome["peak_bytes"] > MOST_BYTES:
            found.append(f"took {self.outcome['peak_bytes'] / 2**20:.0f} MB")
        if status == 2:
            if len(stderr.strip().splitlines()) != 1 or not stderr.startswith("edge-infer: "):
                found.append("refused in other than one line")
            if self.out.exists():
                found.append("refused, but an output is there")
        if status in (0, 3):
            found += self._faults_of_output(status)
        return [f"{self.group}/{self.name}: {text}\n{stderr}" for text in found]

    def _faults_of_output(self, status: int) -> list[str]:
        beside = sorted(path.name for path in self.out.parent.glob(f"{self.out.name}*"))
        if beside != [self.out.name]:
            return [f"left {beside}"]
        with closing(sqlite3.connect(f"file:{self.out}?mode=ro", uri=True)) as connection:
            ((layer,),) = connection.execute(
                "SELECT table_name FROM gpkg_contents WHERE data_type = 'features'"
            ).fetchall()
            counts = dict(connection.execute(f'SELECT status, count(*) FROM "{layer}" GROUP BY 1').fetchall())
        faults = []
        if "pending" in counts:
            faults.append(f"left {counts['pending']} pending")
        if (status == 3) != ("read_error" in counts):
            faults.append(f"exit {status} with {counts}")
        if self.footprints not in (None, sum(counts.values())):
            faults.append(f"{self.footprints} footprints in, {counts} out")
        self.outcome["counts"] = counts
        return faults


@pytest.fixture
def run_cases(run_warm: Callable[..., list[dict[str, Any]]]) -> Callable[[list[Case]], None]:
    """Run all cases, print what came of them, and insist on the rules at the top."""

    def run(cases: list[Case]) -> None:
        warm = [{"arguments": ["run", "--quiet", *case.arguments]} for case in cases]
        for case, outcome in zip(cases, run_warm(warm, seconds=SECONDS), strict=True):
            case.outcome = outcome
        faults = [fault for case in cases for fault in case.complaints()]
        print_table(cases)
        assert not faults, "\n".join(faults)

    return run


def print_table(cases: list[Case]) -> None:
    codes = Counter((case.group, case.outcome["status"]) for case in cases)
    print("folder | exit | runs")
    for (group, status), count in sorted(codes.items()):
        print(f"{group} | {status} | {count}")
    statuses: Counter[str] = Counter()
    for case in cases:
        statuses.update(case.outcome.get("counts", {}))
    print("footprints:", ", ".join(f"{status} {count}" for status, count in sorted(statuses.items())))
    for name, unit, factor in (("seconds", "s", 1.0), ("peak_bytes", "MB", 2**-20)):
        worst = max(cases, key=lambda case: case.outcome[name])
        print(f"most {name}: {worst.outcome[name] * factor:.1f} {unit}, {worst.group}/{worst.name}")
    kinds = Counter((case.outcome["status"], case.kind) for case in cases if case.outcome["status"] != 0)
    for (status, kind), count in kinds.most_common():
        print(f"{count:4} x exit {status}: {kind}")


@dataclass(frozen=True, slots=True)
class Fit:
    """What lets a run read the pixels of a raster, whatever it is."""

    imagery: Path
    options: list[str]
    contract: ChipContract | None
    spots: list[tuple[float, float]]


def fit_raster(path: Path, folder: Path) -> Fit:
    """Find a contract that the raster meets, give it a place on the ground, and put footprints on it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
        with dataset:
            bands = min(dataset.count, 16)
            dtype = dataset.dtypes[0]
            transform, crs = dataset.transform, dataset.crs
            width, height = dataset.width, dataset.height
            geographic = crs is not None and crs.is_geographic
    except (RasterioError, OSError, IndexError):
        return Fit(path, [], None, [])
    options = ["--bands", ",".join(map(str, range(1, bands + 1)))]
    if transform.is_identity:
        copy = folder / path.name
        shutil.copyfile(path, copy)
        copy.with_suffix(".wld").write_text("0.5\n0\n0\n-0.5\n500000.25\n3999999.75\n")
        path, transform = copy, from_origin(500_000, 4_000_000, 0.5, 0.5)
    if crs is None:
        options += ["--imagery-crs", "EPSG:32633"]
    options += ["--footprints-crs", crs.to_wkt() if crs else "EPSG:32633"]
    pixel = float(np.hypot(transform.a, transform.d)) * (METRES_PER_DEGREE if geographic else 1)
    contract = ChipContract(
        ground_metres=20 * pixel if np.isfinite(pixel) and pixel > 0 else 10.0,
        chip_pixels=16,
        bands=tuple(f"band {number}" for number in range(1, max(bands, 1) + 1)),
        dtype=dtype if dtype in ("uint8", "uint16") else "uint8",
        value_range=(0, 65535) if dtype == "uint16" else (0, 255),
        coarsest_gsd_metres=1e9,
    )
    shares = (0.02, 0.3, 0.5, 0.7, 0.98)
    return Fit(path, options, contract, [transform @ (x * width, y * height) for x in shares for y in shares])


@pytest.fixture(autouse=True)
def quiet_headers(caplog):
    """What rasterio has to say of broken headers would bury the table."""
    caplog.set_level(logging.CRITICAL, "rasterio")


def write_points(path: Path, points: list[tuple[float, float]]) -> Path:
    features = [
        {"type": "Feature", "properties": {"n": n}, "geometry": {"type": "Point", "coordinates": [x, y]}}
        for n, (x, y) in enumerate(points)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def rasters_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".tif", ".tiff"))


@pytest.mark.parametrize(("corpus", "least"), [("tiff_cases", 310), ("geotiff_cases", 20)])
def test_rasters(shared_data, tmp_path, make_bundle, run_cases, corpus, least):
    cases = []
    for number, path in enumerate(rasters_in(shared_data / corpus)):
        folder = tmp_path / str(number)
        folder.mkdir()
        fit = fit_raster(path, folder)
        arguments = ["--imagery", str(fit.imagery), "--out", str(folder / "out.gpkg"), *fit.options]
        arguments += ["--model", str(make_bundle(fit.contract, name=f"model {number}"))]
        # Broken headers leave no place to put footprints on: then the image itself is the object.
        usable = bool(fit.spots) and bool(np.isfinite(fit.spots).all())
        if usable:
            arguments += ["--footprints", str(write_points(folder / "points.geojson", fit.spots))]
        name = path.relative_to(shared_data / corpus)
        cases.append(
            Case(
                f"{corpus}/{name.parts[0]}",
                str(Path(*name.parts[1:])),
                arguments,
                len(fit.spots) if usable else None,
            )
        )
    assert len(cases) >= least
    run_cases(cases)


def test_a_folder_of_bad_rasters_with_a_good_one(shared_data, tmp_path, make_bundle, write_raster, run_cases):
    shutil.copytree(shared_data / "tiff_cases", tmp_path / "flight" / "bad")
    good = write_raster("flight/good.tif", np.full((3, 64, 64), 200, np.uint8))
    arguments = ["--imagery", str(tmp_path / "flight"), "--out", str(tmp_path / "out.gpkg")]
    arguments += ["--model", str(make_bundle())]
    footprints = write_points(tmp_path / "points.geojson", [(360_016, 4_099_984)])
    case = Case(
        "folder", "all", [*arguments, "--footprints", str(footprints), "--footprints-crs", "EPSG:32615"], 1
    )
    run_cases([case])
    assert case.outcome["status"] == 0
    assert case.outcome["counts"] == {"ok": 1}
    with closing(sqlite3.connect(case.out)) as connection:
        assert connection.execute("SELECT image, class_label FROM points").fetchall() == [
            (str(good), "bright")
        ]


def test_vectors(shared_data, tmp_path, make_bundle, write_raster, run_cases):
    world = write_raster(
        "world.tif",
        np.full((3, 1800, 3600), 200, np.uint8),
        crs="EPSG:4326",
        transform=from_origin(-180, 90, 0.1, 0.1),
        compress="deflate",
    )
    model = make_bundle(
        ChipContract(
            ground_metres=200_000, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=1e6
        )
    )
    corpus = shared_data / "vector_cases"
    cases: list[Case] = []
    for row in csv.DictReader((corpus / "index.csv").read_text().splitlines()):
        source = corpus / row["path"]
        common = ["--imagery", str(world), "--model", str(model), "--footprints", str(source)]
        layers = json.loads(row["pyogrio_result"]) if row["pyogrio_result"].startswith("[") else []
        for layer in layers or [None]:
            choice = ["--layer", layer["layer"]] if layer and len(layers) > 1 else []
            if layer and layer["crs"] == "None":
                choice += ["--footprints-crs", "EPSG:4326"]
            out = tmp_path / f"{len(cases)}.gpkg"
            name = " ".join([row["path"], *choice[1:2]])
            cases.append(Case("vector_cases", name, [*common, *choice, "--out", str(out)]))
    assert len({case.arguments[5] for case in cases}) == 79
    run_cases(cases)


def test_models(shared_data, tmp_path, make_bundle, write_raster, run_cases):
    image = write_raster("image.tif", np.full((3, 64, 64), 200, np.uint8))
    manifest = open_bundle(make_bundle()).manifest
    cases: list[Case] = []
    corpus = shared_data / "onnx_models"
    for number, path in enumerate(sorted(corpus.rglob("*.[op][nb]*"))):
        bundle = tmp_path / f"{number}.edgemodel"
        models = [path]
        try:
            write_bundle(bundle, manifest, {"model.onnx": path.read_bytes()})
            models.append(bundle)
        except BundleError:
            pass
        for model in models:
            out = tmp_path / f"{len(cases)}.gpkg"
            arguments = ["--imagery", str(image), "--model", str(model), "--out", str(out)]
            name = f"{path.relative_to(corpus)} {'in a bundle' if model == bundle else 'alone'}"
            cases.append(Case("onnx_models", name, arguments))
    assert len(cases) >= 30
    run_cases(cases)
    assert {case.outcome["status"] for case in cases} == {2}
