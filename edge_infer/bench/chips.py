"""Real chips to time an engine with: the bundle's golden ones, else some of the imagery's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bundle import GOLDEN_CHIPS_MEMBER
from edge_infer.engine.golden import largest_difference
from edge_infer.errors import Refused
from edge_infer.feed import ChipBatch, stream_chips

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_infer.bundle import Bundle
    from edge_infer.coverage import Coverage
    from edge_infer.engine import Precision
    from edge_infer.imagery import Imagery

MOST_CHIPS = 64


@dataclass(frozen=True, slots=True, eq=False)
class RealChips:
    """Chips to feed an engine with."""

    chips: npt.NDArray[np.uint8]
    """uint8, (n, S, S, C)."""
    expected: npt.NDArray[np.float32] | None
    """float32, (n, K): the probabilities stored with them; None where none are."""
    bears: Callable[[Precision], float]
    """How far an engine of a precision may differ from these."""
    source: str
    """Where they are from, in words."""


def real_chips(bundle: Bundle, imagery: Imagery | None, coverage: Coverage | None) -> RealChips:
    """Give the chips to time a bundle's engines with.

    Golden chips come first, so that every machine is timed with the same ones.

    Args:
        bundle: the model.
        imagery: to cut chips from where the bundle holds none; None: there is none.
        coverage: of the footprints on it.

    Raises:
        Refused: there are none.

    """
    bears = partial(largest_difference, bundle)
    if GOLDEN_CHIPS_MEMBER in bundle.members:
        chips, expected = bundle.golden()
        if len(chips):
            return RealChips(chips, expected, bears, f"{len(chips)} golden chips of the bundle")
    if imagery is None or coverage is None:
        raise Refused(
            f"{bundle.path} holds no golden chips, and made-up ones would give made-up times; "
            "give --imagery and --footprints, or export the model again"
        )
    chips = _cut(bundle, imagery, coverage)
    if not len(chips):
        raise Refused("no footprint could be read off the imagery; give other imagery, or mend it")
    return RealChips(chips, None, bears, f"{len(chips)} chips of the imagery")


def _cut(bundle: Bundle, imagery: Imagery, coverage: Coverage) -> npt.NDArray[np.uint8]:
    """Cut chips of up to `MOST_CHIPS` footprints, evenly over their order."""
    contract = bundle.manifest.contract
    rows = np.flatnonzero(coverage.status == "pending")
    rows = rows[:: max(1, len(rows) // MOST_CHIPS)][:MOST_CHIPS]
    batches = stream_chips(imagery.images, coverage, contract, rows, threads=1)
    none = np.empty((0, *contract.chip_shape), np.uint8)
    return np.concatenate([none, *(batch.chips for batch in batches if isinstance(batch, ChipBatch))])
