"""Which chips are calibrated on and which are held out: never the same ones, whatever they are called."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_infer.bundle import open_bundle
from edge_infer.drift import InputHistogram
from edge_infer.errors import Refused
from edge_infer_calibration.calibrate import CalibrateRequest
from edge_infer_calibration.choice import fingerprints
from edge_infer_calibration.selection import select
from edge_infer_export.chips.cut import ChipsRequest, cut_chips
from edge_infer_export.chips.pairs import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from edge_infer_calibration.selection import Selection

GRADES = {"1": "dark", "2": "middling", "3": "bright"}


@pytest.fixture
def selected(model: onnx.ModelProto, write_model: Callable[..., Path]) -> Callable[..., Selection]:
    """Select the chips of a request."""
    path = write_model(model)

    def choose(stack: ExitStack, **options: Any) -> Selection:
        request = CalibrateRequest(bundle=path, **{"count": 64, **options})
        return select(request, open_bundle(path), stack)

    return choose


@pytest.fixture
def folder(write_chips: Callable[..., Path], imagery_chips: Callable[..., Any]) -> Path:
    """A folder of 140 chips."""
    return write_chips(*imagery_chips(140))


def digests(found: Selection) -> tuple[set[str], list[str]]:
    """Checksums of the pixels of the chosen and of the held-out chips."""
    chosen = fingerprints(found.candidates.read(found.chosen))
    assert chosen == found.sha256
    assert len(set(chosen)) == len(chosen)
    return set(chosen), fingerprints(found.held_out.read(found.held_out_rows))


@pytest.mark.parametrize("kind", ["another path", "a link", "a copy"])
def test_chosen_chips_are_not_held_out_under_another_name(
    folder: Path, selected: Callable[..., Selection], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    other = Path(folder.name)
    if kind == "a link":
        other = folder.parent / "link"
        other.symlink_to(folder)
    if kind == "a copy":
        other = folder.parent / "copy"
        shutil.copytree(folder, other)
    with ExitStack() as stack:
        found = selected(stack, chips=(folder,), held_out=(other,))
        chosen, held_out = digests(found)
    assert len(held_out) == 140 - 64
    assert not chosen & set(held_out)
    assert any("64 held-out chips are left out because they are calib" in text for text in found.warnings)
    with ExitStack() as stack, pytest.raises(Refused, match="0 chips are held out for the gate"):
        selected(stack, chips=(folder,), held_out=(other,), count=140)


def test_a_folder_that_is_named_twice_is_refused(folder: Path, selected: Callable[..., Selection]) -> None:
    with ExitStack() as stack, pytest.raises(Refused, match="is named twice as a folder of chips"):
        selected(stack, chips=(folder, folder.parent / "x" / ".." / folder.name))


def test_copies_of_candidates_are_left_out(folder: Path, selected: Callable[..., Selection]) -> None:
    shutil.copytree(folder, folder.parent / "copy")
    with ExitStack() as stack:
        found = selected(stack, chips=(folder, folder.parent / "copy"), count=140)
        chosen, held_out = digests(found)
    assert len(chosen) == len(held_out) == len(set(held_out)) == 70
    assert not chosen & set(held_out)
    assert "140 candidates are left out because their pixels equal those of others" in found.warnings


def test_held_out_chips_cut_from_the_same_footprints_are_recognised(
    scene: tuple[Path, Path], selected: Callable[..., Selection], tmp_path: Path
) -> None:
    raster, houses = scene
    cut_chips(
        ChipsRequest(
            pairs=(Pair(imagery=(raster,), footprints=houses, label_field="grade"),), out=tmp_path / "cut",
            classes=GRADES, ground_metres=16, chip_pixels=32,
        ),
        quiet=True,
    )  # fmt: skip
    with ExitStack() as stack:
        found = selected(
            stack, imagery=(raster,), footprints=houses, label_field="grade", classes=GRADES,
            held_out=(tmp_path / "cut",),
        )  # fmt: skip
        chosen, held_out = digests(found)
    assert len(held_out) == 150 - 64
    assert not chosen & set(held_out)
    with ExitStack() as stack, pytest.raises(Refused, match="0 chips are held out"):
        selected(
            stack, imagery=(raster,), footprints=houses, label_field="grade", classes=GRADES,
            held_out=(tmp_path / "cut",), count=150,
        )  # fmt: skip


def test_rare_classes_are_chosen_and_held_out(
    write_chips: Callable[..., Path],
    imagery_chips: Callable[..., Any],
    selected: Callable[..., Selection],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_infer_calibration.selection.LOOKED_AT", 2)
    monkeypatch.setattr("edge_infer_calibration.selection.MOST_HELD_OUT", 80)
    classes = np.zeros(400, np.int64)
    classes[:6] = 1
    west = write_chips(imagery_chips(400)[0], classes, name="west")
    east = write_chips(imagery_chips(400, seed=9)[0], classes, name="east")
    with ExitStack() as stack:
        found = selected(stack, chips=(west,), held_out=(east,))
        assert found.candidates.targets is not None
        assert found.held_out.targets is not None
    assert Counter(found.candidates.targets[found.chosen].tolist())[1] == 6
    assert Counter(found.held_out.targets[found.held_out_rows].tolist()) == {0: 74, 1: 6}


def test_the_histogram_is_of_what_there_is_not_of_what_was_chosen(
    write_chips: Callable[..., Path], imagery_chips: Callable[..., Any], selected: Callable[..., Selection]
) -> None:
    chips, classes = imagery_chips(280)
    order = np.argsort(classes, kind="stable")
    rare = np.concatenate([np.flatnonzero(classes == 0)[:60], order[-6:]])  # sixty dark, six bright
    folder = write_chips(chips[rare], classes[rare])
    with ExitStack() as stack:
        found = selected(stack, chips=(folder,), count=33)
    everything = InputHistogram.empty((32, 32, 3))
    everything.add(chips[rare])
    np.testing.assert_array_equal(found.inputs.counts, everything.counts)
    assert found.inputs.chips == 66


def test_pictures_that_cannot_be_read_are_told_of(folder: Path, selected: Callable[..., Selection]) -> None:
    pictures = sorted((folder / "chips").iterdir())
    for picture in pictures[:20]:
        picture.write_bytes(b"junk")
    with ExitStack() as stack:
        found = selected(stack, chips=(folder,))
    assert len(found.candidates) == 120
    assert [text for text in found.warnings if "20 of 140 chips are left out" in text]


def test_a_gate_on_chips_that_the_model_may_know_is_told_of(
    folder: Path,
    write_chips: Callable[..., Path],
    imagery_chips: Callable[..., Any],
    selected: Callable[..., Selection],
) -> None:
    other = write_chips(*imagery_chips(140, seed=8), name="other")
    for held_out, told in (((), True), ((other,), False)):
        with ExitStack() as stack:
            found = selected(stack, chips=(folder,), held_out=held_out)
        assert any("name others with --held-out" in text for text in found.warnings) is told


def test_no_room_for_temporary_files(
    scene: tuple[Path, Path], selected: Callable[..., Selection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(**_: str) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("edge_infer_calibration.selection.tempfile.TemporaryDirectory", none)
    with (
        ExitStack() as stack,
        pytest.raises(Refused, match=r"No usable temp.*; make room there, or name .*TMPDIR"),
    ):
        selected(stack, imagery=(scene[0],), footprints=scene[1])
