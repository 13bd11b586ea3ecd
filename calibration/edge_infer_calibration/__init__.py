"""INT8 for the office side: activation ranges, the Q/DQ graph, and the gate that it has to pass."""

from __future__ import annotations
