"""From the values in a label column to classes. Nothing is guessed: what is not named is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

IGNORED, UNLABELLED = -1, -2
"""Instead of a class: a value that was to be left out; no value at all."""

_MOST_VALUES = 12
"""An error lists at most so many of the values found."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The class of each footprint."""

    classes: tuple[str, ...]
    index: NDArray[np.int64]
    """int64, (n,): index into `classes`, IGNORED or UNLABELLED."""


def parse_classes(text: str) -> dict[str, str]:
    """Read `1=damaged,2=no_visible_damage` as {value: class}, in that order.

    Raises:
        Refused: a part without `=`, an empty name, or a value named twice.

    """
    mapping: dict[str, str] = {}
    for part in text.split(","):
        value, sign, name = (piece.strip() for piece in part.partition("="))
        if not (sign and value and name):
            raise Refused(f'classes: found {part!r}, wanted VALUE=CLASS, as in "1=damaged,2=intact"')
        if value in mapping:
            raise Refused(f"classes: {value!r} is named twice")
        mapping[value] = name
    return mapping


def assign_classes(
    values: NDArray[np.object_],
    *,
    field: str,
    classes: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
) -> Labels:
    """Give each value its class.

    Without a mapping every text is a class of its own name, in alphabetical order. Numbers need a mapping:
    nobody can tell from a 1 what it means.

    Args:
        values: object, (n,): the column, None where it is null.
        field: the column's name, for messages.
        classes: class of each value, as text; several values may share a class.
        ignore: values to leave out, as text.

    Raises:
        Refused: a value is neither mapped nor ignored, or numbers come without a mapping; the text lists
            the values found and how often.

    """
    texts = [_text(value) for value in values]
    found = Counter(text for text in texts if text and text not in ignore)
    if classes is None:
        numbers = any(not isinstance(value, str) for value in values if _text(value) in found)
        if numbers:
            raise Refused(
                f'{field} holds {_listed(found)}; say what they mean: --classes "1=damaged,2=intact"'
            )
        classes = {text: text for text in sorted(found)}
    unknown = Counter({text: number for text, number in found.items() if text not in classes})
    if unknown:
        raise Refused(
            f"{field} holds values without a class: {_listed(unknown)}; name them in --classes, or leave "
            "them out with --ignore-label VALUE"
        )
    names = tuple(dict.fromkeys(classes.values()))
    places = {text: names.index(name) for text, name in classes.items()}
    index = [UNLABELLED if not text else IGNORED if text in ignore else places[text] for text in texts]
    return Labels(names, np.array(index, np.int64))


def _text(value: object) -> str:
    """Write a value as `--classes` names it: whole numbers without a point; nothing for null and blank."""
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _listed(found: Counter[str]) -> str:
    shown = ", ".join(f"{text!r} ({number:,})" for text, number in found.most_common(_MOST_VALUES))
    return shown if len(found) <= _MOST_VALUES else f"{shown} and {len(found) - _MOST_VALUES:,} more"
