"""What an aerial image shows of every building footprint."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("edge-infer")
