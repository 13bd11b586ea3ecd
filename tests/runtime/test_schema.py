from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.errors import OutputError
from edge_infer.schema import OWN_TABLES, RESULT_COLUMNS, STATUSES, Schema, ascii_lower, free_name, quoted

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
CLASSES = st.lists(NAMES, min_size=1, max_size=4, unique=True).map(tuple)


def plan(fields: list[str], *, layer: str = "houses", classes: tuple[str, ...] = ("a", "b")) -> Schema:
    return Schema.plan(layer, geometry_column="", fields=fields, classes=classes)


def test_names_stay_as_documented_where_none_is_taken() -> None:
    schema = plan(["height", "use"])
    assert all(name == documented for documented, name in schema.columns.items())
    assert list(schema.columns) == [
        "source_fid", "class_label", "confidence", "p_a", "p_b", "status", "reason",
        "valid_fraction", "covered_fraction", "image", "gsd_m",
    ]  # fmt: skip
    assert schema.probabilities == ("p_a", "p_b")
    assert (schema.layer, schema.fid_column, schema.geometry_column) == ("houses", "fid", "geom")


def test_what_is_taken_gets_a_prefix_and_then_a_number() -> None:
    schema = plan(["Status", "image", "edge_image", "EDGE_IMAGE_2", "p_a", "fid", "GEOM"])
    assert schema.columns["status"] == "edge_status"
    assert schema.columns["image"] == "edge_image_3"
    assert schema.probabilities == ("edge_p_a", "p_b")
    assert (schema.fid_column, schema.geometry_column) == ("edge_fid", "edge_geom")


def test_an_output_can_be_the_source_of_the_next() -> None:
    first = plan(["use"])
    second = plan(["use", *first.columns.values()])
    third = plan(["use", *first.columns.values(), *second.columns.values()])
    assert second.columns["status"] == "edge_status"
    assert third.columns["status"] == "edge_status_2"


@pytest.mark.parametrize(
    "layer", [*OWN_TABLES, "gpkg_things", "GPKG_x", "sqlite_master", "rtree_a_geom", "(1)", "'"]
)
def test_a_layer_never_takes_a_reserved_name(layer: str) -> None:
    assert plan([], layer=layer).layer == f"edge_{layer}"


def test_a_layer_without_a_name_gets_one() -> None:
    assert plan([], layer="").layer == "footprints"


@given(fields=st.lists(NAMES, max_size=8), classes=CLASSES)
def test_sqlite_takes_all_names_in_one_table(fields: list[str], classes: tuple[str, ...]) -> None:
    distinct = list({ascii_lower(name): name for name in fields}.values())
    schema = plan(distinct, classes=classes)
    columns = [
        f"{quoted(schema.fid_column)} INTEGER PRIMARY KEY",
        f"{quoted(schema.geometry_column)} BLOB",
        *(f"{quoted(name)} TEXT" for name in distinct),
        *schema.declarations(),
    ]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE t ({', '.join(columns)})")
        found = [name for _, name, *_ in database.execute("PRAGMA table_info(t)")]
    assert found[2 : 2 + len(distinct)] == distinct
    assert len(found) == 2 + len(distinct) + len(RESULT_COLUMNS) + len(classes)


@given(name=NAMES, taken=st.sets(NAMES.map(ascii_lower)))
def test_a_free_name_is_free_once(name: str, taken: set[str]) -> None:
    before = set(taken)
    found = free_name(name, taken)
    assert ascii_lower(found) not in before
    assert taken == before | {ascii_lower(found)}
    assert found.endswith(name) or found.startswith(f"edge_{name}_")


@given(fields=st.lists(NAMES, max_size=4), layer=NAMES, classes=CLASSES)
def test_a_schema_survives_json(fields: list[str], layer: str, classes: tuple[str, ...]) -> None:
    schema = plan(fields, layer=layer, classes=classes)
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layer": "a"}', "null", '{"classes": 3}'])
def test_a_broken_schema_is_an_output_error(text: str) -> None:
    with pytest.raises(OutputError, match="malformed"):
        Schema.from_json(text)


def test_a_schema_without_its_columns_is_refused() -> None:
    with pytest.raises(OutputError, match="lacks the columns source_fid, class_label"):
        Schema("a", "fid", "geom", ("x",), {})


def test_pending_is_the_default_status() -> None:
    assert "pending" in STATUSES
    assert RESULT_COLUMNS["status"].endswith("DEFAULT 'pending'")
