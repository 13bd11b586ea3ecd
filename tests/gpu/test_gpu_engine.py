"""The TensorRT engine on a real GPU, against other engines and under load."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cutting import cut_on_cpu, random_boxes  # type: ignore[import-not-found]
from model import TOLERANCE, make_chips  # type: ignore[import-not-found]
from requirement import lacking  # type: ignore[import-not-found]

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.imagery import Tile
from edge_infer.ring import BatchRing, BatchSlot, RingClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_infer.bundle import Bundle
    from edge_infer.engine.tensorrt.runtime import TensorRtEngine

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
        try:
            import onnxruntime
        except ImportError:
            lacking("neither OpenVINO nor ONNX Runtime is here to compare with")
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
    # Answers of chips differ by far more than engines may: a constant, or another chip's answer, would show.
    assert np.ptp(expected[:, 0]) > 10 * TOLERANCE[precision]
    assert np.abs(np.roll(found, 1, axis=0) - expected).max() > 5 * TOLERANCE[precision]


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


@contextmanager
def fed(ring: BatchRing, feeders: list[Callable[[], None]]) -> Iterator[None]:
    """Feed a ring from a thread each while entered, close it after the last; no thread outlives this."""
    lock, left = threading.Lock(), [len(feeders)]

    def feed(feeder: Callable[[], None]) -> None:
        try:
            feeder()
        except RingClosedError:
            pass
        finally:
            with lock:
                left[0] -= 1
                last = not left[0]
            if last:
                ring.close()

    threads = [threading.Thread(target=feed, args=(feeder,), daemon=True) for feeder in feeders]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ring.stop()  # where a check failed, they wait for places; and the engine takes their memory away
        for thread in threads:
            thread.join()


def drive(engine: TensorRtEngine, ring: BatchRing, expected: np.ndarray) -> int:
    """Run what comes through the ring, as `classify` does; each chip gets the answer of its own row."""
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
    return seen


def test_the_ring_under_load(open_engine, plain):
    """Four threads feed 20,000 chips in runs of any length; each gets the answer of its own chip."""
    chips, expected = plain

    def feeder(number: int) -> Callable[[], None]:
        def feed() -> None:
            rng, left = np.random.default_rng(number), 5000
            while left > 0:
                run = min(int(rng.integers(1, 100)), left)
                left -= run
                while run > 0:
                    span = ring.claim(run)
                    rows = rng.integers(0, len(chips), len(span))
                    span.slot.chips[span.start : span.stop] = chips[rows]
                    span.slot.rows[span.start : span.stop] = rows
                    run -= len(span)
                    ring.fill(span)

        return feed

    with open_engine("int8", sample_on="cpu") as engine:
        ring = BatchRing.allocate(engine.depth + 2, engine.facts.batch, chips.shape[1:], engine.memory)
        with fed(ring, [feeder(number) for number in range(4)]):
            assert drive(engine, ring, expected) == 20_000


@pytest.mark.parametrize("memory", ["copied", "mapped"])
def test_the_ring_under_load_with_chips_cut_on_the_gpu(open_engine, bundle, monkeypatch, memory):
    """Four readers, 16 tiles of 40 chips each, again and again, over a shelf that holds seven of them."""
    monkeypatch.setattr("edge_infer.engine.tensorrt.runtime.SHELF_BYTES", 2 << 20)
    rng, contract, count, rounds = np.random.default_rng(7), bundle.manifest.contract, 40, 8
    jobs = []
    for chip in make_chips(16, seed=9):  # as imagery: what a chip shows is what the network tells apart
        pixels = np.ascontiguousarray(chip.repeat(2, axis=0)[:400, :224].transpose(2, 0, 1))
        tile = Tile(pixels, None, column=50.0, row=-20.0, scale_x=1.5, scale_y=2.0)
        jobs.append((tile, random_boxes(rng, tile, count, contract.chip_pixels)))
    chips = np.concatenate(
        [cut_on_cpu(tile, boxes, contract.chip_pixels, contract.value_range)[0] for tile, boxes in jobs]
    )
    with open_engine("int8", memory=memory, sample_on="cpu") as engine:
        expected = classify(engine, chips)
    assert np.ptp(expected[:, 0]) > 0.1  # chips differ, so that a chip of another place would show

    def feeder(number: int) -> Callable[[], None]:
        def feed() -> None:
            for place in [*range(number, len(jobs), 4)] * rounds:
                tile, boxes = jobs[place]
                cut, done = engine.cutter.open(tile, count, ring), 0
                while done < count:
                    span = ring.claim(count - done)
                    cut(boxes[done : done + len(span)], span)
                    first = place * count + done
                    span.slot.rows[span.start : span.stop] = np.arange(first, first + len(span))
                    done += len(span)
                    ring.fill(span)

        return feed

    with open_engine("int8", memory=memory, sample_on="gpu") as engine:
        ring = BatchRing.allocate(engine.depth + 2, engine.facts.batch, chips.shape[1:], engine.memory)
        with fed(ring, [feeder(number) for number in range(4)]):
            assert drive(engine, ring, expected) == len(chips) * rounds
        assert engine.cutter.shelf.bytes_in_use == 0


def resident_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.parametrize("sample_on", ["cpu", "gpu"])
def test_memory_is_flat_over_many_batches(open_engine, bundle, sample_on):
    """10^5 batches of one chip, sent or cut from a tile; every 64 chips another tile is put on the shelf."""
    chips, _ = bundle.golden()
    tile = Tile(
        np.ascontiguousarray(chips[0].transpose(2, 0, 1)), None, column=0, row=0, scale_x=1, scale_y=1
    )
    box, used = np.array([[0.0, 0.0, 224.0, 224.0]]), {}
    with open_engine("int8", batch=1, sample_on=sample_on) as engine:
        ring = BatchRing.allocate(engine.depth + 2, 1, chips.shape[1:], engine.memory)
        for number in range(MANY_BATCHES):
            if engine.in_flight == engine.depth:
                ring.give_back(engine.collect()[0])
            if engine.cutter is not None and number % 64 == 0:
                cut = engine.cutter.open(tile, min(64, MANY_BATCHES - number), ring)
            span = ring.claim(1)
            if engine.cutter is not None:
                cut(box, span)
            else:
                span.slot.chips[0] = chips[number % len(chips)]
            ring.fill(span)
            engine.submit(ring.take())
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
