"""The chips that calibration and its gate may choose from: folders of chips, or imagery and footprints.

Pixels stay on disk until they are read, so memory does not grow with the set.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.coverage import cover
from edge_infer.errors import OutputError, Refused
from edge_infer.feed import ReadFailure, stream_chips
from edge_infer.footprints import read_field, read_footprints
from edge_infer.imagery import open_imagery
from edge_infer_calibration.strata import draw, known_strata
from edge_infer_export.chips.cut import window_places
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.labels import assign_classes
from edge_infer_export.chips.split import ground_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer.coverage import Coverage
    from edge_infer.imagery import Image
    from edge_infer.manifest import ChipContract, Manifest

BLOCK_METRES = 100.0
"""Chips of one block of ground of this side count as one witness in intervals."""
MIN_VALID, MIN_COVERED = 0.5, 0.5
"""A window, or a footprint itself, with a smaller share of valid pixels is no candidate; `run` gives it no
class either."""
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
    by_chance: NDArray[np.bool_]
    """bool, (n,): drawn by chance alone from all there is, so together like all there is."""
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    """Decodes the chips at rows int64 (k,): uint8 (k, S, S, C)."""
    warnings: tuple[str, ...] = ()
    """What was left out, in words."""

    def __len__(self) -> int:
        return len(self.name)

    def strata(self) -> NDArray[np.int64]:
        """Tell the strata that are known without pixels, by class, scene and GSD: int64, (n,)."""
        return known_strata(self.targets, self.scene, self.gsd_metres)

    def batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Read the chips at `rows` in their order, `BATCH` at a time."""
        for start in range(0, len(rows), BATCH):
            yield self.read(rows[start : start + BATCH])


def from_folders(folders: Sequence[Path], manifest: Manifest) -> Candidates:
    """Take the chips of folders that `edge-infer chips` made.

    Raises:
        Refused: a folder cannot be read or is named twice, its chips meet another contract than the model's,
            or have other classes.

    """
    # One name a file, whatever way leads to it.
    chips = read_chips([folder.resolve() for folder in folders])
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
        blocks=ground_blocks(chips.longitude, chips.latitude, BLOCK_METRES) if known else None,
        by_chance=np.ones(len(chips), bool),
        read=chips.read,
        warnings=chips.warnings(),
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
    ignore_labels: Collection[str] = (),
) -> Candidates:
    """Cut chips of footprints by the run-time sampler, into one file in `folder`.

    Args:
        imagery: rasters and folders of rasters.
        footprints: any vector source.
        manifest: the model's, which says what a chip is.
        folder: takes the pixels of these candidates only; it must outlive them.
        most: at most so many footprints, drawn half by chance and half in turn of class, image and GSD.
        seed: of that draw.
        layer: of the footprints.
        where: only footprints for which this OGR SQL condition holds.
        label_field: column with the label; None: no labels.
        classes: class of each value in it.
        ignore_labels: values in it whose footprints are left out.

    Raises:
        Refused: the input cannot be used, or no footprint gives a chip.
        OutputError: the disk of `folder` is full.

    """
    contract = manifest.contract
    opened = open_imagery(imagery, contract)
    source = read_footprints(footprints, layer=layer, where=where)
    coverage = cover(source, opened, contract)
    wanted = coverage.status == "pending"
    targets = None
    if label_field is not None:
        values = read_field(footprints, label_field, layer=layer, where=where)
        labels = assign_classes(values, field=label_field, classes=classes, ignore=ignore_labels)
        strange = sorted(set(labels.classes) - set(manifest.classes))
        if strange:
            raise Refused(
                f"{label_field} holds the class {strange[0]}, the model has {', '.join(manifest.classes)}; "
                "say which is which with --classes, or leave it out with --ignore-label"
            )
        order = np.array([manifest.classes.index(name) for name in labels.classes], np.int64)
        labelled = labels.index >= 0
        wanted &= labelled
        targets = np.full(len(values), -1, np.int64)
        targets[labelled] = order[labels.index[labelled]]
    usable = np.flatnonzero(wanted)
    if not len(usable):
        raise Refused("no footprint lies on the imagery and has a label; check the CRS of both")
    strata = known_strata(
        None if targets is None else targets[usable],
        coverage.image[usable].astype(object),
        coverage.gsd_metres[usable],
    )
    drawn, by_chance = draw(strata, most, np.random.default_rng(seed))
    rows = usable[drawn]
    spool = folder / "chips.raw"
    cut = _spool(opened.images, coverage, contract, rows, spool)
    # In the order of the footprints: readers on several threads give any.
    order_of_cut = np.argsort(cut.rows)
    found = cut.rows[order_of_cut]
    scene = np.array([opened.images[index].path for index in coverage.image[found]], object)
    longitude, latitude, _ = window_places(coverage, opened.images, found)[:, found]
    return Candidates(
        name=np.array([f"{path}#{fid}" for path, fid in zip(scene, source.fids[found], strict=True)], object),
        targets=None if targets is None else targets[found],
        scene=scene,
        event=np.full(len(found), "", object),
        gsd_metres=coverage.gsd_metres[found],
        blocks=ground_blocks(longitude, latitude, BLOCK_METRES),
        by_chance=by_chance[np.searchsorted(rows, found)],
        read=lambda chosen: _read(spool, contract.chip_shape, order_of_cut[chosen]),
        warnings=cut.warnings,
    )


@contextmanager
def disk_errors(folder: str) -> Iterator[None]:
    """Turn what the system says while chips are put into `folder` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"chips cannot be kept in {folder} while they are looked at: {error.strerror or error}; make "
            "room there, or name another folder by the variable TMPDIR"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """What was written to a file of chips, and what was left out."""

    rows: NDArray[np.int64]
    """int64, (n,): positions of the footprints, in the file's order."""
    warnings: tuple[str, ...]


def _spool(
    images: Sequence[Image], coverage: Coverage, contract: ChipContract, rows: NDArray[np.int64], path: Path
) -> _Cut:
    """Cut the chips of the footprints at `rows` and write their pixels, one after the other."""
    cut: list[NDArray[np.int64]] = []
    blank = 0
    failed: list[ReadFailure] = []
    with ExitStack() as stack:
        # Plainly, not by way of a mapped file: where the disk is full, that kills the process.
        with disk_errors(str(path.parent)):
            stream = stack.enter_context(path.open("wb", buffering=0))
        for batch in stream_chips(images, coverage, contract, rows):
            if isinstance(batch, ReadFailure):
                failed.append(batch)
                continue
            seen = (batch.valid_fraction >= MIN_VALID) & (batch.covered_fraction >= MIN_COVERED)
            left = memoryview(batch.chips[seen].tobytes())
            with disk_errors(str(path.parent)):
                while left:
                    left = left[stream.write(left) :]
            cut.append(batch.rows[seen])
            blank += int((~seen).sum())
    if not any(map(len, cut)):
        raise Refused("no footprint's window holds enough valid imagery to calibrate on; name other imagery")
    unread = sum(len(failure.rows) for failure in failed)
    warnings = []
    if unread:
        warnings.append(
            f"{unread:,} of {len(rows):,} footprints are left out because their pixels cannot be read: "
            f"{failed[0].reason}"
        )
    if blank:
        warnings.append(
            f"{blank:,} of {len(rows):,} footprints are left out because too little of them or of their "
            "windows is valid imagery"
        )
    return _Cut(np.concatenate(cut), tuple(warnings))


def _read(path: Path, chip_shape: tuple[int, int, int], places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Read chips uint8 (k, S, S, C) from their places, int64 (k,), in a file of chips."""
    size = math.prod(chip_shape)
    chips = [np.fromfile(path, np.uint8, size, offset=size * int(place)) for place in places]
    return np.reshape(chips, (len(places), *chip_shape))
