"""What is found, what is built, what is kept; by TensorRT's own builder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from edge_infer.device.cuda import GpuMemoryError
from edge_infer.engine.tensorrt import plans as plans_module
from edge_infer.engine.tensorrt.bindings import load_tensorrt
from edge_infer.engine.tensorrt.cache import PlanRefusedError
from edge_infer.engine.tensorrt.plans import ready_plan
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path


class Asker:
    """Asks for plans of a bundle and notes what is said."""

    def __init__(self, bundle, gpu, folder):
        self.bundle, self.gpu, self.folder = bundle, gpu, folder
        self.said: list[str] = []

    def __call__(self, precision="fp16", **options):
        self.said.clear()
        values = {"bundle": self.bundle, "batch": 8, "gpu": self.gpu, "measure": None, **options}
        return ready_plan(
            values.pop("bundle"), precision=precision, say=self.said.append, cache=self.folder, **values
        )

    @property
    def reason(self) -> str:
        """Why it built, from the line that says so."""
        line = next(line for line in self.said if line.startswith("building"))
        return line.split(": ", 1)[1]


@pytest.fixture
def ask(make_bundle, gpu, tmp_path):
    return Asker(make_bundle(), gpu, tmp_path / "plans")


def test_the_largest_batch_that_fits_is_found_by_halves():
    tried: list[int] = []
    said: list[str] = []

    def attempt(batch):
        tried.append(batch)
        if batch > limit:
            raise GpuMemoryError("no memory left")
        return batch

    limit = 13
    assert plans_module.largest_that_fits(48, attempt, said.append) == 12
    assert (tried, [line[-8:] for line in said]) == ([48, 24, 12], ["batch 24", "batch 12"])
    limit = 0
    with pytest.raises(EngineError, match="no memory left") as refused:
        plans_module.largest_that_fits(3, attempt, said.append)
    assert refused.value.exit_code == 2


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_plan_is_built_once(ask):
    first = ask()
    assert first.built
    assert ask.reason == "there is no plan of this model yet"
    assert first.why == "fp16: asked for"
    second = ask()
    assert (second.built, second.content, second.path) == (False, first.content, first.path)
    assert ask.said == []
    assert first.path is not None
    assert first.path.name.startswith("town-fp16-b8-sm87-")
    record = json.loads(first.path.with_suffix(".json").read_text())
    assert record["key"]["model_sha256"] == ask.bundle.members["model.fp16.onnx"].sha256
    assert record["plan_bytes"] == len(first.content)


def test_what_stands_in_the_folder_is_whole(ask):
    ask()
    assert {path.suffix for path in ask.folder.iterdir()} == {".plan", ".json", ".timing", ""}
    assert ask.folder.stat().st_mode & 0o777 == 0o700


def test_what_differs_is_said_and_built_anew(ask, gpu, make_bundle, make_models, monkeypatch):
    first = ask()
    for changes, reason in (
        ({"name": "Another GPU"}, "the GPU was Made-up GPU, is Another GPU"),
        ({"compute_capability": (11, 0)}, "the compute capability was 8.7, is 11.0"),
        ({"multiprocessors": 16}, "the number of multiprocessors was 8, is 16"),
        ({"driver": "13.2"}, "the driver's CUDA was 13.0, is 13.2"),
    ):
        other = ask(gpu=replace(gpu, **changes))
        assert (other.built, ask.reason) == (True, reason)
        assert other.path != first.path
    assert ask(batch=16).built
    assert ask.reason == "the batch was 8, is 16"

    library = load_tensorrt("13.0")
    monkeypatch.setattr(plans_module, "load_tensorrt", lambda _: replace(library, text="11.3.0"))
    assert ask().built
    assert ask.reason == "TensorRT was 11.4.0.106, is 11.3.0"
    monkeypatch.undo()

    changed = make_bundle(make_models((1, 1, 1, 1), 8, 32), file="changed")
    old, new = (bundle.members["model.fp16.onnx"].sha256[:12] for bundle in (ask.bundle, changed))
    assert ask(bundle=changed).built
    assert ask.reason == f"the model was {old}, is {new}"
    # And all the time the first one is as good as it was.
    assert not ask().built


def test_a_swapped_plan_is_refused_and_built_anew(ask, make_bundle):
    ask()
    other = ask("fp32")
    mine = only(ask.folder, "*fp16*.plan")
    mine.write_bytes(other.content)
    again = ask()
    assert (again.built, ask.reason) == (True, f"{mine.name} is not the plan that its record was written for")
    assert mine.read_bytes() == again.content != other.content


def test_a_plan_swapped_with_its_record_is_refused_too(ask):
    ask()
    ask("fp32")
    mine, other = only(ask.folder, "*fp16*.plan"), only(ask.folder, "*fp32*.plan")
    mine.write_bytes(other.read_bytes())
    mine.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())
    again = ask()
    assert again.built
    assert again.record.key.precision == "fp16"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "its record is damaged"),
        (lambda text: b"[]", "its record is damaged"),
        (lambda text: text.replace(b'"batch": 8', b'"batch": "8"'), "its record is damaged"),
        (lambda text: text.replace(b'"plan_sha256"', b'"plan_sha"'), "its record is damaged"),
        (None, "it has no record"),
    ],
)
def test_a_damaged_record_is_refused_and_written_anew(ask, damage, reason):
    ask()
    record = only(ask.folder, "town-*.json")
    whole = record.read_bytes()
    if damage is None:
        record.unlink()
    else:
        record.write_bytes(damage(whole))
    assert ask().built
    assert reason in ask.reason
    assert json.loads(record.read_bytes())["key"] == json.loads(whole)["key"]
    assert not ask().built


def test_a_cut_off_plan_and_a_missing_one(ask):
    plan = ask()
    assert plan.path is not None
    plan.path.write_bytes(plan.content[:-1])
    assert ask().built
    plan.path.unlink()
    assert ask().built
    assert "No such file" in ask.reason


def test_force_builds_anew(ask):
    ask()
    assert ask(force=True).built
    assert ask.reason == "asked for by --force"


def test_a_damaged_timing_cache_is_left_aside(ask):
    ask()
    timings = only(ask.folder, "*.timing")
    assert timings.name == "Made-up-GPU-sm87-8mp-trt11.4.0.106.timing"
    timings.write_bytes(timings.read_bytes()[:-1] + b"?")
    assert ask("fp32").built
    assert any("is damaged and is left aside" in line for line in ask.said)
    assert ask("int8").built
    assert not any("damaged" in line for line in ask.said)


def test_a_folder_that_everyone_may_write_is_not_trusted(ask):
    assert not [ask(), ask()][1].built
    ask.folder.chmod(0o777)
    plan = ask()
    assert (plan.built, plan.path) == (True, None)
    assert any("others may write there" in line for line in ask.said)


def test_a_folder_that_cannot_be_is_said_and_built_without(ask, tmp_path):
    (tmp_path / "file").write_text("no folder")
    ask.folder = tmp_path / "file" / "plans"
    plan = ask()
    assert (plan.built, plan.path) == (True, None)
    assert "plans cannot be kept in" in ask.said[0]
    assert "by the variable EDGE_INFER_CACHE" in ask.said[0]


def test_a_full_disk_costs_the_plan_its_place_only(ask, monkeypatch):
    """Through the system: no file of this process may grow beyond a few bytes."""
    import resource

    ask("fp32")
    before = sorted(ask.folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        plan = ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (plan.built, plan.path) == (True, None)
    assert any("File too large" in line and "built again next time" in line for line in ask.said)
    assert sorted(ask.folder.iterdir()) == before


def test_a_precision_that_the_bundle_has_not(ask, make_bundle, small_models):
    ask.bundle = make_bundle({"model.onnx": small_models["model.onnx"]}, file="plain")
    with pytest.raises(EngineError, match="holds no FP16 model; export the model again"):
        ask("fp16")
    with pytest.raises(EngineError, match="holds no INT8 model; make it with `edge-infer calibrate`"):
        ask("int8")
    assert ask("auto").why == "fp32: the bundle holds no INT8 model"


@pytest.mark.parametrize(
    ("int8", "precision", "why"),
    [
        ({"int8": "passed"}, "int8", "int8: it passed its gate; not timed against float"),
        ({"int8": "rejected", "reason": "recall"}, "fp16", "fp16: INT8 did not pass its gate (recall)"),
        (None, "fp16", "fp16: the bundle's INT8 model was not put to a gate"),
    ],
)
def test_auto_without_a_clock_goes_by_the_gate(ask, make_bundle, int8, precision, why):
    ask.bundle = make_bundle(file="gated", facts={} if int8 is None else {"int8": int8})
    plan = ask("auto")
    assert (plan.precision, plan.why) == (precision, why)


@pytest.mark.parametrize(("int8_rate", "precision"), [(2100.0, "int8"), (1900.0, "fp16"), (2000.0, "fp16")])
def test_auto_takes_what_is_faster_and_keeps_the_decision(ask, int8_rate, precision):
    sizes = {len(ask(name).content): name for name in ("int8", "fp16")}
    measured = []

    def measure(plan):
        measured.append(sizes[len(plan)])
        return int8_rate if measured[-1] == "int8" else 2000.0

    plan = ask("auto", measure=measure)
    assert (plan.precision, measured) == (precision, ["int8", "fp16"])
    assert (
        plan.why == f"{precision}: the faster one here (int8 {int8_rate:,.0f} images/s, fp16 2,000 images/s)"
    )
    assert plan.why in ask.said
    again = ask("auto", measure=measure)
    assert (again.precision, again.why, len(measured), ask.said) == (precision, plan.why, 2, [])

    only(ask.folder, "choice-*.json").write_text("{")
    assert ask("auto", measure=measure).precision == precision
    assert len(measured) == 4
    ask("auto", measure=measure, force=True)
    assert len(measured) == 6


def test_auto_takes_float_where_int8_cannot_be_built(ask, make_bundle, make_models, small_models):
    """The bundle's INT8 member takes other chips."""
    other = make_models((1, 2, 1, 1), 8, 64)["model.int8.onnx"]
    ask.bundle = make_bundle({**small_models, "model.int8.onnx": other}, file="odd")
    for options in ({"measure": None}, {"measure": lambda _: pytest.fail("nothing to compare")}):
        plan = ask("auto", **options)
        assert (plan.precision, plan.why) == ("fp16", "fp16: INT8 cannot be built here")
        assert any("64, 64, 3" in line and "--precision fp16 spares" in line for line in ask.said), ask.said
    with pytest.raises(EngineError, match="64, 64, 3"):
        ask("int8")


def test_measuring_is_done_by_one_process_at_a_time(ask):
    """While one measures, the folder is locked; who waited finds the decision and measures nothing."""
    import fcntl

    for precision in ("int8", "fp16"):
        ask(precision)
    locked = []

    def measure(_):
        with (ask.folder / ".building").open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(True)
            else:
                locked.append(False)
        return 1000.0

    first = ask("auto", measure=measure)
    assert locked == [True, True]
    decision = only(ask.folder, "choice-*.json")
    kept = decision.read_bytes()
    decision.unlink()

    def decide_elsewhere(text):
        if "waiting for it" in text:
            decision.write_bytes(kept)
            lock.close()

    lock = (ask.folder / ".building").open("r+")
    fcntl.flock(lock, fcntl.LOCK_EX)
    again = ready_plan(
        ask.bundle, precision="auto", batch=8, gpu=ask.gpu, say=decide_elsewhere, cache=ask.folder,
        measure=lambda _: pytest.fail("the other process has decided"),
    )  # fmt: skip
    assert again.why == first.why


def test_a_plan_that_tensorrt_refuses_while_it_is_measured_is_built_anew(ask):
    for precision in ("int8", "fp16"):
        ask(precision)
    calls = []

    def measure(_):
        calls.append(1)
        if len(calls) == 1:
            raise PlanRefusedError("TensorRT cannot load a plan")
        return 1000.0

    plan = ask("auto", measure=measure)
    assert plan.built
    assert len(calls) == 3
    assert any("cannot load a plan: the plans are built anew" in line for line in ask.said)

    def refuse(_):
        raise PlanRefusedError("TensorRT cannot load a plan")

    with pytest.raises(PlanRefusedError):  # built just now, and refused all the same
        ask("auto", measure=refuse, force=True)


# --- other processes ---

SCRIPT = """
import sys
from pathlib import Path
from edge_infer.bundle import open_bundle
from edge_infer.device.gpu import GpuFacts
from edge_infer.engine.tensorrt.plans import ready_plan

gpu = GpuFacts(name="Made-up GPU", compute_capability=(8, 7), multiprocessors=8, integrated=False,
    total_bytes=8 << 30, free_bytes=4 << 30, driver="13.0")
plan = ready_plan(open_bundle(sys.argv[1]), precision=sys.argv[2], batch=8, gpu=gpu, measure=None,
    say=lambda text: print(text, flush=True), cache=Path(sys.argv[3]))
print("built" if plan.built else "found", len(plan.content), flush=True)
"""


@pytest.fixture
def large_bundle(make_bundle, large_models):
    return make_bundle(large_models, side=224, file="large", name="large")


def start(bundle, precision, folder, script=SCRIPT):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(bundle.path), precision, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_once_between_them(large_bundle, tmp_path):
    running = [start(large_bundle, "fp16", tmp_path / "plans") for _ in range(2)]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    ends = sorted(out.splitlines()[-1] for out, _ in told)
    size = ends[0].split()[1]
    assert ends == [f"built {size}", f"found {size}"]
    assert only(tmp_path / "plans", "*.plan").stat().st_size == int(size)
    if sum("building the fp16 engine" in out for out, _ in told) == 1:
        waited = [out for out, _ in told if "found" in out.splitlines()[-1]]
        assert "another process is building" in waited[0] or len(waited[0].splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_nothing(large_bundle, tmp_path, number):
    folder = tmp_path / "plans"
    process = start(large_bundle, "fp32", folder)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("building the fp32 engine")
    time.sleep(0.1)  # somewhere within
    process.send_signal(number)
    out, complained = process.communicate(timeout=120)
    assert process.returncode in (-number, 1)
    assert "built" not in out
    assert ("KeyboardInterrupt" in complained) == (number == signal.SIGINT)
    assert [path.name for path in folder.iterdir()] == [".building"]
    # What a kill may leave between two writes goes when the next build begins.
    (folder / ".large.plan.0123abcd.partial").write_bytes(b"half")
    after = start(large_bundle, "int8", folder)
    assert after.communicate(timeout=120)[0].splitlines()[-1].startswith("built")
    assert not list(folder.glob(".*.partial"))
    assert os.access(folder / ".building", os.R_OK)


WITHOUT_A_MONITOR = """
import tensorrt
from edge_infer.engine.tensorrt import builder
del tensorrt.IProgressMonitor  # as in 8.6, which cannot be asked to stop
builder.HEARTBEAT_SECONDS = 0.05
"""


def test_a_second_signal_ends_at_once_a_build_that_cannot_be_stopped(large_bundle, tmp_path):
    folder = tmp_path / "plans"
    process = start(large_bundle, "int8", folder, WITHOUT_A_MONITOR + SCRIPT)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("building the int8 engine")
    assert process.stdout.readline().startswith("still building")
    process.send_signal(signal.SIGINT)
    while "a second signal ends it at once" not in (line := process.stdout.readline()):
        assert line.startswith("still building")
    process.send_signal(signal.SIGINT)
    out, complained = process.communicate(timeout=60)
    assert (process.returncode, out, complained) == (-signal.SIGINT, "", "")
    assert [path.name for path in folder.iterdir()] == [".building"]
