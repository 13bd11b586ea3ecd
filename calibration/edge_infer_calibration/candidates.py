"""The chips that calibration and its gate may choose from: folders of chips, or imagery and footprints.

Pixels stay on disk until they are read, so memory does not grow with the set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.coverage import cover
from edge_infer.errors import Refused
from edge_infer.feed import ReadFailure, stream_chips
from edge_infer.footprints import read_field, read_footprints
from edge_infer.imagery import open_imagery
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.labels import assign_classes
from edge_infer_export.chips.split import ground_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer.manifest import ChipContract, Manifest

BLOCK_METRES = 100.0
"""Chips of one block of ground of this side count as one witness in intervals."""
MIN_VALID = 0.5
"""A window with a smaller share of valid pixels is no candidate; `run` gives it no class either."""
BATCH = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Candidates:
    """Chips to choose from; all arrays have one entry a chip."""

    name: NDArray[np.object_]
    """object (str), (n,): the chip's file, or its image and feature id. No two are equal."""
    targets: NDArray[np.int64] | None
    """int64, (n,): index into the model's classes; None where nobody said."""
    scene: NDArray[np.object_]
    """object (str), (n,): the image."""
    event: NDArray[np.object_]
    """object (str), (n,): the disaster; empty where none was given."""
    gsd_metres: NDArray[np.float64]
    """float64, (n,): of the image there."""
    blocks: NDArray[np.int64] | None
    """int64, (n,): block of ground; None where places are not known."""
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    """Decodes the chips at rows int64 (k,): uint8 (k, S, S, C)."""

    def __len__(self) -> int:
        return len(self.name)

    def batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Read the chips at `rows` in their order, `BATCH` at a time."""
        for start in range(0, len(rows), BATCH):
            yield self.read(rows[start : start + BATCH])


def from_folders(folders: Sequence[Path], manifest: Manifest) -> Candidates:
    """Take the chips of folders that `edge-infer chips` made.

    Raises:
        Refused: a folder cannot be read, its chips meet another contract than the model's, or have other
            classes.

    """
    chips = read_chips(folders)
    _require_contract(chips.contract, manifest.contract, folders[0])
    if sorted(chips.classes) != sorted(manifest.classes):
        raise Refused(
            f"the chips have the classes {', '.join(chips.classes)}, the model has "
            f"{', '.join(manifest.classes)}; cut them with the same --classes"
        )
    order = np.array([manifest.classes.index(name) for name in chips.classes], np.int64)
    known = np.isfinite(chips.longitude).all() and np.isfinite(chips.latitude).all()
    return Candidates(
        name=chips.file,
        targets=order[chips.targets],
        scene=chips.image,
        event=chips.event,
        gsd_metres=chips.gsd_metres,
        blocks=ground_blocks(chips, BLOCK_METRES) if known else None,
        read=chips.read,
    )


def _require_contract(found: ChipContract, wanted: ChipContract, folder: Path) -> None:
    ours = replace(wanted, coarsest_gsd_metres=found.coarsest_gsd_metres).to_json()
    theirs = found.to_json()
    differences = [
        f"{name} {theirs[name]}, wanted {ours[name]}" for name in ours if theirs[name] != ours[name]
    ]
    if differences:
        raise Refused(
            f"{folder} holds chips of another contract than the model's ({'; '.join(differences)}); cut them "
            "with the options the model was trained with"
        )


def from_imagery(
    imagery: Sequence[Path],
    footprints: Path,
    manifest: Manifest,
    folder: Path,
    *,
    most: int,
    seed: int,
    layer: str | None = None,
    where: str | None = None,
    label_field: str | None = None,
    classes: Mapping[str, str] | None = None,
) -> Candidates:
    """Cut chips of footprints by the run-time sampler, into one file in `folder`.

    Args:
        imagery: rasters and folders of rasters.
        footprints: any vector source.
        manifest: the model's, which says what a chip is.
        folder: takes the pixels; it must outlive the candidates.
        most: at most so many footprints, chosen at random.
        seed: of that choice.
        layer: of the footprints.
        where: only footprints for which this OGR SQL condition holds.
        label_field: column with the label; None: no labels.
        classes: class of each value in it.

    Raises:
        Refused: the input cannot be used, or no footprint gives a chip.

    """
    contract = manifest.contract
    opened = open_imagery(imagery, contract)
    source = read_footprints(footprints, layer=layer, where=where)
    coverage = cover(source, opened, contract)
    wanted = coverage.status == "pending"
    targets = None
    if label_field is not None:
        values = read_field(footprints, label_field, layer=layer, where=where)
        labels = assign_classes(values, field=label_field, classes=classes)
        strange = sorted(set(labels.classes) - set(manifest.classes))
        if strange:
            raise Refused(
                f"{label_field} holds the class {strange[0]}, the model has {', '.join(manifest.classes)}; "
                "say which is which with --classes"
            )
        order = np.array([manifest.classes.index(name) for name in labels.classes], np.int64)
        wanted &= labels.index >= 0
        targets = np.where(labels.index >= 0, order[labels.index], -1)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(wanted))[:most]
    if not len(rows):
        raise Refused("no footprint lies on the imagery and has a label; check the CRS of both")
    spool = np.memmap(folder / "chips.raw", np.uint8, "w+", shape=(len(rows), *contract.chip_shape))
    cut: list[NDArray[np.int64]] = []
    done = 0
    for batch in stream_chips(opened.images, coverage, contract, np.sort(rows)):
        if isinstance(batch, ReadFailure):
            continue
        seen = batch.valid_fraction >= MIN_VALID
        spool[done : done + int(seen.sum())] = batch.chips[seen]
        done += int(seen.sum())
        cut.append(batch.rows[seen])
    if not done:
        raise Refused("no footprint's window holds enough valid imagery to calibrate on; name other imagery")
    # In the order of the footprints: readers on several threads give any.
    found = np.concatenate(cut)
    order_of_cut = np.argsort(found)
    found = found[order_of_cut]
    scene = np.array([opened.images[index].path for index in coverage.image[found]], object)
    return Candidates(
        name=np.array([f"{path}#{fid}" for path, fid in zip(scene, source.fids[found], strict=True)], object),
        targets=None if targets is None else targets[found],
        scene=scene,
        event=np.full(len(found), "", object),
        gsd_metres=coverage.gsd_metres[found],
        blocks=None,
        read=lambda chosen: np.asarray(spool[order_of_cut[chosen]]),
    )
