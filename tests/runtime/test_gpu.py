"""What is said on a machine without an NVIDIA driver; the driver that is missing here is really missing."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_infer.bundle import open_bundle
from edge_infer.device.cuda import load_pycuda
from edge_infer.device.cuda_sampler import why_not
from edge_infer.device.gpu import DRIVER_LIBRARY, GpuFacts, probe_gpu
from edge_infer.engine import GpuOptions
from edge_infer.engine.choose import open_engine
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ORIN = GpuFacts(
    name="Orin", compute_capability=(8, 7), multiprocessors=8, integrated=True, total_bytes=8 << 30,
    free_bytes=4 << 30, driver="12.6",
)  # fmt: skip


def has_driver() -> bool:
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")


def test_facts_in_words() -> None:
    assert ORIN.architecture == 87
    assert str(ORIN) == "Orin, sm_87, 8.0 GiB, CUDA 12.6"


@without_driver
def test_no_driver_is_told_as_that() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver.*JetPack.*--engine openvino") as refused:
        probe_gpu()
    assert refused.value.exit_code == 2


@without_driver
def test_tensorrt_that_is_asked_for_is_never_replaced(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        open_engine(open_bundle(make_bundle()), engine="tensorrt")


@without_driver
def test_auto_says_why_it_is_openvino(make_bundle: Callable[..., Path]) -> None:
    engine = open_engine(open_bundle(make_bundle()))
    assert engine.facts.why == (
        "openvino: not TensorRT: no NVIDIA driver was found (libcuda.so.1); "
        "fp32: the bundle holds no INT8 model"
    )
    engine.close()


@without_driver
def test_sampling_on_a_gpu_needs_the_engine_on_it(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="--sample-on gpu goes with the TensorRT engine"):
        open_engine(open_bundle(make_bundle()), gpu=GpuOptions(sample_on="gpu"))


@without_driver
def test_the_command_exits_with_2_and_one_line(
    make_bundle: Callable[..., Path], write_raster, tmp_path
) -> None:

    image = write_raster("image.tif", np.zeros((3, 64, 64), np.uint8))
    command = [
        "run", "--model", str(make_bundle()), "--imagery", str(image),
        "--out", str(tmp_path / "out.gpkg"), "--engine", "tensorrt",
    ]  # fmt: skip
    code = "import sys; from edge_infer.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("edge-infer: no NVIDIA driver was found (libcuda.so.1); install one")
    assert not (tmp_path / "out.gpkg").exists()


DISCRETE = replace(ORIN, name="a card", integrated=False, driver="13.0")


@pytest.mark.parametrize(
    ("architectures", "gpu", "reason"),
    [
        ("80 86 87", ORIN, None),
        ("80 86 90", ORIN, "are for sm_80 86 90, this GPU is sm_87"),  # cards' code, and a Tegra
        ("80 86", ORIN, None),  # by PTX
        ("87", replace(DISCRETE, compute_capability=(8, 9)), "nvcc 13.2"),  # PTX needs the driver of its nvcc
        ("80 86 90", replace(DISCRETE, compute_capability=(8, 9)), None),
        ("75 80 87 90", replace(DISCRETE, compute_capability=(8, 9)), None),
        ("75 87 90", replace(DISCRETE, compute_capability=(8, 9)), "this GPU is sm_89"),
        ("90 110", replace(DISCRETE, compute_capability=(12, 1), driver="13.2"), None),  # by PTX
        ("90 120", replace(DISCRETE, compute_capability=(12, 1)), None),
        ("90 120", replace(DISCRETE, compute_capability=(12, 1), driver="12.8"), "driver runs CUDA 12.8"),
        ("75 90", replace(DISCRETE, compute_capability=(8, 6)), "are for sm_75 90, this GPU is sm_86"),
    ],
)
def test_kernels_are_taken_where_they_run(monkeypatch, architectures, gpu, reason) -> None:
    nvcc = "12.6.68" if gpu is ORIN else "13.2.51"
    monkeypatch.setattr("edge_infer.device.cuda_sampler._ext.CUDA_ARCHITECTURES", architectures)
    monkeypatch.setattr("edge_infer.device.cuda_sampler._ext.NVCC_VERSION", nvcc)
    found = why_not(gpu)
    assert found is None if reason is None else re.search(reason, str(found))


def test_pycuda_that_is_missing_or_unfit_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(EngineError, match=r"pycuda was not found.*pip install pycuda"):
        load_pycuda()
    monkeypatch.delitem(sys.modules, "pycuda")
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('undefined symbol: cuCtx_v2')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=r"does not fit this driver \(undefined symbol: cuCtx_v2\)"):
        load_pycuda()
    sys.modules.pop("pycuda", None)
