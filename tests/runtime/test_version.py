from __future__ import annotations

import pytest

from edge_infer import __version__
from edge_infer._native import _ext
from edge_infer.version import describe


def test_says_why_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(_ext, "CUDA_ARCHITECTURES", "")
    monkeypatch.setattr(_ext, "CUDA_ABSENCE", "no CUDA compiler was found when this was built")
    assert describe() == (
        f"edge-infer {__version__} (without CUDA kernels: no CUDA compiler was found when this was built)"
    )


@pytest.mark.parametrize(("architectures", "listed"), [("87", "sm_87"), ("80 87 90", "sm_80, sm_87, sm_90")])
def test_lists_the_architectures(monkeypatch, architectures, listed):
    monkeypatch.setattr(_ext, "CUDA_ARCHITECTURES", architectures)
    monkeypatch.setattr(_ext, "NVCC_VERSION", "13.0.88")
    assert describe() == f"edge-infer {__version__} (CUDA kernels for {listed}, made with nvcc 13.0.88)"
