"""The thread that commits: order, bounds, errors and the end."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.committer import Committer

WAIT_SECONDS = 20.0
"""Far more than anything here takes; what would hang fails instead."""


class Disk:
    """Takes what is written; stands still while `closed`."""

    def __init__(self, *, closed: bool = False, fails_at: int | None = None) -> None:
        self.written: list[list[int]] = []
        self.threads: set[str] = set()
        self.fails_at = fails_at
        self.entered = threading.Event()
        self.open = threading.Event()
        if not closed:
            self.open.set()

    def write(self, items: list[int]) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_SECONDS)
        if len(self.written) == self.fails_at:
            raise OSError("no space")
        self.written.append(items)
        self.threads.add(threading.current_thread().name)

    @property
    def items(self) -> list[int]:
        return [item for items in self.written for item in items]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 12), st.integers(0, 12))
def test_all_is_written_once_and_in_order(sizes: list[int], least: int, more: int) -> None:
    disk = Disk()
    with Committer(disk.write, least=least, seconds=60, most=least + more) as committer:
        for number, size in enumerate(sizes):
            committer.put(number, size)
    assert disk.items == list(range(len(sizes)))
    for items in disk.written:
        assert 1 <= sum(sizes[item] for item in items[:-1]) + 1 <= least + more  # the bound, and one item
    assert disk.threads <= {"committer"}


def test_what_comes_during_a_write_goes_out_together() -> None:
    disk = Disk(closed=True)
    with Committer(disk.write, least=1, seconds=60, most=100) as committer:
        committer.put(0, 1)
        assert disk.entered.wait(WAIT_SECONDS)
        for number in range(1, 6):
            committer.put(number, 1)
        disk.open.set()
    assert disk.written == [[0], [1, 2, 3, 4, 5]]
    assert committer.idle_seconds >= 0 < committer.busy_seconds


def test_a_slow_disk_holds_up_who_hands_over() -> None:
    disk = Disk(closed=True)
    handed = []

    def hand_over(committer: Committer[int]) -> None:
        for number in range(6):
            committer.put(number, 2)
            handed.append(number)

    with Committer(disk.write, least=2, seconds=60, most=4) as committer:
        thread = threading.Thread(target=hand_over, args=(committer,))
        thread.start()
        assert disk.entered.wait(WAIT_SECONDS)
        thread.join(0.2)
        handed_by_then = len(handed)
        disk.open.set()
        thread.join(WAIT_SECONDS)
    assert 3 <= handed_by_then <= 4  # one or two are being written, two fill the queue
    assert disk.items == list(range(6))
    assert committer.stalled_seconds > 0.1


def test_little_waits_for_its_time_only() -> None:
    disk = Disk()
    with Committer(disk.write, least=100, seconds=0.05, most=100) as committer:
        committer.put(0, 1)
        assert disk.entered.wait(WAIT_SECONDS)


def test_flush_waits_until_all_is_written() -> None:
    disk = Disk()
    with Committer(disk.write, least=100, seconds=60, most=100) as committer:
        committer.flush()
        assert disk.written == []
        for number in range(3):
            committer.put(number, 1)
        committer.flush()
        assert disk.items == [0, 1, 2]
        committer.put(3, 1)
    assert disk.written[-1] == [3]


@pytest.mark.parametrize("call", ["put", "flush", "check", "leave"])
def test_an_error_surfaces_once_in_the_thread_that_hands_over(call: str) -> None:
    disk = Disk(fails_at=1)
    committer: Committer[int] = Committer(disk.write, least=1, seconds=60, most=1)

    def hand_over() -> None:
        committer.put(0, 1)
        committer.flush()
        disk.entered.clear()
        committer.put(1, 1)
        assert disk.entered.wait(WAIT_SECONDS)
        deadline = time.monotonic() + WAIT_SECONDS
        while call != "leave" and time.monotonic() < deadline:
            if call == "put":
                committer.put(2, 1)
            else:
                getattr(committer, call)()

    with pytest.raises(OSError, match="no space"), committer:
        hand_over()
    assert disk.items == [0]
    committer.check()  # it has been told
    assert "committer" not in {thread.name for thread in threading.enumerate()}


def test_an_error_of_the_caller_is_not_hidden_and_what_waits_is_written() -> None:
    disk = Disk()
    committer: Committer[int] = Committer(disk.write, least=9, seconds=60, most=9)

    def hand_over_and_break_off() -> None:
        committer.put(0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), committer:
        hand_over_and_break_off()
    assert disk.items == [0]


@pytest.mark.parametrize("signals", [1, 3])
def test_interruptions_wait_for_the_write(signals: int) -> None:
    """What is being written to would be closed next, and SQLite does not outlive that."""
    disk = Disk(closed=True)

    def interrupt() -> None:
        assert disk.entered.wait(WAIT_SECONDS)
        for _ in range(signals):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        disk.open.set()

    def hand_over(committer: Committer[int]) -> None:
        threading.Thread(target=interrupt).start()
        committer.put(0, 1)

    with pytest.raises(KeyboardInterrupt), Committer(disk.write, least=1, seconds=60, most=9) as committer:
        hand_over(committer)
    assert disk.items == [0]
    assert "committer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("least", "most"), [(0, 4), (5, 4)])
def test_bounds_under_which_nothing_is_written_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="least <= most"):
        Committer(Disk().write, least=least, seconds=1, most=most)
