"""Styles: well-formed, and each footprint drawn by exactly one rule (SQLite evaluates the filters)."""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.schema import STATUSES, Schema, quoted
from edge_infer.style import Family, legend, qml, sld

if TYPE_CHECKING:
    from edge_infer.style import Rule

FAMILIES = get_args(Family)
# Class names are printable (the bundle sees to that); a backslash is written otherwise in QGIS and SQL.
CLASS_NAMES = st.text(st.characters(), min_size=1, max_size=20).filter(str.isprintable)
CLASSES = st.lists(CLASS_NAMES, min_size=1, max_size=5, unique=True).map(tuple)
SLD = {"se": "http://www.opengis.net/se", "ogc": "http://www.opengis.net/ogc"}


def rules_for(classes: tuple[str, ...], fields: tuple[str, ...] = ()) -> tuple[Schema, tuple[Rule, ...]]:
    schema = Schema.plan("houses", geometry_column="geom", fields=fields, classes=classes)
    return schema, legend(schema, [f"#0000{number:02x}" for number in range(len(classes))])


def filters(document: str) -> list[str]:
    return [rule.attrib["filter"] for rule in ET.fromstring(document).iter("rule")]


def test_the_legend_has_classes_every_status_and_the_rest() -> None:
    _, rules = rules_for(("destroyed", "no visible damage"))
    assert [rule.label for rule in rules] == [
        "destroyed",
        "no visible damage",
        "not classified yet",
        "outside the imagery",
        "imagery has no data here",
        "imagery too coarse",
        "bad geometry",
        "imagery could not be read",
        "other",
    ]
    assert {value for rule in rules for _, value in rule.conditions} >= set(STATUSES)
    looks = [(rule.color, rule.pattern) for rule in rules]
    assert len(set(looks)) == len(looks)


def test_renamed_columns_are_used_under_their_real_names() -> None:
    schema, rules = rules_for(("a",), fields=("status", "CLASS_LABEL"))
    assert filters(qml(rules, "polygon"))[0] == "\"edge_status\" = 'ok' AND \"edge_class_label\" = 'a'"
    properties = ET.fromstring(sld(rules, "polygon", schema.layer)).findall(".//ogc:PropertyName", SLD)
    assert {element.text for element in properties} == {"edge_status", "edge_class_label"}


@given(classes=CLASSES, family=st.sampled_from(FAMILIES))
def test_each_footprint_meets_exactly_one_rule(classes: tuple[str, ...], family: Family) -> None:
    _, rules = rules_for(classes)
    *known, rest = filters(qml(rules, family))
    assert rest == "ELSE"
    rows = [("ok", name) for name in classes] + [(status, None) for status in STATUSES if status != "ok"]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE t ({quoted('class_label')} TEXT, {quoted('status')} TEXT)")
        database.executemany("INSERT INTO t (status, class_label) VALUES (?, ?)", rows)
        for number, text in enumerate(known):
            sql = text.replace("\\\\", "\\")
            found = database.execute(f"SELECT status, class_label FROM t WHERE {sql}").fetchall()
            assert found == [rows[number]]


@given(classes=CLASSES, layer=st.text(max_size=20), family=st.sampled_from(FAMILIES))
def test_sld_is_well_formed_and_says_the_same(classes: tuple[str, ...], layer: str, family: Family) -> None:
    _, rules = rules_for(classes)
    elements = ET.fromstring(sld(rules, family, layer)).findall(".//se:Rule", SLD)
    assert len(elements) == len(rules)
    for element, rule in zip(elements, rules, strict=True):
        values = [literal.text for literal in element.findall(".//ogc:Literal", SLD)]
        assert values == [value for _, value in rule.conditions]
        assert (element.find("se:ElseFilter", SLD) is not None) == (not rule.conditions)


@pytest.mark.parametrize(("family", "kind"), [("polygon", "fill"), ("line", "line"), ("point", "marker")])
def test_symbols_fit_the_geometry(family: Family, kind: str) -> None:
    _, rules = rules_for(("a",))
    document = ET.fromstring(qml(rules, family))
    symbols = {symbol.attrib["name"]: symbol for symbol in document.iter("symbol")}
    assert {symbol.attrib["type"] for symbol in symbols.values()} == {kind}
    assert [rule.attrib["symbol"] for rule in document.iter("rule")] == list(symbols)
    # QGIS before 3.26 reads <prop>, later ones <Option>: both say the same.
    for layer in document.iter("layer"):
        options = {o.attrib["name"]: o.attrib["value"] for o in layer.findall("Option/Option")}
        assert options == {p.attrib["k"]: p.attrib["v"] for p in layer.findall("prop")}


def test_a_class_keeps_its_color() -> None:
    _, rules = rules_for(("a", "b"))
    colors = [
        layer.attrib["v"]
        for layer in ET.fromstring(qml(rules, "polygon")).findall(".//prop[@k='outline_color']")
    ]
    assert colors[:2] == ["0,0,0,255", "0,0,1,255"]
