"""From chips and logits to an evaluation: where the chips lie, the shortcut probe, what was fitted where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer_export.chips.split import ground_blocks
from edge_infer_export.evaluation.figures import FEW_CHIPS, Evaluation, Finding, Judged, evaluate
from edge_infer_export.evaluation.intervals import wilson
from edge_infer_export.evaluation.scores import fit_temperature, softmax
from edge_infer_export.evaluation.shortcut import compare, features, fit_probe
from edge_infer_export.evaluation.thresholds import choose_thresholds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.chips.split import Split

WINDOWS_A_BLOCK = 4
"""Side of the blocks of ground that intervals are drawn over, in windows: neighbours share a block."""

PROBE_CHIPS = 4000
"""The probe needs no more training chips; it is a matter of seconds."""

_AT_ONCE = 64


def gather(chips: Chips, rows: NDArray[np.int64], logits: NDArray[np.floating[Any]]) -> Judged:
    """Put together what is known of the chips at `rows`, int64 (n,), and the model's logits, (n, K).

    A chip without coordinates is a block of its own.
    """
    blocks = np.arange(len(chips), dtype=np.int64)
    placed = np.isfinite(chips.longitude) & np.isfinite(chips.latitude)
    if placed.any():
        block_metres = WINDOWS_A_BLOCK * float(np.median(chips.ground_metres))
        blocks[placed] = len(chips) + ground_blocks(
            chips.longitude[placed], chips.latitude[placed], block_metres
        )
    _, dense = np.unique(blocks[rows], return_inverse=True)
    return Judged(
        rows=rows,
        targets=chips.targets[rows],
        logits=logits,
        blocks=dense.reshape(-1),
        events=chips.event[rows],
        areas=chips.place[rows],
    )


def describe(chips: Chips, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the shortcut features of the chips at `rows`, reading a few at a time: float64, (n, F)."""
    parts = [features(chips.read(rows[start : start + _AT_ONCE])) for start in range(0, len(rows), _AT_ONCE)]
    return np.concatenate([np.empty((0, 2 * len(chips.contract.bands) + 1)), *parts])


def evaluate_training(
    chips: Chips,
    split: Split,
    *,
    model: str,
    validation_logits: NDArray[np.floating[Any]],
    test_logits: NDArray[np.floating[Any]] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judge a freshly trained network: on the test side where there is one, else on the validation side.

    Temperature and thresholds are fitted on the validation side, the shortcut probe on the training side.

    Args:
        chips: all chips.
        split: how they were parted.
        model: its name.
        validation_logits: (n, K) for the chips at `split.validation`.
        test_logits: (m, K) for the chips at `split.test`; None or m = 0 where there is no test side.
        seed: of the bootstraps and of the chips that the probe is fitted on.

    Raises:
        Refused: a chip cannot be read, or the logits fit neither chips nor classes.

    """
    validation = gather(chips, split.validation, validation_logits)
    tested = test_logits is not None and len(split.test) > 0
    judged = gather(chips, split.test, test_logits) if tested and test_logits is not None else validation
    temperature = fit_temperature(validation.logits, validation.targets)
    thresholds = choose_thresholds(softmax(validation.logits, temperature), validation.targets, chips.classes)
    training = split.training
    if len(training) > PROBE_CHIPS:
        training = np.sort(np.random.default_rng(seed).permutation(training)[:PROBE_CHIPS])
    probe = shortcut = None
    if len(np.unique(chips.targets[training])) == len(chips.classes):
        probe = fit_probe(describe(chips, training), chips.targets[training], len(chips.classes))
        shortcut = compare(
            judged.targets,
            judged.logits.argmax(axis=1),
            probe.predict(describe(chips, judged.rows)),
            judged.blocks,
            seed=seed,
            classes=chips.classes,
        )
    return evaluate(
        judged,
        chips.classes,
        model=model,
        side="test" if tested else "validation",
        temperature=temperature,
        thresholds=thresholds,
        split=split.to_json(chips),
        shortcut=shortcut,
        probe=probe,
        notes=[*_notes(chips, split, judged), *_few_to_fit(chips, split)],
        seed=seed,
    )


def _notes(chips: Chips, split: Split, judged: Judged) -> list[Finding]:
    """Say what the chips themselves give reason to say."""
    notes = [Finding("caution", f"{warning[0].upper()}{warning[1:]}.") for warning in chips.warnings()]
    notes += unplaced(chips, judged.rows)
    here = {name for name in judged.events.tolist() if name}
    if split.kind != "random" and not (here and here.isdisjoint(chips.event[split.training].tolist())):
        whence = "of an event that was trained on" if here else "of no event that was named"
        notes.append(
            Finding(
                "note",
                f"Chips judged here are {whence}. A score on one event does not predict the next "
                "(https://arxiv.org/abs/2401.17271): hold a whole event out to see that.",
            )
        )
    return notes


def unplaced(chips: Chips, rows: NDArray[np.int64]) -> list[Finding]:
    """Say how many of the chips at `rows`, int64 (n,), have no place, if any."""
    placed = np.isfinite(chips.longitude[rows]) & np.isfinite(chips.latitude[rows])
    if placed.all():
        return []
    return [
        Finding(
            "caution",
            f"{int((~placed).sum()):,} of {len(rows):,} chips have no place on the ground: each counts as a "
            "block of its own, so the intervals may be far too narrow.",
        )
    ]


def _few_to_fit(chips: Chips, split: Split) -> list[Finding]:
    """Say where the validation side is too small for what is fitted on it."""
    name, least = min(chips.counts(split.validation).items(), key=lambda entry: entry[1])
    if least >= FEW_CHIPS:
        return []
    spare = wilson(least, least).low
    example = "" if spare is None else f": were all of them right, the true share might still be {spare:.0%}"
    return [
        Finding(
            "caution",
            f"Temperature and thresholds were fitted on {len(split.validation):,} validation chips, "
            f"{least:,} of them {name}{example}. Do not rely on what the thresholds promise.",
        )
    ]
