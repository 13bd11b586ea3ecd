"""How to train: everything that decides what becomes of the weights, and a little that does not."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_infer.errors import Refused
from edge_infer_export.chips.split import SplitOptions
from edge_infer_export.training.augment import Augmentation
from edge_infer_export.training.order import Balance

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

NOT_THE_RESULT = frozenset({"threads", "cache_megabytes"})
"""Options that may differ between a training and its resumption: no weight depends on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train."""

    epochs: int = 12
    batch: int = 32
    learning_rate: float | None = None
    """The peak of the one-cycle schedule; None: what the LR finder suggests."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    balance: Balance = "weights"
    patience: int = 5
    """Stop after so many settled epochs that are no better than the best; 0: never. Only the last third is
    settled, so what is not below `epochs` / 3 - 1 never stops anything."""
    average_epochs: float = 0.0
    """Judge and keep a moving average of the weights over about so many epochs; 0: the last ones."""
    seed: int = 0
    weights: Path | None = None
    """A state dict to start from: torchvision's or an earlier run's; None: random weights."""
    freeze: bool = False
    """Train the last layer only; everything before it stays as it was loaded."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Of the network, see `ResNet`; the default is ResNet34."""
    width: int = 64
    split: SplitOptions = field(default_factory=SplitOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 2
    """That decode and augment chips."""
    cache_megabytes: int = 1000
    """Most memory for decoded chips; a larger set is decoded anew in every epoch."""

    def __post_init__(self) -> None:
        """Refuse options that cannot train anything."""
        for name, least in (("epochs", 1), ("batch", 2), ("threads", 1), ("width", 1)):
            if getattr(self, name) < least:
                why = ": batch normalisation needs company" if name == "batch" else ""
                raise Refused(f"{name} must be at least {least}, got {getattr(self, name)}{why}")
        for name in ("seed", "patience", "cache_megabytes"):
            if getattr(self, name) < 0:
                raise Refused(f"{name} must not be negative, got {getattr(self, name)}")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise Refused(f"the learning rate must be a positive number, got {rate}")
        for name, below in (
            ("weight_decay", math.inf),
            ("label_smoothing", 1.0),
            ("average_epochs", math.inf),
        ):
            if not 0 <= getattr(self, name) < below:
                raise Refused(f"{name} must lie in 0 to {below:g}, got {getattr(self, name)}")
        for name, choices in (("balance", Balance), ("device", Device), ("precision", Precision)):
            if getattr(self, name) not in get_args(choices):
                raise Refused(f"{name} is one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if self.freeze and self.weights is None:
            raise Refused("--freeze keeps what --weights brings, and there is none; give --weights")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return values

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Say in words where `before` (an earlier training's `to_json`) would give other weights."""
        now = self.to_json()
        return [
            f"{name} was {before.get(name)}, is {value}"
            for name, value in now.items()
            if name not in NOT_THE_RESULT and before.get(name) != value
        ]
