"""The commands as a user runs them: builds, kills, signals, and nothing on standard error at the end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from scene import write_scene  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from pathlib import Path

CODE = "import sys; from edge_infer.cli import main; main(sys.argv[1:])"
NOISE = ("PyCUDA", "context stack", "Traceback", "Segmentation", "core dumped", "Error Code")


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], seconds: float = 500) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=seconds)
    assert not [word for word in NOISE if word in errors], errors
    return process.returncode, out, errors


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder: Path = write_scene(tmp_path_factory.mktemp("scene"), pixels=2560, step_metres=10)
    return folder


@pytest.fixture(scope="module")
def large_scene(tmp_path_factory) -> Path:
    """138,000 houses: one reader is busy with them for many seconds."""
    folder: Path = write_scene(tmp_path_factory.mktemp("large"), pixels=7680, step_metres=6)
    return folder


def run_arguments(model: Path, scene: Path, out: Path, *more: str) -> list[str]:
    return [
        "run", "--model", str(model), "--imagery", str(scene / "scene.tif"), "--footprints",
        str(scene / "houses.gpkg"), "--out", str(out), "--engine", "tensorrt", "--precision", "int8",
        "-q", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("sample_on", ["cpu", "gpu"])
@pytest.mark.parametrize("memory", ["copied", "mapped"])
def test_a_run_ends_without_a_word(model, make_plan, scene, tmp_path, sample_on, memory):
    make_plan("int8")
    arguments = run_arguments(model, scene, tmp_path / "out.gpkg", "--json")
    code, out, errors = finish(start(*arguments, "--sample-on", sample_on, "--gpu-memory", memory))
    assert (code, errors) == (0, "")
    summary = json.loads(out)
    assert summary["engine"]["name"] == "tensorrt"
    assert f"chips cut on the {sample_on.upper()}" in summary["engine"]["why"]
    assert summary["statuses"] == {"ok": summary["footprints"]}


def test_both_samplers_give_the_same_file(model, make_plan, scene, tmp_path):
    make_plan("int8")
    tables = []
    for sample_on in ("cpu", "gpu"):
        out = tmp_path / f"{sample_on}.gpkg"
        assert finish(start(*run_arguments(model, scene, out, "--sample-on", sample_on)))[0] == 0
        with sqlite3.connect(out) as database:
            tables.append(database.execute("SELECT * FROM houses ORDER BY fid").fetchall())
        database.close()
    different = [pair for pair in zip(*tables, strict=True) if pair[0] != pair[1]]
    # Batches are composed anew in each run; TensorRT gives a chip the same answer at any place of a batch.
    assert different == []


def test_a_signal_ends_a_run_in_order(model, make_plan, large_scene, tmp_path):
    make_plan("int8")
    out = tmp_path / "out.gpkg"
    process = start(*run_arguments(model, large_scene, out, "--threads", "1", "--sample-on", "cpu"))
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None and not _some_are_done(out):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    assert code == 4
    arguments = run_arguments(model, large_scene, out, "--resume", "--json")
    code, text, _ = finish(start(*arguments))
    assert code == 0
    assert json.loads(text)["statuses"] == {"ok": json.loads(text)["footprints"]}


def _some_are_done(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            done = database.execute("SELECT count(*) FROM houses WHERE status = 'ok'").fetchone()[0]
        database.close()
    except sqlite3.Error:
        return False
    return bool(done)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_is_killed_leaves_nothing_in_the_way(model, tmp_path, number):
    cache = str(tmp_path / "cache")
    arguments = ["build", str(model), "--precision", "fp16", "--batch", "4"]
    process = start(*arguments, EDGE_INFER_CACHE=cache)
    assert process.stderr is not None
    while "building the fp16 engine" not in (line := process.stderr.readline()):
        assert line, "it ended without building"
    time.sleep(1)  # within: a build takes many seconds
    assert process.poll() is None
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    else:
        assert finish(process)[0] == 4
    assert not list((tmp_path / "cache").glob("*.plan"))
    for built in (True, False):
        code, out, errors = finish(start(*arguments, "--json", EDGE_INFER_CACHE=cache))
        assert code == 0, errors
        assert json.loads(out)["built"] is built


def test_auto_measures_both_once(model, tmp_path):
    """The figures are this GPU's; the second call finds plans and decision."""
    cache = tmp_path / "cache"
    arguments = ["build", str(model), "--precision", "auto", "--batch", "8", "--json"]
    code, out, errors = finish(start(*arguments, EDGE_INFER_CACHE=str(cache)))
    assert code == 0, errors
    first = json.loads(out)
    (decision,) = cache.glob("choice-*.json")
    rates = json.loads(decision.read_text())["images_per_second"]
    assert min(rates["int8"], rates["fp16"]) > 100
    assert first["precision"] == ("int8" if rates["int8"] > rates["fp16"] else "fp16")
    assert all(f"{name} {rate:,.0f} images/s" in first["why"] for name, rate in rates.items())
    code, out, errors = finish(start(*arguments, EDGE_INFER_CACHE=str(cache)))
    second = json.loads(out)
    assert (code, errors, second["built"]) == (0, "", False)
    assert second["why"] == first["why"]


def test_what_the_cache_holds_is_used_or_told(model, scene, tmp_path):
    """A plan of other bytes is not loaded; one that TensorRT refuses is built anew; both by `run` itself."""
    cache = tmp_path / "cache"
    building = ["build", str(model), "--precision", "fp16", "--batch", "4"]
    assert finish(start(*building, EDGE_INFER_CACHE=str(cache)))[0] == 0
    (plan,) = cache.glob("*.plan")
    whole, record = plan.read_bytes(), plan.with_suffix(".json")
    broken = whole[: len(whole) // 2]
    told = json.loads(record.read_text())
    for content, digest, said in (
        (broken, None, "is not the plan that its record was written for"),
        (broken, sha256(broken).hexdigest(), "the one in the cache is not taken, and is built anew"),
        (None, None, ""),
    ):
        if content is not None:
            plan.write_bytes(content)
        if digest is not None:
            record.write_text(json.dumps({**told, "plan_sha256": digest}))
        process = start(
            *run_arguments(model, scene, tmp_path / "out.gpkg", "--precision", "fp16", "--batch", "4"),
            "--overwrite", EDGE_INFER_CACHE=str(cache),
        )  # fmt: skip
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, out + errors
        assert said in errors
        assert bool(errors) == bool(said)
