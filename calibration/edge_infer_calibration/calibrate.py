"""The whole calibration on one page: chips -> statistics -> ranges -> Q/DQ -> gate -> remedies -> bundle."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_infer.bundle import CALIBRATION_MEMBER, INT8_MEMBER, MODEL_MEMBER, Bundle, open_bundle, write_bundle
from edge_infer.errors import BundleError, EdgeInferError, OutputError, Refused
from edge_infer_calibration.activations import observe
from edge_infer_calibration.choice import DEFAULT_CHIPS, ENOUGH_CHIPS, LEAST_CHIPS, MOST_CHIPS
from edge_infer_calibration.fp32_model import read_fp32
from edge_infer_calibration.gate import Limits, judge, run_model
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_calibration.ranges import METHODS, find_ranges
from edge_infer_calibration.remedies import corrected_biases, sensitivity
from edge_infer_calibration.selection import select
from edge_infer_calibration.sheet import draw_flips, refuse_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from edge_infer.manifest import Manifest
    from edge_infer_calibration.activations import Activations
    from edge_infer_calibration.candidates import Candidates
    from edge_infer_calibration.gate import Verdict
    from edge_infer_calibration.placement import Placement
    from edge_infer_calibration.ranges import Method
    from edge_infer_calibration.selection import Selection

CALIBRATION_FORMAT = 1
"""Value of `format` in calibration.json."""

MOST_FLIPS_LISTED = 200
"""Chips whose class changes, in calibration.json."""
SWEEP_CHIPS = 64
"""Calibration chips of the sensitivity sweep, which runs the model once for each convolution."""
MOST_IN_FLOAT = 0.25
"""Share of the convolutions that may stay in float; beyond that INT8 gains too little."""
LIBRARIES = ("edge-infer", "numpy", "onnx", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRequest:
    """The options of `edge-infer calibrate`, under their own names."""

    bundle: Path
    out: Path | None = None
    """Bundle to write; None: the same one, replaced when the new one is complete."""
    chips: tuple[Path, ...] = ()
    """Folders that `edge-infer chips` made; or instead:"""
    imagery: tuple[Path, ...] = ()
    footprints: Path | None = None
    layer: str | None = None
    where: str | None = None
    label_field: str | None = None
    classes: Mapping[str, str] | None = None
    ignore_labels: tuple[str, ...] = ()
    held_out: tuple[Path, ...] = ()
    """Folders of chips for the gate; none: candidates that were not chosen."""
    method: Literal["auto"] | Method = "auto"
    count: int = DEFAULT_CHIPS
    """Chips to calibrate on."""
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    sheet: Path | None = None
    """Picture to write of the chips whose class changes."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself or means nothing."""
        if bool(self.chips) == bool(self.imagery or self.footprints):
            raise Refused("calibration needs chips: give --chips, or --imagery and --footprints, not both")
        if bool(self.imagery) != (self.footprints is not None):
            raise Refused("--imagery and --footprints belong together; give both")
        if self.chips and (self.layer or self.where or self.label_field):
            raise Refused(
                "--layer, --where and --label-field belong to --footprints; chips of --chips have classes"
            )
        if not self.label_field and (self.classes or self.ignore_labels):
            raise Refused("--classes and --ignore-label say what is in a column; name it with --label-field")
        if self.count < LEAST_CHIPS:
            raise Refused(
                f"{self.count} calibration chips are too few, wanted {LEAST_CHIPS} at least and better "
                f"{ENOUGH_CHIPS}"
            )
        if self.count > MOST_CHIPS:
            raise Refused(
                f"{self.count} calibration chips are more than the {MOST_CHIPS} that a bundle can list; ask "
                "for fewer"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to quantise."""

    method: Method
    bias_correction: bool = False
    in_float: tuple[str, ...] = ()

    def describe(self) -> str:
        """Name it in a few words."""
        extras = [" with bias correction"] * self.bias_correction
        if self.in_float:
            extras.append(f", {', '.join(self.in_float)} in float")
        return self.method + "".join(extras)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A recipe, what it gave, and what the gate says of it."""

    recipe: Recipe
    model_onnx: bytes
    in_int8: NDArray[np.float32]
    """float32, (n, K): probabilities of the held-out chips."""
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = self.verdict.figures
        return {
            "method": self.recipe.method,
            "bias_correction": self.recipe.bias_correction,
            "in_float": list(self.recipe.in_float),
            "passed": self.verdict.passed,
            "reasons": list(self.verdict.reasons),
            "agreement": figures["agreement"],
            "mean_probability_shift": figures["mean_probability_shift"],
            "largest_probability_shift": figures["largest_probability_shift"],
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """What came of a calibration."""

    bundle: Bundle
    best: Attempt
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the bundle now holds an INT8 model."""
        return self.best.verdict.passed

    def describe(self) -> str:
        """Several lines."""
        verdict = self.best.verdict
        word = "passed" if self.passed else "rejected"
        lines = [f"{self.bundle.path}: int8 {word}: {self.best.recipe.describe()}", f"  {verdict.describe()}"]
        for name, entry in verdict.figures["per_class"].items():
            lines.append(
                f"  {name}: {entry['chips']} chips, recall {_change(entry['recall_change'])}, precision "
                f"{_change(entry['precision_change'])} points"
            )
        lines += [f"  {reason}" for reason in verdict.reasons]
        if not self.passed:
            lines.append("  the bundle keeps FP32 only, and says why; `run --precision auto` uses float")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _change(estimate: dict[str, float | None]) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "unknown"
    return f"{100 * value:+.1f}" + ("" if low is None else f" ({100 * low:+.1f}..{100 * (high or 0):+.1f})")


def calibrate(request: CalibrateRequest, *, say: Callable[[str], None] = lambda _: None) -> Calibrated:
    """Quantise a bundle's model and put the result through the gate.

    The bundle is written beside itself and renamed, so that the old one is whole until the new one is. Where
    nothing passes, the new one holds no INT8 model, but the reason.

    Raises:
        Refused: the bundle or the chips cannot be used; the bundle is as it was.
        OutputError: the bundle cannot be written; it is as it was.
        EdgeInferError: the bundle is written, but not the picture of the chips that flip.

    """
    bundle = open_bundle(request.bundle)
    _refuse_bundle(request, bundle)
    model = read_fp32(bundle)
    try:
        placement = place(model)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from error
    with ExitStack() as stack:
        chips = select(request, bundle, stack)
        for warning in chips.warnings:
            say(f"warning: {warning}")
        say(f"{len(chips.chosen)} chips to calibrate on, {len(chips.held_out_rows)} held out for the gate")
        activations = observe(model, placement, chips.candidates.batches(chips.chosen))
        trial = _Trial(request, bundle, model, placement, activations, chips, say)
        best = trial.run()
        warnings = (*chips.warnings, *best.verdict.warnings())
        written = _write(request, bundle, best, _facts(request, bundle, chips, trial, best, warnings))
        if request.sheet is not None:
            flips = best.verdict.flips
            outcome = (trial.in_float[flips], best.in_int8[flips], flips)
            try:
                draw_flips(request.sheet, chips.held_out, chips.held_out_rows, outcome, bundle.manifest)
            except OutputError as error:
                raise EdgeInferError(f"{written.path} is written, but: {error}") from error
    return Calibrated(bundle=written, best=best, warnings=warnings)


def _write(request: CalibrateRequest, bundle: Bundle, best: Attempt, facts: dict[str, Any]) -> Bundle:
    """Write the bundle with what was found."""
    replaced = (INT8_MEMBER, CALIBRATION_MEMBER)
    members = {name: bundle.read(name) for name in bundle.members if name not in replaced}
    if best.verdict.passed:
        members[INT8_MEMBER] = best.model_onnx
    members[CALIBRATION_MEMBER] = json.dumps(facts, indent=1, allow_nan=False).encode() + b"\n"
    short = {name: facts[name] for name in ("int8", "reason", "method", "bias_correction", "in_float")}
    short["agreement"] = facts["gate"]["agreement"]
    manifest = replace(bundle.manifest, facts={**bundle.manifest.facts, "int8": short})
    return write_bundle(request.out or request.bundle, manifest, members)


def _refuse_bundle(request: CalibrateRequest, bundle: Bundle) -> None:
    if CALIBRATION_MEMBER in bundle.members and not request.overwrite:
        what = (
            "is quantised already" if INT8_MEMBER in bundle.members else "was calibrated, and INT8 rejected"
        )
        raise BundleError(f"{bundle.path} {what}; say --overwrite to calibrate its FP32 model again")
    out = request.out or request.bundle
    if request.out is not None and out.exists() and not request.overwrite:
        raise OutputError(f"{out} exists; name another file or say --overwrite")
    if out.is_dir():
        raise OutputError(f"{out} is a folder, wanted a file to write; name it NAME.edgemodel")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is no folder; make it first")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent} may not be written to; name another place with --out")
    if request.sheet is not None:
        refuse_picture(request.sheet)


class _Trial:
    """Tries recipes on the held-out chips until one passes, in the order in which they cost speed."""

    def __init__(
        self,
        request: CalibrateRequest,
        bundle: Bundle,
        model: onnx.ModelProto,
        placement: Placement,
        activations: Activations,
        chips: Selection,
        say: Callable[[str], None],
    ) -> None:
        self.request, self.bundle, self.model, self.placement = request, bundle, model, placement
        self.activations, self.chips, self.say = activations, chips, say
        self.attempts: list[Attempt] = []
        self.sweep: list[tuple[tuple[str, ...], float]] = []
        self.ranges = {method: find_ranges(activations.histograms, method) for method in METHODS}
        self.biases = corrected_biases(model, placement, activations)
        self.in_float = self._run(bundle.read(MODEL_MEMBER), chips.held_out, chips.held_out_rows, int8=False)

    def run(self) -> Attempt:
        """Give the best of what was tried."""
        asked = self.request.method
        first: tuple[Method, ...] = METHODS if asked == "auto" else (asked,)
        for method in first:
            self._try(Recipe(method=method))
        if asked == "auto" or not self.best.verdict.passed:
            self._try(replace(self.best.recipe, bias_correction=True))
        if not self.best.verdict.passed:
            for method in METHODS:
                if method not in first:
                    self._try(Recipe(method=method))
        if not self.best.verdict.passed:
            self._leave_in_float()
        return self.best

    @property
    def best(self) -> Attempt:
        """The best attempt so far; the earlier one of equals."""
        return max(self.attempts, key=lambda attempt: attempt.verdict.rank)

    def _leave_in_float(self) -> None:
        base = self.best.recipe
        # Not on the gate's chips, which would then judge what was fitted to them.
        candidates, chosen = self.chips.candidates, self.chips.chosen
        rows = np.random.default_rng(self.request.seed).permutation(chosen)[:SWEEP_CHIPS]
        in_float = self._run(self.bundle.read(MODEL_MEMBER), candidates, rows, int8=False)
        self.sweep = sensitivity(
            self.model,
            self.placement,
            self.ranges[base.method],
            in_float,
            lambda content: self._run(content, candidates, rows, int8=True),
            self.say,
        )
        count, most = 1, int(MOST_IN_FLOAT * len(self.placement.units))
        while count <= most and not self.best.verdict.passed:
            self._try(replace(base, in_float=tuple(name for unit, _ in self.sweep[:count] for name in unit)))
            count *= 2

    def _try(self, recipe: Recipe) -> None:
        quantised = insert_qdq(
            self.model,
            self.ranges[recipe.method],
            in_float=recipe.in_float,
            biases=self.biases if recipe.bias_correction else None,
        ).SerializeToString(deterministic=True)
        held_out, rows = self.chips.held_out, self.chips.held_out_rows
        in_int8 = self._run(quantised, held_out, rows, int8=True)
        verdict = judge(
            self.in_float,
            in_int8,
            None if held_out.targets is None else held_out.targets[rows],
            self.bundle.manifest.classes,
            limits=self.request.limits,
            blocks=None if held_out.blocks is None else held_out.blocks[rows],
            seed=self.request.seed,
        )
        self.attempts.append(Attempt(recipe=recipe, model_onnx=quantised, in_int8=in_int8, verdict=verdict))
        self.say(f"{'passed' if verdict.passed else 'failed'}: {recipe.describe()}: {verdict.describe()}")

    def _run(
        self, content: bytes, candidates: Candidates, rows: NDArray[np.int64], *, int8: bool
    ) -> NDArray[np.float32]:
        manifest = self.bundle.manifest
        return run_model(
            content,
            manifest.contract.chip_shape,
            len(manifest.classes),
            candidates.batches(rows),
            precision="int8" if int8 else "fp32",
        )


def _facts(
    request: CalibrateRequest,
    bundle: Bundle,
    chips: Selection,
    trial: _Trial,
    best: Attempt,
    warnings: tuple[str, ...],
) -> dict[str, Any]:
    """Everything that calibration.json says."""
    candidates, chosen, manifest = chips.candidates, chips.chosen, bundle.manifest
    recipe, verdict = best.recipe, best.verdict
    names = ["unlabelled"] * len(chosen)
    if candidates.targets is not None:
        names = [manifest.classes[k] for k in candidates.targets[chosen]]
    held = chips.held_out
    sources = sorted(set(held.scene[chips.held_out_rows].tolist()))
    return {
        "format": CALIBRATION_FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "int8": "passed" if verdict.passed else "rejected",
        "reason": None if verdict.passed else "; ".join(verdict.reasons),
        "method": recipe.method,
        "bias_correction": recipe.bias_correction,
        "in_float": list(recipe.in_float),
        "fp32_sha256": bundle.members[MODEL_MEMBER].sha256,
        "gate": {**verdict.figures, "flipped": _flipped(chips, trial, best, manifest), "sources": sources},
        "attempts": [attempt.to_json() for attempt in trial.attempts],
        "sensitivity": {" and ".join(unit): divergence for unit, divergence in trial.sweep},
        "warnings": list(warnings),
        "chips": {
            "count": len(chosen),
            "asked": request.count,
            "candidates": len(candidates),
            "seed": request.seed,
            "strata": chips.strata,
            "classes": dict(Counter(names)),
            "events": sorted(set(candidates.event[chosen].tolist()) - {""}),
            "images": sorted(set(candidates.scene[chosen].tolist())),
            "sensor": {
                "bands": list(manifest.contract.bands),
                "dtype": manifest.contract.dtype,
                "gsd_metres": [
                    round(float(edge(candidates.gsd_metres[chosen])), 4) for edge in (np.min, np.max)
                ],
            },
            "list": [
                {"name": name, "class": label, "sha256": digest}
                for name, label, digest in zip(candidates.name[chosen], names, chips.sha256, strict=True)
            ],
        },
        "input_histogram": chips.inputs.to_json(manifest.contract.bands),
        "ranges": trial.ranges[recipe.method],
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _flipped(chips: Selection, trial: _Trial, best: Attempt, manifest: Manifest) -> list[dict[str, Any]]:
    """List the chips whose class changes, the largest shift of a probability first."""
    held, found = chips.held_out, []
    for flip in best.verdict.flips[:MOST_FLIPS_LISTED].tolist():
        before, after, row = trial.in_float[flip], best.in_int8[flip], chips.held_out_rows[flip]
        found.append(
            {
                "name": held.name[row],
                "class": None if held.targets is None else manifest.classes[held.targets[row]],
                "fp32": manifest.classes[before.argmax()],
                "int8": manifest.classes[after.argmax()],
                "shift": round(float(np.abs(after - before).max()), 4),
            }
        )
    return found
