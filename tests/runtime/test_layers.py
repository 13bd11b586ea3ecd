"""The order of the modules in docs/architecture.md, held against what they import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edge_infer"


def documented_order() -> list[str]:
    """Modules of the runtime in the order of the table."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if re.match(r"\| [a-z ]+ \| `", line)]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def modules() -> list[str]:
    return sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})


def imported_by(module: str) -> set[str]:
    """Modules of the runtime that one of them imports, late and for types only included."""
    path = PACKAGE / module
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edge_infer":
                parts = (node.module or "").split(".")
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {module, "__version__"}


def test_the_table_names_every_module_once() -> None:
    assert sorted(documented_order()) == [name for name in modules() if name != "__init__"]


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_imports_point_up_the_table(module: str) -> None:
    order = documented_order()
    above = order[: order.index(module)]
    assert imported_by(module) - {"_native"} <= set(above)
