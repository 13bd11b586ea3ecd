"""The folder that a training leaves behind: what `edge-infer export` reads, and pages for people.

model.pt           state dict of the network, tensors only
train.json         name, classes, contract, normalisation and how it was trained
golden.npy         uint8 (n, S, S, C), validation chips of every class
sides.npy          which chips lay on which side (see `sides`)
lr-finder.png      loss by learning rate, where no rate was given
history.png        losses and accuracy by epoch
report.html        the evaluation (see `report`), with evaluation.json, predictions.csv and pictures/

While a training is under way its files, and its checkpoint, lie in a folder of the same name and `.partial`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_infer.durable import make_durable
from edge_infer.errors import BundleError, OutputError, Refused
from edge_infer.interrupt import StopSignals
from edge_infer.manifest import Manifest
from edge_infer_export.chips.dataset import read_chips, refuse_folder
from edge_infer_export.evaluation.album import Background
from edge_infer_export.evaluation.gradcam import Explainer
from edge_infer_export.evaluation.judge import evaluate_training
from edge_infer_export.evaluation.plots import draw_history
from edge_infer_export.evaluation.report import write_report
from edge_infer_export.evaluation.sides import SIDES_FILE, Sides
from edge_infer_export.network.bundle import GOLDEN_CHIPS, RUN_FORMAT
from edge_infer_export.network.weights import save_tensors
from edge_infer_export.training.augment import augment
from edge_infer_export.training.lrfinder import draw_curve
from edge_infer_export.training.train import Diverged, find_rate, require_classes, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.training.lrfinder import RateCurve
    from edge_infer_export.training.options import TrainOptions
    from edge_infer_export.training.train import Trained

    Say = Callable[[str], None]

MARKER = "train.json"
CHECKPOINT = "checkpoint.pt"
CURVE = "lr-finder.png"

PALETTE = ("#d7191c", "#2c7bb6", "#fdae61", "#7b3294", "#1a9641", "#ffd92f", "#8c510a", "#636363")
"""Colours of the classes in their order; they differ for colour-blind eyes too. Beyond eight they repeat."""


def train_to_folder(
    chips_folders: Sequence[str | Path],
    out: str | Path,
    options: TrainOptions,
    *,
    name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = lambda _: None,
    bar: bool = False,
) -> Trained:
    """Train on folders of chips and write the run folder; it takes its name only when it is complete.

    A signal stops the training at the next step. Its state stays on disk for `resume`, as it does after a
    kill.

    Args:
        chips_folders: what `edge-infer chips` made.
        out: the run folder.
        options: how to train.
        name: name of the model; the run folder's if None.
        resume: go on with a training that was stopped; begin, where there is none.
        overwrite: replace an earlier run, or one that was stopped.
        say: is given a line of progress now and then.
        bar: draw a bar on standard error as well.

    Raises:
        Refused: the chips cannot be used; see `read_chips` and `train`.
        OutputError: the run folder exists or cannot be written.
        Stopped: a signal came.

    """
    out = Path(out).absolute()
    if resume and overwrite:
        raise Refused("--resume keeps the run folder and --overwrite replaces it; give one of them")
    if resume and (out / MARKER).is_file():
        raise OutputError(f"{out} is complete; there is nothing to resume")
    refuse_folder(out, marker=MARKER, keys=("architecture", "contract", "classes"), overwrite=overwrite)
    draft = out.with_name(out.name + ".partial")
    checkpoint = draft / CHECKPOINT
    if checkpoint.exists() and not (resume or overwrite):
        raise OutputError(
            f"{draft} holds a training that was stopped; --resume goes on with it, --overwrite begins again"
        )
    with StopSignals() as signals, signals.told(lambda: None):
        chips = read_chips(chips_folders)
        require_classes(chips)
        name = name or out.name
        _require_bundle_names(name, chips)
        try:
            draft.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror}; name another folder") from error

        def begin() -> None:
            # Not before: a training that was stopped must not be lost to one that cannot be.
            with _writing(draft):
                shutil.rmtree(draft)
                draft.mkdir()

        def draw(curve: RateCurve, rate: float) -> None:
            with _writing(draft):
                draw_curve(draft / CURVE, curve, rate)

        try:
            trained = train(
                chips,
                options,
                checkpoint=checkpoint,
                resume=resume,
                begin=begin,
                draw=draw,
                stopping=lambda: signals.received is not None,
                say=say,
                bar=bar,
            )
        except Diverged:
            checkpoint.unlink(missing_ok=True)
            raise
        finally:
            if not checkpoint.exists():
                shutil.rmtree(draft, ignore_errors=True)
        with _writing(draft):
            _write(draft, trained, options, name, [str(f) for f in chips_folders])
            shutil.rmtree(out, ignore_errors=True)
            draft.rename(out)
            (out / CHECKPOINT).unlink()
    return trained


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}); free some space and give the command "
            "again with --resume"
        ) from error


def find_rate_to_file(
    chips_folders: Sequence[str | Path], picture: Path, options: TrainOptions, *, say: Say = lambda _: None
) -> RateCurve:
    """Run the LR finder alone and draw its curve.

    Raises:
        Refused: the chips cannot be used; see `read_chips` and `train`.
        OutputError: the picture cannot be written.

    """
    curve = find_rate(read_chips(chips_folders), options, say=say)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_curve(picture, curve, curve.valley)
    except OSError as error:
        raise OutputError(f"{picture} cannot be written: {error.strerror}; name another folder") from error
    return curve


def _require_bundle_names(name: str, chips: Chips) -> None:
    """Refuse, before any training, names that no bundle could carry."""
    bands = len(chips.contract.bands)
    try:
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
    except BundleError as error:
        hint = "; --name gives it another than that of --out" if str(error).startswith("model name") else ""
        raise BundleError(f"{error}{hint}") from error


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


def _write(folder: Path, trained: Trained, options: TrainOptions, name: str, sources: list[str]) -> None:
    save_tensors(trained.network.state_dict(), folder / "model.pt")
    chips, split = trained.chips, trained.split
    np.save(folder / "golden.npy", chips.read(golden_rows(chips, split.validation)))
    (folder / SIDES_FILE).write_bytes(Sides.of_split(chips, split).to_bytes())
    draw_history(folder / "history.png", trained.history, trained.best_epoch)
    _report(folder, trained, options, name)
    values = _facts(trained, options, name, sources)
    (folder / MARKER).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for written in ("model.pt", MARKER):
        make_durable(folder / written)


def _facts(trained: Trained, options: TrainOptions, name: str, sources: list[str]) -> dict[str, Any]:
    chips = trained.chips
    return {
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
        "facts": {
            "chips": sources,
            "options": options.to_json(),
            "learning_rate": trained.learning_rate,
            "started_from": trained.started_from,
            "split": trained.split.to_json(chips),
            "history": [asdict(epoch) for epoch in trained.history],
            "best_epoch": trained.best_epoch,
            "seconds": round(trained.seconds, 1),
            "chips_per_second": round(trained.chips_per_second, 1),
            "wait_share": round(trained.wait_share, 4),
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": trained.device,
                "precision": trained.precision,
            },
            "versions": {package: version(package) for package in ("edge-infer", "torch", "numpy")},
        },
    }


def _report(folder: Path, trained: Trained, options: TrainOptions, name: str) -> None:
    chips = trained.chips
    evaluation = evaluate_training(
        chips,
        trained.split,
        model=name,
        validation_logits=trained.validation_logits,
        test_logits=trained.test_logits,
        seed=options.seed,
    )
    rng = np.random.default_rng(options.seed)

    def views(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([augment(chip, rng, options.augmentation) for chip in pixels])

    pictures = [
        (folder / "history.png", f"Losses and accuracy by epoch; epoch {trained.best_epoch} was kept.")
    ]
    if (folder / CURVE).exists():
        pictures.insert(0, (folder / CURVE, "Loss by learning rate, as the LR finder saw it."))
    write_report(
        folder,
        evaluation,
        chips,
        colors=class_colors(len(chips.classes)),
        background=Background(
            facts={
                "network": f"ResNet, blocks {' '.join(map(str, options.blocks))}, width {options.width}",
                "started from": trained.started_from,
                "peak learning rate": f"{trained.learning_rate:.1e}",
                "epochs": f"{len(trained.history)} of {options.epochs}, batches of {options.batch}",
                "balance": options.balance,
                "device": f"{trained.device}, {trained.precision}",
                "pace": f"{trained.chips_per_second:,.0f} chips/s, {trained.wait_share:.1%} of it waiting",
                "seed": str(options.seed),
            },
            pictures=pictures,
            training_rows=trained.split.training,
            augment=views,
            explain=Explainer(trained.network, mean=trained.mean, std=trained.std).heat,
        ),
        seed=options.seed,
    )
