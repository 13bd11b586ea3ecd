"""Tiles on a shelf and the cutter that puts them there, under any order of calls."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_infer.cutter import ShelfCutter
from edge_infer.device.host import HostMemory
from edge_infer.imagery import Tile
from edge_infer.ring import BatchRing, RingClosedError
from edge_infer.sampler import sound_windows
from edge_infer.shelf import ALIGNMENT_BYTES, ShelvedTile, TileShelf

SHELF_BYTES = 20 * ALIGNMENT_BYTES


def make_tile(side: int, *, wide: bool = False, masked: bool = False, level: int = 7) -> Tile:
    pixels = np.full((2, side, side), level, np.uint16 if wide else np.uint8)
    valid = np.ones((side, side), np.uint8) if masked else None
    return Tile(pixels, valid, column=0, row=0, scale_x=1, scale_y=1)


class ShelfMachine(RuleBasedStateMachine):
    """No two tiles overlap, each keeps its bytes until its last window is cut, and room comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = TileShelf(np.zeros(SHELF_BYTES, np.uint8))
        self.held: list[tuple[ShelvedTile, Tile]] = []
        self.level = 0

    @rule(side=st.integers(1, 60), wide=st.booleans(), masked=st.booleans(), windows=st.integers(1, 5))
    def put(self, side: int, wide: bool, masked: bool, windows: int) -> None:
        self.level = self.level % 250 + 1
        tile = make_tile(side, wide=wide, masked=masked, level=self.level)
        shelved = self.shelf.put(tile, windows)
        if shelved is not None:
            self.held.append((shelved, tile))
        elif not self.held:
            assert not self.shelf.takes(tile)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        shelved, tile = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        self.shelf.cut(shelved, data.draw(st.integers(1, shelved.windows_left)))
        if shelved.windows_left == 0:
            self.held.remove((shelved, tile))

    @invariant()
    def each_tile_has_its_own_bytes(self) -> None:
        ends = sorted((shelved.start, shelved.stop) for shelved, _ in self.held)
        assert all(a[1] <= b[0] for a, b in pairwise(ends))
        assert all(start % ALIGNMENT_BYTES == 0 and stop <= SHELF_BYTES for start, stop in ends)
        for shelved, tile in self.held:
            size = tile.pixels.nbytes
            found = self.shelf.memory[shelved.start : shelved.start + size].view(tile.pixels.dtype)
            assert (found == tile.pixels.ravel()).all()
            assert (shelved.mask_start is None) == (tile.valid is None)
        assert self.shelf.bytes_in_use == sum(stop - start for start, stop in ends)

    def teardown(self) -> None:
        for shelved, _ in list(self.held):
            self.shelf.cut(shelved, shelved.windows_left)
        assert self.shelf.bytes_in_use == 0


TestShelf = ShelfMachine.TestCase
TestShelf.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

BOXES = np.array([[0.0, 0.0, 2.0, 2.0]])


def test_a_full_shelf_hands_the_part_filled_slot_over_and_goes_on() -> None:
    """One chip a tile, and batches larger than the tiles that the shelf holds: nobody waits for ever."""
    ring = BatchRing.allocate(3, 16, (2, 2, 2), HostMemory())
    cutter = ShelfCutter(TileShelf(np.zeros(SHELF_BYTES, np.uint8)), (0, 255))
    tile = make_tile(30)  # five of them at most

    def feed() -> None:
        for row in range(40):
            cut = cutter.open(tile, 1, ring)
            span = ring.claim(1)
            cut(BOXES, span)
            span.slot.rows[span.start] = row
            ring.fill(span)
        ring.close()

    thread = threading.Thread(target=feed)
    thread.start()
    rows: list[int] = []
    while (slot := ring.take()) is not None:
        assert [piece.start for piece in slot.pieces] == list(range(slot.count))
        rows += slot.rows[: slot.count].tolist()
        for piece in slot.pieces:
            cutter.shelf.cut(piece.tile, len(piece.windows))
        ring.give_back(slot)
        assert not slot.pieces
    thread.join()
    assert rows == list(range(40))


def test_a_reader_that_waits_for_room_hears_that_the_run_has_ended() -> None:
    ring = BatchRing.allocate(2, 2, (2, 2, 2), HostMemory())
    cutter = ShelfCutter(TileShelf(np.zeros(SHELF_BYTES, np.uint8)), (0, 255))
    while cutter.shelf.put(make_tile(30), 1) is not None:
        pass
    timer = threading.Timer(0.1, ring.stop)
    timer.start()
    with pytest.raises(RingClosedError):
        cutter.open(make_tile(30), 1, ring)
    timer.join()


def test_a_tile_that_no_shelf_could_hold_is_cut_at_once() -> None:
    ring = BatchRing.allocate(2, 2, (2, 2, 2), HostMemory())
    cutter = ShelfCutter(TileShelf(np.zeros(SHELF_BYTES, np.uint8)), (0, 255))
    cut = cutter.open(make_tile(100), 1, ring)
    span = ring.claim(1)
    cut(BOXES, span)
    assert (span.slot.chips[0] == 7).all()
    assert not span.slot.pieces
    assert cutter.shelf.bytes_in_use == 0


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (0, 0, 1, 65_537), (np.nan, 0, 1, 1), (2.0**32, 0, 1, 1)])
def test_windows_that_no_sampler_takes_are_refused_before_they_reach_a_gpu(box) -> None:
    with pytest.raises(ValueError, match=r"sides must be positive.*2\^31"):
        sound_windows(make_tile(4), np.array([box], np.float64))
