"""What has to agree across the repository."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from edge_infer import __version__
from edge_infer.cli import COMMAND_GROUP, commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", [".", "export", "calibration"])
def test_the_three_distributions_share_one_version(folder: str) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    siblings = [need for need in project.get("dependencies", []) if need.startswith("edge-infer")]
    wanted = {".": [], "export": ["edge-infer"], "calibration": ["edge-infer", "edge-infer-export"]}[folder]
    assert siblings == [f"{name}=={__version__}" for name in wanted]


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    names = {*commands.commands, *(point.name for point in entry_points(group=COMMAND_GROUP))}
    assert names >= {"run", "info", "chips", "train", "export", "demo"}
    for name in names:
        assert re.search(rf"edge-infer {name}\b|make {name}\b", readme), name


def test_the_readme_names_every_status_and_column() -> None:
    from edge_infer.schema import RESULT_COLUMNS, STATUSES

    readme = (ROOT / "README.md").read_text()
    for name in (*RESULT_COLUMNS, *STATUSES):
        assert f"| `{name}` |" in readme


def test_decisions_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text()
    for path in folder.glob("[0-9]*.md"):
        assert f"({path.name})" in listed
