"""What a test needs beside a GPU: its absence is a skip, and a failure where EDGE_INFER_REQUIRE_GPU=1."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """End the test, since `reason` keeps it from being done."""
    if os.environ.get("EDGE_INFER_REQUIRE_GPU") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
