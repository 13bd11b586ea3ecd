from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_infer.shares import JobShares


def dealer(jobs: int, threads: int) -> Any:
    """Deal numbers instead of jobs, which only pass through."""
    numbers: list[Any] = list(range(jobs))
    return JobShares(numbers, threads)


@given(st.integers(0, 50), st.integers(1, 5), st.data())
def test_each_job_is_dealt_once_whoever_asks(jobs, threads, data):
    shares = dealer(jobs, threads)
    dealt = []
    for _ in range(jobs):
        job = shares.take(data.draw(st.integers(0, threads - 1)))
        assert job is not None
        dealt.append(job)
    assert sorted(dealt) == list(range(jobs))
    assert all(shares.take(thread) is None for thread in range(threads))


def test_each_thread_goes_through_neighbours():
    shares = dealer(10, 2)
    assert [shares.take(thread) for _ in range(5) for thread in (0, 1)] == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]


def test_a_thread_without_work_takes_half_of_the_largest_rest():
    shares = dealer(10, 2)
    assert [shares.take(0) for _ in range(7)] == [0, 1, 2, 3, 4, 7, 8]
    assert [shares.take(1) for _ in range(3)] == [5, 6, 9]


def test_threads_at_once():
    shares = dealer(2000, 4)
    dealt: list[Any] = []

    def work(thread: int) -> None:
        while (job := shares.take(thread)) is not None:
            dealt.append(job)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(dealt) == list(range(2000))
