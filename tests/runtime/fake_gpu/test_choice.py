"""What `open_engine` takes, and the whole run on it, on stand-ins for CUDA and TensorRT."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
import tensorrt
from rasterio.transform import from_origin

from edge_infer.bundle import open_bundle
from edge_infer.classify import classify
from edge_infer.engine import GpuOptions
from edge_infer.engine.choose import open_engine as open_best
from edge_infer.engine.load import images_per_second
from edge_infer.errors import EngineError
from edge_infer.request import RunRequest
from edge_infer.ring import SPARE_SLOTS, BatchRing

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.engine import EngineChoice

SIDE = 16
refused: list[bytes] = []
"""Plans that the stand-in for the cache gives first."""


@pytest.fixture
def plans(monkeypatch) -> list[int]:
    """The batches that plans were asked for; such a plan is the stand-in's own."""
    asked: list[int] = []

    def ready_plan(bundle, *, precision, batch, gpu, say, measure, cache=None, force=False):
        asked.append(batch)
        content = f"brightness {SIDE} 3 {batch}".encode()
        if precision == "auto" and measure is not None:
            say(f"{measure(content):,.0f} images/s")
        if refused and not force:
            return SimpleNamespace(content=refused.pop(), precision="int8", built=False, why="int8: kept")
        return SimpleNamespace(content=content, precision="int8", built=True, why="int8: a stand-in")

    monkeypatch.setattr("edge_infer.engine.tensorrt.plans.ready_plan", ready_plan)
    refused.clear()
    return asked


def test_auto_takes_tensorrt_where_all_is_there(fake, plans, make_bundle):
    said: list[str] = []
    engine = open_best(open_bundle(make_bundle()), precision="int8", say=said.append)
    engine.close()
    assert (engine.facts.name, engine.facts.precision, engine.facts.device) == (
        "tensorrt",
        "int8",
        "Fake GPU",
    )
    assert engine.facts.why.startswith("tensorrt: a GPU, TensorRT and pycuda are there; int8: a stand-in;")
    assert plans == [engine.facts.batch]


def test_auto_says_why_it_did_not_take_tensorrt(fake, make_bundle, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engine = open_best(open_bundle(make_bundle()))
    engine.close()
    assert engine.facts.name == "openvino"
    assert "openvino: not TensorRT: the NVIDIA driver works but shows no GPU" in engine.facts.why


def test_precisions_are_measured_on_the_gpu_that_the_engine_then_uses(fake, plans, make_bundle, monkeypatch):
    golden = np.zeros((2, SIDE, SIDE, 3), np.uint8), np.zeros((2, 2), np.float32)
    monkeypatch.setattr("edge_infer.bundle.Bundle.golden", lambda _: golden)
    monkeypatch.setattr("edge_infer.engine.tensorrt.runtime.GOLDEN_CHIPS_MEMBER", "model.onnx")
    monkeypatch.setattr(
        "edge_infer.engine.tensorrt.runtime.images_per_second",
        lambda engine, chips: images_per_second(engine, chips, 0.01),
    )
    said: list[str] = []
    engine = open_best(open_bundle(make_bundle()), batch=2, say=said.append)
    engine.close()
    assert len(said) == 1
    assert said[0].endswith("images/s")


def test_too_large_a_batch_is_halved_until_it_fits(fake, plans, make_bundle):
    tensorrt.refuse[:] = ["Error Code 2: OutOfMemory"] * 2
    said: list[str] = []
    engine = open_best(open_bundle(make_bundle()), precision="int8", batch=48, say=said.append)
    engine.close()
    assert plans == [48, 24, 12]
    assert engine.facts.batch == 12
    assert "batch 12, as 48 did not fit the GPU's memory" in engine.facts.why
    assert [line[-8:] for line in said] == ["batch 24", "batch 12"]


def test_a_batch_whose_slots_do_not_fit_is_halved_before_anything_is_written(fake, plans, make_bundle):
    """Three inputs of 48 chips fit, but not the five slots of a run beside them."""
    fake.set(integrated=True, memory_bytes=200_000)
    engine = open_best(open_bundle(make_bundle()), precision="int8", batch=48)
    ring = BatchRing.allocate(engine.depth + SPARE_SLOTS, engine.facts.batch, (SIDE, SIDE, 3), engine.memory)
    assert len(ring.slots) == 5
    engine.close()
    assert plans == [48, 24]


def test_a_gpu_that_is_full_already_ends_with_2(fake, plans, make_bundle):
    fake.fail("cuDevicePrimaryCtxRetain", after=1, code=2)  # the first asks for the free memory
    with pytest.raises(EngineError, match=r"no memory left for starting.*nvidia-smi") as told:
        open_best(open_bundle(make_bundle()), engine="tensorrt", precision="int8")
    assert told.value.exit_code == 2
    assert plans == []


@pytest.mark.parametrize("content", [b"strange", b"brightness 13 3 64", b"brightness 16 3 8"])
def test_a_plan_from_the_cache_that_is_refused_is_built_anew(fake, plans, make_bundle, content):
    said: list[str] = []
    bundle = open_bundle(make_bundle())
    refused.append(content)
    engine = open_best(bundle, precision="int8", say=said.append)
    engine.close()
    assert plans == [64, 64]
    assert "int8: a stand-in" in engine.facts.why
    assert len(said) == 1
    assert said[0].endswith("the one in the cache is not taken, and is built anew")


def test_a_plan_that_is_refused_when_it_was_just_built_ends_it(fake, plans, make_bundle, monkeypatch):
    monkeypatch.setattr(tensorrt.Runtime, "deserialize_cuda_engine", lambda *_: None)
    with pytest.raises(EngineError, match="cannot load a plan"):
        open_best(open_bundle(make_bundle()), engine="tensorrt", precision="int8")
    assert plans == [64]


def test_a_gpu_too_small_for_one_chip_is_told(fake, plans, make_bundle):
    fake.set(memory_bytes=1000)
    with pytest.raises(EngineError, match="smaller --batch, or end what else uses the GPU") as refused:
        open_best(open_bundle(make_bundle()), precision="int8", batch=2)
    assert refused.value.exit_code == 2
    assert plans == [2, 1]


@pytest.mark.parametrize("sample_on", ["cpu", "gpu"])
def test_the_whole_run_gives_what_openvino_gives(fake, plans, make_bundle, tmp_path: Path, sample_on):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (3, 60, 60), np.uint8), np.ones((1, 10, 10), np.uint8))
    with rasterio.open(
        tmp_path / "image.tif", "w", driver="GTiff", width=600, height=600, count=3, dtype="uint8",
        crs="EPSG:32615", transform=from_origin(360_000, 4_100_000, 0.5, 0.5), tiled=True,
        blockxsize=128, blockysize=128, photometric="RGB",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    x, y = 360_000 + rng.uniform(-10, 310, 400), 4_100_000 - rng.uniform(-10, 310, 400)
    pyogrio.raw.write(
        tmp_path / "houses.gpkg", shapely.to_wkb(shapely.box(x, y, x + 8, y + 8)),
        field_data=[np.arange(400)], fields=np.array(["number"]), geometry_type="Polygon", crs="EPSG:32615",
    )  # fmt: skip

    def run(engine: EngineChoice) -> list[tuple[str, str, float, float]]:
        out = tmp_path / f"{engine}.gpkg"
        classify(
            RunRequest(
                bundle=bundle, imagery=(tmp_path / "image.tif",), footprints=tmp_path / "houses.gpkg",
                out=out, engine=engine, batch=7, sample_on="auto" if engine == "openvino" else sample_on,
            ),
            quiet=True,
        )  # fmt: skip
        with sqlite3.connect(out) as database:
            rows = database.execute(
                "SELECT status, class_label, p_bright, valid_fraction FROM houses ORDER BY fid"
            ).fetchall()
        database.close()
        return rows

    bundle = make_bundle()
    found, expected = run("tensorrt"), run("openvino")
    assert {row[0] for row in found} > {"ok"}
    for row, wanted in zip(found, expected, strict=True):
        assert row[2] == pytest.approx(wanted[2], abs=1e-5)
        assert (row[:2], row[3]) == (wanted[:2], wanted[3])


def test_options_of_a_run_reach_the_engine(tmp_path):
    request = RunRequest(
        bundle=tmp_path, imagery=(), footprints=None, out=tmp_path / "out.gpkg", gpu_memory="mapped",
        cuda_graphs=False, gpu_lanes=2, sample_on="cpu",
    )  # fmt: skip
    assert request.gpu == GpuOptions(memory="mapped", graphs=False, lanes=2, sample_on="cpu")
    assert request.differences({**request.options(), "gpu_lanes": 3, "gpu_memory": "auto"}) == []


def test_options_reach_the_engine(fake, plans, make_bundle):
    options = GpuOptions(memory="mapped", graphs=False, sample_on="cpu", lanes=2)
    engine = open_best(open_bundle(make_bundle()), engine="tensorrt", precision="int8", gpu=options)
    engine.close()
    assert engine.facts.why.endswith("; mapped memory, CUDA graphs off, chips cut on the CPU")
    assert engine.depth == 2
