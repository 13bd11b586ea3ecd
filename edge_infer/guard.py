"""Whether a run that is resumed is still the same run: same model, imagery, footprints, options.

Content decides. Paths count for images only, as they stand in the results.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer.errors import FootprintsError, OutputError
from edge_infer.fingerprint import WHOLE_BYTES, fingerprint, vector_files
from edge_infer.footprints import open_layer
from edge_infer.geopackage import hash_layer
from edge_infer.imagery.trust import raster_files
from edge_infer.results import (
    ImageInfo,
    edited,
    read_images,
    read_judged_images,
    read_last_run,
    read_layer,
    read_schema,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_infer.bundle import Bundle
    from edge_infer.imagery import Image
    from edge_infer.request import RunRequest

MOST_NAMED = 5
"""Images that are named in one message; the others are counted."""


def identify_image(image: Image) -> ImageInfo:
    """Say what image this is, for the record and for comparison.

    `content` is of its files and of what was made of them, which side files (a world file) may change.
    """
    files = raster_files(Path(image.path))
    masks = [mask for file in files if (mask := Path(f"{file}.msk")).is_file()]
    mark = fingerprint(files + masks)
    grid = image.grid
    made = (grid.transform, grid.width, grid.height, image.band_indexes, image.dtype, image.has_mask)
    return ImageInfo(
        path=image.path,
        crs=image.grid.crs.srs,
        gsd_metres=image.gsd_metres,
        date=image.date,
        size_bytes=mark.size_bytes if mark else None,
        modified=mark.modified if mark else None,
        content=hashlib.sha256(f"{mark.content} {made}".encode()).hexdigest() if mark else None,
    )


def identify_footprints(source: Path | None, layer: str | None = None) -> dict[str, Any]:
    """Say what footprints these are, as JSON values; `content` is None where they cannot be read.

    Of a GeoPackage the rows of the layer decide, of other sources the files and which layer it is.
    """
    if source is None:
        return {"path": None, "content": None}
    content = None
    try:
        found = open_layer(source, layer)
        rows = hash_layer(source, found.name)
        if rows is None and (mark := fingerprint(vector_files(source), whole_bytes=WHOLE_BYTES)):
            rows = mark.content
        if rows is not None:
            content = hashlib.sha256(f"{found.name} {found.crs} {found.fields} {rows}".encode()).hexdigest()
    except (FootprintsError, OSError):  # said when they are read
        pass
    return {"path": os.path.realpath(source), "content": content}


def begun(out: Path) -> bool:
    """Whether a run has begun to fill in the output `out`. `OutputError` where it is none."""
    read_schema(out)
    return read_last_run(out) is not None


def find_differences(
    request: RunRequest, bundle: Bundle, images: Sequence[ImageInfo], footprints: dict[str, Any]
) -> list[str]:
    """Compare with the last run of the output `request.out`; each difference in plain words.

    `OutputError` where the model has other classes, for which the output has no columns, where rows were
    lost or gained, and where the record of runs was edited.
    """
    try:
        return _find_differences(request, bundle, images, footprints)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise edited(request.out, error) from error


def has_new_images(out: Path, images: Sequence[ImageInfo]) -> bool:
    """Whether images are there that the last run of `out` did not have."""
    before = read_last_run(out)
    return before is not None and not {image.path for image in images} <= set(before["images"])


def _find_differences(
    request: RunRequest, bundle: Bundle, images: Sequence[ImageInfo], footprints: dict[str, Any]
) -> list[str]:
    before = read_last_run(request.out)
    assert before is not None, "the caller has asked begun()"
    schema = read_schema(request.out)
    if schema.classes != bundle.manifest.classes:
        raise OutputError(
            f"{request.out} has columns for the classes {', '.join(schema.classes)}, the model has"
            f" {', '.join(bundle.manifest.classes)}; resume with the same model, or --overwrite the output"
        )
    found = request.differences(before["options"])
    if before["model_sha256"] != bundle.sha256:
        found.append(
            f"the model was {before['model']} with other content (sha256 {before['model_sha256'][:12]}, "
            f"is {bundle.manifest.name}, {bundle.sha256[:12]})"
        )
    recorded = read_images(request.out)
    found += _image_differences(
        [recorded[path] for path in before["images"]],
        images,
        skipped={path for path, _ in before["skipped_images"]},
        judged=read_judged_images(request.out),
    )
    found += _footprint_differences(before["footprints"], footprints)
    layer = read_layer(request.out)
    if before["footprints"]["count"] != layer["count"]:
        raise OutputError(
            f"{request.out} had {before['footprints']['count']:,} footprints when its run began and has"
            f" {layer['count']:,}; bring back a copy with all of them, or start again with --overwrite"
        )
    if before["footprints"]["layer"] != layer["layer"]:
        found.append("the geometries in the output were edited after the run began")
    return found


def find_precision(out: Path, precision: str) -> list[str]:
    """Compare the precision that the engine runs in with that of the last run of `out`."""
    before = read_last_run(out)
    if before is None or before["precision"] == precision:
        return []
    return [f"the engine ran in {before['precision']} and runs in {precision} (--precision chooses)"]


def _image_differences(
    before: Sequence[ImageInfo], now: Sequence[ImageInfo], *, skipped: set[str], judged: set[str]
) -> list[str]:
    """Compare images: those `skipped` then are new; those on which no row was `judged` may change."""
    old, new = {image.path: image for image in before}, {image.path: image for image in now}
    gone = [image for image in before if image.path not in new]
    added = [image for image in now if image.path not in old]
    if gone and _contents(gone) == _contents(added):
        folders = f"{Path(gone[0].path).parent} to {Path(added[0].path).parent}"
        known = all(image.content is not None for image in gone)
        found = [f"{_number(gone)} moved from {folders}, with the same names{' and contents' * known}"]
    else:
        found = _named(gone, "is gone")
        found += _named(
            [image for image in added if image.path in skipped], "is new, as it could not be used then"
        )
        found += _named([image for image in added if image.path not in skipped], "is new")
    kept = [image for image in now if image.path in old and image.path in judged]
    found += _named(
        [image for image in kept if image.crs != old[image.path].crs], "is in another reference system"
    )
    changed = [
        image
        for image in kept
        if None not in (image.content, old[image.path].content)
        # What cannot be read now or could not be then, is found out when it is needed.
        and image.content != old[image.path].content
    ]
    found += _named(changed, "has other content")
    if not found and list(old) != list(new):
        found.append("the images come in another order")
    return found


def _contents(images: Sequence[ImageInfo]) -> list[tuple[str, str | None]]:
    return [(Path(image.path).name, image.content) for image in images]


def _named(images: Sequence[ImageInfo], what: str) -> list[str]:
    found = [f"image {image.path} {what}" for image in images[:MOST_NAMED]]
    if rest := images[MOST_NAMED:]:
        found.append(f"{_number(rest)} more likewise")
    return found


def _number(images: Sequence[ImageInfo]) -> str:
    return f"{len(images):,} image{'s' if len(images) > 1 else ''}"


def _footprint_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before["path"], now["path"]
    if old is None or new is None:
        if old == new:
            return []
        return [
            f"the footprints were {old or 'the images themselves'} and are {new or 'the images themselves'}"
        ]
    if now["content"] is None:
        return [f"the footprints {new} cannot be read to be compared"]
    if before["content"] == now["content"]:
        return []  # wherever they lie
    moved = "" if old == new else f" ({old} then)"
    return [f"the footprints {new} have other content than when the run began{moved}"]
