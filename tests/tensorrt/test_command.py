"""`edge-infer build` from end to end but for the GPU: driver and context are stand-ins, plans are real."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge_infer.cli import main
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.engine.tensorrt.builder import build_plan


@pytest.fixture
def command(monkeypatch, capsys, gpu, tmp_path):
    """Run the command; exit code, standard output, standard error."""
    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", lambda: gpu)
    monkeypatch.setattr("edge_infer.device.cuda.CudaDevice", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setenv("EDGE_INFER_CACHE", str(tmp_path / "plans"))

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["build", *map(str, arguments)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_build_find_list_and_prune(command, make_bundle, tmp_path):
    model = make_bundle().path
    code, out, err = command(model)
    assert code == 0
    assert "building the int8 engine of town for Made-up GPU by TensorRT 11.4.0.106, batch 1 to 64" in err
    assert "int8: it passed its gate; not timed against float" in out
    assert ": built in " in out

    code, out, err = command(model, "--json")
    found = json.loads(out)
    assert (code, err, found["built"], found["precision"], found["batch"]) == (0, "", False, "int8", 64)
    assert command(model, "--precision", "fp16", "--batch", 8)[0] == 0
    assert [line.split(":")[0] for line in command("--list")[1].splitlines()[1:]] == [
        f"  {path.name}" for path in sorted((tmp_path / "plans").glob("*.plan"))
    ]

    (tmp_path / "plans" / "odd.plan").write_bytes(b"x")
    code, out, _ = command("--prune")
    assert (code, out.splitlines()[1:]) == (0, ["  odd.plan: it has no record"])
    assert json.loads(command("--prune", "--json")[1]) == []
    assert len(list((tmp_path / "plans").glob("*.plan"))) == 2


def test_the_caches_of_another_machine_go(command, make_bundle, gpu, monkeypatch, tmp_path):
    command(make_bundle().path, "--precision", "fp16")
    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", lambda: replace(gpu, name="Another GPU"))
    removed = json.loads(command("--prune", "--json")[1])
    assert [one["why"] for one in removed] == [
        "the GPU was Made-up GPU, is Another GPU",
        "it was measured by another GPU or TensorRT",
    ]
    assert [path.name for path in (tmp_path / "plans").iterdir()] == [".building"]


def test_what_cannot_be_built_ends_with_2(command, make_bundle, small_models, tmp_path):
    model = make_bundle({"model.onnx": small_models["model.onnx"]}).path
    code, out, err = command(model, "--precision", "int8")
    assert (code, out) == (2, "")
    assert err.startswith(
        "edge-infer: town.edgemodel holds no INT8 model; make it with `edge-infer calibrate`"
    )
    assert not (tmp_path / "plans").exists()


def test_a_batch_that_does_not_fit_is_halved(command, make_bundle, monkeypatch):
    def build(library, request, **options):
        if request.batch > 16:
            raise GpuMemoryError("TensorRT cannot build the fp16 engine: OutOfMemory")
        return build_plan(library, request, **options)

    monkeypatch.setattr("edge_infer.engine.tensorrt.plans.build_plan", build)
    code, out, err = command(make_bundle().path, "--precision", "fp16", "--batch", 48, "--json")
    assert (code, json.loads(out)["batch"]) == (0, 12)
    assert [line[-8:] for line in err.splitlines() if "trying batch" in line] == ["batch 24", "batch 12"]
    assert "batch 48 did not fit the GPU's memory; give --batch 12 to run as well" in err


def test_a_gpu_with_no_memory_for_one_chip_ends_with_2(command, make_bundle, monkeypatch):
    def build(*_, **__):
        raise GpuMemoryError("TensorRT cannot build the fp16 engine: OutOfMemory")

    monkeypatch.setattr("edge_infer.engine.tensorrt.plans.build_plan", build)
    code, out, err = command(make_bundle().path, "--precision", "fp16", "--batch", 2)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "edge-infer: TensorRT cannot build the fp16 engine: OutOfMemory"
