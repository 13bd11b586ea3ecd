"""Which engine and precision run a bundle on this machine. Nothing is substituted silently."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER
from edge_infer.device.gpu import probe_gpu
from edge_infer.engine import GpuOptions
from edge_infer.engine.golden import find_fault
from edge_infer.engine.onnx_file import read_model
from edge_infer.engine.verdict import against_int8
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.bundle import Bundle
    from edge_infer.device.gpu import GpuFacts
    from edge_infer.engine import Engine, EngineChoice, Precision, PrecisionChoice
    from edge_infer.engine.openvino import OpenVinoEngine

COMPILATIONS = 3
"""Times that an INT8 model is compiled before it is given up. Where part of a model is INT8 and part is not,
OpenVINO 2026.4 with two streams made a wrong program of some graphs in about 1 of 50 compilations."""


def open_engine(
    bundle: Bundle,
    *,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    batch: int | None = None,
    gpu: GpuOptions = GpuOptions(),  # noqa: B008 - frozen
    say: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Open the engine that was asked for; `auto` takes TensorRT where all that it needs is there.

    Args:
        bundle: the model.
        engine: what to run it on.
        precision: number format.
        batch: chips in one batch; None: the engine's choice.
        gpu: how a GPU is used.
        say: takes lines for the user while a TensorRT engine is built.

    Raises:
        EngineError: the engine or the precision is not to be had; the text says what is.
        BundleError: the model is not contained in the bundle, or uses operators that are not ONNX's own.

    """
    if engine == "tensorrt":
        return _open_tensorrt(bundle, probe_gpu(), precision, batch, gpu, say, "asked for")
    why = "asked for"
    if engine == "auto":
        found = find_gpu()
        if not isinstance(found, str):
            all_there = "a GPU, TensorRT and pycuda are there"
            return _open_tensorrt(bundle, found, precision, batch, gpu, say, all_there)
        why = f"not TensorRT: {found}"
    if gpu.sample_on == "gpu":
        raise EngineError(f"--sample-on gpu goes with the TensorRT engine, and OpenVINO runs ({why})")
    return _open_openvino(bundle, precision, batch, why)


def find_gpu() -> GpuFacts | str:
    """Give the GPU that a TensorRT engine could run on, or the reason why there is none, in a few words."""
    try:
        facts = probe_gpu()
    except EngineError as error:
        return str(error).split(";", maxsplit=1)[0]
    missing = [name for name in ("tensorrt", "pycuda") if find_spec(name) is None]
    if missing:
        return f"{facts.name} is there, but the Python module {' and '.join(missing)} is not"
    return facts


def _open_tensorrt(
    bundle: Bundle,
    facts: GpuFacts,
    precision: PrecisionChoice,
    batch: int | None,
    options: GpuOptions,
    say: Callable[[str], None],
    asked: str,
) -> Engine:
    """Open it for the largest batch that fits, from the one asked for down by halves."""
    from edge_infer.device.cuda import CudaDevice
    from edge_infer.engine.tensorrt.bindings import load_tensorrt
    from edge_infer.engine.tensorrt.cache import PlanRefusedError
    from edge_infer.engine.tensorrt.plans import ReadyPlan, largest_that_fits, ready_plan
    from edge_infer.engine.tensorrt.runtime import DEFAULT_BATCH, TensorRtEngine, make_meter

    library = load_tensorrt(facts.driver)
    contract, classes = bundle.manifest.contract, len(bundle.manifest.classes)
    wanted = batch or DEFAULT_BATCH
    device = CudaDevice(facts)

    def open_for(size: int) -> TensorRtEngine:
        measure = make_meter(device, library, bundle, batch=size, options=options)

        def find(*, force: bool) -> ReadyPlan:
            return ready_plan(
                bundle, precision=precision, batch=size, gpu=facts, say=say, measure=measure, force=force
            )

        def load(plan: ReadyPlan) -> TensorRtEngine:
            fits = "" if size == wanted else f"; batch {size}, as {wanted} did not fit the GPU's memory"
            return TensorRtEngine(
                device, library, plan.content, contract, classes, batch=size, precision=plan.precision,
                why=f"tensorrt: {asked}; {plan.why}{fits}", options=options,
            )  # fmt: skip

        plan = find(force=False)
        try:
            return load(plan)
        except PlanRefusedError as error:
            if plan.built:
                raise
            say(f"{error}: the one in the cache is not taken, and is built anew")
        return load(find(force=True))

    try:
        return largest_that_fits(wanted, open_for, say)
    except BaseException:
        device.close()
        raise


def _open_openvino(bundle: Bundle, precision: PrecisionChoice, batch: int | None, why: str) -> Engine:
    """Open it in INT8 only if it gives the golden answers: how a CPU comes to an INT8 graph is OpenVINO's."""
    member, taken, why_precision = choose_model(bundle, precision)
    if taken == "fp32":
        return _load_openvino(bundle, member, taken, batch, f"openvino: {why}; {why_precision}")
    for _ in range(COMPILATIONS):
        engine = _load_openvino(bundle, member, taken, batch, f"openvino: {why}; {why_precision}")
        fault = find_fault(engine, bundle)
        if fault is None:
            return engine
        engine.close()
    if precision == "int8":
        raise EngineError(f"{bundle.path.name}: in INT8 on this CPU {fault}; use --precision fp32")
    return _load_openvino(bundle, MODEL_MEMBER, "fp32", batch, f"openvino: {why}; fp32: in INT8 {fault}")


def _load_openvino(
    bundle: Bundle, member: str, precision: Precision, batch: int | None, why: str
) -> OpenVinoEngine:
    from edge_infer.engine.openvino import DEFAULT_BATCH, OpenVinoEngine

    return OpenVinoEngine(
        read_model(bundle, member),
        bundle.manifest.contract.chip_shape,
        len(bundle.manifest.classes),
        batch=batch or DEFAULT_BATCH,
        precision=precision,
        why=why,
    )


def choose_model(bundle: Bundle, precision: PrecisionChoice) -> tuple[str, Precision, str]:
    """Name the bundle member to run on a CPU, its precision, and why.

    Raises:
        EngineError: the bundle or the CPU has no such precision.

    """
    if precision == "fp16":
        raise EngineError("OpenVINO on a CPU runs int8 or fp32, not fp16; use --precision auto")
    objection = against_int8(bundle)
    if precision == "int8":
        if INT8_MEMBER not in bundle.members:
            raise EngineError(
                f"{bundle.path.name} cannot run in INT8: {objection}; make an INT8 model with "
                "`edge-infer calibrate`, or use --precision fp32"
            )
        return INT8_MEMBER, "int8", "int8: asked for"
    if precision == "auto" and objection is None:
        return INT8_MEMBER, "int8", "int8: it passed its gate"
    return MODEL_MEMBER, "fp32", f"fp32: {'asked for' if precision == 'fp32' else objection}"
