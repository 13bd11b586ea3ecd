"""The TensorRT engine on a real GPU, against other engines and under load."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from model import make_chips  # type: ignore[import-not-found]

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.ring import BatchRing, BatchSlot

if TYPE_CHECKING:
    from edge_infer.bundle import Bundle
    from edge_infer.engine.tensorrt.runtime import TensorRtEngine

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2}
"""FP32 differs by the order of sums; FP16 keeps 11 bits; INT8 rounds where the other engine does not."""
MANY_BATCHES = 100_000


def classify(engine: TensorRtEngine, chips: np.ndarray, counts: list[int] | None = None) -> np.ndarray:
    """Probabilities of chips, in batches of the given counts (else whole ones), all lanes in use."""
    batch, at, found = engine.facts.batch, 0, []
    slots = [BatchSlot.allocate(batch, chips.shape[1:], engine.memory) for _ in range(engine.depth)]
    sizes = iter(counts or [])
    while at < len(chips) or engine.in_flight:
        if at < len(chips) and slots:
            slot = slots.pop()
            slot.count = min(next(sizes, batch), len(chips) - at)
            slot.chips[: slot.count] = chips[at : at + slot.count]
            slot.rows[0] = at
            at += slot.count
            engine.submit(slot)
            continue
        slot, probabilities = engine.collect()
        found.append(probabilities)
        slots.append(slot)
    return np.concatenate(found)


def reference(bundle: Bundle, precision: str, chips: np.ndarray) -> np.ndarray:
    """OpenVINO's answer where it is installed, else ONNX Runtime's; for FP16 that of the FP32 model."""
    content = bundle.read(INT8_MEMBER if precision == "int8" else MODEL_MEMBER)
    try:
        import openvino
    except ImportError:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"chips": chips})[0])
    import io

    core = openvino.Core()
    model = core.compile_model(
        core.read_model(io.BytesIO(content)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.array(model({"chips": chips})["probabilities"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_golden_chips_get_what_another_engine_gives(open_engine, bundle, precision):
    chips, _ = bundle.golden()
    with open_engine(precision) as engine:
        found = classify(engine, chips)
    expected = reference(bundle, precision, chips)
    assert np.abs(found - expected).max() <= TOLERANCE[precision]
    assert np.ptp(expected[:, 0]) > 0  # chips differ, so that a constant would not pass


@pytest.fixture(scope="module")
def plain(open_engine) -> tuple[np.ndarray, np.ndarray]:
    """Chips, and their probabilities by copied memory, without graphs, one lane."""
    chips = make_chips(64, seed=5)
    with open_engine("int8", memory="copied", graphs=False, lanes=1, sample_on="cpu") as engine:
        return chips, classify(engine, chips)


@pytest.mark.parametrize("memory", ["copied", "mapped"])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_no_way_of_running_changes_a_result(open_engine, plain, memory, graphs, lanes):
    chips, expected = plain
    with open_engine("int8", memory=memory, graphs=graphs, lanes=lanes, sample_on="cpu") as engine:
        assert f"CUDA graphs {'on' if graphs else 'off'}" in engine.facts.why
        for counts in (None, [64, 1, 63, 7], [5] * 20):
            assert np.abs(classify(engine, chips, counts) - expected).max() <= 1e-6


@pytest.mark.parametrize("batch", [1, 8])
def test_smaller_batches_of_the_same_plan(open_engine, plain, batch):
    chips, expected = plain
    with open_engine("int8", batch=batch, sample_on="cpu") as engine:
        # Other kernels may be taken for another batch, which round otherwise.
        assert np.abs(classify(engine, chips) - expected).max() <= TOLERANCE["int8"]


def test_the_ring_under_load(open_engine, plain):
    """Four threads feed 20,000 chips in runs of any length; each gets the answer of its own chip."""
    chips, expected = plain
    runs = np.random.default_rng(0).integers(1, 100, 2000)
    with open_engine("int8", sample_on="cpu") as engine:
        ring = BatchRing.allocate(engine.depth + 2, engine.facts.batch, chips.shape[1:], engine.memory)
        left, lock = [20_000], threading.Lock()
        alive = [4]

        def feed(mine: np.ndarray) -> None:
            for wanted in mine.tolist():
                with lock:
                    run = min(wanted, left[0])
                    left[0] -= run
                while run > 0:
                    span = ring.claim(run)
                    for place in range(span.start, span.stop):
                        row = place * 7 % len(chips)
                        span.slot.chips[place] = chips[row]
                        span.slot.rows[place] = row
                    run -= len(span)
                    ring.fill(span)
            with lock:
                alive[0] -= 1
                if not alive[0]:
                    ring.close()

        threads = [threading.Thread(target=feed, args=(runs[number::4],)) for number in range(4)]
        for thread in threads:
            thread.start()
        seen, ended = 0, False
        while not (ended and not engine.in_flight):
            if not ended and engine.in_flight < engine.depth and ring.wait(0 if engine.in_flight else 5):
                slot = ring.take()
                ended = slot is None
                if slot is not None:
                    engine.submit(slot)
            elif engine.in_flight:
                slot, probabilities = engine.collect()
                assert np.abs(probabilities - expected[slot.rows[: slot.count]]).max() <= 1e-6
                seen += slot.count
                ring.give_back(slot)
        for thread in threads:
            thread.join()
    assert seen == 20_000


def resident_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


def test_memory_is_flat_over_many_batches(open_engine, bundle):
    chips, _ = bundle.golden()
    with open_engine("int8", batch=1, sample_on="cpu") as engine:
        slots = [BatchSlot.allocate(1, chips.shape[1:], engine.memory) for _ in range(engine.depth)]
        for number, slot in enumerate(slots):
            slot.chips[0], slot.count = chips[number], 1
        used = {}
        for number in range(MANY_BATCHES):
            if engine.in_flight == engine.depth:
                slots.append(engine.collect()[0])
            engine.submit(slots.pop())
            if number in (1000, MANY_BATCHES - 1):
                used[number] = resident_bytes(), engine._device.driver.mem_get_info()[0]
    (host, free), (host_after, free_after) = used.values()
    assert host_after - host < 16 << 20
    assert free - free_after < 4 << 20


def test_what_is_closed_is_given_back(open_engine, device):
    """The test's own device keeps the context, so that what an engine leaves behind shows."""
    free = []
    for _ in range(4):
        with open_engine("int8"):
            pass
        free.append(device.driver.mem_get_info()[0])
    assert free[1] - free[-1] < 4 << 20


def test_a_full_gpu_is_told_as_that_and_harms_nothing(open_engine, make_plan, bundle, device):
    make_plan("fp32")
    hog = device.device_memory(device.driver.mem_get_info()[0] - (100 << 20))
    try:
        with pytest.raises(GpuMemoryError, match="smaller --batch"):
            open_engine("fp32", memory="copied", sample_on="gpu")
    finally:
        hog.free()
    with open_engine("fp32") as engine:
        assert classify(engine, bundle.golden()[0]).shape == (32, 2)
