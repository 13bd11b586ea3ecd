"""What an aerial image shows of every building footprint."""

from __future__ import annotations

import sys
from importlib.metadata import version

__version__ = version("edge-infer")

# Merely to import OpenVINO has it report to its makers, from a process of its own and with files in the home
# folder, unless this module cannot be imported. Nothing here calls home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
