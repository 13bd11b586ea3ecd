"""A stand-in for pycuda on whatever libcuda.so.1 there is; only what edge-infer uses of it."""

from __future__ import annotations
