"""Which chips a model has seen, and on which side: known by where they lie, not by their folder's name.

A folder may be copied, and chips may be cut again; their places stay what they are.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.chips.split import Split

SIDES_FILE = "sides.npy"

Side = Literal["training", "validation", "test"]
SIDES: tuple[Side, ...] = ("training", "validation", "test")

_ROW = np.dtype([("key", "<u8"), ("side", "u1")])
_DEGREES = 1e-6
"""Places are known to a decimetre, as where chips are split."""


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The chips of one training, nine bytes each."""

    rows: NDArray[np.void]
    """(n,) of `key`, rising and each once, and `side`, an index into `SIDES`."""

    @classmethod
    def of_split(cls, chips: Chips, split: Split) -> Sides:
        """Note the sides of a split; what lies on two of them counts for the first of `SIDES`."""
        keys = chip_keys(chips)
        rows = np.concatenate(
            [
                np.array([(key, side) for key in keys[getattr(split, name)].tolist()], _ROW)
                for side, name in enumerate(SIDES)
            ]
        )
        rows = np.sort(rows, order=["key", "side"])
        return cls(rows[np.unique(rows["key"], return_index=True)[1]])

    def find(self, chips: Chips) -> NDArray[np.int64]:
        """Give the side of each chip, int64 (n,), an index into `SIDES`; -1: none that is known of."""
        keys = chip_keys(chips)
        if len(self.rows) == 0:
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(self.rows["key"], keys), len(self.rows) - 1)
        return np.where(self.rows["key"][place] == keys, self.rows["side"][place].astype(np.int64), -1)

    def to_bytes(self) -> bytes:
        """Give what `from_bytes` reads: a NumPy file."""
        stream = io.BytesIO()
        np.save(stream, self.rows, allow_pickle=False)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, whence: object) -> Sides:
        """Read what `to_bytes` gave; `Refused`, naming `whence`, for anything else."""
        try:
            rows = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise Refused(f"{whence}: {SIDES_FILE} is no NumPy array ({error}); train again") from error
        if rows.dtype != _ROW or rows.ndim != 1 or not (rows["key"][1:] > rows["key"][:-1]).all():
            raise Refused(f"{whence}: {SIDES_FILE} holds no sides of a training; train again")
        if len(rows) and rows["side"].max() >= len(SIDES):
            raise Refused(f"{whence}: {SIDES_FILE} names a side that there is not; train again")
        return cls(rows)


def chip_keys(chips: Chips) -> NDArray[np.uint64]:
    """Make a key of each chip's place, or of its file where no place is known: uint64, (n,).

    Chips of one place have one key, whatever they show: who has seen a house before the storm knows it.

    Raises:
        Refused: the file of a chip without a place cannot be read.

    """
    places = np.round(np.stack([chips.longitude, chips.latitude], axis=1) / _DEGREES)
    placed = np.isfinite(places[:, 0]) & np.isfinite(places[:, 1])
    contents = (
        place.astype("<i8").tobytes() if known else _read(Path(file))
        for place, known, file in zip(places, placed, chips.file, strict=True)
    )
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); restore the file") from error
