"""Pictures of a training and of an evaluation. Drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from edge_infer_export.evaluation.figures import Evaluation, Overall
    from edge_infer_export.evaluation.scores import Reliability
    from edge_infer_export.training.train import Epoch

DPI = 110
INK, FAINT, ACCENT = "#1c2630", "#7b8794", "#08519c"


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, inches, that never asks for a display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_history(path: Path, history: Sequence[Epoch], best_epoch: int) -> None:
    """Draw losses and accuracy by epoch, with the epoch that was kept."""
    figure = new_figure(8, 4)
    losses, accuracies = figure.subplots(1, 2)
    epochs = [epoch.number for epoch in history]
    losses.plot(epochs, [epoch.training_loss for epoch in history], label="training")
    losses.plot(epochs, [epoch.validation_loss for epoch in history], label="validation")
    losses.set_title("loss")
    losses.legend()
    accuracies.plot(epochs, [100 * epoch.accuracy for epoch in history], color="tab:orange")
    accuracies.set_title("accuracy on the validation side, %")
    for axes in (losses, accuracies):
        axes.axvline(best_epoch, color="grey", linestyle=":")
        axes.set_xlabel("epoch (dotted: kept)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_confusion(path: Path, matrix: NDArray[np.int64], classes: Sequence[str], *, title: str) -> None:
    """Draw a confusion matrix (K, K), rows true classes; colours are shares of each row."""
    side = 2.5 + 1.1 * len(classes)
    figure = new_figure(side + 1.5, side)
    axes = figure.subplots()
    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(classes)):
        for column in range(len(classes)):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{matrix[row, column]:,}\n{share:.1%}",
                ha="center",
                va="center",
                color="white" if share > 0.5 else INK,
            )
    axes.set_xticks(range(len(classes)), labels=list(classes), rotation=20, ha="right")
    axes.set_yticks(range(len(classes)), labels=list(classes))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.savefig(path, dpi=DPI)


def draw_curves(path: Path, evaluation: Evaluation, colors: Sequence[str]) -> None:
    """Draw ROC and precision-recall curves, each class against the rest, with their areas.

    Classes that have no chips, or all of them, have no curves.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = new_figure(9.6, 4.3)
    receiver, precision_recall = figure.subplots(1, 2)
    targets = evaluation.judged.targets
    for k, (name, figures) in enumerate(evaluation.per_class.items()):
        if figures.roc_area is None or figures.average_precision is None:
            continue
        false, true, _ = roc_curve(targets == k, evaluation.probabilities[:, k])
        precision, recall, _ = precision_recall_curve(targets == k, evaluation.probabilities[:, k])
        receiver.plot(false, true, color=colors[k], label=f"{name}: area {figures.roc_area:.3f}")
        precision_recall.plot(
            recall,
            precision,
            color=colors[k],
            drawstyle="steps-post",
            label=f"{name}: area {figures.average_precision:.3f}",
        )
    receiver.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":", label="guessing")
    for axes, title, x, y in (
        (receiver, "ROC", "other chips called so", "chips of the class found (recall)"),
        (precision_recall, "Precision and recall", "recall", "precision"),
    ):
        _tidy(axes, title, x, y)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
        axes.legend(loc="lower right" if title == "ROC" else "lower left", frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)


def draw_reliability(path: Path, before: Reliability, after: Reliability, temperature: float) -> None:
    """Draw how often predictions are right against how sure they are, before and after the temperature."""
    figure = new_figure(9.6, 4.6)
    grid = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": (4, 1)})
    titles = ("before calibration (temperature 1)", f"as it runs (temperature {temperature:.2f})")
    for (axes, counts), found, title in zip(grid.T, (before, after), titles, strict=True):
        width = 1 / len(found.chips)
        middles = (np.arange(len(found.chips)) + 0.5) * width
        held = found.chips > 0
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
        axes.bar(
            middles[held], found.accuracy[held], width * 0.92, color="#9ecae1", label="share that is right"
        )
        axes.plot(found.confidence[held], found.accuracy[held], "o-", color=ACCENT, markersize=4, linewidth=1)
        error = found.calibration_error
        _tidy(axes, f"{title}\nexpected calibration error {error:.3f}", "", "share that is right")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        counts.bar(middles, found.chips, width * 0.92, color="#c9d2db")
        _tidy(counts, "", "confidence", "chips")
    figure.savefig(path, dpi=DPI)


def draw_groups(path: Path, groups: Mapping[str, Overall], overall: Overall, *, title: str) -> None:
    """Draw accuracy and macro-F1 with their intervals for each event or area, beside those of all chips."""
    figure = new_figure(9.6, 1.3 + 0.36 * len(groups))
    places = np.arange(len(groups))[::-1]
    for axes, name, words in zip(
        figure.subplots(1, 2, sharey=True), ("accuracy", "macro_f1"), ("accuracy", "macro-F1"), strict=True
    ):
        for place, group in zip(places, groups.values(), strict=True):
            estimate = getattr(group, name)
            if estimate.low is not None and estimate.high is not None:
                axes.plot(
                    [estimate.low, estimate.high], [place, place], color=ACCENT, linewidth=2.2, alpha=0.45
                )
            axes.plot([estimate.value], [place], "o", color=ACCENT, markersize=5)
        axes.axvline(getattr(overall, name).value, color=FAINT, linewidth=0.8, linestyle=":")
        _tidy(axes, f"{words} by {title} (dotted: all chips)", "", "")
        axes.set(xlim=(0, 1.01), ylim=(-0.6, len(groups) - 0.4))
        axes.set_yticks(places, labels=[f"{label} ({group.chips:,})" for label, group in groups.items()])
    figure.savefig(path, dpi=DPI)


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
