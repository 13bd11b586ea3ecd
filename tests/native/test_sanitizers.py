"""The sampler under AddressSanitizer and UndefinedBehaviorSanitizer, for some seconds of random input."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "edge_infer" / "_native"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
SECONDS = 8


def compile_object(source: Path, made: Path, *options: str) -> subprocess.CompletedProcess[str]:
    flags = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-pthread", f"-I{NATIVE}", *SANITIZERS, *options)
    command = [str(COMPILER), *flags, "-c", str(source), "-o", str(made)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def stress(tmp_path: Path) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler is on PATH")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    linked = [COMPILER, *SANITIZERS, str(empty), "-o", str(tmp_path / "empty")]
    if subprocess.run(linked, capture_output=True, check=False).returncode:
        pytest.skip(f"{COMPILER} has no sanitizers here")
    x86 = platform.machine() in ("x86_64", "AMD64")
    parts: list[tuple[Path, str, tuple[str, ...]]] = [
        (Path(__file__).with_name("stress.cpp"), "stress.o", ()),
        (NATIVE / "sampler.cpp", "sampler.o", ("-DEDGE_INFER_AVX2",) if x86 else ()),
        (NATIVE / "block.cpp", "baseline.o", ("-DEDGE_INFER_VECTORS=baseline",)),
    ]
    if x86:
        parts.append((NATIVE / "block.cpp", "avx2.o", ("-DEDGE_INFER_VECTORS=avx2", "-mavx2")))
    for source, name, options in parts:
        done = compile_object(source, tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    program = tmp_path / "stress"
    objects = [str(tmp_path / name) for _, name, _ in parts]
    subprocess.run([COMPILER, "-pthread", *SANITIZERS, *objects, "-o", str(program)], check=True, timeout=60)
    return program


def test_no_input_makes_the_sampler_misbehave(stress):
    done = subprocess.run(
        [str(stress), "1", str(SECONDS)], capture_output=True, text=True, check=False, timeout=SECONDS + 60
    )
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert done.stderr == ""
