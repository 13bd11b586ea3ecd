"""Pictures of a training: losses by epoch, and a confusion matrix. Drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_infer_export.train import Epoch


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
                f"{matrix[row, column]}\n{share:.1%}",
                ha="center",
                va="center",
                color="white" if share > 0.5 else "black",
            )
    axes.set_xticks(range(len(classes)), labels=list(classes), rotation=20, ha="right")
    axes.set_yticks(range(len(classes)), labels=list(classes))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.savefig(path, dpi=110)
