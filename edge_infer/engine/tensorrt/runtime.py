r"""Runs a plan: several batches in flight, each in a lane of its own, driven by one thread.

 slot ─> chips sent, mapped or cut on the GPU ─> enqueue (one CUDA graph) ─> probabilities sent back ─> event
         \________________ in order on the stream of one lane; the lanes overlap _________________/

A batch is always enqueued whole: tails are padded, so that one shape and one graph a lane serve all.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.bundle import GOLDEN_CHIPS_MEMBER
from edge_infer.cutter import ShelfCutter
from edge_infer.device.cuda import GpuMemoryError, PinnedMemory
from edge_infer.device.cuda_graph import CaptureError, GraphLaunchError, capture
from edge_infer.device.cuda_sampler import CudaSampler, why_not
from edge_infer.engine import EngineFacts, GpuOptions
from edge_infer.engine.load import BatchTimes, images_per_second
from edge_infer.engine.tensorrt.cache import PlanRefusedError
from edge_infer.engine.tensorrt.messages import collected, shared_logger
from edge_infer.engine.tensorrt.network import INPUT, OUTPUT
from edge_infer.errors import EdgeInferError, EngineError
from edge_infer.ring import SPARE_SLOTS
from edge_infer.shelf import TileShelf

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_infer.bundle import Bundle
    from edge_infer.device.cuda import CudaDevice
    from edge_infer.device.cuda_graph import CudaGraph
    from edge_infer.engine import Precision
    from edge_infer.engine.tensorrt.bindings import TensorRt
    from edge_infer.engine.tensorrt.messages import Messages
    from edge_infer.manifest import ChipContract
    from edge_infer.ring import BatchSlot

DEFAULT_BATCH = 64
SHELF_BYTES = 256 << 20
"""Decoded tiles that may wait to be cut on the GPU: 20 of the largest in RGB."""
SHOWN_EVERY = 16
"""Of so many batches cut on the GPU one is sent back, for those who look at what chips look like."""
_WINDOW_BYTES, _COUNT_BYTES = 4 * 8, 4


@dataclass(slots=True, eq=False)
class _Lane:
    """What one batch in flight holds. Everything in it belongs to the engine's thread."""

    stream: Any = None
    done: Any = None
    """Event after the last of the batch's work."""
    context: Any = None
    """TensorRT's execution context, with its own scratch memory."""
    input: Any = None
    """Device memory, uint8 (B, S, S, C)."""
    input_address: int = 0
    """Where the context reads its chips; changes where slots are mapped."""
    output: npt.NDArray[np.float32] | None = None
    """Pinned, (B, K)."""
    device_output: Any = None
    """Device memory, (B, K); None where `output` is mapped."""
    graphs: dict[int, CudaGraph] = field(default_factory=dict)
    """By the address of the input."""
    windows: npt.NDArray[np.float64] | None = None
    """Pinned, (B, 4); the rest is there where chips are cut on the GPU."""
    device_windows: Any = None
    valid_pixels: npt.NDArray[np.uint32] | None = None
    """Pinned, (B,)."""
    device_valid_pixels: Any = None
    slot: BatchSlot | None = None
    """The batch in flight."""
    shown: bool = False
    """Whether its chips are sent back into the slot, though they were cut on the GPU."""

    def close(self) -> None:
        """Free it all but pinned memory; the stream must be idle."""
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.context = None
        for memory in (self.input, self.device_output, self.device_windows, self.device_valid_pixels):
            if memory is not None:
                memory.free()
        self.input = self.device_output = self.device_windows = self.device_valid_pixels = None
        self.output = self.windows = self.valid_pixels = self.slot = None
        self.done = self.stream = None


class TensorRtEngine:
    """`Engine` on an NVIDIA GPU; made, used and closed in the thread that made `device`."""

    def __init__(
        self,
        device: CudaDevice,
        library: TensorRt,
        plan: bytes,
        contract: ChipContract,
        classes: int,
        *,
        batch: int,
        precision: Precision,
        why: str,
        options: GpuOptions = GpuOptions(),  # noqa: B008 - frozen
        owns_device: bool = True,
    ) -> None:
        """Load a plan, and run every lane once, so that nothing is left to be set up later.

        The memory of a run's slots is allocated as well: where it does not suffice, that shows here.

        Args:
            device: the GPU.
            library: TensorRT, of the version that built the plan.
            plan: for chips of `contract`, 1 to at least `batch` of them, and `classes` classes; trusted.
            contract: what a chip is.
            classes: K.
            batch: chips in one batch; tails are padded to it.
            precision: what the plan was built for.
            why: how engine and precision were chosen; how the GPU is used is added.
            options: how to use the GPU.
            owns_device: whether `close` closes the device too (not where this fails: then it stays open).

        Raises:
            GpuMemoryError: the GPU's memory does not suffice; a smaller batch may fit.
            PlanRefusedError: the plan cannot be used.
            EngineError: an option cannot be met, or TensorRT failed otherwise.

        """
        self._device, self._trt = device, library.module
        self._contract, self._classes, self._batch = contract, classes, batch
        self._chip_bytes = int(np.prod(contract.chip_shape))
        self._mapped = options.memory == "mapped" or (options.memory == "auto" and device.facts.integrated)
        self._graphs = options.graphs
        self._graphs_note = "on" if options.graphs else "off"
        self._owns_device = self._opened = False
        self.memory = PinnedMemory(device, mapped=self._mapped)
        self.cutter: ShelfCutter | None = None
        self.depth = options.lanes
        self._runtime: Any = None
        self._engine: Any = None
        self._sampler: CudaSampler | None = None
        self._device_shelf: Any = None
        self._shelf_address = 0
        self._sending: Any = None
        self._sent: Any = None
        self._lanes: list[_Lane] = []
        self._idle: deque[_Lane] = deque()
        self._running: deque[_Lane] = deque()
        self._batches_cut = 0
        try:
            with device.translated(f"batches of {batch}"):
                self._load(plan, library.text)
                self._cut_where = self._prepare_sampling(options)
                self.memory.reserve(options.lanes + SPARE_SLOTS, (batch, *contract.chip_shape), np.uint8)
                if batch == 1:
                    device.spin()
                for _ in range(options.lanes):
                    self._add_lane()
        except BaseException:
            self.close()
            raise
        self._owns_device, self._opened = owns_device, True
        self._facts = EngineFacts(
            name="tensorrt",
            version=library.text,
            precision=precision,
            device=device.facts.name,
            batch=batch,
            why=f"{why}; {'mapped' if self._mapped else 'copied'} memory",
        )

    # --- the protocol ---

    @property
    def facts(self) -> EngineFacts:
        """What runs the model, by now: graphs may have been given up on the way."""
        how = f"CUDA graphs {self._graphs_note}, chips cut {self._cut_where}"
        return replace(self._facts, why=f"{self._facts.why}, {how}")

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return len(self._running)

    def submit(self, slot: BatchSlot) -> None:
        """Start on a slot; it belongs to the engine until `collect` gives it back.

        Raises:
            EdgeInferError: CUDA or TensorRT failed.

        """
        lane = self._idle.popleft()
        with self._device.translated("a batch"):
            address = self._provide_chips(lane, slot)
            self._enqueue(lane, address)
            self._fetch(lane)
            lane.done.record(lane.stream)
        lane.slot = slot
        self._running.append(lane)

    def collect(self) -> tuple[BatchSlot, npt.NDArray[np.float32]]:
        """Wait for the oldest batch; its slot, and float32 (count, K) probabilities (a copy).

        Raises:
            EdgeInferError: CUDA failed, or the probabilities are no numbers.

        """
        lane = self._running[0]
        slot, output = lane.slot, lane.output
        assert slot is not None
        assert output is not None
        with self._device.translated("a batch"):
            lane.done.synchronize()
        self._running.popleft()
        lane.slot = None
        self._idle.append(lane)
        self._take_in_pieces(lane, slot)
        probabilities = output[: slot.count].copy()
        if not np.isfinite(probabilities).all():
            raise EdgeInferError(
                f"the {self.facts.precision} engine gave probabilities that are no numbers; its weights "
                "overflow: use --precision fp32, and export or calibrate the model again"
            )
        return slot, probabilities

    def close(self) -> None:
        """Wait for what is in flight, and free everything in order: graphs, contexts, engine, memory, device.

        No slot made from `memory` may be used any more. A second call does nothing.
        """
        for lane in self._lanes:
            if lane.stream is not None:
                self._settle(lane.stream)
        if self._sending is not None:
            self._settle(self._sending)
        self._running.clear()
        self._idle.clear()
        while self._lanes:
            self._lanes.pop().close()
        self._engine = None
        self._runtime = None
        if self._sampler is not None:
            self._sampler.close()
        if self._device_shelf is not None:
            self._device_shelf.free()
        self._sampler = self._device_shelf = self._sending = self._sent = self.cutter = None
        if not self._device.closed:
            self.memory.close()
            if self._owns_device:
                self._device.close()

    def _settle(self, stream: Any) -> None:
        # The error that broke the run was told; what is left still has to be freed.
        with suppress(self._device.driver.Error):
            stream.synchronize()

    # --- one batch ---

    def _provide_chips(self, lane: _Lane, slot: BatchSlot) -> int:
        """See that the chips lie where the GPU can read them by the time it does; that address."""
        mapped = self._device.device_address(slot.chips)
        if mapped is not None and not slot.pieces:
            return mapped
        if sum(len(piece.windows) for piece in slot.pieces) < slot.count:
            self._device.driver.memcpy_htod_async(lane.input, slot.chips[: slot.count], lane.stream)
        if slot.pieces:
            self._cut(lane, slot)
        return int(lane.input)

    def _enqueue(self, lane: _Lane, address: int) -> None:
        graph = lane.graphs.get(address)
        if graph is None and self._graphs:
            graph = self._capture(lane, address)
        if graph is None:
            self._run_kernels(lane, address)
            return
        try:
            graph.launch(lane.stream.handle)
        except GraphLaunchError as error:
            raise EdgeInferError(f"the GPU did not take a batch: {error}; try --no-cuda-graphs") from error

    def _fetch(self, lane: _Lane) -> None:
        if lane.device_output is not None:
            self._device.driver.memcpy_dtoh_async(lane.output, lane.device_output, lane.stream)

    def _run_kernels(self, lane: _Lane, address: int) -> None:
        with collected() as messages:
            if not (self._read_from(lane, address) and lane.context.execute_async_v3(lane.stream.handle)):
                raise self._failure("run a batch", messages)

    def _read_from(self, lane: _Lane, address: int) -> bool:
        if lane.input_address != address:
            if not lane.context.set_tensor_address(INPUT, address):
                return False
            lane.input_address = address
        return True

    def _capture(self, lane: _Lane, address: int) -> CudaGraph | None:
        """Make the graph of a lane for one input; where that cannot be, there are no graphs from now on."""
        with collected() as messages:
            if not self._read_from(lane, address):
                raise self._failure("read its chips there", messages)
            stream = lane.stream.handle
            try:
                graph = capture(stream, lambda: bool(lane.context.execute_async_v3(stream)))
            except CaptureError as error:
                self._graphs = False
                told = f" ({messages.reason()})" if messages.errors() else ""
                self._graphs_note = f"off: capture failed, {error}{told}"
                return None
        lane.graphs[address] = graph
        return graph

    # --- chips cut on the GPU ---

    def _cut(self, lane: _Lane, slot: BatchSlot) -> None:
        """Send tiles that are not there yet, and launch the sampler on the lane's stream."""
        driver, cutter, sampler = self._device.driver, self.cutter, self._sampler
        assert cutter is not None
        assert sampler is not None
        assert lane.windows is not None
        self._send_tiles(slot, cutter.shelf)
        if self._sent is not None:  # in the order of one stream: all tiles up to now
            lane.stream.wait_for_event(self._sent)
        for piece in slot.pieces:
            lane.windows[piece.start : piece.start + len(piece.windows)] = piece.windows
        driver.memcpy_htod_async(lane.device_windows, lane.windows, lane.stream)
        driver.memset_d32_async(int(lane.device_valid_pixels), 0, self._batch, lane.stream)
        for piece in slot.pieces:
            sampler.launch(
                piece.tile,
                self._shelf_address,
                int(lane.device_windows) + piece.start * _WINDOW_BYTES,
                len(piece.windows),
                int(lane.input) + piece.start * self._chip_bytes,
                int(lane.device_valid_pixels) + piece.start * _COUNT_BYTES,
                lane.stream,
            )
        driver.memcpy_dtoh_async(lane.valid_pixels, lane.device_valid_pixels, lane.stream)
        lane.shown = self._batches_cut % SHOWN_EVERY == 0
        self._batches_cut += 1
        if lane.shown:
            driver.memcpy_dtoh_async(slot.chips[: slot.count], lane.input, lane.stream)

    def _send_tiles(self, slot: BatchSlot, shelf: TileShelf) -> None:
        if self._device_shelf is None:  # the GPU reads the shelf in place
            return
        fresh = [piece.tile for piece in slot.pieces if not piece.tile.on_device]
        for tile in dict.fromkeys(fresh):
            self._device.driver.memcpy_htod_async(
                self._shelf_address + tile.start, shelf.memory[tile.start : tile.stop], self._sending
            )
            tile.on_device = True
        if fresh:
            self._sent.record(self._sending)

    def _take_in_pieces(self, lane: _Lane, slot: BatchSlot) -> None:
        """Note what the sampler found valid, and let tiles go that are cut.

        No pieces are left in a slot whose chips came back.
        """
        if not slot.pieces:
            return
        assert lane.valid_pixels is not None
        assert self.cutter is not None
        for piece in slot.pieces:
            places = slice(piece.start, piece.start + len(piece.windows))
            counts = lane.valid_pixels[places].astype(np.float64)
            slot.valid_fraction[places] = counts / self._contract.chip_pixels**2
            self.cutter.shelf.cut(piece.tile, len(piece.windows))
        if lane.shown:
            slot.pieces.clear()

    # --- opening ---

    def _load(self, plan: bytes, version: str) -> None:
        trt = self._trt
        with collected() as messages:
            self._runtime = trt.Runtime(shared_logger(trt))
            if messages.errors():  # it may be a null pointer, which must not be touched
                raise self._failure(f"start (TensorRT {version})", messages)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._failure(f"load a plan with TensorRT {version}", messages, PlanRefusedError)
        found, most = _describe(self._engine)
        wanted = [
            f"{INPUT} {trt.DataType.UINT8.name} {list(self._contract.chip_shape)}",
            f"{OUTPUT} {trt.DataType.FLOAT.name} {[self._classes]}",
        ]
        if found != wanted:
            raise PlanRefusedError(
                f"the plan's chips are {'; '.join(found)[:500]}, wanted {'; '.join(wanted)}; build it anew"
            )
        if most < self._batch:
            raise PlanRefusedError(
                f"the plan takes batches of up to {most}, wanted {self._batch}; build it anew"
            )

    def _prepare_sampling(self, options: GpuOptions) -> str:
        """Load the sampler where it is to be used; where chips are cut, in words."""
        device, contract = self._device, self._contract
        reason = (
            "the model's chips are blackened around the footprint, which is done on the CPU"
            if contract.blacken
            else why_not(device.facts)
        )
        if options.sample_on == "gpu" and reason is not None:
            raise EngineError(f"{reason}; use --sample-on cpu")
        if options.sample_on == "cpu":
            return "on the CPU"
        if options.sample_on == "auto" and (device.facts.integrated or reason is not None):
            return f"on the CPU ({reason or 'the GPU shares its memory'})"
        try:
            self._sampler = CudaSampler(device, contract.chip_shape, contract.value_range)
        except EngineError as error:
            if options.sample_on == "gpu":
                raise
            return f"on the CPU ({str(error).rsplit(';', maxsplit=1)[0]})"
        shelf = TileShelf(self.memory.allocate((SHELF_BYTES,), np.uint8))
        mapped = device.device_address(shelf.memory)
        if mapped is None:
            self._sending, self._sent = device.stream(), device.event(sleeping=True)
            self._device_shelf = device.device_memory(SHELF_BYTES)
        self._shelf_address = int(self._device_shelf) if mapped is None else mapped
        self.cutter = ShelfCutter(shelf, contract.value_range)
        return "on the GPU"

    def _add_lane(self) -> None:
        device, batch = self._device, self._batch
        lane = _Lane()
        self._lanes.append(lane)
        lane.stream = device.stream()
        # Batches of one are for latency: their waiter spins. Others leave the core to the readers.
        lane.done = device.event(sleeping=batch > 1)
        lane.input = device.device_memory(batch * self._chip_bytes)
        lane.output = self.memory.allocate((batch, self._classes), np.float32)
        output_address = device.device_address(lane.output)
        if output_address is None:
            lane.device_output = device.device_memory(lane.output.nbytes)
            output_address = int(lane.device_output)
        if self._sampler is not None:
            lane.windows = self.memory.allocate((batch, 4), np.float64)
            lane.device_windows = device.device_memory(lane.windows.nbytes)
            lane.valid_pixels = self.memory.allocate((batch,), np.uint32)
            lane.device_valid_pixels = device.device_memory(lane.valid_pixels.nbytes)
        with collected() as messages:
            lane.context = self._engine.create_execution_context()
            if lane.context is None:
                raise self._failure("make an execution context", messages)
            # 8.6 gives the first context alone the one profile; it was built to be shared.
            if not (
                (
                    lane.context.active_optimization_profile == 0
                    or lane.context.set_optimization_profile_async(0, lane.stream.handle)
                )
                and lane.context.set_input_shape(INPUT, (batch, *self._contract.chip_shape))
                and lane.context.set_tensor_address(OUTPUT, output_address)
            ):
                raise self._failure(f"take batches of {batch}", messages)
        device.driver.memset_d8_async(int(lane.input), 0, batch * self._chip_bytes, lane.stream)
        # The first run sets up what cannot be captured; the second makes the graph; a failed capture must not
        # have harmed the third.
        self._run_kernels(lane, int(lane.input))
        lane.stream.synchronize()
        mapped = [device.device_address(chips) for chips in self.memory.reserved]
        for address in (int(lane.input), *(place for place in mapped if place is not None)):
            self._enqueue(lane, address)
            lane.stream.synchronize()
        self._idle.append(lane)

    def _failure(
        self, what: str, messages: Messages, kind: type[EdgeInferError] = EngineError
    ) -> EdgeInferError:
        """Put into words what TensorRT said; once batches are run it is no longer a matter of refusing."""
        reason = messages.reason()
        if messages.out_of_memory():
            return GpuMemoryError(
                f"the GPU ({self._device.facts}) lacks the memory to {what}: {reason}; use a smaller --batch"
            )
        if self._opened:
            return EdgeInferError(f"TensorRT cannot {what}: {reason}; try again, or use --engine openvino")
        return kind(f"TensorRT cannot {what}: {reason}; build the plan anew, or use --engine openvino")

    # --- measuring ---

    def time_batches(self, slot: BatchSlot, runs: int, *, warm_up: int = 10) -> BatchTimes:
        """Run one slot again and again, one batch at a time; nothing may be in flight.

        Args:
            slot: from `memory`, with chips in it and no pieces.
            runs: how many batches to time.
            warm_up: how many to run before.

        """
        lane, device = self._idle[0], self._device
        marks = [device.timed_event() for _ in range(4)]
        rows = np.empty((warm_up + runs, 5))
        for row in rows:
            with device.translated("a batch"):
                started = time.perf_counter()
                marks[0].record(lane.stream)
                address = self._provide_chips(lane, slot)
                marks[1].record(lane.stream)
                enqueueing = time.perf_counter()
                self._enqueue(lane, address)
                enqueued = time.perf_counter()
                marks[2].record(lane.stream)
                self._fetch(lane)
                marks[3].record(lane.stream)
                lane.done.record(lane.stream)
                lane.done.synchronize()
                wall = time.perf_counter() - started
                row[:3] = [marks[i].time_till(marks[i + 1]) for i in range(3)]
            row[3:] = (enqueued - enqueueing) * 1e3, wall * 1e3
        return BatchTimes(*rows[warm_up:].T.copy())


def _describe(engine: Any) -> tuple[list[str], int]:
    """Describe a plan's inputs and outputs, and tell its largest batch.

    A function of its own: a frame that raises must hold no TensorRT object, which goes before its context.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    # The first dimension is dynamic, or a number where the plan is for that one batch only.
    ports = [
        f"{name} {engine.get_tensor_dtype(name).name} {list(engine.get_tensor_shape(name))[1:]}"
        for name in sorted(names)
    ]
    return ports, int(engine.get_tensor_profile_shape(INPUT, 0)[2][0]) if INPUT in names else 0


def make_meter(
    device: CudaDevice, library: TensorRt, bundle: Bundle, *, batch: int, options: GpuOptions
) -> Callable[[bytes], float] | None:
    """Make what gives a plan's images/s on this GPU on the bundle's golden chips; None where it has none."""
    if GOLDEN_CHIPS_MEMBER not in bundle.members:
        return None
    chips, _ = bundle.golden()
    contract, classes = bundle.manifest.contract, len(bundle.manifest.classes)
    options = replace(options, sample_on="cpu")  # the chips are there

    def measure(plan: bytes) -> float:
        engine = TensorRtEngine(
            device, library, plan, contract, classes, batch=batch, precision="fp32", why="measured",
            options=options, owns_device=False,
        )  # fmt: skip
        try:
            return images_per_second(engine, chips)
        finally:
            engine.close()

    return measure
