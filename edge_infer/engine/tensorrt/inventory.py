"""What lies in the cache, and what of it this machine can use: `edge-infer build --list` and `--prune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_infer.engine.tensorrt.timing import timing_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.bundle import Bundle
    from edge_infer.device.gpu import GpuFacts
    from edge_infer.engine.tensorrt.cache import Kept, PlanCache


@dataclass(frozen=True, slots=True)
class Removed:
    """A file, or a plan with its record, that is gone from the cache."""

    path: Path
    size_bytes: int
    why: str


def plans_of(cache: PlanCache, bundle: Bundle | None) -> list[Kept]:
    """List the plans of a bundle's model, by name or content; all of them without a bundle."""
    if bundle is None:
        return cache.entries()
    digests = {member.sha256 for member in bundle.members.values()}
    return [
        entry
        for entry in cache.entries()
        if entry.record is not None
        and (entry.record.model == bundle.manifest.name or entry.record.key.model_sha256 in digests)
    ]


def prune(
    cache: PlanCache, bundle: Bundle | None, *, gpu: GpuFacts, tensorrt: str, say: Callable[[str], None]
) -> list[Removed]:
    """Remove what this machine cannot use: plans of another GPU, driver, TensorRT or builder, damaged ones.

    With a bundle, plans of other versions of its model go as well. Timing caches and decisions follow the
    plans that they were made for. `OSError` where the folder cannot be written.
    """
    if not cache.folder.is_dir():
        return []
    cache.prepare()
    with cache.building(say):
        removed = []
        for entry in cache.entries():
            why = objection(entry, bundle, gpu, tensorrt)
            if why is not None:
                removed.append(Removed(entry.path, cache.remove(entry), why))
        kept = {entry.record.key.digest for entry in cache.entries() if entry.record is not None}
        removed += [
            _unlinked(path, "a plan that it compares is gone")
            for path in sorted(cache.folder.glob("choice-*-*.json"))
            if not set(path.stem.split("-")[1:]) <= kept
        ]
        removed += [
            _unlinked(path, "it was measured by another GPU or TensorRT")
            for path in sorted(cache.folder.glob("*.timing"))
            if path != timing_path(cache.folder, gpu, tensorrt)
        ]
        return removed


def describe(entry: Kept) -> dict[str, Any]:
    """Plain JSON values of an entry."""
    record = None if entry.record is None else entry.record.to_json()
    return {"path": str(entry.path), "trouble": entry.trouble, "record": record}


def line(entry: Kept) -> str:
    """Tell an entry in one line."""
    record = entry.record
    if record is None:
        return f"{entry.path.name}: cannot be used, {entry.trouble}"
    key = record.key
    layers = "" if record.layers is None else f"; {record.layers.describe()}"
    trouble = "" if entry.trouble is None else f"; cannot be used, {entry.trouble}"
    return (
        f"{entry.path.name}: {record.model} in {key.precision}, batch 1 to {key.batch}, {key.gpu}, "
        f"TensorRT {key.tensorrt}, {record.plan_bytes / 1e6:.1f} MB, built {record.created} in "
        f"{record.build_seconds:.0f} s{layers}{trouble}"
    )


def objection(entry: Kept, bundle: Bundle | None, gpu: GpuFacts, tensorrt: str) -> str | None:
    """Say why this machine cannot use an entry; None where it can."""
    if entry.record is None or entry.trouble is not None:
        return entry.trouble
    key = entry.record.key
    moved = key.on_machine(gpu, tensorrt).differences(key)
    if moved:
        return "; ".join(moved)
    if bundle is not None and entry.record.model == bundle.manifest.name:
        digests = {member.sha256 for member in bundle.members.values()}
        if key.model_sha256 not in digests:
            return "it was built from another version of the model"
    return None


def _unlinked(path: Path, why: str) -> Removed:
    size_bytes = path.stat().st_size
    path.unlink()
    return Removed(path, size_bytes, why)
