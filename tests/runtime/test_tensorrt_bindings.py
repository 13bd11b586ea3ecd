"""What is said where TensorRT is absent or does not serve; the modules here only have its name."""

from __future__ import annotations

import sys

import pytest

from edge_infer.engine.tensorrt import bindings as library_module
from edge_infer.engine.tensorrt.bindings import load_tensorrt, parse_version
from edge_infer.errors import EngineError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Let `import tensorrt` find a module with this source."""

    def write(source: str) -> None:
        folder = tmp_path / "site" / "tensorrt"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(folder.parent)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    yield write
    sys.modules.pop("tensorrt", None)


def refusal(driver: str = "12.6") -> str:
    with pytest.raises(EngineError) as caught:
        load_tensorrt(driver)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("or use --engine openvino")
    return message


@pytest.mark.parametrize(
    ("driver", "package"),
    [
        ("11.4", "tensorrt-cu11"),
        ("12.6", "tensorrt-cu12"),
        ("13.2", "tensorrt-cu13"),
        ("14.0", "tensorrt-cu13"),
    ],
)
def test_where_there_is_none_the_package_for_the_driver_is_named(monkeypatch, driver, package):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    message = refusal(driver)
    assert message.startswith("TensorRT was not found (no Python module tensorrt")
    assert f"`pip install {package}`" in message


def test_on_a_jetson_it_comes_with_jetpack(monkeypatch, tmp_path):
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3\n")
    monkeypatch.setattr(library_module, "JETSON_RELEASE", release)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = refusal()
    assert "JetPack" in message
    assert "--system-site-packages" in message
    assert "pip install tensorrt" not in message


def test_a_module_without_its_libraries(install):
    install("raise ImportError('libnvinfer.so.10: cannot open shared object file\\nand more')")
    assert (
        "cannot be loaded (libnvinfer.so.10: cannot open shared object file); module and libraries"
        in refusal()
    )


@pytest.mark.parametrize("version", ["8.5.2.2", "7.1", "unknown"])
def test_one_that_is_too_old(install, version):
    install(f"__version__ = {version!r}\nclass Builder: pass")
    assert f"TensorRT {version} was found, needed is 8.6 or newer" in refusal()


def test_one_that_can_only_run_plans(install):
    install("__version__ = '10.16.1'")
    assert "TensorRT 10.16.1 is a lean one that can only run plans" in refusal()


@pytest.mark.parametrize(
    ("version", "numbers", "strongly_typed"),
    [
        ("8.6.0", (8, 6, 0), False),
        ("9.3.0", (9, 3, 0), False),
        ("10.0.0b6", (10, 0, 0), True),
        ("10.16.1.11", (10, 16, 1, 11), True),
        ("11.4.0.106", (11, 4, 0, 106), True),
    ],
)
def test_versions_are_compared_as_numbers(install, version, numbers, strongly_typed):
    install(f"__version__ = {version!r}\nclass Builder: pass")
    found = load_tensorrt("12.6")
    assert (found.text, found.version, found.strongly_typed) == (version, numbers, strongly_typed)


def test_what_is_no_version():
    assert parse_version("unknown") == parse_version("") == ()
