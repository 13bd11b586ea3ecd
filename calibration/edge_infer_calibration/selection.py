"""What is calibrated on, and what is held out for the gate: never the same chip, whatever it is called."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.drift import InputHistogram
from edge_infer.errors import Refused
from edge_infer_calibration.candidates import disk_errors, from_folders, from_imagery
from edge_infer_calibration.choice import (
    ENOUGH_CHIPS,
    LEAST_CHIPS,
    LOOKED_AT,
    choose,
    fingerprints,
    look,
    refuse_synthetic,
    strata_of,
)
from edge_infer_calibration.strata import draw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from edge_infer.bundle import Bundle
    from edge_infer_calibration.calibrate import CalibrateRequest
    from edge_infer_calibration.candidates import Candidates

MOST_HELD_OUT = 2000
"""More chips than that make the gate slower and its intervals hardly narrower."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """What was chosen of what."""

    candidates: Candidates
    chosen: NDArray[np.int64]
    sha256: list[str]
    """Of the pixels of the chosen chips."""
    strata: int
    inputs: InputHistogram
    """Of candidates that were drawn by chance: what imagery is like, not what was chosen of it."""
    held_out: Candidates
    held_out_rows: NDArray[np.int64]
    warnings: tuple[str, ...]


def select(request: CalibrateRequest, bundle: Bundle, stack: ExitStack) -> Selection:
    """Choose the chips of a request; what they need on disk is there until `stack` is closed.

    Raises:
        Refused: the chips cannot be used, or are too few.
        OutputError: the disk for temporary files is full.

    """
    candidates = _candidates(request, bundle, stack)
    rng = np.random.default_rng(request.seed)
    rows, by_chance = draw(candidates.strata(), LOOKED_AT * request.count, rng)
    inputs = InputHistogram.empty(bundle.manifest.contract.chip_shape)
    looks = look(_counted(candidates.batches(rows), by_chance & candidates.by_chance[rows], inputs))
    # Of copies the first one stays.
    originals = np.sort(np.unique(looks.sha256, return_index=True)[1])
    copies = len(rows) - len(originals)
    rows, looks = rows[originals], looks.take(originals)
    # Where one set serves both, the gate gets at least half of it.
    usable = len(candidates) - copies
    count = request.count if request.held_out else min(request.count, usable // 2)
    if min(count, usable) < LEAST_CHIPS:
        raise Refused(
            f"{usable} chips are too few to calibrate on and to hold out, wanted "
            f"{LEAST_CHIPS * (1 if request.held_out else 2)} at least and better {2 * ENOUGH_CHIPS}"
        )
    refuse_synthetic(looks)
    strata = strata_of(candidates, looks, rows)
    places = choose(strata, count, request.seed)
    chosen, digests = rows[places], looks.sha256[places].tolist()
    held_out = from_folders(request.held_out, bundle.manifest) if request.held_out else candidates
    held_out_rows, used = _hold_out(held_out, set(candidates.name[chosen].tolist()), set(digests), rng)
    if not request.held_out:
        used -= len(chosen)  # they are left out by intent
    return Selection(
        candidates=candidates,
        chosen=chosen,
        sha256=digests,
        strata=int(strata.max()) + 1,
        inputs=inputs,
        held_out=held_out,
        held_out_rows=held_out_rows,
        warnings=(
            *dict.fromkeys((*candidates.warnings, *held_out.warnings)),
            *_doubts(request, len(chosen), len(held_out_rows), copies, used),
        ),
    )


def _candidates(request: CalibrateRequest, bundle: Bundle, stack: ExitStack) -> Candidates:
    if request.chips:
        return from_folders(request.chips, bundle.manifest)
    assert request.footprints is not None
    with disk_errors("a temporary folder"):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-infer-"))
    return from_imagery(
        request.imagery,
        request.footprints,
        bundle.manifest,
        Path(folder),
        most=LOOKED_AT * request.count,
        seed=request.seed,
        layer=request.layer,
        where=request.where,
        label_field=request.label_field,
        classes=request.classes,
        ignore_labels=request.ignore_labels,
    )


def _counted(
    batches: Iterable[NDArray[np.uint8]], counted: NDArray[np.bool_], inputs: InputHistogram
) -> Iterator[NDArray[np.uint8]]:
    """Pass chips on, and count the grey levels of those that `counted`, bool (n,), names."""
    done = 0
    for batch in batches:
        inputs.add(batch, counted[done : done + len(batch)])
        done += len(batch)
        yield batch


def _hold_out(
    held_out: Candidates, names: set[str], digests: set[str], rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Draw the chips for the gate: none of those calibrated on, by name or by pixels, and none twice.

    Returns:
        int64, (n,): their rows, ascending; and how many are left out as calibration chips or copies.

    """
    rest = np.flatnonzero([name not in names for name in held_out.name])
    classes = np.zeros(len(rest), np.int64) if held_out.targets is None else held_out.targets[rest]
    drawn = rest[draw(classes, MOST_HELD_OUT, rng)[0]]
    seen, kept = set(digests), []
    found = (digest for batch in held_out.batches(drawn) for digest in fingerprints(batch))
    for row, digest in zip(drawn.tolist(), found, strict=True):
        if digest not in seen:
            kept.append(row)
        seen.add(digest)
    if len(kept) < LEAST_CHIPS:
        raise Refused(
            f"{len(kept)} chips are held out for the gate, wanted {LEAST_CHIPS} at least and better "
            f"{ENOUGH_CHIPS}; name more with --held-out (chips that equal calibration chips do not count)"
        )
    return np.array(kept, np.int64), len(held_out) - len(rest) + len(drawn) - len(kept)


def _doubts(request: CalibrateRequest, chosen: int, held_out: int, copies: int, used: int) -> Iterator[str]:
    """Say what is to be known before the figures are believed."""
    if chosen < ENOUGH_CHIPS:
        yield f"{chosen} chips are few to calibrate on, {ENOUGH_CHIPS} or more give surer ranges"
    if copies:
        yield f"{copies:,} candidates are left out because their pixels equal those of others"
    if not request.held_out:
        yield (
            "the gate's chips are candidates that were not chosen; a model is surer of chips it was trained "
            "on, and the figures may flatter: name others with --held-out"
        )
    if used:
        yield (
            f"{used:,} held-out chips are left out because they are calibration chips, or their pixels equal "
            "those of one or of each other"
        )
    if held_out < ENOUGH_CHIPS:
        yield (
            f"{held_out} chips are few for the gate: one that flips is {1 / held_out:.1%}, and a loss in a "
            "rare class may go unseen"
        )
    loosened = request.limits.warning()
    if loosened:
        yield loosened
