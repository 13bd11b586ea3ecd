"""Builds a plan from an ONNX file, watched: a heartbeat, and a stop that leaves nothing behind.

TensorRT builds on a thread of its own, since it calls back into Python (log, progress) from deep within and
an exception there would end the process. The caller's thread waits, tells the time, and takes the signals.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_infer.device.cuda import GpuMemoryError
from edge_infer.engine.tensorrt.messages import collected, shared_logger
from edge_infer.engine.tensorrt.network import INPUT, parse_network
from edge_infer.errors import EdgeInferError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_infer.device.gpu import GpuFacts
    from edge_infer.engine import Precision
    from edge_infer.engine.tensorrt.bindings import TensorRt

HEARTBEAT_SECONDS = 10.0
LEAST_WORKSPACE_BYTES = 256 << 20
"""On a Jetson free memory is told too low: what the system could free is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build."""

    model_onnx: bytes
    chip_shape: tuple[int, int, int]
    """(S, S, C)."""
    classes: int
    precision: Precision
    batch: int
    """Largest batch N; the plan takes 1 to N chips and is tuned for N."""
    workspace_bytes: int
    """Most scratch memory that a layer may use."""

    def __post_init__(self) -> None:
        """Refuse what no plan can be made for."""
        if self.batch < 1:
            raise EngineError(f"a batch holds at least one chip, got {self.batch}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan as TensorRT made it."""

    content: bytes
    seconds: float
    """How long the build took."""
    warnings: tuple[str, ...]
    """What TensorRT warned of."""
    timings: bytes
    """The timing cache after the build; empty where TensorRT gave none."""


def workspace_for(gpu: GpuFacts) -> int:
    """Bytes of scratch memory that a build may use on this GPU.

    Three quarters of what is free; a quarter where the GPU shares the host's memory, which the reader
    threads, GDAL's cache and the system need as well.
    """
    share = gpu.free_bytes // 4 if gpu.integrated else gpu.free_bytes * 3 // 4
    return max(share, LEAST_WORKSPACE_BYTES)


def build_plan(
    library: TensorRt,
    request: BuildRequest,
    *,
    timings: bytes,
    say: Callable[[str], None],
    last_seconds: float | None = None,
) -> BuiltPlan:
    """Build a plan for the GPU that is current, which must have been found by `probe_gpu`.

    Args:
        library: TensorRT.
        request: what to build.
        timings: a timing cache of earlier builds by the same TensorRT on the same GPU, or empty.
        say: takes lines for the user, the heartbeat among them.
        last_seconds: how long such a build took before, where it is known.

    Raises:
        EngineError: TensorRT cannot build it; the text says why.
        GpuMemoryError: it has not the memory to; a smaller batch may fit.
        BaseException: what ended the wait (a signal), after the build was stopped.

    """
    job = _Job(library, request, timings)
    thread = threading.Thread(target=job.run, name="tensorrt-build", daemon=True)
    started = time.monotonic()
    thread.start()
    try:
        while not job.ended.wait(HEARTBEAT_SECONDS):
            say(_heartbeat(time.monotonic() - started, last_seconds))
    except BaseException:
        with _next_signal_ends_at_once():
            job.stopping.set()
            if not hasattr(library.module, "IProgressMonitor"):
                say(f"TensorRT {library.text} stops only when it has built; a second signal ends it at once")
            job.ended.wait()
        raise
    if job.failure is not None:
        raise job.failure
    content, kept, warnings = job.result
    return BuiltPlan(
        content=content, seconds=time.monotonic() - started, warnings=tuple(warnings), timings=kept
    )


@contextmanager
def _next_signal_ends_at_once() -> Iterator[None]:
    """Leave SIGINT and SIGTERM to the system, which ends the process without Python's own way out.

    On that way TensorRT would call its log in an interpreter that is being taken down. Only the main thread
    can do this, and only there are signals raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set by other than Python


def _heartbeat(seconds: float, last_seconds: float | None) -> str:
    before = "" if last_seconds is None else f"; the last such build took {last_seconds:.0f} s"
    return f"still building, {seconds:.0f} s so far{before}"


class _Job:
    """One build, on its own thread from `run` to `ended`."""

    def __init__(self, library: TensorRt, request: BuildRequest, timings: bytes) -> None:
        self.ended = threading.Event()
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.result: tuple[bytes, bytes, list[str]] = (b"", b"", [])
        self._library, self._request, self._timings = library, request, timings

    def run(self) -> None:
        try:
            self.result = self._build()
        except EdgeInferError as error:
            # Without its frames: they hold TensorRT's objects, which must go before the GPU's context does.
            self.failure = error.with_traceback(None)
        except BaseException as error:  # raised again by the thread that waits
            self.failure = error
        finally:
            self.ended.set()

    def _build(self) -> tuple[bytes, bytes, list[str]]:
        library, request = self._library, self._request
        with collected() as messages:
            builder = _make_builder(library)
            network = parse_network(
                library, builder, request.model_onnx, chip_shape=request.chip_shape, classes=request.classes
            )
            config = builder.create_builder_config()
            _configure(library, builder, config, request)
            # Both must outlive the build.
            monitor = _make_monitor(library, self.stopping)
            if monitor is not None:
                config.progress_monitor = monitor
            cache = config.create_timing_cache(self._timings)
            # A cache of another GPU or version is refused here; an empty one then takes what is timed anew.
            if cache is None or not config.set_timing_cache(cache, False):
                cache = config.create_timing_cache(b"")
                config.set_timing_cache(cache, False)
            plan = None if self.stopping.is_set() else builder.build_serialized_network(network, config)
            if plan is None:
                kind = GpuMemoryError if messages.out_of_memory() else EngineError
                raise kind(
                    f"TensorRT {library.text} cannot build the {request.precision} engine for batch "
                    f"{request.batch}: {messages.reason()}; try a smaller --batch, or --engine openvino"
                )
            kept = config.get_timing_cache()
            timings = b"" if kept is None else bytes(memoryview(kept.serialize()))
            return bytes(memoryview(plan)), timings, messages.warnings()


def _make_builder(library: TensorRt) -> Any:
    with collected() as messages:
        try:
            builder = library.module.Builder(shared_logger(library.module))
        except TypeError:  # 8.6 where CUDA does not come up
            builder = None
    if builder is None:
        raise EngineError(
            f"TensorRT {library.text} cannot start on this GPU: {messages.reason()}; driver and TensorRT "
            "must be made for one CUDA version: update the driver, or use --engine openvino"
        )
    return builder


def _configure(library: TensorRt, builder: Any, config: Any, request: BuildRequest) -> None:
    trt = library.module
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # The layer report is read from the plan, and only with this does it tell types and weights.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.precision == "fp32":
        # Left alone, convolutions are rounded to TensorFloat-32; who asks for FP32 wants FP32.
        config.clear_flag(trt.BuilderFlag.TF32)
    if not library.strongly_typed:
        # The same files as elsewhere. The flags allow more than the files state: normalisation, pooling and
        # the last layer may run in FP16 too.
        for flag in {"int8": ("INT8", "FP16"), "fp16": ("FP16",), "fp32": ()}[request.precision]:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        # Neither cuBLAS nor cuDNN, which TensorRT 8 would else load and 10 has left.
        sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
        config.set_tactic_sources(sum(1 << int(source) for source in sources))
        # Several batches in flight run by one profile; from 10 on that goes without saying.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    profile = builder.create_optimization_profile()
    least, most = (1, *request.chip_shape), (request.batch, *request.chip_shape)
    profile.set_shape(INPUT, least, most, most)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT {library.text} refuses batches of 1 to {request.batch} chips of "
            f"{request.chip_shape}; try a smaller --batch"
        )


def _make_monitor(library: TensorRt, stopping: threading.Event) -> Any:
    """Make what TensorRT asks at every step whether to go on; None where it does not ask (8.6)."""
    trt = library.module
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, _phase: str, _parent: str | None, _steps: int) -> None:
            pass

        def step_complete(self, _phase: str, _step: int) -> bool:
            return not stopping.is_set()

        def phase_finish(self, _phase: str) -> None:
            pass

    return Monitor()
