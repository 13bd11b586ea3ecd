from __future__ import annotations

import json
import random
import zipfile
from collections import Counter

import pytest

from edge_infer.errors import Refused
from edge_infer_export.importing.emd import chip_options, read_emd


@pytest.fixture
def emd(tmp_path):
    def write(values, name="model.emd"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write


def test_the_seed_workflows_model(shared_data):
    folder = shared_data / "arcgis" / "raster-deep-learning"
    assert chip_options(read_emd(folder / "woolseyFire_600_50.emd")) == {
        "classes": {"1": "Damaged", "2": "Undamaged"},
        "chip_pixels": 600,
        "bands": (1, 2, 3),
        "blacken": False,
        "window": "fixed",
    }
    other = chip_options(read_emd(folder / "HouseDamageClassifier_ProBuiltin.emd"))
    assert other["classes"] == {"0": "undamaged", "1": "damaged"}  # the opposite order
    assert other["blacken"] is True


def test_models_that_classify_no_objects_are_refused(shared_data):
    refused = []
    for path in sorted((shared_data / "arcgis" / "raster-deep-learning").glob("*.emd")):
        model = read_emd(path)  # all of them can be read
        try:
            chip_options(model)
        except Refused as refusal:
            assert "wanted ObjectClassification" in str(refusal)  # noqa: PT017
            refused.append(model.model_type)
    assert Counter(refused) == {"ImageClassification": 2, "ObjectDetection": 7}


def test_placeholders_say_nothing(emd):
    values = {
        "ModelType": "e.g. ObjectDetection or ImageClassification",
        "ImageHeight": "e.g. 256",
        "ImageWidth": "e.g. 256",
        "ExtractBands": "e.g. [0, 1, 2]",
        "Classes": [{"Value": 1, "Name": "1", "Color": [-1, -1, -1]}, {"ClassValue": 2, "ClassName": "gone"}],
    }
    model = read_emd(emd("\ufeff" + json.dumps(values)))
    assert (model.model_type, model.chip_pixels, model.bands, model.blacken) == (None, None, None, None)
    assert model.classes == {"1": "1", "2": "gone"}
    assert chip_options(model) == {"classes": {"1": "1", "2": "gone"}}


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"wkid": 102100, "latestWkid": 3857}, 3857),
        ({"wkid": 32615}, 32615),
        ({"wkid": 102008}, None),  # known to Esri alone
        ({"wkt": 'GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,298.257223563]],'
                 'PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]]'}, 4326),
    ],
)  # fmt: skip
def test_cell_sizes_have_a_reference_system(emd, reference, code):
    cell = {"x": 0.5, "y": 0.5, "spatialReference": reference}
    model = read_emd(emd({"MinCellSize": cell, "MaxCellSize": {**cell, "x": 0.501, "y": 0.501}}))
    assert model.cell_size == 0.5
    assert model.crs is not None
    assert model.crs.to_epsg() == code
    uneven = read_emd(emd({"MinCellSize": cell, "MaxCellSize": {**cell, "x": 0.6, "y": 0.6}}))
    assert uneven.cell_size is None
    assert read_emd(emd({"MinCellSize": {**cell, "spatialReference": {"wkid": 99}}})).crs is None


def test_packages_are_read_without_their_weights(emd, tmp_path):
    package = tmp_path / "model.dlpk"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("model/model.emd", json.dumps({"ModelType": "ObjectClassification", "Classes": []}))
        archive.writestr("model/model.pth", b"not to be read")
        archive.writestr("model/run.py", "raise SystemExit")
    assert read_emd(package).model_type == "ObjectClassification"
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr("other.emd", "{}")
    with pytest.raises(Refused, match=r"holds 2 \.emd files"):
        read_emd(package)


def test_damaged_packages_are_refused_in_one_line(tmp_path):
    path = tmp_path / "model.dlpk"
    classes = [{"Value": number, "Name": f"n{number * 7919}"} for number in range(400)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.emd", json.dumps({"Classes": classes}))
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            read_emd(path)
        except Refused as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.emd", "{", "is no .emd file"),
        ("a.emd", "[]", "wanted a JSON object, found list"),
        ("a.dlpk", "PK no zip", "cannot be read as an .emd file"),
        ("a.emd", {"Classes": [{"Value": 1, "Name": "a"}, {"Value": 1, "Name": "b"}]}, "both 'a' and 'b'"),
    ],
)
def test_what_is_no_emd_is_refused_in_one_line(emd, name, content, text):
    with pytest.raises(Refused, match=text) as refusal:
        read_emd(emd(content, name))
    assert "\n" not in str(refusal.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(Refused, match=r"nothing\.emd cannot be read"):
        read_emd(tmp_path / "nothing.emd")
