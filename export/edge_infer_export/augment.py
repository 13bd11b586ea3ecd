"""Changes a chip in ways that leave its label true: the eight views of a square, light, and a small shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

LIGHT = 0.25
"""Largest relative change of brightness and of contrast."""
TINT = 0.08
"""Largest relative change of one band against the others."""
SHIFT = 1 / 12
"""Largest shift, in parts of the chip's side: footprints do not lie on their roofs to the metre."""


def augment(chips: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, mirror, shift and re-light each chip on its own.

    Args:
        chips: float32, (n, C, S, S), 0..255.
        generator: source of randomness.

    Returns:
        float32, (n, C, S, S); values may leave 0..255.

    """
    return relight(shift(turn(chips, generator), generator), generator)


def turn(chips: Tensor, generator: torch.Generator) -> Tensor:
    """Show each chip (n, C, S, S) in one of the eight views that a square has."""
    view = torch.randint(8, (len(chips),), generator=generator)
    turned = chips.clone()
    for mirror, axes in ((1, (3,)), (2, (2,))):
        chosen = (view & mirror) > 0
        turned[chosen] = turned[chosen].flip(axes)
    chosen = (view & 4) > 0
    turned[chosen] = turned[chosen].transpose(2, 3)
    return turned


def shift(chips: Tensor, generator: torch.Generator) -> Tensor:
    """Move each chip (n, C, S, S) by whole pixels; what comes in at the edge repeats the border."""
    side = chips.shape[-1]
    reach = max(round(side * SHIFT), 1)
    padded = functional.pad(chips, (reach, reach, reach, reach), mode="replicate")
    corners = torch.randint(2 * reach + 1, (len(chips), 2), generator=generator).tolist()
    return torch.stack(
        [chip[:, y : y + side, x : x + side] for chip, (y, x) in zip(padded, corners, strict=True)]
    )


def relight(chips: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and the bands' balance of each chip (n, C, S, S)."""

    def factor(reach: float, bands: int) -> Tensor:
        return 1 + reach * (2 * torch.rand((len(chips), bands, 1, 1), generator=generator) - 1)

    middle = chips.mean(dim=(2, 3), keepdim=True)
    contrast = (chips - middle) * factor(LIGHT, 1)
    return contrast + middle * factor(LIGHT, 1) * factor(TINT, chips.shape[1])
