from __future__ import annotations

import numpy as np
import pytest

from edge_infer.errors import Refused
from edge_infer_export.chips.labels import IGNORED, UNLABELLED, assign_classes, parse_classes


def column(*values):
    return np.array([*values, None], object)[:-1]


def test_texts_are_classes_of_their_own():
    labels = assign_classes(column("intact", "damaged", None, " intact ", ""), field="label")
    assert labels.classes == ("damaged", "intact")
    assert labels.index.tolist() == [1, 0, UNLABELLED, 1, UNLABELLED]


def test_numbers_need_a_meaning():
    with pytest.raises(Refused, match=r"dmg holds '2' \(2\), '1' \(1\); say what they mean: --classes"):
        assign_classes(column(1, 2, 2), field="dmg")


@pytest.mark.parametrize("values", [(1, 2, 3), (1.0, 2.0, 3.0), ("1", "2", "3"), (np.int64(1), 2, 3)])
def test_mapping_names_values_as_people_write_them(values):
    classes = parse_classes("2=standing, 1=destroyed,3=destroyed")
    labels = assign_classes(column(*values), field="dmg", classes=classes)
    assert labels.classes == ("standing", "destroyed")
    assert labels.index.tolist() == [1, 0, 1]


def test_what_is_not_mapped_is_refused_with_counts():
    values = column("a", "b", "b", "c")
    with pytest.raises(
        Refused, match=r"holds values without a class: 'b' \(2\), 'c' \(1\); .*--ignore-label"
    ):
        assign_classes(values, field="label", classes={"a": "first"})
    labels = assign_classes(values, field="label", classes={"a": "first"}, ignore=("b", "c"))
    assert labels.index.tolist() == [0, IGNORED, IGNORED, IGNORED]


def test_ignored_numbers_ask_for_no_mapping():
    labels = assign_classes(column("a", 7, "b"), field="label", ignore=("7",))
    assert labels.classes == ("a", "b")


def test_many_values_are_cut_short():
    with pytest.raises(Refused, match=r"and 88 more; name them"):
        assign_classes(column(*map(str, range(100))), field="label", classes={"x": "y"})


@pytest.mark.parametrize("text", ["", "1", "1=", "=a", "1=a,,2=b", "1=a,1=b"])
def test_malformed_classes_are_refused(text):
    with pytest.raises(Refused, match="classes: "):
        parse_classes(text)
