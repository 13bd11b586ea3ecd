"""`edge-infer doctor` where a GPU with TensorRT and pycuda seems to be there."""

from __future__ import annotations

import io
from dataclasses import replace
from hashlib import sha256

import numpy as np

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.device.gpu import probe_gpu
from edge_infer.doctor import Checkup, examine
from edge_infer.engine.tensorrt.bindings import load_tensorrt
from edge_infer.engine.tensorrt.cache import PlanCache, PlanKey, PlanRecord

SIDE, BATCH = 16, 8


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def look(path):
    report = examine(Checkup(model=path))
    return {finding.name: finding for finding in report.findings}


def test_golden_chips_go_through_the_engine_in_the_cache(fake, make_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGE_INFER_CACHE", str(tmp_path / "engines"))
    path = make_bundle()
    bundle = open_bundle(path)
    chips = np.random.default_rng(1).integers(0, 256, (11, SIDE, SIDE, 3)).astype(np.uint8)
    bright = chips.reshape(11, -1).mean(axis=1) / 255
    expected = np.stack([1 - bright, bright], axis=1).astype(np.float32)
    members = {
        "model.onnx": bundle.read("model.onnx"),
        "golden/chips.npy": npy(chips),
        "golden/expected.npy": npy(expected),
    }
    bundle = write_bundle(path, bundle.manifest, members)

    found = look(path)
    assert (found["GPU"].level, found["TensorRT"].level, found["pycuda"].level) == ("ok", "ok", "ok")
    assert "none are built yet" in found["engines"].found
    assert (found["tensorrt"].level, found["tensorrt"].do) == ("warning", f"edge-infer build {path}")

    gpu = probe_gpu()
    cache = PlanCache(tmp_path / "engines")
    cache.prepare()
    key = PlanKey(
        model_sha256=bundle.members["model.onnx"].sha256,
        tensorrt="", gpu="", compute_capability="", multiprocessors=0, driver="",
        precision="fp32", batch=BATCH,
    ).on_machine(gpu, load_tensorrt(gpu.driver).text)  # fmt: skip
    plan = f"brightness {SIDE} 3 {BATCH}".encode()
    cache.keep(
        plan,
        PlanRecord(
            key=key, model=bundle.manifest.name, plan_sha256=sha256(plan).hexdigest(), plan_bytes=len(plan),
            build_seconds=1.0, created="2026-11-22T10:00:00Z", layers=None,
        ),
    )  # fmt: skip
    found = look(path)
    assert found["engines"].figures == {"engines": 1, "usable": 1}
    name = f"tensorrt fp32, batch {BATCH}"
    assert found[name].level == "ok", found[name]
    assert found[name].figures["same_class"] == 11
    assert found["tensorrt"].found == f"of this model only {name} is built; a run takes batch 64"

    bad = replace(key, batch=64)
    cache.keep(
        b"none",
        PlanRecord(
            key=bad, model=bundle.manifest.name, plan_sha256=sha256(b"none").hexdigest(), plan_bytes=4,
            build_seconds=1.0, created="2026-11-20T10:00:00Z", layers=None,
        ),
    )  # fmt: skip
    found = look(path)
    assert found["tensorrt fp32, batch 64"].level == "problem", "an older one of a batch that a run takes"
    assert found[name].level == "ok"
    assert "tensorrt" not in found

    spoilt = expected[:, ::-1].copy()
    write_bundle(path, bundle.manifest, members | {"golden/expected.npy": npy(spoilt)})
    wrong = look(path)[name]
    assert wrong.level == "problem"
    assert "edge-infer build --force" in str(wrong.do)
