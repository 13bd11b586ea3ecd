"""Chips cut straight from imagery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pytest
import shapely

from edge_infer.bundle import open_bundle
from edge_infer.errors import OutputError, Refused
from edge_infer_calibration.candidates import Candidates, from_imagery

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

    from edge_infer.manifest import Manifest


@pytest.fixture
def manifest(model: onnx.ModelProto, write_model: Callable[..., Path]) -> Manifest:
    return open_bundle(write_model(model)).manifest


@pytest.fixture
def cut(scene: tuple[Path, Path], manifest: Manifest, tmp_path: Path) -> Callable[..., Candidates]:
    """Cut the scene's chips."""

    def of(name: str = "cut", **options: Any) -> Candidates:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return from_imagery((scene[0],), scene[1], manifest, folder, **{"most": 1000, "seed": 0, **options})

    return of


def fids(candidates: Candidates) -> list[int]:
    return [int(name.rsplit("#")[1]) for name in candidates.name]


def test_labels_that_are_null_or_left_out_are_no_candidates(cut: Callable[..., Candidates]) -> None:
    """Null stands for -2, which is no place in a list of one class."""
    found = cut(label_field="grade", classes={"1": "dark"}, ignore_labels=("2", "3"))
    assert len(found) == 50
    assert found.targets is not None
    assert set(found.targets.tolist()) == {0}
    with pytest.raises(Refused, match="values without a class: '2'"):
        cut(label_field="grade", classes={"1": "dark"}, ignore_labels=("3",))


def test_a_column_of_nulls_is_no_label(cut: Callable[..., Candidates]) -> None:
    with pytest.raises(Refused, match="no footprint lies on the imagery and has a label"):
        cut(label_field="grade", where="grade IS NULL")


def test_blocks_of_ground_are_those_of_the_footprints(
    scene: tuple[Path, Path], cut: Callable[..., Candidates]
) -> None:
    found = cut()
    assert found.blocks is not None
    geometry, fid = (pyogrio.raw.read(scene[1], return_fids=True)[k] for k in (2, 1))
    centres = shapely.get_coordinates(shapely.centroid(shapely.from_wkb(geometry)))
    places = centres[np.searchsorted(fid, fids(found))]
    # 320 x 240 m in blocks of 100 m that begin anywhere.
    assert 9 <= len(np.unique(found.blocks)) <= 25
    for block in np.unique(found.blocks):
        inside = places[found.blocks == block]
        assert np.ptp(inside, axis=0).max(initial=0) < 103  # grid north is not quite north


def test_a_draw_is_half_by_chance_and_reads_the_same_chips(cut: Callable[..., Candidates]) -> None:
    every = cut(label_field="grade", classes={"1": "dark", "2": "middling", "3": "bright"})
    some = cut("some", label_field="grade", classes={"1": "dark", "2": "middling", "3": "bright"}, most=40)
    assert every.by_chance.all()
    assert (len(some), int(some.by_chance.sum())) == (40, 20)
    rows = {fid: row for row, fid in enumerate(fids(every))}
    np.testing.assert_array_equal(
        some.read(np.arange(40)), every.read(np.array([rows[fid] for fid in fids(some)]))
    )


def test_a_full_disk_is_told_of(cut: Callable[..., Candidates], tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "chips.raw").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot be kept in .*: No space left on device; .* TMPDIR"):
        cut()


def test_what_cannot_be_read_is_told_of(scene: tuple[Path, Path], cut: Callable[..., Candidates]) -> None:
    content = scene[0].read_bytes()
    scene[0].write_bytes(content[: len(content) * 3 // 4])
    found = cut()
    assert 0 < len(found) < 200
    (text,) = found.warnings
    assert text.startswith(
        f"{200 - len(found)} of 200 footprints are left out because their pixels cannot be"
    )
