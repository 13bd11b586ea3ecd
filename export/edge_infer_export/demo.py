"""A small synthetic town through the whole chain: imagery, chips, training, bundle, run, verdict."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import shapely

from edge_infer.classify import classify
from edge_infer.errors import OutputError
from edge_infer.footprints import open_layer, read_field, read_footprints
from edge_infer.request import RunRequest
from edge_infer_export.chips.cut import ChipsRequest, cut_chips
from edge_infer_export.chips.pairs import Pair
from edge_infer_export.evaluation.scores import confusion_matrix
from edge_infer_export.network.bundle import export_bundle
from edge_infer_export.town.files import LABEL_FIELD, TOWN_CRS, write_town
from edge_infer_export.town.map import MapFeatures, draw_map
from edge_infer_export.training.runfolder import train_to_folder
from edge_infer_export.training.train import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edge_infer.manifest import Manifest
    from edge_infer_export.town.files import TownFiles

    Say = Callable[[str], None]

TRAINED_ON, TESTED_ON = "district = 'west'", "district = 'east'"
"""The creek with its green strip lies between the two: no window reaches across."""
CHIP_PIXELS = 64
TRAINING = TrainOptions(epochs=10, learning_rate=2e-3)


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How the results compare with the labels, over the footprints that were not trained on."""

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    """(K, K), rows are labels, columns results."""
    without_result: NDArray[np.int64]
    """(K,) footprints of each label that have no result."""

    @property
    def accuracy(self) -> float:
        """Of those that have a result."""
        return float(self.confusion.trace() / max(self.confusion.sum(), 1))

    def describe(self) -> str:
        """Write the confusion matrix as a table."""
        headings = [*self.classes, "no result"]
        first = max(map(len, (*self.classes, "label")))
        lines = ["  ".join([f"{'label':<{first}}", *(f"{heading:>12}" for heading in headings)])]
        for name, counts, lost in zip(self.classes, self.confusion, self.without_result, strict=True):
            cells = (
                f"{number:>{max(len(h), 12)}}" for number, h in zip((*counts, lost), headings, strict=True)
            )
            lines.append("  ".join([f"{name:<{first}}", *cells]))
        lines.append(
            f"accuracy {self.accuracy:.1%} on {self.confusion.sum()} footprints that were not trained on"
        )
        return "\n".join(lines)


def run_demo(folder: str | Path, *, overwrite: bool = False, say: Say = lambda _: None) -> Verdict:
    """Draw the town, train on its west, classify its east, and write everything into a folder.

    The folder then holds imagery/, footprints.gpkg, chips/, town-model/, town.edgemodel, classified.gpkg and
    map.png.

    Args:
        folder: where to write.
        overwrite: replace what an earlier demo left there; other files stay.
        say: is given a line for each stage.

    Raises:
        OutputError: the folder holds something, without `overwrite`, or cannot be written.

    """
    folder = Path(folder)
    _prepare(folder, overwrite=overwrite)
    chips, run, bundle = folder / "chips", folder / "town-model", folder / "town.edgemodel"
    started = time.monotonic()
    with _stage("draw the town", say):
        town = write_town(folder)
    with _stage(f"cut chips where {TRAINED_ON}", say):
        request = ChipsRequest(
            pairs=(
                Pair(
                    imagery=(town.imagery,),
                    footprints=town.footprints,
                    label_field=LABEL_FIELD,
                    where=TRAINED_ON,
                ),
            ),
            out=chips,
            chip_pixels=CHIP_PIXELS,
            overwrite=True,
        )
        say(cut_chips(request, quiet=True).describe())
    with _stage("train a ResNet34", say):
        train_to_folder([chips], run, TRAINING, overwrite=True, say=say)
    with _stage("export the bundle", say):
        manifest = export_bundle(run, bundle, overwrite=True).manifest
    with _stage(f"classify where {TESTED_ON}", say):
        out = folder / "classified.gpkg"
        summary = classify(
            RunRequest(
                bundle=bundle,
                imagery=(town.imagery,),
                footprints=town.footprints,
                out=out,
                where=TESTED_ON,
                overwrite=True,
            ),
            quiet=True,
        )
        say(summary.describe())
    with _stage("draw the map", say):
        verdict = _judge_and_draw(folder / "map.png", town, out, manifest)
    say(verdict.describe())
    say(f"{folder}: done in {time.monotonic() - started:.0f} s; look at {folder / 'map.png'}")
    return verdict


def _prepare(folder: Path, *, overwrite: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; name another folder") from error
    if any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} is not empty; name another folder or say --overwrite")


@contextmanager
def _stage(name: str, say: Say) -> Iterator[None]:
    say(f"== {name}")
    started = time.monotonic()
    yield
    say(f"   {time.monotonic() - started:.1f} s")


def _judge_and_draw(path: Path, town: TownFiles, classified: Path, manifest: Manifest) -> Verdict:
    """Join results and labels by the source's feature id, and draw them."""
    source = read_footprints(town.footprints)
    label_of = dict(zip(source.fids.tolist(), read_field(town.footprints, LABEL_FIELD), strict=True))
    facts, _, wkb, columns = pyogrio.raw.read(
        classified, layer=open_layer(classified).name, columns=["source_fid", "class_label"]
    )
    results = dict(zip(facts["fields"].tolist(), columns, strict=True))
    true = np.array([label_of[fid] for fid in results["source_fid"].tolist()], object)
    predicted = results["class_label"]
    trained = np.setdiff1d(source.fids, results["source_fid"])
    verdict = judge(true, predicted, manifest.classes)
    draw_map(
        path,
        sorted(town.imagery.glob("*.tif"), reverse=True),
        MapFeatures(
            geometries=shapely.from_wkb(wkb),
            predicted=predicted,
            true=true,
            trained=source.geometries[np.isin(source.fids, trained)],
        ),
        colours=dict(zip(manifest.classes, manifest.colors, strict=True)),
        crs=TOWN_CRS,
        title=(
            f"A synthetic town after a fire: {verdict.confusion.sum()} houses classified, "
            f"accuracy {verdict.accuracy:.1%}"
        ),
    )
    return verdict


def judge(true: NDArray[np.object_], predicted: NDArray[np.object_], classes: tuple[str, ...]) -> Verdict:
    """Compare labels (n,) with results (n,), None where there is none."""
    number = {name: k for k, name in enumerate(classes)}
    known = np.array([label is not None for label in predicted], bool)
    target = np.array([number[label] for label in true], np.int64)
    result = np.array([number[label] for label in predicted[known]], np.int64)
    return Verdict(
        classes,
        confusion_matrix(target[known], result, len(classes)),
        np.bincount(target[~known], minlength=len(classes)),
    )
