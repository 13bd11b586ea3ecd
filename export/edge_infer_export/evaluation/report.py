"""Turns an evaluation into files for people: one page that needs nothing else, pictures, and a table.

report.html        everything in one file, pictures inlined; opens without a network
evaluation.json    the figures, as the bundle will hold them
predictions.csv    one row a chip: truth, prediction, confidence, probabilities, where it lies
pictures/*.png     what the page shows
"""

from __future__ import annotations

import base64
import csv
import io
import json
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edge_infer_export.evaluation import plots
from edge_infer_export.evaluation.album import Album, Background
from edge_infer_export.evaluation.figures import EVALUATION_FILE
from edge_infer_export.evaluation.judge import WINDOWS_A_BLOCK
from edge_infer_export.evaluation.scores import reliability
from edge_infer_export.evaluation.sheet import contact_sheet
from edge_infer_export.evaluation.thresholds import TARGET

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.evaluation.figures import Evaluation
    from edge_infer_export.evaluation.intervals import Estimate

REPORT_FILE = "report.html"
PREDICTIONS_FILE = "predictions.csv"
PICTURES = "pictures"

_NONE = "\N{EN DASH}"
_JUDGED = ("truth", "predicted", "confidence")
GROUPS = 20
"""Events or areas on the page at most; evaluation.json has more."""


def write_report(
    folder: Path,
    evaluation: Evaluation,
    chips: Chips,
    *,
    colors: Sequence[str],
    background: Background | None = None,
    seed: int = 0,
) -> Path:
    """Write the report, the evaluation, the predictions and the pictures into a folder that exists.

    Args:
        folder: where to write; files of the same names are replaced.
        evaluation: what to report.
        chips: the chips that `evaluation.judged.rows` counts in.
        colors: of the K classes, `#rrggbb`.
        background: what else to tell.
        seed: of the choice of chips for the sheets.

    Returns:
        The page.

    """
    background = background or Background()
    rng = np.random.default_rng(seed)
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    figures = evaluation.to_json()
    _write_json(folder / EVALUATION_FILE, figures)
    _write_predictions(folder / PREDICTIONS_FILE, evaluation, chips)
    _draw_plots(pictures, evaluation, colors)
    album = Album(evaluation, chips, colors, rng)
    sheets = {
        "mistakes": album.mistakes(),
        "results": album.results(),
        "gradcam": album.explained(background),
        "training_chips": album.training(background),
    }
    for name, (tiles, columns) in sheets.items():
        if tiles:
            contact_sheet(tiles, columns=columns).save(pictures / f"{name}.png")
    page = folder / REPORT_FILE
    page.write_text(_page(evaluation, figures, pictures, sheets.keys(), colors, background), encoding="utf-8")
    return page


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_predictions(path: Path, evaluation: Evaluation, chips: Chips) -> None:
    judged, predictions = evaluation.judged, evaluation.predictions
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        probabilities = (f"p_{name}" for name in evaluation.classes)
        writer.writerow(
            ("file", "source_fid", "event", "place", "longitude", "latitude", *_JUDGED, *probabilities)
        )
        for place, row in enumerate(judged.rows):
            row_probabilities = evaluation.probabilities[place]
            writer.writerow(
                (
                    *(chips.file[row], chips.source_fid[row], chips.event[row], chips.place[row]),
                    *(_degrees(chips.longitude[row]), _degrees(chips.latitude[row])),
                    evaluation.classes[judged.targets[place]],
                    evaluation.classes[predictions[place]],
                    *(f"{value:.6f}" for value in (row_probabilities.max(), *row_probabilities)),
                )
            )


def _degrees(value: float) -> str:
    return f"{value:.7f}" if np.isfinite(value) else ""


def _draw_plots(folder: Path, evaluation: Evaluation, colors: Sequence[str]) -> None:
    targets = evaluation.judged.targets
    accuracy = evaluation.overall.accuracy.value
    plots.draw_confusion(
        folder / "confusion.png",
        evaluation.confusion,
        evaluation.classes,
        title=f"{evaluation.model}: {len(targets):,} chips, accuracy {accuracy:.1%}",
    )
    plots.draw_curves(folder / "curves.png", evaluation, colors)
    plots.draw_reliability(
        folder / "reliability.png",
        reliability(evaluation.uncalibrated, targets),
        reliability(evaluation.probabilities, targets),
        evaluation.temperature,
    )
    for name, groups in (("event", evaluation.by_event), ("area", evaluation.by_area)):
        if groups:
            shown = dict(list(groups.items())[:GROUPS])
            plots.draw_groups(folder / f"by_{name}.png", shown, evaluation.overall, title=name)


def _page(
    evaluation: Evaluation,
    figures: Mapping[str, Any],
    pictures: Path,
    sheets: Collection[str],
    colors: Sequence[str],
    background: Background,
) -> str:
    """Fill in the page's template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edge_infer_export.evaluation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "range": _range, "number": _number}
    inlined = {path.stem: _inline(path, as_jpeg=path.stem in sheets) for path in pictures.glob("*.png")}
    return environment.get_template("report.html").render(
        evaluation=evaluation,
        figures=figures,
        colors=dict(zip(evaluation.classes, colors, strict=False)),
        pictures=inlined,
        further=[(_inline(path), caption) for path, caption in background.pictures],
        background=background,
        mistakes=int((evaluation.predictions != evaluation.judged.targets).sum()),
        shown_groups=GROUPS,
        target=TARGET,
        windows_a_block=WINDOWS_A_BLOCK,
        written=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        version=version("edge-infer-export"),
    )


def _inline(path: Path, *, as_jpeg: bool = False) -> str:
    """Give a picture as a data URI; photographs as JPEG, which is a tenth of the size and looks the same."""
    content, kind = path.read_bytes(), "png"
    if as_jpeg:
        stream = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(stream, "JPEG", quality=88, subsampling=0)
        content, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _percent(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:.{digits}%}"


def _range(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:.1%} to {estimate.high:.1%}"


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"
