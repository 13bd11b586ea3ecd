"""The whole recipe on real chips: a hurricane's, judged farthest west, then a tornado's, tile by tile.

    python tests/acceptance/training.py DATA OUT [--only hurricane|joplin] [--seeds 0,1,2]

DATA holds the folders hurricane and joplin. Not a test: it trains one network on the hurricane's chips and
three with each seed on the tornado's, calling the commands as a user would. docs/training-results.md holds
what came out, and what was tried besides.

The tornado's footprints lie some metres off the roofs. They are moved first, by what their outlines and the
image's edges say (outlines.py): no label is looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from joplin import CLASSES, TILES, edge_infer, write_labelled  # type: ignore[import-not-found]
from outlines import outline_shift, pixel_outlines  # type: ignore[import-not-found]
from PIL import Image

from edge_infer_export.evaluation.intervals import (
    bootstrap,
    f1_of,
    matrices_by_block,
    percentile_interval,
    share_over_blocks,
)

FARTHEST_WEST = "-180,-90,-95.635,90"
"""About a fifth of the hurricane's chips; the rest is trained on."""
METRES_A_DEGREE = 111_195.0
"""Of latitude, on a sphere."""

HURRICANE_SIDE, HURRICANE_METRES = 64, 32
"""The middle of each chip: 128 pixels show mostly neighbours, at four times the cost."""
HURRICANE_TRAINING = ("--network", "resnet18-narrow", "--epochs", 8)

BLOCK_METRES = 96
"""Four windows a side, as in the reports: chips of one block are not independent."""
JOPLIN_SIDE, JOPLIN_METRES = 96, 24
"""Twice as fine as the image: a network shrinks its chips 4 times before it looks for anything, and holes in
roofs are small. Trained on one tile and judged on the next, 24 m did better than 32 m."""
JOPLIN_TRAINING = (
    *("--network", "resnet10-narrow", "--epochs", 80, "--batch", 16, "--lr", 2e-3, "--val-share", 0.1),
    # A tenth of two tiles is too few chips to stop by; averaged, the last epochs hardly differ.
    *("--patience", 0, "--average-epochs", 5),
)


def cut_hurricane(data: Path, out: Path) -> Path:
    """Cut the middle out of the hurricane's chips, and list them; the folder of the pictures."""
    middles = out / "hurricane-middles"
    with (
        (data / "hurricane" / "index.csv").open(newline="") as source,
        (out / "hurricane.csv").open("w", newline="") as sink,
    ):
        writer = csv.writer(sink)
        writer.writerow(["path", "lon", "lat", "class"])
        for row in csv.DictReader(source):
            if row["class"] in ("damage", "no_damage"):
                middle = (middles / row["path"]).with_suffix(".png")
                middle.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(data / "hurricane" / row["path"]) as chip:
                    near = (chip.width - HURRICANE_SIDE) // 2
                    far = near + HURRICANE_SIDE
                    chip.convert("RGB").crop((near, near, far, far)).save(middle)
                writer.writerow([middle.relative_to(middles), row["lon"], row["lat"], row["class"]])
    return middles


def hurricane(middles: Path, out: Path, seed: int) -> None:
    """Train on the middle of the hurricane's chips."""
    edge_infer(
        *("import-chips", middles, "--chip-table", out / "hurricane.csv"),
        *("--ground-metres", HURRICANE_METRES, "--event", "Harvey"),
        *("--out", out / "hurricane-chips", "--overwrite", "-q"),
    )
    edge_infer(
        *("train", "--chips", out / "hurricane-chips", "--out", out / "hurricane-run", "--overwrite"),
        *("--name", "hurricane", "--test-area", FARTHEST_WEST, "--seed", seed),
        *HURRICANE_TRAINING,
    )


def cut_joplin(data: Path, out: Path) -> Path:
    """Move each tile's footprints onto its roofs, and cut their chips; the folder."""
    pairs = out / "pairs.csv"
    with pairs.open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(["imagery", "footprints", "place", "event"])
        for tile in TILES:
            imagery = data / "joplin" / "post" / f"{tile}.tif"
            write_moved(data / "joplin", tile, imagery, out / f"{tile}.gpkg")
            writer.writerow([imagery, out / f"{tile}.gpkg", tile, "Joplin"])
    chips = out / "joplin-chips"
    edge_infer(
        *("chips", "--pairs", pairs, "--label-field", "label"),
        *("--classes", ",".join(f"{name}={name}" for name in CLASSES)),
        *("--ignore-label", "disputed", "--ignore-label", "unclear", "--out", chips),
        *("--ground-metres", JOPLIN_METRES, "--chip-pixels", JOPLIN_SIDE, "--overwrite", "-q"),
    )
    return chips


def write_moved(joplin: Path, tile: str, imagery: Path, path: Path) -> None:
    """Write a tile's labelled footprints, moved to where the image has the edges that fit them best."""
    with (joplin / "truth.csv").open(newline="") as stream:
        numbers = [int(row["footprint"]) for row in csv.DictReader(stream) if row["tile"] == tile]
    features = json.loads((joplin / "footprints" / "joplin.geojson").read_text())["features"]
    outlines = [shapely.geometry.shape(features[number]["geometry"]) for number in numbers]
    with rasterio.open(imagery) as image:
        pixels, to_pixels = image.read().transpose(1, 2, 0), ~image.transform
        across, down = METRES_A_DEGREE * np.cos(np.radians(image.bounds.top)), METRES_A_DEGREE
        size = image.transform.a * across, -image.transform.e * down
    in_pixels = pixel_outlines(outlines, to_pixels)
    right, below = outline_shift(pixels, in_pixels, size)
    print(f"{tile}: footprints are moved {right:g} m east and {below:g} m south", flush=True)

    shift = np.array([right / across, -below / down])

    def move(geometry: Any) -> Any:
        moved = shapely.transform(shapely.geometry.shape(geometry), lambda points: points + shift)
        return shapely.geometry.mapping(moved)

    write_labelled(joplin, (tile,), path, move)


def joplin(chips: Path, out: Path, seed: int) -> list[float]:
    """Train on two tiles and test on the third, in turn; the figures of all three, as `show` prints them."""
    rows = []
    for tile in TILES:
        run = out / f"joplin-{tile}-{seed}"
        edge_infer(
            *("train", "--chips", chips, "--out", run, "--name", "joplin", "--overwrite", "-q"),
            *("--test-area", tile, "--seed", seed, *JOPLIN_TRAINING),
        )
        with (run / "predictions.csv").open(newline="") as stream:  # of the test side only
            rows += list(csv.DictReader(stream))
    return show(f"all three tiles, seed {seed}", rows)


def show(title: str, rows: list[dict[str, str]]) -> list[float]:
    """Print a confusion matrix and what the aims are stated in, with intervals over blocks of ground.

    rows: of predictions.csv. Result: shares right (destroyed against standing, three classes) and macro-F1.
    """
    truth, found = (np.array([CLASSES.index(row[name]) for row in rows]) for name in ("truth", "predicted"))
    where = np.array([(float(row["longitude"]), float(row["latitude"])) for row in rows])
    side = BLOCK_METRES / METRES_A_DEGREE
    place = np.floor(where / (side / np.cos(np.radians(where[:, 1].mean())), side)).astype(int)
    _, blocks = np.unique(place, axis=0, return_inverse=True)
    matrices = matrices_by_block(truth, found, blocks, len(CLASSES))
    f1 = float(f1_of(matrices.sum(axis=0)).mean())
    draws = bootstrap(matrices, lambda sums: f1_of(sums).mean(axis=-1, keepdims=True), seed=0)
    estimates = {
        "destroyed against standing (aim 0.96)": share_over_blocks((truth == 0) == (found == 0), blocks),
        "three classes": share_over_blocks(truth == found, blocks),
        "macro-F1 (aim 0.85)": percentile_interval(draws[:, 0], f1),
    }
    print(f"\n{title}: {len(rows)} undisputed footprints in {len(matrices)} blocks")
    print(f"rows: truth, columns: predicted, {', '.join(CLASSES)}\n{matrices.sum(axis=0)}")
    for name, estimate in estimates.items():
        print(f"{name}: {estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})")
    sys.stdout.flush()
    return [estimate.value or 0.0 for estimate in estimates.values()]


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=["hurricane", "joplin"])
    parser.add_argument(
        "--seeds", default="0,1,2", help="of Joplin's trainings; the hurricane's has the first"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.only != "joplin":
        hurricane(cut_hurricane(options.data, options.out), options.out, seeds[0])
    if options.only != "hurricane":
        chips = cut_joplin(options.data, options.out)
        found = [joplin(chips, options.out, seed) for seed in seeds]
        names = "destroyed against standing", "three classes", "macro-F1"
        for name, values in zip(names, np.array(found).T, strict=True):
            print(f"{name}: mean {values.mean():.3f}, {values.min():.3f} to {values.max():.3f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
