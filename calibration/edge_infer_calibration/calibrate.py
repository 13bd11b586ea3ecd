"""The whole calibration on one page: chips -> statistics -> ranges -> Q/DQ -> gate -> remedies -> bundle."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from edge_infer.bundle import CALIBRATION_MEMBER, INT8_MEMBER, MODEL_MEMBER, Bundle, open_bundle, write_bundle
from edge_infer.drift import InputHistogram
from edge_infer.errors import BundleError, OutputError, Refused
from edge_infer_calibration.activations import observe
from edge_infer_calibration.candidates import from_folders, from_imagery
from edge_infer_calibration.choice import (
    DEFAULT_CHIPS,
    ENOUGH_CHIPS,
    LEAST_CHIPS,
    LOOKED_AT,
    choose,
    look,
    refuse_synthetic,
    strata_of,
)
from edge_infer_calibration.gate import Limits, judge, run_model
from edge_infer_calibration.placement import place
from edge_infer_calibration.qdq import insert_qdq
from edge_infer_calibration.ranges import METHODS, find_ranges
from edge_infer_calibration.remedies import corrected_biases, sensitivity
from edge_infer_calibration.sheet import draw_flips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from edge_infer_calibration.activations import Activations
    from edge_infer_calibration.candidates import Candidates
    from edge_infer_calibration.gate import Verdict
    from edge_infer_calibration.placement import Placement
    from edge_infer_calibration.ranges import Method

CALIBRATION_FORMAT = 1
"""Value of `format` in calibration.json."""

MOST_HELD_OUT = 2000
"""More chips than that make the gate slower and its intervals hardly narrower."""
SWEEP_CHIPS = 64
"""Chips of the sensitivity sweep, which runs the model once for each convolution."""
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
        if self.count < LEAST_CHIPS:
            raise Refused(
                f"{self.count} calibration chips are too few, wanted {LEAST_CHIPS} at least and better "
                f"{ENOUGH_CHIPS}"
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

    """
    bundle = open_bundle(request.bundle)
    _refuse_bundle(request, bundle)
    model = onnx.load_from_string(bundle.read(MODEL_MEMBER))
    try:
        placement = place(model)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from error
    with ExitStack() as stack:
        chips = _choose_chips(request, bundle, stack)
        warnings = chips.warnings()
        for warning in warnings:
            say(f"warning: {warning}")
        say(f"{len(chips.chosen)} chips to calibrate on, {len(chips.held_out_rows)} held out for the gate")
        inputs = InputHistogram.empty(bundle.manifest.contract.chip_shape)
        digests: list[str] = []
        activations = observe(model, placement, _watched(chips, inputs, digests))
        trial = _Trial(request, bundle, model, placement, activations, chips, say)
        best = trial.run()
        if request.sheet is not None:
            outcome = trial.outcome(best)
            draw_flips(request.sheet, chips.held_out, chips.held_out_rows, outcome, bundle.manifest)
        facts = _facts(request, bundle, chips, digests, inputs, trial, best, warnings)
    replaced = (INT8_MEMBER, CALIBRATION_MEMBER)
    members = {name: bundle.read(name) for name in bundle.members if name not in replaced}
    if best.verdict.passed:
        members[INT8_MEMBER] = best.model_onnx
    members[CALIBRATION_MEMBER] = json.dumps(facts, indent=1, allow_nan=False).encode() + b"\n"
    short = {name: facts[name] for name in ("int8", "reason", "method", "bias_correction", "in_float")}
    short["agreement"] = facts["gate"]["agreement"]
    manifest = replace(bundle.manifest, facts={**bundle.manifest.facts, "int8": short})
    written = write_bundle(request.out or request.bundle, manifest, members)
    return Calibrated(bundle=written, best=best, warnings=warnings)


def _refuse_bundle(request: CalibrateRequest, bundle: Bundle) -> None:
    if CALIBRATION_MEMBER in bundle.members and not request.overwrite:
        what = (
            "is quantised already" if INT8_MEMBER in bundle.members else "was calibrated, and INT8 rejected"
        )
        raise BundleError(f"{bundle.path} {what}; say --overwrite to calibrate its FP32 model again")
    out = request.out
    if out is not None and out.exists() and not request.overwrite:
        raise OutputError(f"{out} exists; name another file or say --overwrite")
    if request.sheet is not None and not request.sheet.parent.is_dir():
        raise OutputError(f"{request.sheet.parent} is no folder; make it first")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chips:
    """What was chosen of what."""

    candidates: Candidates
    chosen: NDArray[np.int64]
    strata: int
    held_out: Candidates
    held_out_rows: NDArray[np.int64]

    def warnings(self) -> tuple[str, ...]:
        found = []
        if len(self.chosen) < ENOUGH_CHIPS:
            found.append(
                f"{len(self.chosen)} chips are few to calibrate on, {ENOUGH_CHIPS} or more give surer ranges"
            )
        if len(self.held_out_rows) < ENOUGH_CHIPS:
            found.append(
                f"{len(self.held_out_rows)} chips are few for the gate: one that flips is "
                f"{1 / len(self.held_out_rows):.1%}, and a loss in a rare class may go unseen"
            )
        return tuple(found)


def _choose_chips(request: CalibrateRequest, bundle: Bundle, stack: ExitStack) -> _Chips:
    manifest = bundle.manifest
    if request.chips:
        candidates = from_folders(request.chips, manifest)
    else:
        assert request.footprints is not None
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-infer-"))
        candidates = from_imagery(
            request.imagery,
            request.footprints,
            manifest,
            Path(folder),
            most=LOOKED_AT * request.count,
            seed=request.seed,
            layer=request.layer,
            where=request.where,
            label_field=request.label_field,
            classes=request.classes,
        )
    held_out = from_folders(request.held_out, manifest) if request.held_out else candidates
    # Where one set serves both, the gate gets at least half of it.
    count = request.count if request.held_out else min(request.count, len(candidates) // 2)
    if count < LEAST_CHIPS or len(candidates) < LEAST_CHIPS:
        raise Refused(
            f"{len(candidates)} chips are too few to calibrate on and to hold out, wanted "
            f"{LEAST_CHIPS * (1 if request.held_out else 2)} at least and better {2 * ENOUGH_CHIPS}"
        )
    rng = np.random.default_rng(request.seed)
    rows = np.sort(rng.permutation(len(candidates))[: LOOKED_AT * count])
    looks = look(candidates, rows)
    refuse_synthetic(looks)
    chosen = choose(candidates, looks, rows, count, request.seed)
    used = set(candidates.name[chosen].tolist())
    rest = np.array([row for row, name in enumerate(held_out.name) if name not in used], np.int64)
    if len(rest) < LEAST_CHIPS:
        raise Refused(
            f"{len(rest)} chips are held out for the gate, wanted {LEAST_CHIPS} at least and better "
            f"{ENOUGH_CHIPS}; name more with --held-out"
        )
    return _Chips(
        candidates=candidates,
        chosen=chosen,
        strata=int(strata_of(candidates, looks, rows).max()) + 1,
        held_out=held_out,
        held_out_rows=np.sort(rng.permutation(rest)[:MOST_HELD_OUT]),
    )


def _watched(chips: _Chips, inputs: InputHistogram, digests: list[str]) -> Iterator[NDArray[np.uint8]]:
    """Stream the chosen chips, and keep their histogram and checksums on the way."""
    for batch in chips.candidates.batches(chips.chosen):
        inputs.add(batch)
        digests += [sha256(chip.tobytes()).hexdigest() for chip in batch]
        yield batch


class _Trial:
    """Tries recipes on the held-out chips until one passes, in the order in which they cost speed."""

    def __init__(
        self,
        request: CalibrateRequest,
        bundle: Bundle,
        model: onnx.ModelProto,
        placement: Placement,
        activations: Activations,
        chips: _Chips,
        say: Callable[[str], None],
    ) -> None:
        self.request, self.bundle, self.model, self.placement = request, bundle, model, placement
        self.activations, self.chips, self.say = activations, chips, say
        self.attempts: list[Attempt] = []
        self.sweep: list[tuple[tuple[str, ...], float]] = []
        self.ranges = {method: find_ranges(activations.histograms, method) for method in METHODS}
        self.biases = corrected_biases(model, placement, activations)
        self.in_float = self._run(bundle.read(MODEL_MEMBER), chips.held_out_rows, int8=False)

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

    def outcome(self, attempt: Attempt) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """FP32 and INT8 probabilities (f, K) of the chips that flip, and their positions."""
        flips = attempt.verdict.flips
        in_int8 = self._run(attempt.model_onnx, self.chips.held_out_rows[np.sort(flips)], int8=True)
        return self.in_float[flips], in_int8[np.argsort(np.argsort(flips))], flips

    def _leave_in_float(self) -> None:
        base = self.best.recipe
        rows = np.random.default_rng(self.request.seed).permutation(len(self.in_float))[:SWEEP_CHIPS]
        self.sweep = sensitivity(
            self.model,
            self.placement,
            self.ranges[base.method],
            self.in_float[rows],
            lambda content: self._run(content, self.chips.held_out_rows[rows], int8=True),
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
        verdict = judge(
            self.in_float,
            self._run(quantised, rows, int8=True),
            None if held_out.targets is None else held_out.targets[rows],
            self.bundle.manifest.classes,
            limits=self.request.limits,
            blocks=None if held_out.blocks is None else held_out.blocks[rows],
            seed=self.request.seed,
        )
        self.attempts.append(Attempt(recipe=recipe, model_onnx=quantised, verdict=verdict))
        self.say(f"{'passed' if verdict.passed else 'failed'}: {recipe.describe()}: {verdict.describe()}")

    def _run(self, content: bytes, rows: NDArray[np.int64], *, int8: bool) -> NDArray[np.float32]:
        manifest = self.bundle.manifest
        return run_model(
            content,
            manifest.contract.chip_shape,
            len(manifest.classes),
            self.chips.held_out.batches(rows),
            precision="int8" if int8 else "fp32",
        )


def _facts(
    request: CalibrateRequest,
    bundle: Bundle,
    chips: _Chips,
    digests: list[str],
    inputs: InputHistogram,
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
    return {
        "format": CALIBRATION_FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "int8": "passed" if verdict.passed else "rejected",
        "reason": None if verdict.passed else "; ".join(verdict.reasons),
        "method": recipe.method,
        "bias_correction": recipe.bias_correction,
        "in_float": list(recipe.in_float),
        "fp32_sha256": bundle.members[MODEL_MEMBER].sha256,
        "gate": {**verdict.figures, "sources": sorted(set(held.scene[chips.held_out_rows].tolist()))},
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
                for name, label, digest in zip(candidates.name[chosen], names, digests, strict=True)
            ],
        },
        "input_histogram": inputs.to_json(manifest.contract.bands),
        "ranges": trial.ranges[recipe.method],
        "versions": {name: version(name) for name in LIBRARIES},
    }
