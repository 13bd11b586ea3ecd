"""The ResNet: its weights, its ONNX graph, and the bundle that carries it."""

from __future__ import annotations
