from __future__ import annotations

import json
from dataclasses import replace

import fiona
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_infer.errors import OutputError, Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.dataset import ChipRecord, Chips, ChipWriter, read_chips

CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=8, bands=("red", "green", "blue"), coarsest_gsd_metres=0.4
)
CLASSES = ("damaged", "intact")


def record(fid, label="damaged"):
    return ChipRecord(
        source_fid=fid,
        label=label,
        image="town.tif",
        gsd_metres=0.3,
        ground_metres=20.0,
        valid_fraction=0.75,
        longitude=-117.0 + fid / 1000,
        latitude=34.5,
    )


def write(folder, chips, labels, *, contract=CONTRACT, classes=CLASSES, overwrite=False):
    with ChipWriter(folder, overwrite=overwrite) as writer:
        for place, (chip, label) in enumerate(zip(chips, labels, strict=True)):
            writer.add(chip, record(place + 1, label))
        writer.finish(contract, classes, statuses={"ok": len(labels)}, options={"layer": None})
    return folder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(bands=st.integers(1, 16), seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path, bands, seed):
    chips = np.random.default_rng(seed).integers(0, 256, (3, 8, 8, bands), dtype=np.uint8)
    contract = replace(CONTRACT, bands=tuple(f"band_{k}" for k in range(bands)))
    folder = write(
        tmp_path / "chips", chips, ["intact", "damaged", "intact"], contract=contract, overwrite=True
    )
    found = read_chips([folder])
    np.testing.assert_array_equal(found.pixels, chips)
    assert found.targets.tolist() == [1, 0, 1]
    assert found.contract == contract
    assert found.ground_metres.tolist() == [20.0, 20.0, 20.0]
    np.testing.assert_allclose(found.longitude, [-116.999, -116.998, -116.997])
    assert found.counts() == {"damaged": 1, "intact": 2}
    assert found.counts(np.array([0, 1])) == {"damaged": 1, "intact": 1}


def test_index_and_pictures_are_for_others_too(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels, ["intact", "damaged", "intact", "intact"])
    with fiona.open(folder / "chips.gpkg", layer="chips") as layer:
        rows = list(layer)
        assert layer.crs.to_epsg() == 4326
    assert rows[1].properties["chip"] == "chips/000000002.png"
    assert rows[1].properties["class"] == "damaged"
    assert rows[1].properties["valid_fraction"] == 0.75
    assert rows[1].geometry.coordinates == pytest.approx((-116.998, 34.5))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "chips/000000002.png")), pixels[1])
    facts = json.loads((folder / "chips.json").read_text())
    assert facts["counts"] == {"damaged": 1, "intact": 3}
    assert facts["statuses"] == {"ok": 4}


def test_several_folders_become_one_set(tmp_path, pixels):
    one = write(tmp_path / "one", pixels[:2], ["damaged", "intact"])
    coarser = replace(CONTRACT, coarsest_gsd_metres=0.7)
    other = write(
        tmp_path / "other", pixels[2:], ["damaged", "intact"], contract=coarser, classes=CLASSES[::-1]
    )
    both = read_chips([one, other])
    assert both.classes == CLASSES
    assert both.targets.tolist() == [0, 1, 0, 1]
    assert both.contract.coarsest_gsd_metres == 0.7
    np.testing.assert_array_equal(both.pixels, pixels)


def test_folders_that_do_not_fit_together_are_refused(tmp_path, pixels):
    one = write(tmp_path / "one", pixels[:2], ["damaged", "intact"])
    larger = write(
        tmp_path / "larger", pixels[2:], ["damaged", "intact"], contract=replace(CONTRACT, ground_metres=40)
    )
    with pytest.raises(Refused, match=r"different contracts \(ground_metres 40.0 against 20"):
        read_chips([one, larger])
    named = write(tmp_path / "named", pixels[2:], ["burnt", "intact"], classes=("burnt", "intact"))
    with pytest.raises(Refused, match=r"has the classes burnt, intact, .*one has damaged, intact"):
        read_chips([one, named])
    with pytest.raises(Refused, match="no folder of chips was named"):
        read_chips([])


def test_a_folder_is_whole_or_not_there(tmp_path, pixels):
    with ChipWriter(tmp_path / "chips") as writer:
        writer.add(pixels[0], record(1))
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_kept(tmp_path, pixels):
    folder = write(tmp_path / "chips", pixels[:1], ["intact"])
    with pytest.raises(OutputError, match="exists; name another folder or say --overwrite"):
        ChipWriter(folder)
    write(folder, pixels[1:2], ["intact"], overwrite=True)
    np.testing.assert_array_equal(read_chips([folder]).pixels, pixels[1:2])

    letters = tmp_path / "letters"
    letters.mkdir()
    ChipWriter(letters)  # empty: may be taken
    (letters / "from_her.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds other things \(no chips.json in it\)"):
        ChipWriter(letters, overwrite=True)
    with pytest.raises(OutputError, match="is a file, wanted a folder"):
        ChipWriter(letters / "from_her.txt", overwrite=True)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        ChipWriter(letters / "from_her.txt" / "chips"),
    ):
        pass


def damage_json(folder):
    (folder / "chips.json").write_text("{")


def drop_json(folder):
    (folder / "chips.json").unlink()


def future_json(folder):
    facts = json.loads((folder / "chips.json").read_text())
    (folder / "chips.json").write_text(json.dumps({**facts, "format": 99}))


def forget_a_class(folder):
    facts = json.loads((folder / "chips.json").read_text())
    (folder / "chips.json").write_text(json.dumps({**facts, "classes": ["damaged"]}))


def drop_index(folder):
    (folder / "chips.gpkg").unlink()


def damage_index(folder):
    (folder / "chips.gpkg").write_bytes(b"no database")


def drop_chip(folder):
    (folder / "chips/000000001.png").unlink()


def damage_chip(folder):
    path = folder / "chips/000000001.png"
    path.write_bytes(path.read_bytes()[:60])


def shrink_chip(folder):
    Image.new("RGB", (7, 7)).save(folder / "chips/000000001.png")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_json, "incomplete or malformed"),
        (drop_json, "wanted a folder that `edge-infer chips` made"),
        (future_json, "chips format 99, wanted 1"),
        (forget_a_class, "holds classes that chips.json does not name: intact"),
        (drop_index, "chips.gpkg cannot be read"),
        (damage_index, "chips.gpkg cannot be read"),
        (drop_chip, "000000001.png cannot be read"),
        (damage_chip, "000000001.png cannot be read"),
        (shrink_chip, r"000000001.png is uint8 \(7, 7, 3\), wanted uint8 \(8, 8, 3\)"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path, pixels, damage, text):
    folder = write(tmp_path / "chips", pixels[:2], ["damaged", "intact"])
    damage(folder)
    with pytest.raises(Refused, match=text) as refusal:
        read_chips([folder])
    assert "\n" not in str(refusal.value)


def test_chips_refuse_arrays_that_do_not_fit(pixels):
    values = {
        "contract": CONTRACT,
        "classes": CLASSES,
        "pixels": pixels,
        "targets": np.zeros(4, np.int64),
        "longitude": np.zeros(4),
        "latitude": np.zeros(4),
        "ground_metres": np.ones(4),
    }
    assert len(Chips(**values)) == 4
    for name, bad in (
        ("pixels", pixels[:, :4]),
        ("pixels", pixels.astype(float)),
        ("latitude", np.zeros(3)),
        ("targets", np.array([0, 1, 2, 0])),
        ("targets", np.array([0, -1, 1, 0])),
    ):
        with pytest.raises(Refused):
            Chips(**{**values, name: bad})
