"""Runs tests against real TensorRT code on a machine without a GPU.

    python tools/tensorrt_without_gpu.py FOLDER PYTEST_ARGUMENTS...

NVIDIA publishes no TensorRT 10 or 11 with a builder on PyPI, but two things that fit together: the official
Python bindings of TensorRT 11.4, and TensorRT-RTX 1.7.1, whose parser and builder have the same interface and
work on the CPU (NVIDIA documents that: an engine may be built where no GPU is). FOLDER gets both once (146 MB
to fetch, 250 MB on disk), the libraries under the names that the bindings look for. NVIDIA does not support
the pairing: it is for tests only, and the two versions belong together.

What such a run proves: models parse, networks and profiles are what TensorRT wants, plans are built, errors
have the texts that TensorRT gives. What it cannot prove: which kernels a GPU would run, or how fast.

Where the libraries cannot be had it says so in capitals and succeeds, so that the rest of the tests goes on;
with EDGE_INFER_REQUIRE_TENSORRT=1 it fails instead.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

BINDINGS = """\
tensorrt-cu13-bindings==11.4.0.106 \
--hash=sha256:1d17853da33a186c4d4d39995c1186bb59f643689aabac9c3e33ae5f0ba402f5 \
--hash=sha256:d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc \
--hash=sha256:5fc7a6c412881f7212030893bd5531b1a0ff415c72c7678dfe4ead7a7765b38d
"""
LIBRARIES = """\
onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 \
--hash=sha256:32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298
"""
RTX = "1.7.1"
NAMES = {
    "libnvinfer.so.11": f"libtensorrt_rtx.so.{RTX}",
    "libtensorrt_rtx.so.1": f"libtensorrt_rtx.so.{RTX}",
    "libnvonnxparser.so.11": f"libtensorrt_onnxparser_rtx.so.{RTX}",
}
"""Links: the name that is looked for, and the file that it leads to."""
PLUGINS = "libnvinfer_plugin.so.11"
"""The bindings want one function of it, which has nothing to do here."""
MODULE = '''\
"""The official bindings under their public name."""
from tensorrt_bindings import *
from tensorrt_bindings import __version__
'''
COMPLETE = "complete-1"
"""Name of the file that is written last; another number when the content changes."""


class Unavailable(Exception):
    """The libraries cannot be had here."""


def main(arguments: list[str]) -> int:
    """Prepare FOLDER if it is not, and run pytest in a process that finds TensorRT there."""
    folder = Path(arguments[0]).resolve()
    try:
        prepare(folder)
    except Unavailable as error:
        rule = "*" * 100
        print(f"{rule}\nTENSORRT TESTS NOT RUN: {error}\n{rule}", flush=True)
        return 1 if os.environ.get("EDGE_INFER_REQUIRE_TENSORRT") == "1" else 0
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments[1:]], env=environment(folder), check=False
    ).returncode


def prepare(folder: Path) -> None:
    """Fill FOLDER, unless an earlier call has; `Unavailable` where that cannot be done."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    done = folder / f"{COMPLETE}-cp{version}"
    if done.exists():
        return
    machine = (platform.system(), platform.machine())
    if machine != ("Linux", "x86_64") or version not in ("310", "311", "312"):
        raise Unavailable(
            f"there are libraries for Python 3.10 to 3.12 on Linux x86_64, this is Python "
            f"{platform.python_version()} on {' '.join(machine)}"
        )
    libraries, site, wheel = folder / "lib", folder / "site", folder / "wheel"
    for stale in (libraries, site, wheel):
        shutil.rmtree(stale, ignore_errors=True)
    libraries.mkdir(parents=True)
    for marker in folder.glob("complete-*"):
        marker.unlink()
    print("fetching TensorRT for the tests (146 MB, once)", flush=True)
    _install(BINDINGS, site, folder)
    _install(LIBRARIES, wheel, folder)
    for name in {*NAMES.values()}:
        shutil.move(wheel / "onnxruntime_ep_nv_tensorrt_rtx" / name, libraries / name)
    shutil.rmtree(wheel)
    for name, target in NAMES.items():
        (libraries / name).symlink_to(target)
    _compile_plugins(libraries)
    (site / "tensorrt").mkdir()
    (site / "tensorrt" / "__init__.py").write_text(MODULE)
    done.touch()


def environment(folder: Path) -> dict[str, str]:
    """Give the environment in which `import tensorrt` finds what FOLDER holds."""
    paths = {"LD_LIBRARY_PATH": folder / "lib", "PYTHONPATH": folder / "site"}
    added = {
        name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in paths.items()
    }
    return {**os.environ, **added}


def _install(requirement: str, target: Path, folder: Path) -> None:
    listed = folder / "requirement.txt"
    listed.write_text(requirement)
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes"]
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            *options,
            "--target",
            str(target),
            "--requirement",
            str(listed),
        ]
    )


def _compile_plugins(libraries: Path) -> None:
    source = libraries / "plugins.c"
    source.write_text("int initLibNvInferPlugins(void *logger, const char *names) { return 1; }\n")
    compiler = os.environ.get("CC", "cc")
    _run(
        [compiler, "-shared", "-fPIC", f"-Wl,-soname,{PLUGINS}", "-o", str(libraries / PLUGINS), str(source)]
    )


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run ({error.strerror})") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no word why"]
        raise Unavailable(f"`{' '.join(command[:4])} ...` failed: {lines[-1]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
