"""Runs tests/runtime/fake_gpu in a process that finds stand-ins for CUDA, pycuda and TensorRT.

They show the flow of control of the TensorRT engine (what is in flight, what is freed when, what is said when
something fails). They prove nothing about CUDA or TensorRT; that is for tests/gpu.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_gpu")
COMPILER = shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")
def test_the_engines_flow_of_control_on_stand_ins(tmp_path: Path) -> None:
    command = [
        str(COMPILER), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
        "-ffp-contract=off", f"-I{ROOT / 'edge_infer' / '_native'}", "-Wl,-soname,libcuda.so.1",
        "-o", str(tmp_path / "libcuda.so.1"), str(FAKE / "fake_cuda.cpp"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(FAKE / "site"), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FAKE)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    assert done.stderr == ""  # nothing is said while everything is taken down
