"""Many chips through an engine that is kept full, for those who have chips at hand instead of a ring.

While the engine works on some batches the caller fills the next one, so no more than `depth` + 1 slots are in
memory, however many chips there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_infer.ring import BatchSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from edge_infer.engine import Engine


def keep_full(
    engine: Engine, chip_shape: tuple[int, int, int], fill: Callable[[BatchSlot], bool]
) -> Iterator[tuple[BatchSlot, npt.NDArray[np.float32]]]:
    """Run batches through an idle engine, which is idle again at the end.

    Args:
        engine: `depth` batches are kept in flight.
        chip_shape: (S, S, C).
        fill: puts the next chips into a slot and says how many (`count`); False where there are no more.

    Yields:
        Each slot and its probabilities, float32 (count, K), in order; the slot is the caller's until the
        next one is asked for.

    """
    free: list[BatchSlot] = []
    more = True
    while more:
        slot = free.pop() if free else BatchSlot.allocate(engine.facts.batch, chip_shape, engine.memory)
        more = fill(slot)
        while engine.in_flight == engine.depth or (engine.in_flight and not more):
            done, found = engine.collect()
            yield done, found
            free.append(done)
        if more:
            engine.submit(slot)


def classify_batches(
    engine: Engine, chip_shape: tuple[int, int, int], batches: Iterable[npt.NDArray[np.uint8]]
) -> npt.NDArray[np.float32]:
    """Give the probabilities float32 (n, K) of chips in batches of any size, uint8 (b, S, S, C), n > 0.

    The engine is idle, and is again.
    """
    size = engine.facts.batch
    pieces = (batch[start : start + size] for batch in batches for start in range(0, len(batch), size))

    def fill(slot: BatchSlot) -> bool:
        piece = next(pieces, None)
        if piece is None:
            return False
        slot.count = len(piece)
        slot.chips[: slot.count] = piece
        return True

    return np.concatenate([found for _, found in keep_full(engine, chip_shape, fill)])
