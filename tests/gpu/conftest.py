"""Tests that need an NVIDIA GPU with TensorRT and pycuda: `make test-gpu`.

Without them every test is skipped for one reason, which becomes a failure where EDGE_INFER_REQUIRE_GPU=1.
EDGE_INFER_GPU_MODEL names a bundle with all three precisions (tests/gpu/model.py makes one; by default it is
made here). EDGE_INFER_CACHE keeps the engines between calls.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_infer.bundle import open_bundle
from edge_infer.device.cuda import CudaDevice
from edge_infer.device.gpu import probe_gpu
from edge_infer.engine import GpuOptions
from edge_infer.engine.choose import find_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_infer.bundle import Bundle
    from edge_infer.engine import Precision
    from edge_infer.engine.tensorrt.plans import ReadyPlan
    from edge_infer.engine.tensorrt.runtime import TensorRtEngine

BATCH = 64
_found = find_gpu()
REASON = _found if isinstance(_found, str) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("gpu")


def pytest_runtest_setup() -> None:
    if REASON is not None and os.environ.get("EDGE_INFER_REQUIRE_GPU") == "1":
        pytest.fail(REASON, pytrace=False)
    if REASON is not None:
        pytest.skip(REASON)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("EDGE_INFER_GPU_MODEL")
    if named:
        return Path(named)
    from model import write_model  # type: ignore[import-not-found]

    path = tmp_path_factory.mktemp("model") / "resnet34.edgemodel"
    write_model(path)
    return path


@pytest.fixture(scope="session")
def bundle(model: Path) -> Bundle:
    return open_bundle(model)


@pytest.fixture(scope="session")
def make_plan(bundle: Bundle) -> Callable[..., ReadyPlan]:
    """Build the plan of a precision for batches of up to 64, or find it."""
    from edge_infer.engine.tensorrt.plans import ready_plan

    plans: dict[Precision, ReadyPlan] = {}

    def make(precision: Precision) -> ReadyPlan:
        if precision not in plans:
            plans[precision] = ready_plan(
                bundle, precision=precision, batch=BATCH, gpu=probe_gpu(), say=print, measure=None
            )
        return plans[precision]

    return make


@pytest.fixture(scope="session")
def open_engine(
    bundle: Bundle, make_plan: Callable[..., ReadyPlan]
) -> Callable[..., closing[TensorRtEngine]]:
    """Open an engine, to be used in a `with`; its end closes the device too."""
    from edge_infer.engine.tensorrt.bindings import load_tensorrt
    from edge_infer.engine.tensorrt.runtime import TensorRtEngine

    def open_it(precision: Precision = "int8", *, batch: int = BATCH, **options) -> closing[TensorRtEngine]:
        plan = make_plan(precision)
        facts = probe_gpu()
        library, device = load_tensorrt(facts.driver), CudaDevice(facts)
        try:
            engine = TensorRtEngine(
                device, library, plan.content, bundle.manifest.contract, len(bundle.manifest.classes),
                batch=batch, precision=plan.precision, why="a test", options=GpuOptions(**options),
            )  # fmt: skip
        except BaseException:
            device.close()
            raise
        return closing(engine)

    return open_it


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    with closing(CudaDevice(probe_gpu())) as device:
        yield device
