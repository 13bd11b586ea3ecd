"""compute-sanitizer over the sampler's kernels, and over a short run with everything in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from requirement import lacking  # type: ignore[import-not-found]
from scene import write_scene  # type: ignore[import-not-found]

SANITIZER = shutil.which("compute-sanitizer") or next(
    (str(path) for path in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None
)
RUN = "import sys; from edge_infer.cli import main; main(sys.argv[1:])"


def check(tool: str, *arguments: str) -> str:
    """Run Python under a tool, which must find nothing; what was printed."""
    sanitizer = SANITIZER or lacking("compute-sanitizer is neither on PATH nor below /usr/local/cuda*")
    command: list[str] = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    told: str = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    assert re.search(r"SUMMARY: 0 (errors|hazards)\b", told), told[-3000:]
    return told


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_kernels_are_clean(tool):
    told = check(tool, str(Path(__file__).with_name("cutting.py")))
    assert re.search(r"^0 values differ", told, re.MULTILINE)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_a_short_run_is_clean(tool, model, make_plan, tmp_path):
    make_plan("int8")
    scene = write_scene(tmp_path, pixels=1024, step_metres=20)
    check(
        tool, "-c", RUN, "run", "--model", str(model), "--imagery", str(scene / "scene.tif"), "--footprints",
        str(scene / "houses.gpkg"), "--out", str(tmp_path / "out.gpkg"), "--engine", "tensorrt",
        "--precision", "int8", "--sample-on", "gpu", "-q",
    )  # fmt: skip
