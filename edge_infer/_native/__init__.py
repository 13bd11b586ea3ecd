"""The compiled part; `edge_infer.sampler` is its face."""

from __future__ import annotations
