"""Explains single chips: one PNG for each, the chip beside what in it speaks for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import OutputError, Refused
from edge_infer_export.chips.pictures import read_chip
from edge_infer_export.evaluation.gradcam import Explainer
from edge_infer_export.evaluation.sheet import Tile, contact_sheet, overlay, to_rgb
from edge_infer_export.network.bundle import read_run
from edge_infer_export.network.graph import Classifier
from edge_infer_export.network.parity import run_pytorch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MOST_CLASSES = 4
"""Of so many classes at most the heat is shown, the likeliest first."""

_NEUTRAL = "#7b8794"


def explain_chips(run: Path, chips: Sequence[Path], out: Path) -> list[tuple[Path, dict[str, float]]]:
    """Write a Grad-CAM of each chip for each of its likeliest classes.

    Args:
        run: folder of the training run.
        chips: pictures of the size and bands that the network was trained on.
        out: folder to write NAME.png into; made where it is not there.

    Returns:
        Of each chip the picture, and the probability of each class.

    Raises:
        Refused: the run is damaged, or a chip cannot be read or does not fit.
        OutputError: the folder cannot be written, or two chips have one name.

    """
    trained = read_run(run)
    manifest = trained.manifest
    pixels = np.stack([read_chip(path, manifest.contract.chip_shape) for path in chips])
    targets = [out / f"{path.stem}.png" for path in chips]
    if len(set(targets)) != len(targets):
        raise OutputError("two of the chips have one name; explain them one after another into other folders")
    inputs = {path.resolve() for path in chips}
    if any(target.resolve() in inputs for target in targets):
        raise Refused(f"{out} holds the chips themselves; name another folder")
    classifier = Classifier(
        trained.network, mean=manifest.mean, std=manifest.std, temperature=manifest.temperature
    )
    probabilities = run_pytorch(classifier, pixels)
    explainer = Explainer(trained.network, mean=manifest.mean, std=manifest.std)
    pictures = to_rgb(pixels, manifest.contract.bands)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for place, target in enumerate(targets):
            likeliest = np.argsort(-probabilities[place], kind="stable")[:MOST_CLASSES]
            heat = explainer.heat(np.repeat(pixels[place : place + 1], len(likeliest), axis=0), likeliest)
            tiles = [Tile(pictures[place], (chips[place].name,), _NEUTRAL)]
            tiles += [
                _warm(
                    pictures[place],
                    heat[turn],
                    manifest.classes[k],
                    probabilities[place, k],
                    manifest.colors[k],
                )
                for turn, k in enumerate(likeliest.tolist())
            ]
            contact_sheet(tiles, columns=len(tiles)).save(target)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; name another folder") from error
    return [
        (target, {name: float(p) for name, p in zip(manifest.classes, row, strict=True)})
        for target, row in zip(targets, probabilities, strict=True)
    ]


def _warm(
    picture: NDArray[np.uint8], heat: NDArray[np.float32], name: str, probability: float, color: str
) -> Tile:
    return Tile(overlay(picture, heat), (f"for {name}", f"{probability:.1%}"), color)
