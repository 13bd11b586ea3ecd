"""Streams batches of chips from disk: decoded and augmented by threads, in order, a few batches ahead.

What a batch holds depends on seed, epoch and position only, never on which thread was faster. Memory holds
`ahead` batches and, where the set fits, a cache of decoded chips; neither grows with the set.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_infer_export.training.augment import augment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.training.augment import Augmentation

MEGABYTE = 1_000_000


class Readable(Protocol):
    """Chips that can be read from where they lie."""

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the chips at `rows`: uint8, (n, S, S, C). Safe to call from several threads."""
        ...


class CachedChips:
    """Chips that are decoded once and then kept, where all of them fit in the memory allowed."""

    def __init__(self, chips: Readable, shape: tuple[int, int, int, int], *, megabytes: int) -> None:
        """Prepare a cache.

        Args:
            chips: where they come from.
            shape: (n, S, S, C) of all chips.
            megabytes: most memory to use; where the chips need more, none is used and each read decodes.

        """
        self._chips = chips
        fits = int(np.prod(shape, dtype=np.int64)) <= megabytes * MEGABYTE
        # The pages of an empty array take memory only once they are written to.
        self._pixels = np.empty(shape, np.uint8) if fits else None
        self._known = np.zeros(shape[0], bool)

    @property
    def in_memory(self) -> bool:
        """Whether decoded chips are kept."""
        return self._pixels is not None

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `Readable.read`."""
        if self._pixels is None:
            return self._chips.read(rows)
        unknown = np.unique(rows[~self._known[rows]])
        if len(unknown):
            # Two threads may decode one chip at once; both write the same bytes before they say so.
            self._pixels[unknown] = self._chips.read(unknown)
            self._known[unknown] = True
        return self._pixels[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some chips on their way to the network."""

    rows: NDArray[np.int64]
    """(n,): positions in the set."""
    pixels: NDArray[np.uint8]
    """(n, S, S, C)."""


class Loader:
    """Makes batches in threads; a context manager, so that no thread outlives its use."""

    def __init__(
        self,
        chips: Readable,
        augmentation: Augmentation | None,
        *,
        seed: int,
        threads: int = 2,
        ahead: int = 4,
    ) -> None:
        """Start the threads.

        Args:
            chips: where chips come from.
            augmentation: how training chips are changed; None: never.
            seed: of all augmentations.
            threads: that decode and augment.
            ahead: most batches made before they are asked for.

        """
        self._chips = chips
        self._augmentation = augmentation
        self._seed = seed
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, "chips")
        self.wait_seconds = 0.0
        """Time that the caller has waited for batches so far."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def training(
        self, batches: Sequence[NDArray[np.int64]], *, epoch: int, first: int = 0
    ) -> Iterator[Batch]:
        """Give the augmented batches of an epoch.

        Args:
            batches: the rows of each of its batches.
            epoch: its number, which decides the augmentations together with the chip's place in it.
            first: number of the batch to begin with, where earlier ones were seen before.

        """
        places = np.cumsum([0, *map(len, batches)]).tolist()
        yield from self._stream(
            [(rows, epoch, place) for rows, place in zip(batches, places, strict=False)][first:]
        )

    def plain(self, rows: NDArray[np.int64], batch: int) -> Iterator[Batch]:
        """Give the chips at `rows` as they are, in batches of at most `batch`."""
        yield from self._stream([(rows[k : k + batch], None, 0) for k in range(0, len(rows), batch)])

    def _stream(self, jobs: Sequence[tuple[NDArray[np.int64], int | None, int]]) -> Iterator[Batch]:
        waiting: deque[Future[Batch]] = deque()
        try:
            for number in range(len(jobs)):
                while len(waiting) < self._ahead and number + len(waiting) < len(jobs):
                    waiting.append(self._pool.submit(self._make, *jobs[number + len(waiting)]))
                asked = time.perf_counter()
                batch = waiting.popleft().result()
                self.wait_seconds += time.perf_counter() - asked
                yield batch
        finally:
            for future in waiting:
                future.cancel()

    def _make(self, rows: NDArray[np.int64], epoch: int | None, place: int) -> Batch:
        pixels = self._chips.read(rows)
        if epoch is not None and self._augmentation is not None:
            pixels = np.stack(
                [
                    augment(chip, np.random.default_rng((self._seed, epoch, place + k)), self._augmentation)
                    for k, chip in enumerate(pixels)
                ]
            )
        return Batch(rows, pixels)
