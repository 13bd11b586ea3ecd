"""The way to a device: scripts that say what is wrong, and wheels that exist for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "jetson").glob("*.sh")), *sorted((ROOT / "tests" / "jetson").glob("*.sh"))]
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 36))]


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    answer = run(Path(sys.executable).with_name("shellcheck"), script)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_every_wheel_exists_for_the_device(version: str, tmp_path: Path) -> None:
    """The versions that the wheelhouse would take, and pip's word that each is a wheel for that device."""
    lock = tmp_path / "requirements.txt"
    compiled = run(
        *(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        *("--only-binary", ":all:", "--python-version", version),
        *("--python-platform", "aarch64-manylinux_2_35", "--constraint", ROOT / "constraints.txt"),
        *(ROOT / "pyproject.toml", ROOT / "jetson" / "requirements.txt", "--output-file", lock),
    )
    if any(word in compiled.stderr for word in ("dns error", "Could not connect", "tcp connect")):
        pytest.skip("no package index to ask")
    assert compiled.returncode == 0, compiled.stderr
    tag = "cp" + version.replace(".", "")
    report = tmp_path / "report.json"
    asked = run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--report", report),
        *("--target", tmp_path / "nowhere", "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", version, "--abi", tag, "--abi", "abi3", "--abi", "none"),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *("--requirement", lock),
    )
    assert asked.returncode == 0, asked.stderr
    found = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    assert {"numpy", "rasterio", "pyogrio", "openvino", "shapely", "pyproj", "nanobind", "pytools"} <= found
    assert len(found) == len(lock.read_text().split())


class TestInstall:
    """What `install.sh` says on a machine that is no device, or of a folder that is not whole."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "a wheelhouse"
        (folder / "wheels").mkdir(parents=True)
        shutil.copy(ROOT / "jetson" / "install.sh", folder)
        (folder / "python-version").write_text("3.10\n")
        (folder / "wheels" / "some.whl").write_bytes(b"wheel")
        self.seal(folder)
        return folder

    @staticmethod
    def seal(folder: Path) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "SHA256SUMS"]
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files
        ]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")

    def refusal(self, folder: Path, *options: str) -> str:
        answer = run("bash", folder / "install.sh", "--prefix", folder / "prefix", *options)
        assert answer.returncode == 2
        assert answer.stdout == ""
        assert not (folder / "prefix").exists()
        return answer.stderr

    def test_another_architecture(self, folder: Path) -> None:
        assert "the wheels are for aarch64" in self.refusal(folder)

    def test_a_damaged_file_is_named(self, folder: Path) -> None:
        (folder / "wheels" / "some.whl").write_bytes(b"wheek")
        assert "wheels/some.whl: FAILED" in self.refusal(folder)

    def test_a_missing_file_is_named(self, folder: Path) -> None:
        (folder / "wheels" / "some.whl").unlink()
        assert "wheels/some.whl" in self.refusal(folder)

    def test_a_folder_that_is_no_wheelhouse(self, folder: Path) -> None:
        (folder / "SHA256SUMS").unlink()
        assert "wheelhouse.sh makes it" in self.refusal(folder)

    def test_an_unknown_option(self, folder: Path) -> None:
        assert "unknown option --gpu" in self.refusal(folder, "--gpu")

    @pytest.fixture
    def as_device(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Let `uname` and `python3.10` answer as on a device."""
        tools = folder.parent / "tools"
        tools.mkdir()
        for name, text in (("uname", "echo aarch64"), ("python3.10", f'exec "{sys.executable}" "$@"')):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tools), prepend=":")
        return folder

    def test_a_board_that_is_not_known(self, as_device: Path) -> None:
        assert "neither Orin nor Thor" in self.refusal(as_device)

    def test_a_prefix_that_holds_something_else(self, as_device: Path) -> None:
        other = as_device / "other"
        other.mkdir()
        (other / "thesis.txt").write_text("mine")
        answer = run("bash", as_device / "install.sh", "--cpu", "--prefix", other)
        assert (answer.returncode, (other / "thesis.txt").read_text()) == (2, "mine")
        assert "holds something else" in answer.stderr

    def test_no_tensorrt_is_said_with_the_package_to_install(self, as_device: Path) -> None:
        assert "python3-libnvinfer" in self.refusal(as_device, "--architecture", "87")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_unit_is_sound(tmp_path: Path) -> None:
    text = (ROOT / "jetson" / "edge-infer@.service").read_text()
    unit = tmp_path / "edge-infer@moore.service"
    unit.write_text(text.replace("/opt/edge-infer/bin/edge-infer", "/bin/true"))
    answer = run("systemd-analyze", "verify", unit)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_unit_knows_the_exit_codes() -> None:
    lines = (ROOT / "jetson" / "edge-infer@.service").read_text().splitlines()
    assert {"SuccessExitStatus=3 4", "RestartPreventExitStatus=2", "Restart=on-failure"} <= set(lines)
