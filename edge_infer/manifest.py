"""The contract between the office and the truck: what a chip is, and what the model says of it.

`ChipContract` fixes what one chip covers and holds, the same in training and in use.
`Manifest` adds the classes and everything the bundle knows of its model.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_infer.errors import BundleError, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping

WindowMode = Literal["fixed", "footprint"]
SourceDtype = Literal["uint8", "uint16"]

MAX_BANDS = 16
"""More than any sensor that buildings are judged by; bounds the memory of a chip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipContract:
    """What one chip covers on the ground and holds in memory.

    A chip is uint8, (S, S, C) with S = `chip_pixels` and C = `len(bands)`.
    """

    window_mode: WindowMode = "fixed"
    """`fixed`: the same ground size for all. `footprint`: bounding square times `context_factor`."""
    ground_metres: float
    """Side of the window in true ground metres; in `footprint` mode the least side."""
    context_factor: float = 1.0
    """`footprint` mode only: side of the window over side of the footprint's bounding square."""
    buffer_metres: float = 0.0
    """`footprint` mode only: true ground metres added on each side."""
    blacken: bool = False
    """Whether chips are 0 outside of the footprint's outline."""
    chip_pixels: int
    """Side S of the chip."""
    bands: tuple[str, ...]
    """Names of the C bands in chip order, as GDAL's colour interpretation says them: red, green, blue, ..."""
    dtype: SourceDtype = "uint8"
    """Type of the imagery's pixels."""
    value_range: tuple[float, float] = (0.0, 255.0)
    """Source values that become 0 and 255 in the chip; what lies outside is clipped."""
    coarsest_gsd_metres: float
    """Imagery with coarser pixels than this is refused."""

    def __post_init__(self) -> None:
        """Refuse a contract that no chip can meet."""
        if self.window_mode not in get_args(WindowMode):
            raise ContractError(f"window mode {self.window_mode!r} is unknown; use fixed or footprint")
        if self.dtype not in get_args(SourceDtype):
            raise ContractError(f"pixel type {self.dtype!r} is not supported; use uint8 or uint16")
        for name in ("ground_metres", "context_factor", "coarsest_gsd_metres"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ContractError(f"{name} must be a positive number, got {value}")
        if not (math.isfinite(self.buffer_metres) and self.buffer_metres >= 0):
            raise ContractError(f"buffer_metres must not be negative, got {self.buffer_metres}")
        if not isinstance(self.blacken, bool):
            raise ContractError(f"blacken must be true or false, got {self.blacken!r}")
        if not 8 <= self.chip_pixels <= 2048:
            raise ContractError(f"chip_pixels must lie in 8..2048, got {self.chip_pixels}")
        if not 1 <= len(self.bands) <= MAX_BANDS:
            raise ContractError(f"a chip has 1 to {MAX_BANDS} bands, got {len(self.bands)}")
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ContractError(f"value_range must rise, got {low}..{high}")

    @property
    def chip_shape(self) -> tuple[int, int, int]:
        """Shape (S, S, C) of one chip."""
        return (self.chip_pixels, self.chip_pixels, len(self.bands))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChipContract:
        """Read what `to_json` wrote; `ContractError` for anything else."""
        try:
            low, high = (float(v) for v in values["value_range"])
            return cls(
                window_mode=values["window_mode"],
                ground_metres=float(values["ground_metres"]),
                context_factor=float(values["context_factor"]),
                # Bundles of before these were thought of have neither.
                buffer_metres=float(values.get("buffer_metres", 0.0)),
                blacken=values.get("blacken", False),
                chip_pixels=int(values["chip_pixels"]),
                bands=tuple(str(name) for name in values["bands"]),
                dtype=values["dtype"],
                value_range=(low, high),
                coarsest_gsd_metres=float(values["coarsest_gsd_metres"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"the chip contract is incomplete or malformed: {error!r}") from error


MAX_CLASSES = 1000
"""Each class is a column of the output; SQLite allows 2000 columns."""

# The pattern of `mlm:name` in the STAC MLM schema, so that every manifest can be written as a valid item.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_. -]{1,98}[A-Za-z0-9]")
_COLOR = re.compile(r"#[0-9a-f]{6}")
_FACT = re.compile(r"[a-z][a-z0-9_]*")
_FACTS_TAKEN = frozenset({"format", "contract", "classes", "normalisation", "temperature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a bundle says of its model. `edge_infer.stac` writes and reads it as JSON."""

    name: str
    """3 to 100 letters, digits, `_`, `.`, `-` and spaces, beginning with a letter."""
    created: str
    """When the model was trained: RFC 3339 with a time zone, such as 2025-06-01T12:00:00Z."""
    architecture: str
    """Family of the network, such as ResNet34."""
    parameters: int
    """Number of trained parameters."""
    classes: tuple[str, ...]
    """Names of the K classes in the order of the model's output."""
    colors: tuple[str, ...]
    """Map colour of each class, `#rrggbb` in lower case."""
    contract: ChipContract
    """What a chip covers and holds."""
    mean: tuple[float, ...]
    """Of each band, in chip units 0..255. The graph subtracts it; stated for the record."""
    std: tuple[float, ...]
    """Of each band, in chip units 0..255. The graph divides by it; stated for the record."""
    temperature: float
    """The logits are divided by it inside the graph; 1 changes nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further findings as plain JSON values, such as `training` and `parity`."""

    def __post_init__(self) -> None:
        """Refuse a manifest that cannot be right."""
        if not _NAME.fullmatch(self.name):
            raise BundleError(
                f"model name {self.name!r} does not do; use 3 to 100 letters, digits, '_', '.', '-' and "
                "spaces, a letter first"
            )
        if not _is_rfc3339(self.created):
            raise BundleError(
                f"creation time {self.created!r} does not do; write it like 2025-06-01T12:00:00Z"
            )
        if not self.architecture.isprintable() or not self.architecture:
            raise BundleError(f"architecture {self.architecture!r} is no printable name")
        if self.parameters < 1:
            raise BundleError(f"a model has parameters, got {self.parameters}")
        self._check_classes()
        self._check_normalisation()
        self._check_facts()

    def _check_classes(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise BundleError(f"a classifier has 2 to {MAX_CLASSES} classes, got {len(self.classes)}")
        for name in self.classes:
            if not (1 <= len(name) <= 100 and name.isprintable() and name == name.strip()):
                raise BundleError(f"class name {name!r} does not do; use 1 to 100 printable characters")
        # Each class becomes a column of the output, and column names differ by more than case.
        if len({name.casefold() for name in self.classes}) != len(self.classes):
            raise BundleError(f"class names must differ by more than case, got {', '.join(self.classes)}")
        if len(self.colors) != len(self.classes):
            raise BundleError(f"{len(self.classes)} classes need as many colours, got {len(self.colors)}")
        for color in self.colors:
            if not _COLOR.fullmatch(color):
                raise BundleError(f"colour {color!r} does not do; write it like #d73027")

    def _check_normalisation(self) -> None:
        bands = len(self.contract.bands)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != bands or not all(map(math.isfinite, values)):
                raise BundleError(f"{name} must hold one number for each of the {bands} bands, got {values}")
        if not all(value > 0 for value in self.std):
            raise BundleError(f"std must be positive, got {self.std}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise BundleError(f"temperature must be a positive number, got {self.temperature}")

    def _check_facts(self) -> None:
        for key in self.facts:
            if not _FACT.fullmatch(key) or key in _FACTS_TAKEN:
                raise BundleError(f"a fact cannot be called {key!r}")
        try:
            json.dumps(self.facts, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"the facts of the model are no plain JSON values: {error}") from error


def _is_rfc3339(text: str) -> bool:
    if not re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text):
        return False
    try:
        # Python 3.10 knows neither the letter Z nor every fraction of a second.
        whole = re.sub(r"\.\d+", "", text)
        return datetime.fromisoformat(re.sub("Z$", "+00:00", whole)).tzinfo is not None
    except ValueError:
        return False
