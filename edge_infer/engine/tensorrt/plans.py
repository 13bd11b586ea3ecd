"""The plan to run now: found in the cache, or built and kept."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from edge_infer.bundle import FP16_MEMBER, INT8_MEMBER, MODEL_MEMBER
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.engine.onnx_file import read_model
from edge_infer.engine.tensorrt.auto import (
    decide,
    decision_path,
    float_precision,
    read_decision,
    write_decision,
)
from edge_infer.engine.tensorrt.bindings import load_tensorrt
from edge_infer.engine.tensorrt.builder import BuildRequest, build_plan, workspace_for
from edge_infer.engine.tensorrt.cache import (
    CACHE_VARIABLE,
    PlanCache,
    PlanKey,
    PlanRecord,
    PlanRefusedError,
    cache_folder,
    now,
)
from edge_infer.engine.tensorrt.layers import inspect_plan
from edge_infer.engine.tensorrt.timing import read_timings, timing_path, write_timings
from edge_infer.engine.verdict import against_int8
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.device.gpu import GpuFacts
    from edge_infer.engine import Precision, PrecisionChoice
    from edge_infer.engine.tensorrt.layers import LayerReport

_Result = TypeVar("_Result")

MEMBERS: dict[Precision, str] = {"int8": INT8_MEMBER, "fp16": FP16_MEMBER, "fp32": MODEL_MEMBER}
_MISSING: dict[Precision, str] = {
    "int8": "make it with `edge-infer calibrate`",
    "fp16": "export the model again",
    "fp32": "export the model again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyPlan:
    """A plan that fits this GPU, this TensorRT and this model."""

    content: bytes
    """What TensorRT deserialises."""
    precision: Precision
    batch: int
    """Largest batch; it takes 1 to `batch` chips."""
    why: str
    """Why this precision was taken, for a person."""
    built: bool
    """Whether it was built just now."""
    path: Path | None
    """Where it lies in the cache; None where it could not be kept."""
    record: PlanRecord
    """Its key, how it was built, and what its layers run in."""


def ready_plan(
    bundle: Bundle,
    *,
    precision: PrecisionChoice,
    batch: int,
    gpu: GpuFacts,
    say: Callable[[str], None],
    measure: Callable[[bytes], float] | None,
    cache: Path | None = None,
    force: bool = False,
) -> ReadyPlan:
    """Give the plan to run a bundle with, from the cache or newly built.

    `auto` takes INT8 if it passed its gate, can be built, and `measure` finds it faster than the float plan;
    the decision is kept, so that the next call neither builds nor measures.

    Args:
        bundle: the model.
        precision: what was asked for.
        batch: largest batch that the plan must take.
        gpu: the GPU, as `probe_gpu` found it in this process; the primary context of device 0 is used.
        say: takes lines for the user while it builds.
        measure: runs a plan on real chips and gives images/s; without it `auto` takes INT8 unmeasured. Raises
            `PlanRefusedError` where TensorRT does not take the plan.
        cache: folder of the cache; by default that of `cache_folder`.
        force: build anew, and decide anew, whatever the cache holds.

    Raises:
        EngineError: TensorRT is not to be had, cannot build this, or the bundle has no such precision.
        BundleError: a model in the bundle is not self-contained.

    """
    maker = _Maker(bundle, batch, gpu, say, PlanCache(cache_folder(cache)), force=force)
    if precision != "auto":
        return maker.make(precision, f"{precision}: asked for")
    other = float_precision(bundle)
    objection = against_int8(bundle)
    if objection is not None:
        return maker.make(other, f"{other}: {objection}")
    if measure is None:
        return maker.make_int8(other, "int8: it passed its gate; not timed against float")
    path = decision_path(maker.cache.folder, maker.key("int8"), maker.key(other))
    decision = None if force else read_decision(path, other)
    if decision is None:
        with maker.alone():  # what is measured while another process builds or measures is wrong
            decision = None if force else read_decision(path, other)  # it may have decided meanwhile
            if decision is None:
                return maker.decide(other, measure, path)
    return maker.make(decision.precision, decision.why)


def largest_that_fits(batch: int, attempt: Callable[[int], _Result], say: Callable[[str], None]) -> _Result:
    """Do something for a batch, or for half of it, and so on while the GPU's memory does not suffice.

    Raises:
        EngineError: it does not suffice for one chip.

    """
    while True:
        try:
            return attempt(batch)
        except GpuMemoryError as error:
            if batch == 1:
                raise EngineError(str(error)) from error
            say(f"{error}; trying batch {batch // 2}")
        batch //= 2


class _Maker:
    """Finds or builds the plans of one bundle."""

    def __init__(
        self,
        bundle: Bundle,
        batch: int,
        gpu: GpuFacts,
        say: Callable[[str], None],
        cache: PlanCache,
        *,
        force: bool,
    ) -> None:
        self.cache = cache
        self._library = load_tensorrt(gpu.driver)
        self._bundle, self._batch, self._gpu, self._say, self._force = bundle, batch, gpu, say, force
        self._alone = self._keeps = False

    def key(self, precision: Precision) -> PlanKey:
        member = MEMBERS[precision]
        if member not in self._bundle.members:
            raise EngineError(
                f"{self._bundle.path.name} holds no {precision.upper()} model; {_MISSING[precision]}, "
                "or use --precision auto"
            )
        return PlanKey(
            model_sha256=self._bundle.members[member].sha256,
            tensorrt=self._library.text,
            gpu=self._gpu.name,
            compute_capability=".".join(map(str, self._gpu.compute_capability)),
            multiprocessors=self._gpu.multiprocessors,
            driver=self._gpu.driver,
            precision=precision,
            batch=self._batch,
        )

    def make(self, precision: Precision, why: str) -> ReadyPlan:
        key = self.key(precision)
        found = "asked for by --force" if self._force else self.cache.find(key, self._name)
        if isinstance(found, str):
            with self.alone():
                if self._keeps and not self._force:  # another process may have built it meanwhile
                    found = self.cache.find(key, self._name)
                if isinstance(found, str):
                    self._say(
                        f"building the {precision} engine of {self._name} for {self._gpu.name} by TensorRT "
                        f"{key.tensorrt}, batch 1 to {self._batch}: {found}"
                    )
                    return self._build(key, why)
        content, record = found
        return ReadyPlan(
            content=content,
            precision=precision,
            batch=self._batch,
            why=why,
            built=False,
            path=self.cache.path_of(record),
            record=record,
        )

    def make_int8(self, other: Precision, why: str) -> ReadyPlan:
        """Give the INT8 plan, or the float one where TensorRT cannot build it."""
        try:
            return self.make("int8", why)
        except EngineError as error:
            self._say(f"{error}; taking {other} instead, and --precision {other} spares the try")
            return self.make(other, f"{other}: INT8 cannot be built here")

    def decide(self, other: Precision, measure: Callable[[bytes], float], path: Path) -> ReadyPlan:
        """Measure both plans, keep the decision at `path`, and give the plan that it takes."""
        int8 = self.make_int8(other, "")
        if int8.precision != "int8":
            return int8
        plans = {"int8": int8, other: self.make(other, "")}
        try:
            decision = decide(measure(plans["int8"].content), measure(plans[other].content), other)
        except PlanRefusedError as error:
            if self._force or all(plan.built for plan in plans.values()):
                raise
            self._say(f"{error}: the plans are built anew")
            self._force = True
            return self.decide(other, measure, path)
        self._say(decision.why)
        if self._keeps:
            try:
                write_decision(path, decision)
            except OSError as error:
                self._say(f"the decision cannot be kept ({error.strerror}) and is made anew next time")
        return replace(plans[decision.precision], why=decision.why)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process that builds or measures by this cache; within itself it does nothing."""
        if self._alone:
            yield
            return
        with ExitStack() as stack:
            self._keeps = self._enter_cache(stack)
            self._alone = True
            try:
                yield
            finally:
                self._alone = self._keeps = False

    @property
    def _name(self) -> str:
        return self._bundle.manifest.name

    def _enter_cache(self, stack: ExitStack) -> bool:
        """Take the cache to build into; False, with a word, where it cannot be used."""
        try:
            self.cache.prepare()
            stack.enter_context(self.cache.building(self._say))
        except OSError as error:
            self._say(
                f"plans cannot be kept in {self.cache.folder} ({error.strerror}): what is built is for this "
                f"run only; name another folder by the variable {CACHE_VARIABLE}"
            )
            return False
        return True

    def _build(self, key: PlanKey, why: str) -> ReadyPlan:
        timings = timing_path(self.cache.folder, self._gpu, key.tensorrt)
        built = build_plan(
            self._library,
            self._request(key),
            timings=read_timings(timings, self._say) if self._keeps else b"",
            say=self._say,
            last_seconds=self.cache.last_seconds(key),
        )
        layers = self._inspect(built.content, key.precision)
        told = "" if layers is None else f"; {layers.describe()}"
        self._say(f"built in {built.seconds:.1f} s, {len(built.content) / 1e6:.1f} MB{told}")
        record = PlanRecord(
            key=key,
            model=self._name,
            plan_sha256=sha256(built.content).hexdigest(),
            plan_bytes=len(built.content),
            build_seconds=round(built.seconds, 3),
            created=now(),
            layers=layers,
            warnings=built.warnings,
        )
        path = None
        if self._keeps:
            try:
                path = self.cache.keep(built.content, record)
                if built.timings:
                    write_timings(timings, built.timings)
            except OSError as error:
                self._say(
                    f"the plan cannot be kept in {self.cache.folder} ({error.strerror}); "
                    "it is built again next time"
                )
        return ReadyPlan(
            content=built.content,
            precision=key.precision,
            batch=self._batch,
            why=why,
            built=True,
            path=path,
            record=record,
        )

    def _request(self, key: PlanKey) -> BuildRequest:
        workspace_bytes = workspace_for(self._gpu)
        if self._gpu.integrated:
            self._say(
                f"the GPU shares the host's memory: the build may use {workspace_bytes / 2**20:.0f} MiB of "
                f"{self._gpu.free_bytes / 2**20:.0f} MiB free for scratch space"
            )
        return BuildRequest(
            model_onnx=read_model(self._bundle, MEMBERS[key.precision]),
            chip_shape=self._bundle.manifest.contract.chip_shape,
            classes=len(self._bundle.manifest.classes),
            precision=key.precision,
            batch=self._batch,
            workspace_bytes=workspace_bytes,
        )

    def _inspect(self, plan: bytes, precision: Precision) -> LayerReport | None:
        """Say what the layers run in; the plan may serve where TensorRT does not tell."""
        try:
            layers = inspect_plan(
                self._library, plan, batch=self._batch, chip_shape=self._bundle.manifest.contract.chip_shape
            )
        except EngineError as error:
            self._say(f"no layer report: {error}")
            return None
        if not layers.convolutions.get(precision):
            self._say(f"TensorRT's report shows no convolution in {precision}; this plan may not be faster")
        return layers
