"""Runs many `edge-infer` commands, each in a process forked from one that has imported everything.

A crash, a hang or a leak ends only its own process, and a run costs no start-up. Reads a JSON list of
cases from standard input and writes a JSON list of what became of them. A case has

    arguments   of `edge-infer`
    strikes     signals to send on the way (none, unless said), each with `signal` and a moment, which is
                `seconds` after the start, or just before (or after) the n-th `call` of a `point`; one with
                both comes so many seconds after that point
    settings    values of modules to be changed, by point
    file_bytes  size beyond which no file can grow

A point is `module:name`, looked up where it is used, or `sql:` and the beginning of a statement.

    python warm_runs.py PROCESSES SECONDS LOGS < cases.json > outcomes.json
"""

from __future__ import annotations

import faulthandler
import functools
import itertools
import json
import os
import resource
import signal
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

# Nothing here may start a thread: a forked process would miss it.
import pyogrio  # noqa: F401
import rasterio

import edge_infer.classify
import edge_infer.engine.openvino  # noqa: F401
from edge_infer.cli import COMMAND_GROUP, main

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_DATA_BYTES = 8 << 30
"""Saves the machine; what a run really took is measured and returned."""

LOGS = ("", ".out", ".committed")
"""Endings of the files for standard error, standard output and the sizes of the commits."""


def run_all(
    cases: list[dict[str, Any]], processes: int, seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """Run each case in a process of its own, at most `processes` at once and `seconds` long."""
    outcomes: list[dict[str, Any]] = [{} for _ in cases]
    running: dict[int, tuple[int, float, list[tuple[float, int]]]] = {}
    waiting = list(reversed(range(len(cases))))
    while waiting or running:
        while waiting and len(running) < processes:
            number = waiting.pop()
            for suffix in LOGS:
                (folder / f"{number}{suffix}").write_bytes(b"")
            child = os.fork()
            if child == 0:
                _become(cases[number], folder / str(number), seconds)
            running[child] = (number, time.monotonic(), _timed(cases[number]))
        for child, (number, started, strikes) in list(running.items()):
            took = time.monotonic() - started
            while strikes and took >= strikes[0][0]:
                os.kill(child, strikes.pop(0)[1])
            if took > seconds:
                os.kill(child, 9)
            ended, status, usage = os.wait4(child, 0 if took > seconds else os.WNOHANG)
            if ended:
                del running[child]
                log = folder / str(number)
                outcomes[number] = {
                    "status": os.waitstatus_to_exitcode(status),
                    "seconds": took,
                    "peak_bytes": usage.ru_maxrss * 1024,
                    "hung": took > seconds,
                    "stderr": log.read_text(errors="replace"),
                    "stdout": log.with_suffix(".out").read_text(errors="replace"),
                    "committed": [*map(int, log.with_suffix(".committed").read_text().split())],
                }
        time.sleep(0.001)
    return outcomes


def _timed(case: dict[str, Any]) -> list[tuple[float, int]]:
    return sorted(
        (strike["seconds"], strike["signal"]) for strike in case.get("strikes", ()) if "point" not in strike
    )


def _become(case: dict[str, Any], log: Path, seconds: float) -> None:
    """Turn this process into the command, and end as that ends, threads and exit hooks included."""
    errors, told, committed = (os.open(log.with_suffix(suffix), os.O_WRONLY) for suffix in LOGS)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream, target in ((0, nothing), (1, told), (2, errors)):
        os.dup2(target, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA_BYTES, MOST_DATA_BYTES))
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds * 0.9)
    if "file_bytes" in case:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["file_bytes"], case["file_bytes"]))
    for point, value in case.get("settings", {}).items():
        _replace(point, functools.partial(_instead, value))
    _replace(
        "edge_infer.results:Results.commit",
        functools.partial(_told, lambda rows: os.write(committed, b"%d\n" % len(rows.fids))),
    )
    for strike in case.get("strikes", ()):
        if "point" in strike:
            _arm(strike)
    main(case["arguments"])


def _replace(point: str, wrap: Callable[[Any], Any]) -> None:
    """Put something else in the place of what stands at a point."""
    module, path = point.split(":")
    *parents, name = path.split(".")
    holder = functools.reduce(getattr, parents, sys.modules[module])
    setattr(holder, name, wrap(getattr(holder, name)))


def _instead(value: object, _before: object) -> object:
    return value


def _told(tell: Callable[[Any], object], commit: Callable[..., Any]) -> Callable[..., Any]:
    """Tell of each commit once it is done."""

    def commit_and_tell(results: Any, rows: Any) -> None:
        commit(results, rows)
        tell(rows)

    return commit_and_tell


def _arm(strike: dict[str, Any]) -> None:
    """Have this process struck at a point of its own work."""
    calls = itertools.count(1)

    def reach() -> None:
        if next(calls) != strike.get("call", 1):
            return
        if "seconds" in strike:
            # By SIGALRM the system ends the process unasked, as by SIGKILL, in the midst of C code too.
            if strike["signal"] != signal.SIGALRM:
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), strike["signal"]))
            signal.setitimer(signal.ITIMER_REAL, strike["seconds"])
        elif not strike["signal"]:
            time.sleep(0.02)  # none at all: it only holds this point up
        else:
            before = signal.getsignal(strike["signal"])
            os.kill(os.getpid(), strike["signal"])
            # The main thread hears of it before this one goes on: two signals unheard would count as one. The
            # first changes the handler; nothing tells of a second.
            heard_by = time.monotonic() + (10 if isinstance(before, MethodType) else 0.02)
            while signal.getsignal(strike["signal"]) == before and time.monotonic() < heard_by:
                time.sleep(0.001)

    def struck(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reached(*args: Any, **kwargs: Any) -> Any:
            if not strike.get("after"):
                reach()
            result = function(*args, **kwargs)
            if strike.get("after"):
                reach()
            return result

        return reached

    def traced(connect: Callable[..., Any]) -> Callable[..., Any]:
        statement = strike["point"].removeprefix("sql:")

        def connect_and_trace(path: Path) -> Any:
            database = connect(path)
            database.set_trace_callback(lambda sql: reach() if sql.startswith(statement) else None)
            return database

        return connect_and_trace

    if strike["point"].startswith("sql:"):
        _replace("edge_infer.geopackage:connect", traced)
    else:
        _replace(strike["point"], struck)


if __name__ == "__main__":
    # No `with` and no `try` around this: a forked process passes through them on its way out.
    for point in entry_points(group=COMMAND_GROUP):
        point.load()
    with rasterio.Env():  # registers GDAL's drivers
        pass
    found = run_all(json.load(sys.stdin), int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
    json.dump(found, sys.stdout)
