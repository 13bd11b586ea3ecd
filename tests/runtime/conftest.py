"""What several tests of the runtime share."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import pytest
import rasterio
import shapely
import shapely.geometry
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.manifest import ChipContract, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Recorded:
    """A machine whose files and commands are recorded in `machines/`."""

    root: Path
    commands: dict[str, str]

    def run(self, arguments: Sequence[str]) -> str | None:
        """What a command printed; None where it is not recorded."""
        return self.commands.get(" ".join(arguments))


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[str], Recorded]:
    """Unpack a recorded machine: orin-nano, orin-nx, agx-orin, thor or laptop."""

    def unpack(name: str) -> Recorded:
        machine = Recorded(tmp_path / name, {})
        lines = iter((Path(__file__).parent / "machines" / f"{name}.txt").read_text().splitlines())
        for line in lines:
            if line.startswith("#"):
                continue
            key, _, value = line.removeprefix("$ ").partition(" <<END" if line.endswith(" <<END") else " ")
            if line.endswith(" <<END"):
                value = "\n".join(itertools.takewhile(lambda line: line != "END", lines)) + "\n"
            if line.startswith("$ "):
                machine.commands[key] = value
                continue
            path = machine.root / key.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if value == "!unreadable":
                path.mkdir()  # to read it is an error, for root, too
            else:
                path.write_text(value.replace("\\0", "\0"))
        return machine

    return unpack


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Make a valid manifest of a model for 16 pixel chips with three bands and two classes."""

    def make(**changes: Any) -> Manifest:
        values: dict[str, Any] = {
            "name": "town",
            "created": "2025-06-01T12:00:00Z",
            "architecture": "ResNet34",
            "parameters": 21_285_698,
            "classes": ("no visible damage", "damaged"),
            "colors": ("#1a9850", "#d73027"),
            "contract": ChipContract(
                ground_metres=30, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
            ),
            "mean": (120.5, 110.0, 100.25),
            "std": (60.0, 61.5, 62.0),
            "temperature": 1.25,
            "facts": {"training": {"epochs": 3}, "parity": {"chips": 8}},
        }
        return Manifest(**{**values, **changes})

    return make


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture
def golden(make_bundle: Callable[..., Path]) -> Callable[..., Path]:
    """A bundle that names a chip by its brightness, with 19 golden chips; `shift` spoils the answers."""

    def make(shift: float = 0.0, **more: bytes) -> Path:
        path: Path = make_bundle()
        bundle = open_bundle(path)
        chips = np.random.default_rng(3).integers(0, 256, (19, 16, 16, 3)).astype(np.uint8)
        bright = chips.reshape(19, -1).mean(axis=1) / 255
        expected = np.stack([1 - bright, bright], axis=1).astype(np.float32)
        expected[4] += np.array([-shift, shift], np.float32)
        members = {
            "model.onnx": bundle.read("model.onnx"),
            "golden/chips.npy": npy(chips),
            "golden/expected.npy": npy(expected),
        }
        write_bundle(
            path, bundle.manifest, members | {name.replace("__", "."): data for name, data in more.items()}
        )
        return path

    return make


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels (C, H, W) as a raster of 0.5 m in UTM, unless the profile says otherwise."""

    def write(
        name: str,
        pixels: NDArray[Any],
        *,
        mask: NDArray[np.bool_] | None = None,
        overviews: tuple[int, ...] = (),
        tags: dict[str, str] | None = None,
        **profile: Any,
    ) -> Path:
        count, height, width = pixels.shape
        settings = {
            "driver": "GTiff",
            "crs": "EPSG:32615",
            "transform": from_origin(360_000, 4_100_000, 0.5, 0.5),
            "photometric": "RGB" if count >= 3 else "MINISBLACK",
            **profile,
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            with rasterio.open(
                path, "w", width=width, height=height, count=count, dtype=pixels.dtype, **settings
            ) as dataset:
                dataset.write(pixels)
                dataset.update_tags(**(tags or {}))
                if mask is not None:
                    dataset.write_mask(mask)
            if overviews:
                with rasterio.open(path, "r+") as dataset:
                    dataset.build_overviews(list(overviews), Resampling.average)
        return path

    return write


@pytest.fixture
def run_warm(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run cases as `warm_runs.py` says, two at a time; what became of each."""

    def run(cases: list[dict[str, Any]], *, processes: int = 2, seconds: float = 25) -> list[dict[str, Any]]:
        logs = tmp_path / "logs"
        logs.mkdir(exist_ok=True)
        script = Path(__file__).with_name("warm_runs.py")
        done = subprocess.run(
            [sys.executable, str(script), str(processes), str(seconds), str(logs)],
            input=json.dumps(cases),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        outcomes: list[dict[str, Any]] = json.loads(done.stdout)
        return outcomes

    return run


COUNT = 1000


@dataclass(frozen=True, slots=True)
class Town:
    """What `run` needs for `count` footprints, on an image that differs everywhere."""

    folder: Path
    """Where outputs go."""
    inputs: list[str]
    count: int = COUNT
    group: int = 32
    """Footprints in one commit: many commits, many moments."""
    batch: int = 8

    def case(self, out: Path, *options: str, **more: Any) -> dict[str, Any]:
        """A case for `run_warm`."""
        bounds = dict.fromkeys(("COMMIT_FOOTPRINTS", "MOST_FOOTPRINTS"), self.group)
        settings = {f"edge_infer.ledger:{name}": rows for name, rows in bounds.items()}
        settings |= more.pop("settings", {})
        command = ["run", "--quiet", *self.inputs, "--out", str(out), "--batch", str(self.batch), *options]
        return {"arguments": command, "settings": settings, **more}


@pytest.fixture
def town(tmp_path: Path, make_bundle: Callable[..., Path], write_raster: Callable[..., Path]) -> Town:
    """A thousand footprints: one in twelve beside the image, one in fifty without geometry."""
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 256, (3, 100, 100), np.uint8)
    image = write_raster("image.tif", np.kron(coarse, np.ones((1, 8, 8), np.uint8)), tiled=True)
    x, y = 360_000 + rng.uniform(0, 420, COUNT), 4_100_000 - rng.uniform(0, 415, COUNT)
    records = [
        {
            "geometry": shapely.geometry.mapping(house) if number % 50 else None,
            "properties": {"number": number, "name": f"house '{number}'"},
        }
        for number, house in enumerate(shapely.box(x - 4, y - 4, x + 4, y + 4))
    ]
    schema = {"geometry": "Polygon", "properties": {"number": "int", "name": "str"}}
    path = tmp_path / "houses.gpkg"
    with fiona.open(path, "w", driver="GPKG", crs="EPSG:32615", schema=schema, layer="houses") as sink:
        sink.writerecords(records)
    (tmp_path / "outs").mkdir()
    inputs = ["--model", str(make_bundle()), "--imagery", str(image), "--footprints", str(path)]
    return Town(tmp_path / "outs", inputs)
