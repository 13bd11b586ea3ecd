"""The runtime's wheel in an environment that holds what it asks for and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

OFFICE = ("torch", "onnx", "onnxruntime", "matplotlib", "fiona", "PIL", "scipy", "edge_infer_export")
"""Of the office and of the tests: none may be there."""


def closure(name: str, found: dict[str, str] | None = None) -> dict[str, str]:
    """A distribution with all that it requires here, by normal name; the value is the name as installed."""
    found = {} if found is None else found
    normal = re.sub(r"[-_.]+", "-", name).lower()
    if normal not in found:
        found[normal] = name
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                closure(requirement.name, found)
    return found


def installed_files(name: str) -> set[Path]:
    """Folders and single files of a distribution, as they lie side by side in site-packages."""
    home = Path(str(distribution(name).locate_file("")))
    tops = {
        file.parts[0] for file in distribution(name).files or [] if file.parts[0] not in ("..", "__pycache__")
    }
    return {home / top for top in tops}


def total_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    files = (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sum(file.stat().st_size for file in files)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of an environment with the runtime's wheel and links to what it requires."""
    folder = tmp_path_factory.mktemp("alone")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [
            *pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder),
            "-C", f"build-dir={folder / 'build'}", "-C", "cmake.define.EDGE_INFER_CUDA=OFF",
        ],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    venv.EnvBuilder(symlinks=True).create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", str(python), "install", "--no-deps", "--no-index", "--no-compile", str(wheel)],
        check=True,
    )
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    required = closure("edge-infer")
    del required["edge-infer"]
    for name in required.values():
        for path in installed_files(name):
            (site / path.name).symlink_to(path)
    own = sum(total_bytes(path) for path in site.iterdir() if not path.is_symlink())
    theirs = sum(total_bytes(path.resolve()) for path in site.iterdir() if path.is_symlink())
    print(
        f"the runtime alone: installed {own / 1e6:.1f} MB, with its {len(required)} requirements "
        f"{(own + theirs) / 1e6:.0f} MB"
    )
    # A light runtime is the point: PyTorch alone would be more than this.
    assert own + theirs < 600e6
    home = folder / "home"
    home.mkdir()
    bare = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        started = time.monotonic()
        done = subprocess.run(
            [str(python.with_name(program)), *map(str, arguments)],
            capture_output=True, text=True, check=False, cwd=home, env={**bare, "HOME": str(home)},
        )  # fmt: skip
        named = " ".join(map(str, arguments))[:40]
        print(f"the runtime alone: {program} {named}: {time.monotonic() - started:.2f} s from a cold start")
        return done

    return run


def test_the_office_is_not_there(alone):
    program = (
        "import importlib.util, sys\n"
        f"there = [name for name in {OFFICE!r} if importlib.util.find_spec(name)]\n"
        "print(there, sys.version_info[:2])"
    )
    told = alone("python", "-c", program)
    assert told.stdout == f"[] {sys.version_info[:2]}\n", told.stderr


def test_only_the_trucks_commands_are_there(alone):
    told = alone("edge-infer", "--help")
    assert told.returncode == 0, told.stderr
    commands = re.findall(r"^  (\w+) ", told.stdout.partition("Commands:")[2], re.MULTILINE)
    assert commands == ["bench", "build", "doctor", "info", "run"]


def test_every_command_works(alone, golden, write_raster, tmp_path):
    image, bundle, out = (
        write_raster("i.tif", np.full((3, 64, 64), 90, np.uint8)),
        golden(),
        tmp_path / "o.gpkg",
    )
    run = alone("edge-infer", "run", "--model", bundle, "--imagery", image, "--out", out, "--quiet")
    assert run.returncode == 0, run.stderr
    assert "dark 1" in run.stdout
    info = alone("edge-infer", "info", out)
    assert (info.returncode, "1" in info.stdout) == (0, True), info.stderr
    doctor = alone("edge-infer", "doctor", bundle, "--imagery", image)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    bench = alone(
        "edge-infer", "bench", bundle, "--batch", 1, "--seconds", 0, "--queries", 20, "--warm-up", 0
    )
    assert bench.returncode in (0, 3), bench.stderr  # 3: measured, but its clocks were not locked
    assert "openvino" in bench.stdout.lower()
