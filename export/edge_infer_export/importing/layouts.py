"""The layouts in which `edge-infer chips` can write a folder, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge_infer.errors import Refused
from edge_infer_export.chips.writer import OwnLayout
from edge_infer_export.importing.esri import EsriLayout
from edge_infer_export.importing.imagenet import ImagenetLayout

if TYPE_CHECKING:
    from edge_infer.manifest import ChipContract
    from edge_infer_export.chips.table import TableFormat
    from edge_infer_export.chips.writer import Layout

LayoutName = Literal["own", "esri", "imagenet"]


def make_layout(name: LayoutName, contract: ChipContract, table: TableFormat) -> Layout:
    """Make the layout of one folder; `table` is how our own stores its table.

    Raises:
        Refused: other programs read pictures of one or three bands only.

    """
    if name == "own":
        return OwnLayout(table)
    if len(contract.bands) not in {1, 3}:
        raise Refused(
            f"the layout {name} holds pictures of 1 or 3 bands, the chips have {len(contract.bands)} "
            f"({', '.join(contract.bands)}); choose some with --bands"
        )
    return EsriLayout(contract) if name == "esri" else ImagenetLayout()
