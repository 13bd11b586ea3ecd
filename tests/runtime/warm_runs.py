"""Runs many `edge-infer` commands, each in a process forked from one that has imported everything.

A crash, a hang or a leak ends only its own process, and a run costs no start-up. Reads a JSON list of
argument lists from standard input and writes a JSON list of what became of them.

    python warm_runs.py PROCESSES SECONDS LOGS < arguments.json > outcomes.json
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# Nothing here may start a thread: a forked process would miss it.
import openvino  # noqa: F401
import pyogrio  # noqa: F401

import edge_infer.classify
import edge_infer.engine.openvino  # noqa: F401
from edge_infer.cli import main

MOST_DATA_BYTES = 8 << 30
"""Saves the machine; what a run really took is measured and returned."""


def run_all(cases: list[list[str]], processes: int, seconds: float, folder: Path) -> list[dict[str, Any]]:
    """Run each case in a process of its own, at most `processes` at once and `seconds` long."""
    outcomes: list[dict[str, Any]] = [{} for _ in cases]
    running: dict[int, tuple[int, float]] = {}
    waiting = list(reversed(range(len(cases))))
    while waiting or running:
        while waiting and len(running) < processes:
            number = waiting.pop()
            child = os.fork()
            if child == 0:
                _become(cases[number], folder / str(number), seconds)
            running[child] = (number, time.monotonic())
        for child, (number, started) in list(running.items()):
            took = time.monotonic() - started
            if took > seconds:
                os.kill(child, 9)
            ended, status, usage = os.wait4(child, 0 if took > seconds else os.WNOHANG)
            if ended:
                del running[child]
                outcomes[number] = {
                    "status": os.waitstatus_to_exitcode(status),
                    "seconds": took,
                    "peak_bytes": usage.ru_maxrss * 1024,
                    "hung": took > seconds,
                    "stderr": (folder / str(number)).read_text(errors="replace"),
                }
        time.sleep(0.005)
    return outcomes


def _become(arguments: list[str], log: Path, seconds: float) -> None:
    """Turn this process into the command, and end as that ends, threads and exit hooks included."""
    errors = os.open(log, os.O_CREAT | os.O_WRONLY, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream, target in ((0, nothing), (1, nothing), (2, errors)):
        os.dup2(target, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA_BYTES, MOST_DATA_BYTES))
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds * 0.9)
    main(arguments)


if __name__ == "__main__":
    # No `with` and no `try` here: a forked process passes through them on its way out.
    found = run_all(json.load(sys.stdin), int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
    json.dump(found, sys.stdout)
