"""How a desktop GIS shows an output: one rule for each class, one for each other status.

Pure: rules in, XML text out, as QML (QGIS) and as SLD 1.1 (others). No footprint is invisible: what
no rule knows is drawn as "other".
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_infer.schema import Schema

Family = Literal["polygon", "line", "point"]
"""What kind of symbol a layer needs."""

Pattern = Literal["solid", "b_diagonal", "f_diagonal", "diagonal_x", "horizontal", "vertical", "cross"]
"""Fill patterns, under their QML names."""

STATUS_LOOKS: Mapping[str, tuple[str, str, Pattern]] = {
    "pending": ("not classified yet", "#c4c4c4", "solid"),
    "outside_imagery": ("outside the imagery", "#9a9a9a", "b_diagonal"),
    "no_data": ("imagery has no data here", "#6e6e6e", "f_diagonal"),
    "too_coarse": ("imagery too coarse", "#858585", "horizontal"),
    "bad_geometry": ("bad geometry", "#4d4d4d", "cross"),
    "read_error": ("imagery could not be read", "#303030", "diagonal_x"),
}
"""Label, grey and pattern of each status but `ok`."""

FILL_OPACITY = 0.55
"""The roof stays visible under its colour."""

SLD_MARKS: Mapping[Pattern, str] = {
    "b_diagonal": "shape://slash",
    "f_diagonal": "shape://backslash",
    "diagonal_x": "shape://times",
    "horizontal": "shape://horline",
    "vertical": "shape://vertline",
    "cross": "shape://plus",
}
"""The same patterns under their SLD names."""

SLD_NAMESPACES = {
    "": "http://www.opengis.net/sld",
    "se": "http://www.opengis.net/se",
    "ogc": "http://www.opengis.net/ogc",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the legend."""

    label: str
    color: str
    """As #rrggbb."""
    pattern: Pattern
    conditions: tuple[tuple[str, str], ...]
    """(column, value) pairs that must all hold; none at all means: whatever no other rule takes."""


def legend(schema: Schema, colors: Sequence[str]) -> tuple[Rule, ...]:
    """Rules of an output: the K classes in their `colors` (#rrggbb), the other statuses, the rest."""
    status, class_label = schema.columns["status"], schema.columns["class_label"]
    classes = (
        Rule(name, color, "solid", ((status, "ok"), (class_label, name)))
        for name, color in zip(schema.classes, colors, strict=True)
    )
    statuses = (
        Rule(label, grey, pattern, ((status, value),))
        for value, (label, grey, pattern) in STATUS_LOOKS.items()
    )
    return (*classes, *statuses, Rule("other", "#000000", "vertical", ()))


def qml(rules: Sequence[Rule], family: Family) -> str:
    """Write the rules as a QGIS style."""
    document = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ET.SubElement(document, "renderer-v2", type="RuleRenderer", symbollevels="0")
    rule_list = ET.SubElement(renderer, "rules", key="rules")
    symbols = ET.SubElement(renderer, "symbols")
    symbol_type = {"polygon": "fill", "line": "line", "point": "marker"}[family]
    for number, rule in enumerate(rules):
        ET.SubElement(
            rule_list,
            "rule",
            key=f"rule{number}",
            label=rule.label,
            symbol=str(number),
            filter=_qgis_expression(rule.conditions),
        )
        symbol = ET.SubElement(symbols, "symbol", type=symbol_type, name=str(number), alpha="1")
        layer_class, properties = _qml_layer(rule, family)
        layer = ET.SubElement(symbol, "layer", {"class": layer_class}, enabled="1", locked="0")
        options = ET.SubElement(layer, "Option", type="Map")
        for name, value in properties.items():
            ET.SubElement(options, "Option", name=name, type="QString", value=value)
        for name, value in properties.items():  # QGIS before 3.26 reads these instead
            ET.SubElement(layer, "prop", k=name, v=value)
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return doctype + ET.tostring(document, encoding="unicode")


def sld(rules: Sequence[Rule], family: Family, layer: str) -> str:
    """Write the rules as an OGC Styled Layer Descriptor, version 1.1.0."""
    layer = "".join(letter for letter in layer if letter.isprintable())  # XML cannot hold the others
    document = ET.Element("StyledLayerDescriptor", version="1.1.0")
    for prefix, address in SLD_NAMESPACES.items():
        document.set(f"xmlns:{prefix}" if prefix else "xmlns", address)
    named_layer = ET.SubElement(document, "NamedLayer")
    _text(named_layer, "se:Name", layer)
    user_style = ET.SubElement(named_layer, "UserStyle")
    _text(user_style, "se:Name", layer)
    type_style = ET.SubElement(user_style, "se:FeatureTypeStyle")
    for rule in rules:
        element = ET.SubElement(type_style, "se:Rule")
        _text(element, "se:Name", rule.label)
        _sld_filter(element, rule.conditions)
        _sld_symbolizer(element, rule, family)
    return ET.tostring(document, encoding="unicode", xml_declaration=False)


def _qgis_expression(conditions: tuple[tuple[str, str], ...]) -> str:
    return " AND ".join(f"{_qgis_column(name)} = {_qgis_text(value)}" for name, value in conditions) or "ELSE"


def _qgis_column(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _qgis_text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _qml_layer(rule: Rule, family: Family) -> tuple[str, dict[str, str]]:
    """Class and properties of the one symbol layer that draws a rule."""
    opacity = FILL_OPACITY if rule.pattern == "solid" else 1.0
    fill, line = _qml_color(rule.color, opacity), _qml_color(rule.color, 1.0)
    outline = {"outline_color": line, "outline_style": "solid", "outline_width": "0.4"}
    if family == "line":
        dash = "solid" if rule.pattern == "solid" else "dash"
        return "SimpleLine", {"line_color": line, "line_style": dash, "line_width": "0.8"}
    if family == "point":
        mark = "circle" if rule.pattern == "solid" else "diamond"
        return "SimpleMarker", {"name": mark, "color": fill, "size": "2.4"} | outline
    return "SimpleFill", {"color": fill, "style": rule.pattern} | outline


def _qml_color(color: str, opacity: float) -> str:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return f"{red},{green},{blue},{round(255 * opacity)}"


def _sld_filter(rule: ET.Element, conditions: tuple[tuple[str, str], ...]) -> None:
    if not conditions:
        ET.SubElement(rule, "se:ElseFilter")
        return
    parent = ET.SubElement(rule, "ogc:Filter")
    if len(conditions) > 1:
        parent = ET.SubElement(parent, "ogc:And")
    for name, value in conditions:
        equal = ET.SubElement(parent, "ogc:PropertyIsEqualTo")
        _text(equal, "ogc:PropertyName", name)
        _text(equal, "ogc:Literal", value)


def _sld_symbolizer(rule_element: ET.Element, rule: Rule, family: Family) -> None:
    if family == "line":
        line = ET.SubElement(rule_element, "se:LineSymbolizer")
        _sld_stroke(line, rule.color, dashed=rule.pattern != "solid")
        return
    if family == "point":
        graphic = ET.SubElement(ET.SubElement(rule_element, "se:PointSymbolizer"), "se:Graphic")
        mark = ET.SubElement(graphic, "se:Mark")
        _text(mark, "se:WellKnownName", "circle" if rule.pattern == "solid" else "square")
        _parameter(ET.SubElement(mark, "se:Fill"), "fill", rule.color)
        _sld_stroke(mark, rule.color)
        _text(graphic, "se:Size", "8")
        return
    polygon = ET.SubElement(rule_element, "se:PolygonSymbolizer")
    fill = ET.SubElement(polygon, "se:Fill")
    if rule.pattern == "solid":
        _parameter(fill, "fill", rule.color)
        _parameter(fill, "fill-opacity", str(FILL_OPACITY))
    else:
        graphic = ET.SubElement(ET.SubElement(fill, "se:GraphicFill"), "se:Graphic")
        mark = ET.SubElement(graphic, "se:Mark")
        _text(mark, "se:WellKnownName", SLD_MARKS[rule.pattern])
        _sld_stroke(mark, rule.color)
    _sld_stroke(polygon, rule.color)


def _sld_stroke(parent: ET.Element, color: str, *, dashed: bool = False) -> None:
    stroke = ET.SubElement(parent, "se:Stroke")
    _parameter(stroke, "stroke", color)
    _parameter(stroke, "stroke-width", "1")
    if dashed:
        _parameter(stroke, "stroke-dasharray", "4 2")


def _parameter(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, "se:SvgParameter", name=name).text = value


def _text(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text
