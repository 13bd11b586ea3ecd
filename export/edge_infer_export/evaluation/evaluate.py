"""Judges a bundle through the engine that will run it: what is scored is what runs, not a checkpoint.

Temperature, thresholds and shortcut probe are the bundle's own: nothing is fitted to the chips that it is
judged on.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.bundle import EVALUATION_MEMBER, SIDES_MEMBER, open_bundle
from edge_infer.engine.choose import open_engine
from edge_infer.errors import ContractError, OutputError, Refused
from edge_infer_export.chips.dataset import read_chips, refuse_folder
from edge_infer_export.chips.split import named_chips
from edge_infer_export.evaluation.album import Background
from edge_infer_export.evaluation.figures import (
    EVALUATION_FILE,
    EVALUATION_FORMAT,
    Evaluation,
    Finding,
    evaluate,
)
from edge_infer_export.evaluation.judge import gather, unplaced
from edge_infer_export.evaluation.look import look, name_files
from edge_infer_export.evaluation.report import write_report
from edge_infer_export.evaluation.shortcut import Probe, compare
from edge_infer_export.evaluation.sides import SIDES, Sides
from edge_infer_export.evaluation.thresholds import Thresholds, read_thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer.bundle import Bundle
    from edge_infer.engine import EngineChoice, PrecisionChoice
    from edge_infer.manifest import ChipContract
    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.evaluation.look import Seen
    from edge_infer_export.evaluation.sides import Side

    Say = Callable[[str], None]

_LEAST_PROBABILITY = 1e-30
"""Below it a probability counts as this, so that it has a logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What to judge, on what, by what."""

    bundle: Path
    chips: tuple[Path, ...]
    out: Path | None = None
    """Folder for the report; None: figures only."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class of the model by class of the chips, where their names differ."""
    ignore: tuple[str, ...] = ()
    """Classes of the chips to leave out."""
    events: tuple[str, ...] = ()
    """Judge on these events (and areas) only; all chips where neither is named."""
    areas: tuple[str, ...] = ()
    """Places, boxes or files of polygons, as `train --test-area` takes them."""
    side: Side | None = None
    """Judge on the chips only that lay on this side of the model's training; None: on all."""
    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    batch: int | None = None
    overwrite: bool = False


def evaluate_bundle(request: EvaluateRequest, *, say: Say = lambda _: None) -> Evaluation:
    """Judge a bundle on labelled chips.

    Temperature, thresholds and the shortcut probe are the bundle's own: nothing is fitted here.

    Args:
        request: what to do.
        say: is given a line of progress now and then.

    Raises:
        BundleError: the bundle is broken.
        ContractError: the chips are cut in another way than the model wants.
        Refused: the chips cannot be used, a class is unknown to the model, or no chip can be read.
        EngineError: the engine or precision is not to be had.
        OutputError: the folder cannot be written.

    """
    if request.out is not None:
        if (request.out / "train.json").exists():
            raise OutputError(
                f"{request.out} holds a training run, which is not replaced; name another folder"
            )
        refuse_folder(
            request.out.absolute(),
            marker=EVALUATION_FILE,
            keys=("model", "runs_on", "calibration"),
            overwrite=request.overwrite,
        )
    bundle = open_bundle(request.bundle)
    chips = read_chips(request.chips)
    _require_contract(bundle, chips.contract)
    sides = _sides(bundle)
    chips = _asked_for(bundle, chips, sides, request)
    chips = _in_classes_of(bundle, chips, request)
    with closing(
        open_engine(bundle, engine=request.engine, precision=request.precision, batch=request.batch)
    ) as engine:
        seen = look(engine, chips, say)
        runs_on = {
            name: getattr(engine.facts, name) for name in ("name", "version", "precision", "device", "batch")
        }
    on_side = None if sides is None else sides.find(chips)[seen.rows]
    evaluation = _judge(bundle, chips, seen, on_side, runs_on, request)
    if request.out is not None:
        _write(request.out.absolute(), evaluation, chips, bundle)
    return evaluation


def _require_contract(bundle: Bundle, found: ChipContract) -> None:
    """Refuse chips that are cut in another way; how coarse their images were is looked at chip by chip."""
    wanted = bundle.manifest.contract
    coarsest = wanted.coarsest_gsd_metres
    if replace(found, coarsest_gsd_metres=coarsest) != wanted:
        ours, theirs = wanted.to_json(), found.to_json()
        differences = ", ".join(
            f"{name} {theirs[name]}, wanted {ours[name]}"
            for name in ours
            if theirs[name] != ours[name] and name != "coarsest_gsd_metres"
        )
        raise ContractError(
            f"the chips do not fit {bundle.path.name}: {differences}; cut them as the model wants them"
        )


def _sides(bundle: Bundle) -> Sides | None:
    """Read which chips lay on which side of the training, where the bundle tells."""
    if SIDES_MEMBER not in bundle.members:
        return None
    return Sides.from_bytes(bundle.read(SIDES_MEMBER), bundle.path)


def _asked_for(bundle: Bundle, chips: Chips, sides: Sides | None, request: EvaluateRequest) -> Chips:
    """Take the chips of the events, areas and side that were asked for."""
    if request.events or request.areas:
        lost = ~(np.isfinite(chips.longitude) & np.isfinite(chips.latitude))
        unnamed = [area for area in request.areas if not np.any(chips.place == area)]
        if unnamed and lost.any():
            raise Refused(
                f"{int(lost.sum()):,} of {len(chips):,} chips have no place on the ground, so nobody knows "
                f"which lie in {unnamed[0]!r}; name events, or areas by the names that the chips have"
            )
        chips = chips.take(np.flatnonzero(named_chips(chips, "asked for", request.events, request.areas)))
    if request.side is None:
        return chips
    if sides is None:
        raise Refused(f"{bundle.path} does not tell which chips it was trained on; train and export again")
    rows = np.flatnonzero(sides.find(chips) == SIDES.index(request.side))
    if len(rows) == 0:
        raise Refused(
            f"none of {len(chips):,} chips lay on the {request.side} side of the training of "
            f"{bundle.path.name}; hand in the chips it was trained with, or leave --side out"
        )
    return chips.take(rows)


def _in_classes_of(bundle: Bundle, chips: Chips, request: EvaluateRequest) -> Chips:
    """Give the chips the model's classes, in its order; leave out what is to be ignored or is too coarse."""
    wanted = bundle.manifest.classes
    unheard = [name for name in (*request.classes, *request.ignore) if name not in chips.classes]
    if unheard:
        raise Refused(
            f"no chip has the class {', '.join(unheard)}; the chips have {', '.join(chips.classes)}"
        )
    names = [None if name in request.ignore else request.classes.get(name, name) for name in chips.classes]
    counts = chips.counts()
    unknown = [
        f"{name} ({counts[name]:,})"
        for name, mapped in zip(chips.classes, names, strict=True)
        if mapped is not None and mapped not in wanted and (counts[name] or name in request.classes)
    ]
    if unknown:
        raise Refused(
            f"the model does not know the class {', '.join(unknown)}; it knows {', '.join(wanted)}: say "
            "--classes FOUND=WANTED, or leave the class out by --ignore-label FOUND"
        )
    index = np.array([wanted.index(name) if name in wanted else -1 for name in names], np.int64)
    targets = index[chips.targets]
    coarse = chips.gsd_metres > bundle.manifest.contract.coarsest_gsd_metres
    kept = np.flatnonzero((targets >= 0) & ~coarse)
    if len(kept) == 0:
        raise Refused(
            f"no chip is left to judge {bundle.path.name} on: {len(chips):,} chips, "
            f"{int((targets < 0).sum()):,} of ignored classes, {int(coarse.sum()):,} of coarser pixels than "
            f"{bundle.manifest.contract.coarsest_gsd_metres:g} m"
        )
    left_out = tuple(
        (str(file), f"is of coarser pixels than {bundle.manifest.contract.coarsest_gsd_metres:g} m")
        for file in chips.file[coarse & (targets >= 0)]
    )
    return replace(
        chips.take(kept),
        classes=wanted,
        targets=targets[kept],
        unreadable=(*chips.unreadable, *left_out),
    )


def _judge(
    bundle: Bundle,
    chips: Chips,
    seen: Seen,
    on_side: NDArray[np.int64] | None,
    runs_on: Mapping[str, Any],
    request: EvaluateRequest,
) -> Evaluation:
    manifest = bundle.manifest
    stored = bundle.read_json(EVALUATION_MEMBER) if EVALUATION_MEMBER in bundle.members else {}
    # Times the temperature: so they are what the network said before it, up to a constant.
    logits = manifest.temperature * np.log(
        np.maximum(seen.probabilities.astype(np.float64), _LEAST_PROBABILITY)
    )
    judged = gather(chips, seen.rows, logits)
    thresholds, probe = _brought(bundle, stored, seen.features.shape[1])
    shortcut = None
    if probe is not None:
        shortcut = compare(
            judged.targets,
            seen.probabilities.argmax(axis=1),
            probe.predict(seen.features),
            judged.blocks,
            manifest.classes,
            seed=0,
        )
    return evaluate(
        judged,
        manifest.classes,
        model=manifest.name,
        side="test" if on_side is not None and (on_side == SIDES.index("test")).all() else "chips",
        temperature=manifest.temperature,
        thresholds=thresholds,
        split={},
        shortcut=shortcut,
        probe=probe,
        runs_on={
            "engine": f"{runs_on['name']} {runs_on['version']}",
            "precision": runs_on["precision"],
            "device": runs_on["device"],
            "batch": runs_on["batch"],
            "bundle_sha256": bundle.sha256,
            "chips": [str(folder) for folder in request.chips],
        },
        notes=[
            *_left_out((*chips.unreadable, *seen.unreadable), len(chips) + len(chips.unreadable)),
            *_trained_on(on_side),
            *unplaced(chips, seen.rows),
            *_earlier(stored),
        ],
    )


def _brought(
    bundle: Bundle, stored: Mapping[str, Any], feature_count: int
) -> tuple[dict[str, Thresholds], Probe | None]:
    """Take thresholds and shortcut probe out of the bundle's evaluation; foreign ones may have neither."""
    if stored.get("format") != EVALUATION_FORMAT:
        return {}, None
    classes = bundle.manifest.classes
    thresholds = read_thresholds(stored, classes)
    shortcut = stored.get("shortcut")
    if not isinstance(shortcut, dict) or shortcut.get("fitted") is None:
        return thresholds, None
    probe = Probe.from_json(shortcut["fitted"])
    if probe.weights.shape != (len(classes), feature_count):
        raise Refused(
            f"{bundle.path}: its shortcut probe has the shape {probe.weights.shape}, wanted "
            f"({len(classes)}, {feature_count}); export the model again"
        )
    return thresholds, probe


def _left_out(left_out: tuple[tuple[str, str], ...], total: int) -> list[Finding]:
    if not left_out:
        return []
    words = f"{len(left_out):,} of {total:,} chips were left out: {name_files(left_out)}."
    return [Finding("caution", words)]


def _trained_on(on_side: NDArray[np.int64] | None) -> list[Finding]:
    """Say how many of the chips had a part in the training."""
    if on_side is None:
        words = (
            "The bundle does not tell its chips: nothing is known of whether the model was trained on them."
        )
        return [Finding("caution", words)]
    total = len(on_side)
    trained, chosen, tested = (int((on_side == side).sum()) for side in range(len(SIDES)))
    found = []
    if trained:
        found.append(
            Finding(
                "alarm",
                f"The model was trained at the places of {trained:,} of these {total:,} chips: the figures "
                "flatter. Judge on --side test, or on events or areas that were held out.",
            )
        )
    if chosen:
        words = f"{chosen:,} of these {total:,} chips chose the epoch, the temperature and the thresholds."
        found.append(Finding("caution", words))
    if not (trained or chosen) and tested < total:
        found.append(Finding("note", "At none of these places was the model trained."))
    return found


def _earlier(stored: Mapping[str, Any]) -> list[Finding]:
    """Say what the model reached when it was trained, where the bundle tells."""
    try:
        accuracy, side = float(stored["accuracy"]["value"]), str(stored["side"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return []
    return [Finding("note", f"After its training the model reached {accuracy:.1%} on its own {side} side.")]


def _write(out: Path, evaluation: Evaluation, chips: Chips, bundle: Bundle) -> None:
    """Write the report; the folder takes its name only when it is complete."""
    draft = out.with_name(out.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    manifest = bundle.manifest
    facts = {
        "bundle": f"{bundle.path.name}, sha256 {bundle.sha256}",
        "network": f"{manifest.architecture}, {manifest.parameters:,} parameters, trained {manifest.created}",
        "engine": f"{evaluation.runs_on['engine']}, {evaluation.runs_on['precision']}",
        "chips": ", ".join(evaluation.runs_on["chips"]),
    }
    try:
        draft.mkdir(parents=True)
        write_report(draft, evaluation, chips, colors=manifest.colors, background=Background(facts=facts))
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; name another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
