"""Whether a run could be done: what `run` would refuse, and how many footprints it would classify."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer.coverage import cover, doubtful_places
from edge_infer.doctor.finding import Finding
from edge_infer.errors import ContractError, EdgeInferError, FootprintsError, ImageryError, OutputError
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.info import describe_file
from edge_infer.outlines import cover_own, write_outlines
from edge_infer.output import refuse_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.doctor import Checkup
    from edge_infer.imagery import Imagery

MOST_NAMED = 3
"""Images, reasons and notes told of one kind; the others are counted."""

LITTLE = 0.5
"""A smaller share of classifiable footprints than this is called to mind."""


def look_at_work(checkup: Checkup, bundle: Bundle) -> Iterator[Finding]:
    """Check imagery, footprints and output of a run that is to come; pixels are not read."""
    contract = bundle.manifest.contract
    if checkup.imagery:
        try:
            imagery = open_imagery(checkup.imagery, contract, crs=checkup.imagery_crs, bands=checkup.bands)
        except (ImageryError, ContractError) as error:
            yield _refused("imagery", error)
        else:
            yield from _images(imagery)
            yield from _footprints(checkup, imagery, bundle)
    elif checkup.footprints is not None:
        try:
            footprints = read_footprints(
                checkup.footprints, layer=checkup.layer, where=checkup.where, crs=checkup.footprints_crs
            )
        except FootprintsError as error:
            yield _refused("footprints", error)
        else:
            told = f"{len(footprints):,}, {footprints.crs.name}"
            yield Finding("footprints", "ok", told, "name --imagery to see how many it covers")
    if checkup.out is not None:
        yield _output(checkup, bundle)


def _refused(name: str, error: Exception) -> Finding:
    """Tell what `run` would refuse, as it would."""
    why, _, do = str(error).rpartition("; ")
    return Finding(name, "problem", why or do, do if why else "a run would be refused: mend this first")


def _images(imagery: Imagery) -> Iterator[Finding]:
    images = imagery.images
    sizes = sorted(image.gsd_metres for image in images)
    pixels = f"{sizes[0]:.3g} m" if sizes[0] == sizes[-1] else f"{sizes[0]:.3g} to {sizes[-1]:.3g} m"
    systems = sorted({image.grid.crs.name for image in images})
    text = f"{len(images):,} fit the model, pixels of {pixels}, {'; '.join(systems[:MOST_NAMED])}"
    figures = {"images": len(images), "skipped": len(imagery.skipped), "gsd_metres": [sizes[0], sizes[-1]]}
    if imagery.skipped:
        named = "; ".join(reason for _, reason in imagery.skipped[:MOST_NAMED])
        text += f"; {len(imagery.skipped):,} do not: {named}"
        yield Finding("imagery", "warning", text, "a run goes on without them; mend or remove them", figures)
    else:
        yield Finding("imagery", "ok", text, None, figures)


def _footprints(checkup: Checkup, imagery: Imagery, bundle: Bundle) -> Iterator[Finding]:
    try:
        coverage = _cover(checkup, imagery, bundle)
    except FootprintsError as error:
        yield _refused("footprints", error)
        return
    yield _shares(coverage)
    for note in doubtful_places(coverage, imagery.images)[:MOST_NAMED]:
        yield Finding("place", "warning", note, "check some footprints on the map before the result is used")


def _cover(checkup: Checkup, imagery: Imagery, bundle: Bundle) -> Coverage:
    contract = bundle.manifest.contract
    if checkup.footprints is not None:
        footprints = read_footprints(
            checkup.footprints, layer=checkup.layer, where=checkup.where, crs=checkup.footprints_crs
        )
        return cover(footprints, imagery, contract)
    with tempfile.TemporaryDirectory(prefix="edge-infer-") as folder:
        outlines = Path(folder) / "images.geojson"
        write_outlines(imagery, outlines)
        return cover_own(read_footprints(outlines), imagery, contract)


def _shares(coverage: Coverage) -> Finding:
    """Tell how many footprints would be classified, and why not the others."""
    counts = Counter(coverage.status.tolist())
    total, ready = len(coverage.status), counts["pending"]
    reasons = Counter(
        (status, reason)
        for status, reason in zip(coverage.status.tolist(), coverage.reason.tolist(), strict=True)
        if status != "pending"
    )
    figures: dict[str, Any] = {"footprints": total, "by_status": dict(counts)}
    told = [f"{status} {count:,}: {reason}" for (status, reason), count in reasons.most_common(MOST_NAMED)]
    rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(MOST_NAMED))
    if rest:
        told.append(f"{rest:,} for other reasons")
    text = "; ".join([f"{_part(ready, total)} would be classified", *told])
    if ready == 0:
        do = "is this the imagery of that place? check --footprints-crs and --imagery-crs"
        return Finding("footprints", "problem", text, do, figures)
    if ready < LITTLE * total:
        return Finding(
            "footprints", "warning", text, "more imagery, or is one reference system wrong?", figures
        )
    return Finding("footprints", "ok", text, None, figures)


def _part(count: int, total: int) -> str:
    share = 100 * count / total if total else 0.0
    return f"{count:,} of {total:,} ({share:.1f} %)"


def _output(checkup: Checkup, bundle: Bundle) -> Finding:
    assert checkup.out is not None, "the caller has looked"
    inputs = [path for path in (checkup.footprints, bundle.path, *checkup.imagery) if path is not None]
    try:
        refuse_output(checkup.out, inputs, overwrite=True)
        begun = _begun(checkup.out)
        if begun is not None:
            return begun
        refuse_output(checkup.out, inputs, overwrite=False)
    except OutputError as error:
        return _refused("output", error)
    return Finding("output", "ok", f"{checkup.out} can be written")


def _begun(out: Path) -> Finding | None:
    """Tell of an output of an earlier run, with which `run` goes on if it is told to; None of other files."""
    try:
        facts = describe_file(out) if out.exists() else {}
    except EdgeInferError:
        return None
    if facts.get("kind") != "output":
        return None
    pending = facts["statuses"].get("pending", 0)
    done = f"{pending:,} of {facts['footprints']:,} footprints are still to do" if pending else "all is done"
    go_on = "--resume goes on with it, --overwrite replaces it; or name another"
    return Finding("output", "warning", f"{out} is of an earlier run: {done}", go_on, {"pending": pending})
