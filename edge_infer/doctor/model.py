"""Whether a bundle is whole, and whether every engine here gives the answers that it was exported with."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from edge_infer.bundle import (
    FP16_MEMBER,
    GOLDEN_CHIPS_MEMBER,
    INT8_MEMBER,
    MODEL_MEMBER,
    open_bundle,
)
from edge_infer.doctor.finding import Finding, attempt
from edge_infer.engine.choose import open_engine
from edge_infer.engine.golden import classify_chips, compare, largest_difference
from edge_infer.errors import BundleError, EdgeInferError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.device.gpu import GpuFacts
    from edge_infer.doctor.graphics import Gpu
    from edge_infer.engine import Engine, Precision
    from edge_infer.engine.tensorrt.cache import PlanCache, PlanRecord

LEAST_SAME = 0.9
"""Share of golden chips that must get their class. INT8's gate wants 0.99 of many held-out chips; among a few
golden ones that are close calls, as many as one in ten may fall the other way."""


def look_at_model(path: Path, gpu: Gpu) -> tuple[Bundle | None, list[Finding]]:
    """Check a bundle, and run its golden chips through every engine that is there."""
    try:
        bundle = open_bundle(path)
    except BundleError as error:
        why, _, do = str(error).rpartition("; ")
        return None, [Finding("bundle", "problem", why or do, do if why else "name a bundle, NAME.edgemodel")]
    size = bundle.path.stat().st_size / 1e6
    members = f"{len(bundle.members) + 1} members, {size:.1f} MB, all as their checksums say"
    findings = [
        Finding("bundle", "ok", f"{bundle.path}: {members}", None, {"sha256": bundle.sha256}),
        _contract(bundle),
        *_precisions(bundle),
    ]
    if GOLDEN_CHIPS_MEMBER not in bundle.members:
        lacks = "the bundle holds no golden chips, so nothing shows whether engines answer right"
        return bundle, [*findings, Finding("golden chips", "warning", lacks, "export the model again")]
    for name, precision, open_it in _engines(bundle, gpu):
        findings += attempt(name, partial(_golden, bundle, name, precision, open_it))
    if gpu.usable:
        findings += attempt("tensorrt", lambda: _missing(bundle, [finding.name for finding in findings]))
    return bundle, findings


def _contract(bundle: Bundle) -> Finding:
    manifest = bundle.manifest
    contract = manifest.contract
    window = (
        f"{contract.ground_metres:g} m" if contract.window_mode == "fixed" else "the footprint's own size"
    )
    return Finding(
        "contract",
        "ok",
        f"{', '.join(manifest.classes)}; chips of {contract.chip_pixels} pixels for {window}, "
        f"{', '.join(contract.bands)} {contract.dtype}, pixels of {contract.coarsest_gsd_metres:g} m at most",
        None,
        contract.to_json(),
    )


def _precisions(bundle: Bundle) -> list[Finding]:
    names = {MODEL_MEMBER: "FP32", FP16_MEMBER: "FP16", INT8_MEMBER: "INT8"}
    there = ", ".join(name for member, name in names.items() if member in bundle.members)
    if INT8_MEMBER in bundle.members:
        return [Finding("precisions", "ok", there)]
    verdict = bundle.manifest.facts.get("int8")
    if isinstance(verdict, dict) and verdict.get("int8") == "rejected":
        return [Finding("precisions", "ok", f"{there}; INT8 did not pass its gate")]
    faster = "INT8 is 2 to 4 times as fast: edge-infer calibrate, in the office"
    return [Finding("precisions", "ok", f"{there}; not calibrated for INT8", faster)]


def _engines(bundle: Bundle, gpu: Gpu) -> list[tuple[str, Precision, Callable[[], Engine]]]:
    """List what can be run at once: OpenVINO, and TensorRT where a plan for this device is in the cache."""
    engines: list[tuple[str, Precision, Callable[[], Engine]]] = [
        (
            f"openvino {precision}",
            precision,
            partial(open_engine, bundle, engine="openvino", precision=precision),
        )
        for precision in _on_a_cpu(bundle)
    ]
    if gpu.facts is None or gpu.tensorrt is None:
        return engines
    from edge_infer.engine.tensorrt.cache import PlanCache, cache_folder
    from edge_infer.engine.tensorrt.inventory import objection, plans_of

    cache = PlanCache(cache_folder(None))
    records = [
        entry.record
        for entry in plans_of(cache, bundle)
        if entry.record is not None and objection(entry, bundle, gpu.facts, gpu.tensorrt) is None
    ]
    return engines + [
        (
            _plan_name(record.key.precision, record.key.batch),
            record.key.precision,
            partial(_open_plan, bundle, cache, record, gpu.facts),
        )
        for record in sorted(records, key=lambda record: (record.key.precision, -record.key.batch))
    ]


def _missing(bundle: Bundle, tried: list[str]) -> Iterator[Finding]:
    """Tell where the engine that a run takes first is not among those that were tried."""
    from edge_infer.engine.tensorrt.runtime import DEFAULT_BATCH

    if any(_plan_name(precision, DEFAULT_BATCH) in tried for precision in ("int8", "fp16", "fp32")):
        return
    others = [name for name in tried if name.startswith("tensorrt")]
    if others:
        lacks = f"of this model only {', '.join(others)} is built; a run takes batch {DEFAULT_BATCH}"
    else:
        lacks = "no engine of this model is built for this device, so it was not tried"
    yield Finding("tensorrt", "warning", lacks, f"edge-infer build {bundle.path}")


def _plan_name(precision: Precision, batch: int) -> str:
    """Name the finding on a plan."""
    return f"tensorrt {precision}, batch {batch}"


def _on_a_cpu(bundle: Bundle) -> tuple[Precision, ...]:
    return ("fp32", "int8") if INT8_MEMBER in bundle.members else ("fp32",)


def _open_plan(bundle: Bundle, cache: PlanCache, record: PlanRecord, facts: GpuFacts) -> Engine:
    """Load a plan as it is, where `open_engine` would build another in place of one that is refused."""
    from edge_infer.device.cuda import CudaDevice
    from edge_infer.engine import GpuOptions
    from edge_infer.engine.tensorrt.bindings import load_tensorrt
    from edge_infer.engine.tensorrt.runtime import TensorRtEngine

    found = cache.find(record.key, record.model)
    if isinstance(found, str):
        raise EngineError(f"the plan in the cache cannot be used: {found}")
    device, key = CudaDevice(facts), record.key
    try:
        return TensorRtEngine(
            device, load_tensorrt(facts.driver), found[0], bundle.manifest.contract,
            len(bundle.manifest.classes), batch=key.batch, precision=key.precision, why="tensorrt: a check",
            options=GpuOptions(),
        )  # fmt: skip
    except BaseException:
        device.close()
        raise


def _golden(
    bundle: Bundle, name: str, precision: Precision, open_it: Callable[[], Engine]
) -> Iterator[Finding]:
    again = "this engine would classify wrongly: export the model again"
    if name.startswith("tensorrt"):
        again = f"build it anew: edge-infer build --force {bundle.path}; until then --engine openvino"
    try:
        chips, expected = bundle.golden()
        with closing(open_it()) as engine:
            found = compare(classify_chips(engine, chips), expected)
    except EdgeInferError as error:
        why, _, do = str(error).partition("; ")
        yield Finding(name, "problem", why, do or again)
        return
    limit = largest_difference(bundle, precision)
    text = (
        f"{found.same_class} of {found.chips} golden chips get their class, "
        f"probabilities differ by {found.largest_difference:.2g} at most"
    )
    figures = {
        "chips": found.chips,
        "same_class": found.same_class,
        "largest_difference": found.largest_difference,
        "limit": limit,
    }
    if found.largest_difference > limit:
        yield Finding(name, "problem", f"{text}, wanted {limit:.2g}", again, figures)
    elif found.same_class < LEAST_SAME * found.chips:
        yield Finding(name, "problem", f"{text}; wanted {LEAST_SAME:.0%} of the classes", again, figures)
    else:
        yield Finding(name, "ok", text, None, figures)
