"""The build with and without a CUDA compiler; configured only, nothing is compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_infer._native import _ext

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not on PATH")


def configure(
    folder: Path, option: str, compiler: Path | None, *more: str
) -> subprocess.CompletedProcess[str]:
    """Configure into `folder`; it gets no further than nanobind where that is not installed."""
    environment = {**os.environ, "CUDACXX": str(compiler)} if compiler else dict(os.environ)
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(folder), f"-DEDGE_INFER_CUDA={option}", *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("option", ["ON", "1"])
def test_asking_for_cuda_without_a_compiler_stops_the_build(tmp_path, option):
    done = configure(tmp_path / "build", option, tmp_path / "no" / "nvcc")
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert (
        f"EDGE_INFER_CUDA={option} asks for CUDA kernels, but no working CUDA compiler was found" in message
    )
    assert "Put nvcc on PATH" in message
    assert "EDGE_INFER_CUDA=OFF pip install ." in message


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_a_compiler_that_came_later_is_found_in_a_kept_build_folder(tmp_path):
    assert configure(tmp_path, "ON", tmp_path / "no" / "nvcc").returncode != 0
    assert "CUDA kernels: left out" not in configure(tmp_path, "ON", None).stdout
    assert "CUDA kernels: left out, switched off" in configure(tmp_path, "OFF", None).stdout


def test_without_a_compiler_auto_leaves_the_kernels_out(tmp_path):
    done = configure(tmp_path, "AUTO", tmp_path / "no" / "nvcc")
    assert "CUDA kernels: left out, no CUDA compiler was found" in done.stdout


def test_the_module_says_what_was_built():
    assert bool(_ext.CUDA_ARCHITECTURES) == bool(_ext.NVCC_VERSION) != bool(_ext.CUDA_ABSENCE)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize(("asked", "answer"), [("87", "CUDA kernels: 87, nvcc"), ("53", "knows none of")])
def test_a_device_builds_for_its_own_architecture(tmp_path, asked, answer):
    done = configure(tmp_path, "ON", None, f"-DEDGE_INFER_CUDA_ARCHITECTURES={asked}")
    assert answer in " ".join((done.stdout + done.stderr).split())
