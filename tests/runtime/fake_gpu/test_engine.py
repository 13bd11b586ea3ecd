"""TensorRtEngine's flow of control, on stand-ins for CUDA and TensorRT. This proves nothing about either."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorrt

from edge_infer.cutter import ShelfCutter
from edge_infer.device.cuda import CudaDevice, GpuMemoryError
from edge_infer.device.cuda_graph import capture
from edge_infer.device.gpu import probe_gpu
from edge_infer.engine.load import images_per_second
from edge_infer.errors import EdgeInferError, EngineError
from edge_infer.imagery import Tile
from edge_infer.ring import BatchRing, RingClosedError
from edge_infer.sampler import sample
from edge_infer.shelf import TileShelf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_infer.engine.tensorrt.runtime import TensorRtEngine
    from edge_infer.ring import BatchSlot

LAUNCH_FAILED, OUT_OF_MEMORY, CAPTURE_UNSUPPORTED = 719, 2, 900


def ring_for(engine: TensorRtEngine, shape: tuple[int, int, int]) -> BatchRing:
    return BatchRing.allocate(engine.depth + 2, engine.facts.batch, shape, engine.memory)


def drive(engine: TensorRtEngine, ring: BatchRing) -> dict[int, tuple[float, float]]:
    """Probability and valid fraction by row, as `classify` drives an engine; the ring is closed or fed."""
    found: dict[int, tuple[float, float]] = {}
    order: list[BatchSlot] = []
    ended = False
    while not (ended and not engine.in_flight):
        if not ended and engine.in_flight < engine.depth and ring.wait(0 if engine.in_flight else 5):
            slot = ring.take()
            ended = slot is None
            if slot is not None:
                order.append(slot)
                engine.submit(slot)
        elif engine.in_flight:
            slot, probabilities = engine.collect()
            assert slot is order.pop(0)
            for place in range(slot.count):
                valid = float(slot.valid_fraction[place])
                found[int(slot.rows[place])] = (float(probabilities[place, 1]), valid)
            ring.give_back(slot)
    return found


@contextmanager
def fed(ring: BatchRing, *feeders: Callable[[], None]) -> Iterator[None]:
    """Run each in a thread while entered; where a check fails, they must not wait for places for ever."""

    def feed(feeder: Callable[[], None]) -> None:
        with suppress(RingClosedError):
            feeder()

    threads = [threading.Thread(target=feed, args=(feeder,), daemon=True) for feeder in feeders]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ring.stop()
        for thread in threads:
            thread.join()


def fill(ring: BatchRing, chips: np.ndarray, runs: list[int]) -> None:
    """Feed chips in runs of some lengths, and close."""
    row = 0
    for length in runs:
        end = min(row + length, len(chips))
        while row < end:
            span = ring.claim(end - row)
            places = slice(span.start, span.stop)
            span.slot.chips[places] = chips[row : row + len(span)]
            span.slot.rows[places] = np.arange(row, row + len(span))
            span.slot.valid_fraction[places] = 1
            ring.fill(span)
            row += len(span)
    ring.close()


@pytest.mark.parametrize("memory", ["copied", "mapped"])
@pytest.mark.parametrize("graphs", [True, False])
def test_every_batch_gives_the_results_of_its_own_chips(open_engine, contract, fake, memory, graphs):
    chips = np.random.default_rng(0).integers(0, 256, (103, *contract.chip_shape), np.uint8)
    with open_engine(memory=memory, graphs=graphs, lanes=3 if graphs else 1, sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        with fed(ring, lambda: fill(ring, chips, [7] * 20)):
            found = drive(engine, ring)
        assert f"{memory} memory, CUDA graphs {'on' if graphs else 'off'}" in engine.facts.why
        assert (fake.count("executables") > 0) == graphs
    expected = chips.reshape(len(chips), -1).mean(axis=1) / 255
    assert [found[row][0] for row in range(len(chips))] == pytest.approx(expected.tolist(), abs=1e-6)


def test_mapped_chips_are_not_sent(open_engine, contract, fake):
    with open_engine(memory="mapped", sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        before = fake.count("host_bytes")
        fill(ring, np.zeros((8, *contract.chip_shape), np.uint8), [8])
        drive(engine, ring)
        assert fake.count("host_bytes") == before


def test_an_integrated_gpu_maps_and_samples_on_the_cpu_by_itself(open_engine, fake):
    fake.set(integrated=True)
    with open_engine() as engine:
        assert "mapped memory" in engine.facts.why
        assert "chips cut on the CPU (the GPU shares its memory)" in engine.facts.why
        assert engine.cutter is None


def test_where_nothing_can_be_captured_batches_run_without_graphs(open_engine, contract, fake):
    fake.fail("cuStreamEndCapture", after=0, code=CAPTURE_UNSUPPORTED)
    chips = np.full((10, *contract.chip_shape), 51, np.uint8)
    with open_engine(sample_on="cpu") as engine:
        assert "CUDA graphs off: capture failed, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in engine.facts.why
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, chips, [10])
        assert [value for value, _ in drive(engine, ring).values()] == pytest.approx([0.2] * 10)
        assert fake.count("executables") == 0


def test_memory_stays_flat_over_many_batches(open_engine, contract, fake):
    with open_engine(sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        chips = np.zeros((3_000, *contract.chip_shape), np.uint8)
        before = fake.held()
        with fed(ring, lambda: fill(ring, chips, [3_000])):
            assert len(drive(engine, ring)) == 3_000
        assert fake.held() == before


def test_no_numbers_end_the_run(open_engine, contract):
    with open_engine(plan="nan 12 3 4", sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.zeros((4, *contract.chip_shape), np.uint8), [4])
        with pytest.raises(EdgeInferError, match=r"no numbers.*--precision fp32"):
            drive(engine, ring)


@pytest.mark.parametrize("function", ["cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuEventSynchronize"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_gpu_that_fails_on_the_way_is_told_and_left_clean(open_engine, contract, fake, function, after):
    with open_engine(sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.zeros((20, *contract.chip_shape), np.uint8), [20])
        fake.fail(function, after=after, code=LAUNCH_FAILED)
        with pytest.raises(
            EdgeInferError, match=r"GPU .*(719|CUDA_ERROR_LAUNCH_FAILED|launch failed)"
        ) as failure:
            drive(engine, ring)
        assert failure.value.exit_code == 1


def test_closing_with_batches_in_flight(open_engine, contract):
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(sample_on="cpu"))
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.zeros((12, *contract.chip_shape), np.uint8), [12])
        for _ in range(3):
            slot = ring.take()
            assert slot is not None
            engine.submit(slot)
        assert engine.in_flight == 3
    assert engine.in_flight == 0
    engine.close()


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_memory_that_runs_out_while_opening_is_told_and_left_clean(open_engine, fake, after):
    fake.fail("cuMemAlloc_v2" if after % 4 else "cuMemHostAlloc", after=after // 2, code=OUT_OF_MEMORY)
    with pytest.raises(GpuMemoryError, match=r"no memory left for .*smaller --batch"):
        open_engine(sample_on="gpu")


def test_tensorrt_that_runs_out_of_memory_is_told_as_that(open_engine):
    tensorrt.refuse[:] = ["[engine.cpp] Error Code 2: Out Of Memory (requested 99 bytes)"]
    with pytest.raises(GpuMemoryError, match=r"lacks the memory to make an execution context.*requested 99"):
        open_engine()


def test_a_plan_of_another_kind_is_refused(open_engine):
    with pytest.raises(EngineError, match=r"cannot load a plan.*another TensorRT.*--engine openvino"):
        open_engine(plan="strange")
    with pytest.raises(EngineError, match=r"wanted .*\[12, 12, 3\].*build it anew"):
        open_engine(plan="brightness 13 3 4")


def test_one_process_can_open_engines_one_after_the_other(open_engine, contract):
    for _ in range(3):
        with open_engine() as engine:
            assert images_per_second(engine, np.zeros((2, *contract.chip_shape), np.uint8), 0.02) > 0


def test_batch_times_have_trtexecs_parts(open_engine, contract):
    with open_engine(sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.zeros((4, *contract.chip_shape), np.uint8), [4])
        slot = ring.take()
        assert slot is not None
        times = engine.time_batches(slot, 7, warm_up=2)
        assert times.wall.shape == (7,)
        assert times.host_latency.tolist() == [3.0] * 7  # each part 1 ms by the stand-in's clock
        assert (times.wall >= times.enqueue).all()


@pytest.mark.parametrize("memory", ["copied", "mapped"])
def test_a_run_allocates_and_captures_nothing_after_opening(open_engine, contract, fake, memory):
    with open_engine(memory=memory, sample_on="cpu") as engine:
        before = fake.held()
        ring = ring_for(engine, contract.chip_shape)
        fake.fail("cuMemHostAlloc", after=0, code=OUT_OF_MEMORY)
        fake.fail("cuStreamBeginCapture_v2", after=0, code=CAPTURE_UNSUPPORTED)
        chips = np.zeros((60, *contract.chip_shape), np.uint8)
        with fed(ring, lambda: fill(ring, chips, [60])):
            assert len(drive(engine, ring)) == 60
        assert fake.held() == before
        assert "CUDA graphs on" in engine.facts.why
        with pytest.raises(GpuMemoryError, match="no memory left for pinned memory"):
            ring_for(engine, contract.chip_shape)


def test_graphs_that_fail_on_the_way_are_told_at_the_end(open_engine, contract, fake):
    with open_engine(memory="mapped", sample_on="cpu") as engine:
        ring_for(engine, contract.chip_shape)
        ring = ring_for(engine, contract.chip_shape)  # of other memory than was captured
        fake.fail("cuStreamEndCapture", after=0, code=CAPTURE_UNSUPPORTED)
        assert "CUDA graphs on" in engine.facts.why
        fill(ring, np.full((10, *contract.chip_shape), 51, np.uint8), [10])
        assert [value for value, _ in drive(engine, ring).values()] == pytest.approx([0.2] * 10)
        assert "CUDA graphs off: capture failed" in engine.facts.why


def test_a_capture_that_is_broken_off_leaves_nothing(open_engine, fake):
    def break_off() -> bool:
        raise ZeroDivisionError

    with open_engine(sample_on="cpu") as engine:
        before = fake.held()
        with pytest.raises(ZeroDivisionError):
            capture(engine._lanes[0].stream.handle, break_off)
        assert fake.held() == before


def test_8_6_gives_each_lane_the_shared_profile(open_engine, contract, monkeypatch):
    monkeypatch.setattr(tensorrt, "shared_profiles", False)
    with open_engine(lanes=3, sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.full((12, *contract.chip_shape), 51, np.uint8), [12])
        assert [value for value, _ in drive(engine, ring).values()] == pytest.approx([0.2] * 12)


def test_a_runtime_that_is_a_null_pointer_is_not_touched(open_engine):
    tensorrt.null_runtimes[:] = ["createInferRuntime: Error Code 6: API Usage Error"]
    with pytest.raises(EngineError, match=r"cannot start \(TensorRT 10\.3\.0\): createInferRuntime.*Code 6"):
        open_engine()


def test_tensorrt_that_fails_on_the_way_is_no_refusal(open_engine, contract):
    with open_engine(graphs=False, sample_on="cpu") as engine:
        ring = ring_for(engine, contract.chip_shape)
        fill(ring, np.zeros((4, *contract.chip_shape), np.uint8), [4])
        tensorrt.stumble[:] = ["[context.cpp] Error Code 1: Cuda Runtime (unspecified launch failure)"]
        with pytest.raises(EdgeInferError, match=r"cannot run a batch: .*unspecified launch") as failure:
            drive(engine, ring)
        assert failure.value.exit_code == 1


@pytest.mark.parametrize("batch", [1, 4])
def test_who_waits_for_one_chip_spins(open_engine, fake, batch):
    before = fake.count("spinning")
    with open_engine(batch=batch, sample_on="cpu"):
        assert fake.count("spinning") == (batch == 1 or before)


# --- chips cut on the GPU ---


def make_tile(rng: np.random.Generator, dtype: type, *, masked: bool, side: int) -> Tile:
    top = np.iinfo(dtype).max
    valid = (rng.random((side, side)) > 0.2).astype(np.uint8) if masked else None
    pixels: Any = rng.integers(0, top, (3, side, side), dtype)
    if valid is not None:
        pixels *= valid
    column, row = rng.uniform(-100, 100, 2)
    return Tile(pixels, valid, column=column, row=row, scale_x=2.0, scale_y=1.5)


def make_boxes(rng: np.random.Generator, tile: Tile, count: int) -> np.ndarray:
    boxes = np.empty((count, 4))
    boxes[:, :2] = rng.uniform(-10, 70, (count, 2)) + np.array([tile.column, tile.row])
    boxes[:, 2:] = rng.uniform(4, 60, (count, 2))
    return boxes


@pytest.mark.parametrize("memory", ["copied", "mapped"])
@pytest.mark.parametrize("shelf_bytes", [40_000, 1 << 20])
@pytest.mark.parametrize("readers", [1, 3])
def test_chips_cut_by_the_engine_are_those_that_readers_cut(
    open_engine, contract, monkeypatch, memory, shelf_bytes, readers
):
    monkeypatch.setattr("edge_infer.engine.tensorrt.runtime.SHELF_BYTES", shelf_bytes)
    rng = np.random.default_rng(1)
    jobs, first = [], 0
    for number in range(24):
        tile = make_tile(rng, (np.uint8, np.uint16)[number % 2], masked=number % 3 == 0, side=50 + number)
        boxes = make_boxes(rng, tile, int(rng.integers(1, 30)))
        jobs.append((first, tile, boxes))
        first += len(boxes)
    expected: dict[int, tuple[float, float]] = {}
    for start, tile, boxes in jobs:
        chips = np.empty((len(boxes), *contract.chip_shape), np.uint8)
        valid = np.empty(len(boxes), np.float32)
        sample(tile, boxes, chips, valid, value_range=contract.value_range)
        means = chips.reshape(len(boxes), -1).mean(axis=1) / 255
        for place in range(len(boxes)):
            expected[start + place] = (float(np.float32(means[place])), float(valid[place]))

    with open_engine(memory=memory, sample_on="gpu") as engine:
        assert "chips cut on the GPU" in engine.facts.why
        ring, cutter = ring_for(engine, contract.chip_shape), engine.cutter
        left = [readers]
        lock = threading.Lock()

        def read(mine: list[Any]) -> None:
            for start, tile, boxes in mine:
                cut = cutter.open(tile, len(boxes), ring)
                done = 0
                while done < len(boxes):
                    span = ring.claim(len(boxes) - done)
                    cut(boxes[done : done + len(span)], span)
                    span.slot.rows[span.start : span.stop] = range(start + done, start + done + len(span))
                    ring.fill(span)
                    done += len(span)
            with lock:
                left[0] -= 1
                if not left[0]:
                    ring.close()

        with fed(ring, *(partial(read, jobs[number::readers]) for number in range(readers))):
            found = drive(engine, ring)
        assert cutter.shelf.bytes_in_use == 0
    assert sorted(found) == sorted(expected)
    for row, values in expected.items():
        assert found[row] == values, row


def test_a_tile_is_sent_once(open_engine, contract, fake):
    tile = make_tile(np.random.default_rng(2), np.uint8, masked=False, side=200)
    boxes = make_boxes(np.random.default_rng(3), tile, 40)
    with open_engine(memory="copied", sample_on="gpu") as engine:
        ring, cutter = ring_for(engine, contract.chip_shape), engine.cutter
        before = fake.count("host_bytes")

        def read() -> None:
            cut = cutter.open(tile, len(boxes), ring)
            for start in range(0, 40, 4):
                span = ring.claim(4)
                cut(boxes[start : start + 4], span)
                ring.fill(span)
            ring.close()

        with fed(ring, read):
            drive(engine, ring)
        windows = 10 * engine.facts.batch * 32
        assert fake.count("host_bytes") - before - windows == pytest.approx(tile.pixels.nbytes, abs=256)


def test_some_batches_are_shown_to_those_who_look_at_chips(open_engine, contract):
    tile = make_tile(np.random.default_rng(5), np.uint8, masked=True, side=100)
    boxes = make_boxes(np.random.default_rng(6), tile, 4)
    expected, valid = np.empty((4, *contract.chip_shape), np.uint8), np.empty(4, np.float32)
    sample(tile, boxes, expected, valid, value_range=contract.value_range)
    with open_engine(memory="copied", sample_on="gpu") as engine:
        ring, cutter = ring_for(engine, contract.chip_shape), engine.cutter
        shown = []
        for number in range(20):
            cut = cutter.open(tile, 4, ring)
            span = ring.claim(4)
            cut(boxes, span)
            ring.fill(span)
            slot = ring.take()
            assert slot is not None
            slot.chips[:] = 0
            engine.submit(slot)
            engine.collect()
            assert slot.valid_fraction.tolist() == valid.tolist()
            if not slot.pieces:
                shown.append(number)
                assert (slot.chips == expected).all()
            ring.give_back(slot)
        assert shown == [0, 16]


def test_sampling_that_cannot_be_had_is_refused(open_engine, monkeypatch):
    monkeypatch.setattr("edge_infer.device.cuda_sampler._ext.CUDA_ARCHITECTURES", "100 110")
    with pytest.raises(EngineError, match=r"are for sm_100 110, this GPU is sm_90; use --sample-on cpu"):
        open_engine(sample_on="gpu")
    with open_engine(sample_on="auto") as engine:
        assert "chips cut on the CPU (the CUDA kernels are for sm_100 110" in engine.facts.why


def test_kernels_that_the_driver_does_not_load_leave_the_cutting_to_the_cpu(open_engine, fake):
    fake.fail("cuModuleLoadDataEx", after=0, code=LAUNCH_FAILED)
    with open_engine(sample_on="auto") as engine:
        assert "chips cut on the CPU (the driver does not load the CUDA kernels (" in engine.facts.why
        assert engine.cutter is None
    fake.fail("cuModuleLoadDataEx", after=0, code=LAUNCH_FAILED)
    with pytest.raises(EngineError, match=r"does not load the CUDA kernels \(.*use --sample-on cpu") as told:
        open_engine(sample_on="gpu")
    assert told.value.exit_code == 2


# --- the driver ---


@pytest.mark.parametrize(
    ("code", "said"),
    [(100, "--gpus all"), (803, "reboot after a driver update"), (34, "LD_LIBRARY_PATH"), (5, "nvidia-smi")],
)
def test_a_driver_that_does_not_start_says_what_to_do(fake, code, said):
    fake.fail("cuInit", after=0, code=code)
    with pytest.raises(EngineError, match=rf"cuInit gave .*\({code}\).*{said}"):
        probe_gpu()


def test_hidden_gpus_are_told_as_hidden(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match="shows no GPU; CUDA_VISIBLE_DEVICES is ''"):
        probe_gpu()


def test_probing_leaves_the_gpu_as_it_was(fake):
    facts = probe_gpu()
    assert (facts.name, facts.architecture, facts.driver) == ("Fake GPU", 90, "13.0")
    assert facts.free_bytes == facts.total_bytes == 8 << 30
    assert fake.held() == {}
    device = CudaDevice(facts)
    assert probe_gpu() == facts
    assert fake.count("stack") == 1
    device.close()
    device.close()


def test_the_shelf_and_the_cutter_fit_together(contract):
    cutter = ShelfCutter(TileShelf(np.zeros(1000, np.uint8)), contract.value_range)
    tile = make_tile(np.random.default_rng(4), np.uint8, masked=True, side=50)
    assert not cutter.shelf.takes(tile)
