"""Finds TensorRT, and says what to do where there is none that serves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_infer.errors import EngineError

OLDEST = (8, 6)
"""The first version with the calls that are used here; JetPack 6.1 has 10.3."""

STRONGLY_TYPED_SINCE = (10,)
"""From here on a network runs in the types that its ONNX file states; 11 has nothing else."""

JETSON_RELEASE = Path("/etc/nv_tegra_release")
"""There on every Jetson, nowhere else."""


@dataclass(frozen=True, slots=True)
class TensorRt:
    """The TensorRT of this machine."""

    module: Any
    """The Python module `tensorrt`."""
    text: str
    """Its version as it says it, such as 10.3.0."""
    version: tuple[int, ...]
    """The same as numbers, to be compared."""

    @property
    def strongly_typed(self) -> bool:
        """Whether networks state their types, so that no precision flag is wanted or allowed."""
        return self.version >= STRONGLY_TYPED_SINCE


def load_tensorrt(driver: str) -> TensorRt:
    """Import TensorRT.

    Args:
        driver: newest CUDA version that the driver runs, as in 12.6; chooses the package to recommend.

    Raises:
        EngineError: it is absent, incomplete, too old, or can only run plans.

    """
    try:
        import tensorrt as module
    except ModuleNotFoundError as error:
        raise EngineError(
            f"TensorRT was not found (no Python module {error.name}); {_remedy(driver)}, "
            "or use --engine openvino"
        ) from None
    # The module is there, and its libraries are not, or NumPy is newer than it can bear.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"TensorRT's Python module cannot be loaded ({_first_line(error)}); module and libraries must "
            f"be of one version: {_remedy(driver)}, or use --engine openvino"
        ) from None
    text = str(getattr(module, "__version__", "unknown"))
    version = parse_version(text)
    if version < OLDEST:
        raise EngineError(
            f"TensorRT {text} was found, needed is {'.'.join(map(str, OLDEST))} or newer; {_remedy(driver)}, "
            "or use --engine openvino"
        )
    if not hasattr(module, "Builder"):
        raise EngineError(
            f"TensorRT {text} is a lean one that can only run plans, needed is one that builds them; "
            f"{_remedy(driver)}, or use --engine openvino"
        )
    return TensorRt(module, text, version)


def parse_version(text: str) -> tuple[int, ...]:
    """Read the leading numbers of a version: (10, 3, 0) of 10.3.0b1; empty where there are none."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in found.group().split(".")) if found else ()


def _remedy(driver: str) -> str:
    if JETSON_RELEASE.exists():
        return (
            "on a Jetson it comes with JetPack (6.1 or newer) into the system's Python (with a network: "
            "`sudo apt install python3-libnvinfer`); make the environment anew with "
            "`python3 -m venv --system-site-packages` or the wheelhouse's install.sh"
        )
    major = max(parse_version(driver)[:1] or (12,))
    return f"the driver runs CUDA {driver}: with a network `pip install tensorrt-cu{min(max(major, 11), 13)}`"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
