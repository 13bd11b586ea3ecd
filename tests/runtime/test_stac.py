from __future__ import annotations

import json
import re
import string
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.errors import BundleError
from edge_infer.manifest import ChipContract, Manifest
from edge_infer.stac import FORMAT, Member, from_item, to_item

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

MEMBERS = {
    "model.onnx": Member(1000, "ab" * 32),
    "evaluation.json": Member(10, "cd" * 32),
    "golden/chips.npy": Member(20, "ef" * 32),
}
NUMBERS = st.floats(-1e9, 1e9)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CLASS_NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)


@st.composite
def manifests(draw: DrawFn) -> Manifest:
    bands = draw(st.integers(1, 5))
    classes = draw(st.lists(CLASS_NAMES, min_size=2, max_size=5, unique_by=str.casefold))
    colors = st.lists(
        st.from_regex(r"#[0-9a-f]{6}", fullmatch=True), min_size=len(classes), max_size=len(classes)
    )
    return Manifest(
        name=draw(st.text(string.ascii_letters, min_size=3, max_size=30)),
        created=draw(st.datetimes()).replace(year=2025).isoformat(timespec="seconds") + "Z",
        architecture="ResNet34",
        parameters=draw(st.integers(1, 10**9)),
        classes=tuple(classes),
        colors=tuple(draw(colors)),
        contract=ChipContract(
            ground_metres=30,
            chip_pixels=draw(st.integers(8, 512)),
            bands=tuple(f"band {index}" for index in range(bands)),
            coarsest_gsd_metres=1,
        ),
        mean=tuple(draw(st.lists(NUMBERS, min_size=bands, max_size=bands))),
        std=tuple(draw(st.lists(st.floats(0.1, 1e6), min_size=bands, max_size=bands))),
        temperature=draw(st.floats(0.01, 100)),
        facts=draw(st.dictionaries(st.sampled_from(["training", "parity", "gate"]), JSON_VALUES)),
    )


@given(manifest=manifests())
def test_manifest_survives_json(manifest):
    assert from_item(json.loads(json.dumps(to_item(manifest, MEMBERS)))) == manifest


@pytest.fixture
def item(make_manifest):
    return to_item(make_manifest(), MEMBERS)


def test_item_has_what_stac_requires(item):
    assert item["type"] == "Feature"
    assert item["stac_version"] == "1.1.0"
    assert item["id"] == "town"
    assert item["geometry"] is None
    assert "bbox" not in item  # forbidden where the geometry is null
    assert item["links"] == []
    assert item["properties"]["datetime"] == "2025-06-01T12:00:00Z"
    assert all(asset["href"].startswith("./") for asset in item["assets"].values())


def test_item_has_what_mlm_requires(item):
    """The rules of the extension's JSON schema, as far as they touch what is written here."""
    assert any(re.search(r"/mlm/v1\.5\.\d+/schema\.json$", uri) for uri in item["stac_extensions"])
    properties = item["properties"]
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:architecture"]
    assert properties["mlm:tasks"] == ["scene-classification"]
    (chips,), (probabilities,) = properties["mlm:input"], properties["mlm:output"]
    assert {"name", "bands", "input"} <= chips.keys()
    assert {"name", "tasks", "result"} <= probabilities.keys()
    for structure in (chips["input"], probabilities["result"]):
        assert len(structure["shape"]) == len(structure["dim_order"]) == len(set(structure["dim_order"]))
        assert all(re.fullmatch(r"[a-z-_]+", name) for name in structure["dim_order"])
    # Bands that the input names must be described by STAC itself.
    assert [band["name"] for band in properties["bands"]] == chips["bands"] == ["red", "green", "blue"]
    assert (chips["input"]["shape"], chips["input"]["data_type"]) == ([-1, 16, 16, 3], "uint8")
    assert (probabilities["result"]["shape"], probabilities["result"]["data_type"]) == ([-1, 2], "float32")


def test_assets_say_which_is_the_model(item):
    models = [asset for asset in item["assets"].values() if "mlm:model" in asset["roles"]]
    assert [asset["href"] for asset in models] == ["./model.onnx"]
    assert models[0]["mlm:artifact_type"] == "onnx"
    # STAC allows bands in the properties only where an asset has them too.
    assert models[0]["bands"] == item["properties"]["bands"]
    for name, asset in item["assets"].items():
        assert asset["file:size"] == MEMBERS[name].size_bytes
        assert asset["file:checksum"] == f"1220{MEMBERS[name].sha256}"
        assert not {"mlm:name", "mlm:input", "mlm:output", "mlm:hyperparameters"} & asset.keys()


def test_classes_keep_their_own_names_beside_the_allowed_ones(item):
    first = item["properties"]["mlm:output"][0]["classification:classes"][0]
    assert first == {
        "value": 0,
        "name": "no-visible-damage",
        "description": "no visible damage",
        "color_hint": "1A9850",
    }


def test_value_scaling_is_that_of_the_chip(make_manifest):
    contract = ChipContract(
        ground_metres=30,
        chip_pixels=16,
        bands=("red",),
        dtype="uint16",
        value_range=(100.0, 3100.0),
        coarsest_gsd_metres=1,
    )
    item = to_item(make_manifest(contract=contract, mean=(1.0,), std=(1.0,)), MEMBERS)
    (scaling,) = item["properties"]["mlm:input"][0]["value_scaling"]
    assert scaling["type"] == "processing"
    assert scaling["expression"] == "numpy.rint(numpy.clip((A - 100.0) * 255 / 3000.0, 0, 255))"


def test_thresholds_of_a_training_are_our_own_and_come_back(make_manifest):
    thresholds = {"damaged": {"high_precision": 0.83, "high_recall": None}}
    manifest = make_manifest(facts={"thresholds": thresholds})
    found = to_item(manifest, MEMBERS)
    assert found["properties"]["edge:thresholds"] == thresholds
    assert found["properties"]["edge:temperature"] == manifest.temperature
    assert found["assets"]["evaluation.json"]["roles"] == ["metadata"]
    assert from_item(json.loads(json.dumps(found))) == manifest


def test_stac_model_agrees(item):
    """Hold the item against the extension's own library and STAC's own schema, where they are installed."""
    mlm = pytest.importorskip("stac_model.schema", reason="stac-model is not installed")
    stac = pytest.importorskip("pystac")
    validation = pytest.importorskip("pystac.validation.stac_validator")
    read = mlm.MLModelProperties(**item["properties"])
    assert mlm.SCHEMA_URI.split("/v")[0] == item["stac_extensions"][0].split("/v")[0]
    assert [entry.to_dict()["name"] for entry in read.output[0].classes] == ["no-visible-damage", "damaged"]
    # This schema is part of pystac; nothing is fetched.
    validation.JsonSchemaSTACValidator().validate_core(item, stac.STACObjectType.ITEM, "1.1.0")


@pytest.mark.parametrize("found", [FORMAT + 1, "1", None])
def test_another_format_is_refused(item, found):
    item["properties"]["edge:format"] = found
    with pytest.raises(BundleError, match="update edge-infer"):
        from_item(item)


@pytest.mark.parametrize("broken", [{}, {"properties": None}, {"properties": {"mlm:name": "town"}}])
def test_an_item_that_is_no_manifest_is_refused(broken):
    with pytest.raises(BundleError, match="not a model bundle"):
        from_item(broken)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlm:name", 5),
        ("datetime", None),
        ("mlm:total_parameters", "many"),
        ("mlm:total_parameters", 1e999),
        ("edge:classes", None),
        ("edge:classes", ["damaged", "intact"]),
        ("edge:classes", [{"name": 1, "color": "#000000"}, {"name": 2, "color": "#000000"}]),
        ("edge:contract", None),
        ("edge:contract", {"ground_metres": 30}),
        ("edge:normalisation", {"mean": 1, "std": 2}),
        ("edge:normalisation", {"mean": [1], "std": [1]}),
        ("edge:temperature", "warm"),
        ("edge:temperature", 10**400),
    ],
)
def test_a_malformed_value_is_refused(item, key, value):
    item["properties"][key] = value
    with pytest.raises(BundleError) as caught:
        from_item(item)
    assert "\n" not in str(caught.value)
    del item["properties"][key]
    with pytest.raises(BundleError):
        from_item(item)
