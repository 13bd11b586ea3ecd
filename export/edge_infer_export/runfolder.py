"""The folder that a training leaves behind: what `edge-infer export` reads, and pictures for people.

model.pt        state dict of the network, tensors only
train.json      name, classes, contract, normalisation, metrics and how it was trained
golden.npy      uint8 (n, S, S, C), validation chips of every class
history.png     losses and accuracy by epoch
confusion.png   confusion matrix on the validation side
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_infer.errors import OutputError
from edge_infer.manifest import Manifest
from edge_infer_export.dataset import read_chips, refuse_folder
from edge_infer_export.export import GOLDEN_CHIPS, RUN_FORMAT
from edge_infer_export.plots import draw_confusion, draw_history
from edge_infer_export.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.dataset import Chips
    from edge_infer_export.train import Trained, TrainOptions


PALETTE = ("#d7191c", "#2c7bb6", "#fdae61", "#7b3294", "#1a9641", "#ffd92f", "#8c510a", "#636363")
"""Colours of the classes in their order; they differ for colour-blind eyes too. Beyond eight they repeat."""


def train_to_folder(
    chips_folders: Sequence[str | Path],
    out: str | Path,
    options: TrainOptions,
    *,
    name: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train on folders of chips and write the run folder; it takes its name only when it is complete.

    Args:
        chips_folders: what `edge-infer chips` made.
        out: the run folder.
        options: how to train.
        name: name of the model; the run folder's if None.
        overwrite: replace an earlier run.
        say: is given a line of progress now and then.

    Raises:
        Refused: the chips cannot be used; see `read_chips` and `train`.
        OutputError: the run folder exists or cannot be written.

    """
    out = Path(out).absolute()
    refuse_folder(out, marker="train.json", overwrite=overwrite)
    chips = read_chips(chips_folders)
    name = name or out.name
    _require_bundle_names(name, chips)
    draft = out.with_name(out.name + ".partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; name another folder") from error
    try:
        trained = train(chips, options, say=say)
        _write(draft, chips, trained, options, name, [str(f) for f in chips_folders])
        shutil.rmtree(out, ignore_errors=True)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return trained


def _require_bundle_names(name: str, chips: Chips) -> None:
    """Refuse, before any training, names that no bundle could carry."""
    bands = len(chips.contract.bands)
    Manifest(
        name=name,
        created="2000-01-01T00:00:00Z",
        architecture="ResNet34",
        parameters=1,
        classes=chips.classes,
        colors=class_colors(len(chips.classes)),
        contract=chips.contract,
        mean=(0.0,) * bands,
        std=(1.0,) * bands,
        temperature=1.0,
    )


def class_colors(count: int) -> tuple[str, ...]:
    """Map colours of so many classes, `#rrggbb`."""
    return tuple(PALETTE[k % len(PALETTE)] for k in range(count))


def golden_rows(chips: Chips, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose up to `GOLDEN_CHIPS` of the rows, the classes in turn: int64, (n,)."""
    by_class = [rows[chips.targets[rows] == k] for k in range(len(chips.classes))]
    turns = [
        (turn, k, row) for k, members in enumerate(by_class) for turn, row in enumerate(members.tolist())
    ]
    return np.array([row for _, _, row in sorted(turns)[:GOLDEN_CHIPS]], np.int64)


def _write(
    folder: Path, chips: Chips, trained: Trained, options: TrainOptions, name: str, sources: list[str]
) -> None:
    torch.save(trained.network.state_dict(), folder / "model.pt")
    np.save(folder / "golden.npy", chips.pixels[golden_rows(chips, trained.split.validation)])
    values: dict[str, Any] = {
        "format": RUN_FORMAT,
        "name": name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "architecture": {"blocks": list(options.blocks), "width": options.width},
        "contract": chips.contract.to_json(),
        "classes": list(chips.classes),
        "colors": list(class_colors(len(chips.classes))),
        "mean": list(trained.mean),
        "std": list(trained.std),
        "temperature": trained.temperature,
        "metrics": trained.metrics,
        "facts": {
            "chips": sources,
            "options": options.to_json(),
            "split": {
                "by": "place",
                "block_metres": trained.split.block_metres,
                "training": chips.counts(trained.split.training),
                "validation": chips.counts(trained.split.validation),
                "dropped": len(trained.split.dropped),
            },
            "history": [asdict(epoch) for epoch in trained.history],
            "best_epoch": trained.best_epoch,
            "seconds": round(trained.seconds, 1),
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "versions": {package: version(package) for package in ("edge-infer", "torch", "numpy")},
        },
    }
    (folder / "train.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw_history(folder / "history.png", trained.history, trained.best_epoch)
    draw_confusion(
        folder / "confusion.png",
        np.array(trained.metrics["confusion"]),
        chips.classes,
        title=f"{name}: validation, accuracy {trained.metrics['accuracy']:.1%}",
    )
