"""The whole recipe on real chips: a hurricane's, judged farthest west, then a tornado's, tile by tile.

    python tests/acceptance/training.py DATA OUT [--only hurricane|joplin] [--network NAME] [--seed N]

DATA holds the folders hurricane and joplin. Not a test: it trains four networks, an hour or so on a CPU,
calling the commands as a user would. The tornado's networks start from the hurricane's, since
263 labelled roofs are few to learn from what a roof looks like; `--only joplin` starts from random weights.

No option was chosen on the hurricane's test side. Joplin's tiles were looked at with a few recipes
(docs/decisions/0013-training.md): a fourth tile would come out a little worse.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from joplin import CLASSES, TILES, edge_infer, write_labelled  # type: ignore[import-not-found]

FARTHEST_WEST = "-180,-90,-95.635,90"
"""About a fifth of the hurricane's chips; the rest is trained on."""
SIDE, METRES = 64, 32


def hurricane(data: Path, out: Path, network: str, seed: int) -> Path:
    """Train on the hurricane's chips; its weights."""
    table = out / "hurricane.csv"
    with (data / "hurricane" / "index.csv").open(newline="") as source, table.open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(["path", "lon", "lat", "class"])
        for row in csv.DictReader(source):
            if row["class"] in ("damage", "no_damage"):
                writer.writerow([row["path"], row["lon"], row["lat"], row["class"]])
    edge_infer(
        *("import-chips", data / "hurricane", "--chip-table", table, "--gsd-metres", 0.5),
        *("--event", "Harvey", "--out", out / "hurricane-chips", "--overwrite", "-q"),
    )
    run = out / "hurricane-run"
    edge_infer(
        *("train", "--chips", out / "hurricane-chips", "--out", run, "--name", "hurricane", "--overwrite"),
        *("--test-area", FARTHEST_WEST, "--network", network, "--epochs", 20, "--seed", seed),
    )
    return run / "model.pt"


def joplin(data: Path, out: Path, network: str, seed: int, weights: Path | None) -> None:
    """Train on two tiles and test on the third, in turn, and sum up."""
    pairs = out / "pairs.csv"
    with pairs.open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(["imagery", "footprints", "place", "event"])
        for tile in TILES:
            write_labelled(data / "joplin", (tile,), out / f"{tile}.gpkg")
            writer.writerow([data / "joplin" / "post" / f"{tile}.tif", out / f"{tile}.gpkg", tile, "Joplin"])
    edge_infer(
        *("chips", "--pairs", pairs, "--label-field", "label"),
        *("--classes", ",".join(f"{name}={name}" for name in CLASSES)),
        *("--ignore-label", "disputed", "--ignore-label", "unclear", "--out", out / "joplin-chips"),
        *("--ground-metres", METRES, "--chip-pixels", SIDE, "--overwrite", "-q"),
    )
    total = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for tile in TILES:
        run = out / f"joplin-{tile}"
        edge_infer(
            *("train", "--chips", out / "joplin-chips", "--out", run, "--name", "joplin", "--overwrite"),
            *("--test-area", tile, "--network", network, "--epochs", 40, "--batch", 16, "--seed", seed),
            *(("--weights", weights) if weights else ()),
        )
        names = json.loads((run / "train.json").read_text())["classes"]
        with np.load(run / "predictions.npz") as said:
            judged = said["side"] == "test"
            truth, found = said["targets"][judged], said["logits"][judged].argmax(axis=1)
        place = np.array([CLASSES.index(name) for name in names])
        confusion = np.zeros_like(total)
        np.add.at(confusion, (place[truth], place[found]), 1)
        show(tile, confusion)
        total += confusion
    show("all three tiles", total)


def show(title: str, confusion: np.ndarray) -> None:
    """Print a confusion matrix and what the aims are stated in."""
    right, all_rows = confusion.trace(), confusion.sum()
    apart = confusion[0, 0] + confusion[1:, 1:].sum()
    f1 = 2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1)).clip(min=1)
    print(
        f"\n{title}: {all_rows} undisputed footprints; rows: truth, columns: predicted, {', '.join(CLASSES)}"
    )
    print(confusion)
    print(f"destroyed against standing {apart}/{all_rows} = {apart / all_rows:.1%} (aim 96 %)")
    print(f"three classes {right}/{all_rows} = {right / all_rows:.1%}, macro-F1 {f1.mean():.3f} (aim 0.85)")
    sys.stdout.flush()


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=["hurricane", "joplin"])
    parser.add_argument("--network", default="resnet18-narrow")
    parser.add_argument("--weights", type=Path, help="for Joplin, instead of the hurricane's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.weights
    if options.only != "joplin":
        weights = hurricane(options.data, options.out, options.network, options.seed)
    if options.only != "hurricane":
        joplin(options.data, options.out, options.network, options.seed, weights)


if __name__ == "__main__":
    main()
