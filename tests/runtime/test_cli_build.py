"""`edge-infer build` where there is no GPU, and what it does that needs none."""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING

import pytest

from edge_infer.cli import main
from edge_infer.engine.tensorrt.cache import PlanCache, PlanKey, PlanRecord
from edge_infer.engine.tensorrt.layers import LayerReport

if TYPE_CHECKING:
    from pathlib import Path


RECORD = PlanRecord(
    key=PlanKey(
        model_sha256="a" * 64,
        tensorrt="10.3.0",
        gpu="Orin (nvgpu)",
        compute_capability="8.7",
        multiprocessors=8,
        driver="12.6",
        precision="int8",
        batch=64,
    ),
    model="town",
    plan_sha256="b" * 64,
    plan_bytes=6,
    build_seconds=95.2,
    created="2026-11-22T10:00:00Z",
    layers=LayerReport(60, {"int8": 36, "fp32": 1}),
)


@pytest.fixture
def no_driver():
    """Skips where the machine has a driver: what is tested is what the system really says without one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("this machine has an NVIDIA driver")


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `edge-infer build`."""
    with pytest.raises(SystemExit) as ended:
        main(["build", *map(str, arguments)])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache = PlanCache(tmp_path / "engines")
    cache.prepare()
    cache.keep(b"a plan", RECORD)
    (cache.folder / "odd.plan").write_bytes(b"")
    return cache.folder


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("precision", ["auto", "int8", "fp16", "fp32"])
def test_without_a_driver_it_says_so_and_writes_nothing(make_bundle, tmp_path, capsys, precision):
    code, out, complained = invoke(
        capsys, make_bundle(), "--precision", precision, "--cache", tmp_path / "engines"
    )
    assert (code, out) == (2, "")
    assert complained.startswith("edge-infer: no NVIDIA driver was found (libcuda.so.1); ")
    assert complained.count("\n") == 1
    assert not (tmp_path / "engines").exists()


@pytest.mark.usefixtures("no_driver")
def test_pruning_needs_the_gpu_that_the_plans_are_for(folder, capsys):
    before = sorted(folder.iterdir())
    code, _, complained = invoke(capsys, "--prune", "--cache", folder)
    assert (code, "no NVIDIA driver" in complained) == (2, True)
    assert sorted(folder.iterdir()) == before


def test_listing_needs_nothing(folder, capsys):
    code, out, _ = invoke(capsys, "--list", "--cache", folder)
    assert code == 0
    head, odd, town = out.splitlines()
    assert head == f"{folder}: 2 plans"
    assert odd == "  odd.plan: cannot be used, it has no record"
    assert "town in int8, batch 1 to 64, Orin (nvgpu), TensorRT 10.3.0" in town
    assert "60 layers; convolutions: 36 in int8, 1 in fp32" in town


def test_listing_as_json_and_by_model(folder, make_bundle, capsys, monkeypatch):
    monkeypatch.setenv("EDGE_INFER_CACHE", str(folder))
    code, out, _ = invoke(capsys, "--list", "--json")
    values = json.loads(out)
    assert code == 0
    assert [entry["trouble"] for entry in values] == ["it has no record", None]
    assert values[1]["record"]["key"]["tensorrt"] == "10.3.0"
    assert len(json.loads(invoke(capsys, make_bundle(name="town"), "--list", "--json")[1])) == 1
    assert json.loads(invoke(capsys, make_bundle(name="city"), "--list", "--json")[1]) == []
    assert "0 plans" in invoke(capsys, "--list", "--cache", folder / "none")[1]


@pytest.mark.parametrize(
    "arguments", [(), ("--list", "--prune"), ("--batch", "0", "x"), ("--precision", "int4", "x")]
)
def test_usage(arguments, capsys):
    code, _, complained = invoke(capsys, *arguments)
    assert code == 2
    assert "Usage: edge-infer build" in complained


def test_no_bundle(tmp_path, capsys):
    code, _, complained = invoke(capsys, tmp_path / "none.edgemodel")
    assert (code, "no such file" in complained) == (2, True)
