"""Nothing calls home: not this program, and not the libraries that it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, sys
parent = os.getpid()
def watch(event, details):
    # an audit hook lives on in a forked process
    if event.startswith(("socket.", "urllib.", "http.")) or event in ("os.fork", "os.posix_spawn"):
        os.write(2, f"AUDIT {event} {details}\\n".encode())
sys.addaudithook(watch)
from edge_infer.cli import main
main()
"""


@pytest.mark.parametrize("command", ["run", "info", "doctor"])
def test_no_socket_is_made_and_no_process_forked(command, make_bundle, write_raster, tmp_path: Path):
    bundle = make_bundle()
    image = write_raster("image.tif", np.full((3, 64, 64), 90, np.uint8))
    home = tmp_path / "home"
    home.mkdir()
    arguments: dict[str, list[object]] = {
        "run": ["--model", bundle, "--imagery", image, "--out", tmp_path / "out.gpkg", "--quiet"],
        "info": [bundle],
        "doctor": [bundle, "--imagery", image],
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command, *map(str, arguments[command])],
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AUDIT" not in done.stderr
    assert list(home.rglob("*")) == []


def test_openvino_does_not_report_that_it_was_imported():
    program = "import edge_infer, openvino, sys; print(sys.modules['openvino_telemetry'])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "None\n"
