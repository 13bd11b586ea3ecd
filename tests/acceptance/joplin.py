"""Joplin after the tornado of 2011: train on two tiles, run on the third, compare with labels by eye.

    python tests/acceptance/joplin.py JOPLIN OUT [--test-tile tile_32524-5137] [-- train options]

Not a test: it trains a real network for some minutes. It calls the commands as a user would and prints each.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiona

TILES = ("tile_31500-5137", "tile_31500-6161", "tile_32524-5137")
CLASSES = ("destroyed", "damaged", "no_visible_damage")

Move = Callable[[Any], Any]
"""A GeoJSON geometry to the same elsewhere."""


def unmoved(geometry: Any) -> Any:
    """Leave a geometry where it is."""
    return geometry


def edge_infer(*arguments: object) -> None:
    """Run one command, and say it."""
    words = [str(argument) for argument in arguments]
    print(f"$ edge-infer {shlex.join(words)}", flush=True)
    subprocess.run([Path(sys.executable).with_name("edge-infer"), *words], check=True)


def write_labelled(joplin: Path, tiles: tuple[str, ...], path: Path, move: Move = unmoved) -> None:
    """Write the footprints that truth.csv labels on these tiles, moved by `move`, with their label."""
    with (joplin / "truth.csv").open(newline="") as stream:
        labels = {
            int(row["footprint"]): row["label"] for row in csv.DictReader(stream) if row["tile"] in tiles
        }
    with fiona.open(joplin / "footprints" / "joplin.geojson") as source:
        schema = {"geometry": "Polygon", "properties": {"label": "str"}}
        with fiona.open(path, "w", driver="GPKG", crs="EPSG:4326", schema=schema) as sink:
            sink.writerecords(
                {"geometry": move(feature.geometry), "properties": {"label": labels[number]}}
                for number, feature in enumerate(source)
                if number in labels
            )


def compare(joplin: Path, tile: str, classified: Path) -> None:
    """Print the confusion matrix and the accuracies on the undisputed rows of one tile."""
    with (joplin / "truth.csv").open(newline="") as stream:
        truth = {int(row["footprint"]): row["label"] for row in csv.DictReader(stream) if row["tile"] == tile}
    with fiona.open(classified) as source:
        found = {f.properties["source_fid"]: f.properties["class_label"] for f in source}
    pairs = Counter((label, found[fid]) for fid, label in truth.items() if label in CLASSES)
    total = sum(pairs.values())
    print(f"\n{tile}: {total} undisputed footprints; rows: truth, columns: classified")
    print(f"{'':>18}" + "".join(f"{name:>18}" for name in CLASSES))
    for label in CLASSES:
        print(f"{label:>18}" + "".join(f"{pairs[label, name]:>18}" for name in CLASSES))
    three = sum(number for (label, name), number in pairs.items() if label == name)
    two = sum(
        number for (label, name), number in pairs.items() if (label == "destroyed") == (name == "destroyed")
    )
    print(f"three classes: {three}/{total} = {three / total:.1%}")
    print(f"destroyed against standing: {two}/{total} = {two / total:.1%}", flush=True)


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("joplin", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--test-tile", choices=TILES, default=TILES[2])
    parser.add_argument("train_options", nargs="*", default=["--epochs", "30", "--batch", "16"])
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    training = tuple(tile for tile in TILES if tile != options.test_tile)
    write_labelled(options.joplin, training, out / "labelled.gpkg")
    images = [word for tile in training for word in ("--imagery", options.joplin / "post" / f"{tile}.tif")]
    edge_infer(
        *("chips", *images, "--footprints", out / "labelled.gpkg", "--label-field", "label"),
        *("--ignore-label", "disputed", "--ignore-label", "unclear", "--out", out / "chips"),
        *("--ground-metres", 32, "--chip-pixels", 64, "--overwrite", "-q"),
    )
    edge_infer(
        *("train", "--chips", out / "chips", "--out", out / "training", "--name", "joplin", "--overwrite"),
        *options.train_options,
    )
    edge_infer("export", "--run", out / "training", "--out", out / "joplin.edgemodel", "--overwrite")
    edge_infer(
        *("run", "--model", out / "joplin.edgemodel"),
        *("--imagery", options.joplin / "post" / f"{options.test_tile}.tif"),
        *("--footprints", options.joplin / "footprints" / "joplin.geojson"),
        *("--out", out / "classified.gpkg", "--overwrite", "-q"),
    )
    compare(options.joplin, options.test_tile, out / "classified.gpkg")


if __name__ == "__main__":
    main()
