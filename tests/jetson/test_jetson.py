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
        said = self.refusal(as_device, "--architecture", "87")
        assert "python3-libnvinfer" in said
        assert "No module named 'tensorrt'" in said

    def test_a_tensorrt_that_cannot_be_loaded_says_why(self, as_device: Path) -> None:
        """As in a container that is built without NVIDIA's runtime."""
        (as_device / "tensorrt.py").write_text("raise ImportError('libnvdla_compiler.so: cannot open')")
        said = self.refusal(as_device, "--architecture", "87")
        assert "says: ImportError: libnvdla_compiler.so: cannot open\n" in said

    def test_a_prefix_is_where_the_caller_stands(self, as_device: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").write_text("mine")
        answer = run("bash", as_device / "install.sh", "--cpu", "--prefix", "other", cwd=tmp_path)
        assert answer.returncode == 2
        assert f"install: {tmp_path / 'other'} holds something else" in answer.stderr

    def test_wheels_of_another_wheelhouse(self, as_device: Path) -> None:
        (as_device / "wheels" / "another.whl").touch()
        (as_device / "wheels" / "._another.whl").touch()  # macOS leaves these on sticks
        said = self.refusal(as_device, "--cpu")
        assert said.endswith("copy this one to an empty folder: wheels/another.whl\n")


FAKE_PIP = """
import sys, tarfile
from pathlib import Path
command, sources = sys.argv[1], [path for path in sys.argv if path.endswith(".tar.gz")]
if command == "wheel":
    folder = Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
    for source in sources:
        (folder / "edge_infer.whl").write_text(Path(source).read_text())
else:
    (wheel,) = (path for path in sys.argv if path.endswith(".whl"))
    script = Path(sys.prefix) / "bin" / "edge-infer"
    script.write_text(f"#!/bin/sh\\necho {Path(wheel).read_text()}\\n")
    script.chmod(0o755)
"""
"""Wheels hold their source's text, and so says the command that is installed."""


@pytest.fixture
def machine() -> list[str]:
    """The command before a command that may fill /etc and /usr/local/bin: empty ones, which vanish."""
    fake = "for folder in /etc /run /var/cache /usr/local/bin; do mount -t tmpfs tmpfs $folder; done"
    prefix = [
        *("unshare", "--user", "--map-root-user", "--mount"),
        *("sh", "-c", f'{fake}; mkdir -p /etc/systemd/system; exec "$@"', "sh"),
    ]
    if shutil.which("unshare") is None or run(*prefix, "true").returncode:
        pytest.skip("no mount namespace may be made here")
    return prefix


class TestWholeInstall:
    """The flow of `install.sh` as root, with a pip that builds and installs nothing."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        tools, folder = tmp_path / "tools", tmp_path / "wheelhouse"
        tools.mkdir()
        python = f'exec "{sys.executable}" "$@"'
        for name, text in (("uname", "echo aarch64"), ("python3.10", python), ("g++", ":")):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tools), prepend=":")
        (folder / "wheels" / "pip-1.whl").mkdir(parents=True)
        (folder / "wheels" / "pip-1.whl" / "pip").write_text(FAKE_PIP)
        (folder / "wheels" / "edge_infer-1.tar.gz").write_text("first")
        (folder / "python-version").write_text("3.10\n")
        for name in ("install.sh", "edge-infer@.service"):
            shutil.copy(ROOT / "jetson" / name, folder)
        TestInstall.seal(folder)
        return folder

    def install(self, machine: list[str], folder: Path, then: str = ":") -> subprocess.CompletedProcess[str]:
        script = f"bash wheelhouse/install.sh --cpu --prefix opt --service && {then}"
        return run(*machine, "bash", "-c", script, cwd=folder.parent)

    def test_what_stands_afterwards(self, machine: list[str], folder: Path) -> None:
        command = folder.parent / "opt" / "bin" / "edge-infer"
        answer = self.install(
            machine,
            folder,
            "readlink -e /usr/local/bin/edge-infer; stat -c %a /etc/edge-infer /var/cache/edge-infer;"
            " grep ExecStart= /etc/systemd/system/edge-infer@.service",
        )
        assert answer.returncode == 0, answer.stderr
        link, etc, cache, unit = answer.stdout.splitlines()[-4:]
        assert (link, etc, cache) == (str(command), "755", "755")
        assert unit.startswith(f"ExecStart={command} run --resume ")

    def test_what_was_built_is_used_again_for_the_same_sources_only(
        self, machine: list[str], folder: Path
    ) -> None:
        first, second = self.install(machine, folder), self.install(machine, folder)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert "building edge-infer" in first.stdout
        assert "building edge-infer" not in second.stdout
        (folder / "wheels" / "edge_infer-1.tar.gz").write_text("second")
        (folder / "SHA256SUMS").unlink()
        TestInstall.seal(folder)
        third = self.install(machine, folder)
        assert "building edge-infer" in third.stdout
        assert "second" in third.stdout.splitlines()
        assert "first" not in third.stdout.splitlines()

    def test_what_was_built_and_is_damaged_is_said(self, machine: list[str], folder: Path) -> None:
        assert self.install(machine, folder).returncode == 0
        (wheel,) = (folder / "built").glob("*/*.whl")
        wheel.write_text("worn")
        answer = self.install(machine, folder)
        assert answer.returncode == 2
        assert f"{wheel.parent} is damaged; copy it again, or remove it" in answer.stderr
        assert "edge_infer.whl: FAILED" in answer.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_unit_is_sound(tmp_path: Path) -> None:
    text = (ROOT / "jetson" / "edge-infer@.service").read_text()
    unit = tmp_path / "edge-infer@moore.service"
    unit.write_text(text.replace("/opt/edge-infer/bin/edge-infer", "/bin/true"))
    answer = run("systemd-analyze", "verify", unit)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_unit_knows_the_exit_codes() -> None:
    lines = (ROOT / "jetson" / "edge-infer@.service").read_text().splitlines()
    assert {"SuccessExitStatus=3 4", "RestartForceExitStatus=4", "Restart=on-failure"} <= set(lines)
    assert not any(line.startswith("RestartPreventExitStatus") for line in lines)  # 2 may pass


def test_the_unit_keeps_its_engines_in_a_folder_of_its_own() -> None:
    unit = (ROOT / "jetson" / "edge-infer@.service").read_text()
    assert "\nCacheDirectory=edge-infer\nEnvironment=EDGE_INFER_CACHE=/var/cache/edge-infer\n" in unit
