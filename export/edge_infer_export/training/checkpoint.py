"""The state of a training on disk, so that a kill or a power cut costs minutes, not hours.

A checkpoint is replaced as a whole: the new one is written beside it, forced to the disk, and renamed. There
is no state of a random generator in it, because there is none: orders and augmentations follow from seed,
epoch and position.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from edge_infer.durable import make_durable
from edge_infer.errors import OutputError, Refused
from edge_infer_export.network.weights import load_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT_FORMAT = 1
"""Value of `format` in a checkpoint; any other is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a training stands. Tensors and plain values only."""

    options: dict[str, Any]
    """`TrainOptions.to_json`."""
    chips: str
    """Fingerprint of the chips and of how they were parted."""
    learning_rate: float
    """Peak of the schedule."""
    epoch: int
    """The epoch that is under way, from 1."""
    step: int
    """Batches of it that have been learned from."""
    loss_sum: float
    """Sum of their losses."""
    history: list[dict[str, Any]]
    """The epochs behind it."""
    best_epoch: int
    """Of those, the one to keep so far; 0: none."""
    best: dict[str, Any] | None
    """Its state dict."""
    learner: dict[str, Any]
    """`Learner.state`."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint on disk; after a crash at any moment either the old or the new one is there.

    Raises:
        OutputError: the disk is full or refuses.

    """
    values = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    draft = path.with_name(path.name + ".new")
    try:
        save_tensors({"format": CHECKPOINT_FORMAT, **values}, draft)
        make_durable(draft)
        draft.replace(path)
        make_durable(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); free some space, --resume goes on"
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        Refused: it is missing, damaged or of another version.

    """
    values = load_tensors(path, "a checkpoint of `edge-infer train`")
    names = {field.name for field in fields(Checkpoint)}
    if (
        not isinstance(values, dict)
        or values.get("format") != CHECKPOINT_FORMAT
        or set(values) - {"format"} != names
    ):
        raise Refused(f"{path} is no checkpoint of this version; begin again with --overwrite")
    return Checkpoint(**{name: values[name] for name in names})
