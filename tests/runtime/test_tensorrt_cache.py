"""The rules of the plan cache that need no TensorRT; tests/tensorrt has the rest."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.device.gpu import GpuFacts
from edge_infer.engine.tensorrt.auto import decide, decision_path, read_decision, write_decision
from edge_infer.engine.tensorrt.cache import PlanCache, PlanKey, PlanRecord, cache_folder
from edge_infer.engine.tensorrt.inventory import line, plans_of, prune
from edge_infer.engine.tensorrt.layers import LayerReport
from edge_infer.engine.tensorrt.timing import read_timings, timing_path, write_timings

GPU = GpuFacts(
    name="Orin (nvgpu)",
    compute_capability=(8, 7),
    multiprocessors=8,
    integrated=True,
    total_bytes=8 << 30,
    free_bytes=4 << 30,
    driver="12.6",
)
KEY = PlanKey(
    model_sha256="a" * 64,
    tensorrt="10.3.0",
    gpu="Orin (nvgpu)",
    compute_capability="8.7",
    multiprocessors=8,
    driver="12.6",
    precision="int8",
    batch=64,
)
PLAN = b"a plan"


def record_of(
    key: PlanKey = KEY, content: bytes = PLAN, *, model: str = "town", **changes: object
) -> PlanRecord:
    values = {
        "key": key,
        "model": model,
        "plan_sha256": sha256(content).hexdigest(),
        "plan_bytes": len(content),
        "build_seconds": 95.2,
        "created": "2026-11-22T10:00:00Z",
        "layers": LayerReport(60, {"int8": 36, "fp32": 1}),
        "warnings": ("a warning",),
    }
    return PlanRecord(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path):
    cache = PlanCache(tmp_path / "engines")
    cache.prepare()
    return cache


keys = st.builds(
    PlanKey,
    model_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    tensorrt=st.from_regex(r"\d{1,2}\.\d\.\d", fullmatch=True),
    gpu=st.text(min_size=1),
    compute_capability=st.from_regex(r"\d{1,2}\.\d", fullmatch=True),
    multiprocessors=st.integers(1, 200),
    driver=st.from_regex(r"\d\d\.\d", fullmatch=True),
    precision=st.sampled_from(["int8", "fp16", "fp32"]),
    batch=st.integers(1, 1024),
    revision=st.integers(1, 9),
)


@given(keys, keys)
def test_keys_differ_in_words_exactly_if_they_differ(first, second):
    assert len(first.differences(second)) == sum(
        getattr(first, field.name) != getattr(second, field.name) for field in fields(PlanKey)
    )
    assert (first.digest == second.digest) == (first == second)


@given(keys)
def test_records_survive_json(key):
    record = record_of(key)
    assert PlanRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    bare = replace(record, layers=None, warnings=())
    assert PlanRecord.from_json(json.loads(json.dumps(bare.to_json()))) == bare


@pytest.mark.parametrize("name", [field.name for field in fields(PlanKey)])
def test_every_field_of_the_key_counts(cache, name):
    cache.keep(PLAN, record_of())
    assert cache.find(KEY, "town") == (PLAN, record_of())
    value = getattr(KEY, name)
    changed = {"precision": "fp16"}.get(name, value + 1 if isinstance(value, int) else f"{value}1")
    changes: dict[str, Any] = {name: changed}
    found = cache.find(replace(KEY, **changes), "town")
    assert isinstance(found, str)
    if name != "precision":  # plans of several precisions stand side by side
        assert f"was {str(value)[:12]}, is {str(changed)[:12]}" in found


def test_two_differences_are_both_told(cache):
    cache.keep(PLAN, record_of())
    moved = replace(KEY, tensorrt="10.16.1", driver="13.2")
    assert cache.find(moved, "town") == "TensorRT was 10.3.0, is 10.16.1; the driver's CUDA was 12.6, is 13.2"


def test_the_nearest_and_newest_plan_is_compared(cache):
    cache.keep(PLAN, record_of(replace(KEY, tensorrt="8.6.1", driver="12.2")))
    cache.keep(PLAN, record_of(replace(KEY, tensorrt="10.2.0"), created="2026-01-01T00:00:00Z"))
    cache.keep(PLAN, record_of(replace(KEY, tensorrt="10.1.0"), created="2025-01-01T00:00:00Z"))
    cache.keep(PLAN, record_of(replace(KEY, model_sha256="b" * 64, batch=1), model="city"))
    assert cache.find(KEY, "town") == "TensorRT was 10.2.0, is 10.3.0"


@given(st.text(max_size=200))
def test_any_model_name_gives_a_file_in_the_folder(name):
    folder = Path("/engines")
    path = PlanCache(folder).path_of(record_of(model=name))
    assert path.parent == folder
    assert not path.name.startswith(".")
    assert len(path.name.encode()) < 200


def test_a_renamed_model_finds_its_plan_and_replaces_it(cache):
    first = cache.keep(PLAN, record_of())
    assert isinstance(cache.find(KEY, "city"), tuple)
    second = cache.keep(PLAN, record_of(model="city"))
    assert (first.exists(), second.exists(), len(cache.entries())) == (False, True, 1)


def test_nothing_in_the_folder_can_break_the_list(cache):
    cache.keep(PLAN, record_of())
    for name, content in {
        "a.json": b"{", "b.json": b"\xff\xfe", "c.json": b"[" * 100_000, "d.json": b'{"key": 5}',
        "e.plan": b"", "f.json": b'{"layers": null, "key": {"batch": true}}', "choice-1-2.json": b"{}",
        "g.timing": b"",
    }.items():  # fmt: skip
        (cache.folder / name).write_bytes(content)
    (cache.folder / "h.json").mkdir()
    (cache.folder / "i.plan").symlink_to("nowhere")
    entries = cache.entries()
    assert [entry.path.stem for entry in entries if entry.trouble] == ["a", "b", "c", "d", "e", "f", "h", "i"]
    assert all(entry.trouble is None or "cannot be used" in line(entry) for entry in entries)
    assert isinstance(cache.find(KEY, "town"), tuple)


def test_the_last_build_is_that_of_the_same_gpu_and_precision(cache):
    assert cache.last_seconds(KEY) is None
    cache.keep(PLAN, record_of(replace(KEY, precision="fp16"), build_seconds=1.0))
    cache.keep(PLAN, record_of(replace(KEY, gpu="another"), build_seconds=2.0))
    assert cache.last_seconds(KEY) is None
    cache.keep(PLAN, record_of(replace(KEY, batch=1), build_seconds=3.0, created="2026-01-01T00:00:00Z"))
    cache.keep(PLAN, record_of(replace(KEY, tensorrt="10.2.0"), build_seconds=4.0))
    assert cache.last_seconds(KEY) == 4.0


def test_the_folder_is_named_by_option_variable_and_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGE_INFER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder(None) == tmp_path / ".cache/edge-infer/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder(None) == tmp_path / ".cache/edge-infer/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder(None) == Path("/xdg/edge-infer/engines")
    monkeypatch.setenv("EDGE_INFER_CACHE", "/plans")
    assert cache_folder(None) == Path("/plans")
    assert cache_folder(Path("asked")) == Path("asked")


def test_pruning_keeps_what_this_machine_can_use(cache):
    good = cache.keep(PLAN, record_of())
    stale = {
        cache.keep(PLAN, record_of(replace(KEY, tensorrt="10.2.0"))): "TensorRT was 10.2.0, is 10.3.0",
        cache.keep(
            PLAN, record_of(replace(KEY, gpu="Xavier", compute_capability="7.2"))
        ): "the GPU was Xavier",
        cache.keep(PLAN, record_of(replace(KEY, driver="12.2"))): "the driver's CUDA was 12.2, is 12.6",
        cache.keep(PLAN, record_of(replace(KEY, revision=1))): "edge-infer's builder was 1, is 2",
    }
    damaged = cache.folder / "damaged.plan"
    damaged.write_bytes(b"12345")
    stale[damaged] = "it has no record"
    decision = decide(2.0, 1.0, "fp16")
    gone, kept = replace(KEY, tensorrt="10.2.0"), replace(KEY, precision="fp16")
    cache.keep(PLAN, record_of(kept))
    write_decision(decision_path(cache.folder, gone, kept), decision)
    write_decision(decision_path(cache.folder, KEY, kept), decision)
    write_timings(timing_path(cache.folder, GPU, "10.2.0"), b"old")
    write_timings(timing_path(cache.folder, GPU, "10.3.0"), b"new")

    removed = prune(cache, None, gpu=GPU, tensorrt="10.3.0", say=pytest.fail)
    for one in removed:
        assert one.size_bytes > 0
        assert not one.path.exists()
        assert stale.get(one.path, "") in one.why
    assert {one.path for one in removed if one.path.suffix == ".plan"} == set(stale)
    assert good.exists()
    assert read_decision(decision_path(cache.folder, KEY, kept), "fp16") == decision
    assert read_decision(decision_path(cache.folder, gone, kept), "fp16") is None
    assert [path.name for path in cache.folder.glob("*.timing")] == ["Orin-nvgpu-sm87-8mp-trt10.3.0.timing"]
    assert prune(cache, None, gpu=GPU, tensorrt="10.3.0", say=pytest.fail) == []


def test_pruning_for_a_model_removes_its_other_versions(cache, make_bundle):
    from edge_infer.bundle import open_bundle

    bundle = open_bundle(make_bundle(name="town"))
    mine = replace(KEY, model_sha256=bundle.members["model.onnx"].sha256, precision="fp32")
    kept = cache.keep(PLAN, record_of(mine))
    old = cache.keep(PLAN, record_of(replace(mine, model_sha256="b" * 64)))
    city = cache.keep(PLAN, record_of(replace(mine, model_sha256="c" * 64), model="city"))
    assert {entry.path for entry in plans_of(cache, bundle)} == {kept, old}
    assert len(plans_of(cache, None)) == 3
    (removed,) = prune(cache, bundle, gpu=GPU, tensorrt="10.3.0", say=pytest.fail)
    assert (removed.path, removed.why) == (old, "it was built from another version of the model")
    assert kept.exists()
    assert city.exists()


def test_pruning_where_there_is_no_cache(tmp_path):
    cache = PlanCache(tmp_path / "none")
    assert prune(cache, None, gpu=GPU, tensorrt="10.3.0", say=pytest.fail) == []
    assert not cache.folder.exists()


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(["fp16", "fp32"]))
def test_the_faster_plan_is_taken_and_float_where_they_are_alike(int8, other, precision):
    decision = decide(int8, other, precision)
    assert decision.precision == ("int8" if int8 > other else precision)
    assert set(decision.images_per_second) == {"int8", precision}


def test_a_decision_is_made_of_its_figures_not_of_its_word(tmp_path):
    path = tmp_path / "choice.json"
    write_decision(path, decide(1.0, 2.0, "fp16"))
    path.write_text(path.read_text().replace('"precision": "fp16"', '"precision": "int8"'))
    decision = read_decision(path, "fp16")
    assert decision is not None
    assert decision.precision == "fp16"
    assert read_decision(path, "fp32") is None


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_timings_are_read_as_written_or_not_at_all(tmp_path_factory, timings, at, flip):
    path = tmp_path_factory.mktemp("timings") / "gpu.timing"
    said: list[str] = []
    assert read_timings(path, said.append) == b""
    write_timings(path, timings)
    assert read_timings(path, said.append) == timings
    assert said == []
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(content)
    assert read_timings(path, said.append) == b""
    assert "left aside" in said[0]


def test_the_key_of_another_machine(tmp_path):
    thor = replace(GPU, name="Thor", compute_capability=(11, 0), multiprocessors=20, driver="13.0")
    moved = KEY.on_machine(thor, "10.13.3")
    assert {name for name, value in asdict(moved).items() if value != getattr(KEY, name)} == {
        "gpu", "compute_capability", "multiprocessors", "driver", "tensorrt",
    }  # fmt: skip


def test_jetsons_of_one_name_do_not_share_plans_or_timings(tmp_path):
    larger = replace(GPU, multiprocessors=16)
    moved = KEY.on_machine(larger, KEY.tensorrt)
    assert moved.digest != KEY.digest
    assert moved.differences(KEY) == ["the number of multiprocessors was 8, is 16"]
    assert timing_path(tmp_path, larger, "10.3.0") != timing_path(tmp_path, GPU, "10.3.0")


def test_a_plan_that_is_built_anew_takes_its_decisions_with_it(cache):
    """A decision compares two builds; it says nothing of a third one."""
    float_key = replace(KEY, precision="fp16")
    other = replace(KEY, precision="fp32")
    for rebuilt in (KEY, float_key):
        for key in (KEY, float_key, other):
            cache.keep(PLAN, record_of(key))
        path, untouched = (decision_path(cache.folder, KEY, key) for key in (float_key, other))
        write_decision(path, decide(2.0, 1.0, "fp16"))
        write_decision(untouched, decide(2.0, 1.0, "fp32"))
        cache.keep(PLAN, record_of(rebuilt))
        assert not path.exists()
        assert untouched.exists() == (rebuilt == float_key)
        assert len(cache.entries()) == 3


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_a_folder_that_others_may_write_is_not_trusted(cache, mode):
    cache.keep(PLAN, record_of())
    cache.folder.chmod(mode)
    assert cache.find(KEY, "town") == "others may write there, and a plan is native code: chmod go-w"
    with pytest.raises(PermissionError, match="chmod go-w"):
        cache.prepare()
    cache.folder.chmod(0o755)
    assert cache.find(KEY, "town") == (PLAN, record_of())


def test_a_folder_of_another_user_is_not_trusted(cache, monkeypatch):
    cache.keep(PLAN, record_of())
    owner = cache.folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    found = cache.find(KEY, "town")
    if owner == 0:  # what root put there is taken by everyone
        assert found == (PLAN, record_of())
        os.chown(cache.folder, 4321, -1)
        owner, found = 4321, cache.find(KEY, "town")
    assert found == f"it belongs to the user {owner}, and a plan is native code: chown it"
