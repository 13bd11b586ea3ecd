"""Real chips to time an engine with: the bundle's golden ones, else some of the imagery's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bundle import GOLDEN_CHIPS_MEMBER
from edge_infer.coverage import cover
from edge_infer.errors import Refused
from edge_infer.feed import ChipBatch, stream_chips
from edge_infer.footprints import read_footprints

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.bundle import Bundle
    from edge_infer.imagery import Imagery
    from edge_infer.request import RunRequest

MOST_CHIPS = 64


@dataclass(frozen=True, slots=True, eq=False)
class RealChips:
    """Chips to feed an engine with."""

    chips: npt.NDArray[np.uint8]
    """uint8, (n, S, S, C)."""
    expected: npt.NDArray[np.float32] | None
    """float32, (n, K): the probabilities stored with them; None where none are."""
    source: str
    """Where they are from, in words."""


def real_chips(bundle: Bundle, request: RunRequest | None, imagery: Imagery | None) -> RealChips:
    """Give the chips to time a bundle's engines with.

    Golden chips come first, so that every machine is timed with the same ones.

    Raises:
        Refused: there are none.

    """
    if GOLDEN_CHIPS_MEMBER in bundle.members:
        chips, expected = bundle.golden()
        if len(chips):
            return RealChips(chips, expected, f"{len(chips)} golden chips of the bundle")
    if request is None or imagery is None or request.footprints is None:
        raise Refused(
            f"{bundle.path} holds no golden chips, and made-up ones would give made-up times; "
            "give --imagery and --footprints, or export the model again"
        )
    chips = _cut(bundle, request, imagery)
    if not len(chips):
        raise Refused(f"no footprint of {request.footprints} lies on the imagery; give others")
    return RealChips(chips, None, f"{len(chips)} chips of the imagery")


def _cut(bundle: Bundle, request: RunRequest, imagery: Imagery) -> npt.NDArray[np.uint8]:
    """Cut chips of up to `MOST_CHIPS` footprints, evenly over their order."""
    contract = bundle.manifest.contract
    assert request.footprints is not None
    footprints = read_footprints(
        request.footprints, layer=request.layer, where=request.where, crs=request.footprints_crs
    )
    coverage = cover(footprints, imagery, contract)
    rows = np.flatnonzero(coverage.status == "pending")
    rows = rows[:: max(1, len(rows) // MOST_CHIPS)][:MOST_CHIPS]
    batches = stream_chips(imagery.images, coverage, contract, rows, threads=1)
    none = np.empty((0, *contract.chip_shape), np.uint8)
    return np.concatenate([none, *(batch.chips for batch in batches if isinstance(batch, ChipBatch))])
