"""What a GPU needs: driver, TensorRT, pycuda, engines in the cache. Without a GPU none of it is missed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edge_infer.doctor.finding import Finding, attempt
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_infer.device.gpu import GpuFacts
    from edge_infer.machine import Machine

CUDA_FOLDER = Path("/usr/local/cuda")
"""Where a CUDA toolkit lies, a Jetson's, too."""

UNTIL_THEN = "until then --engine openvino"

ON_A_JETSON = (
    "without a network: install.sh of the wheelhouse makes the environment anew with JetPack's TensorRT; "
    f"with one, where JetPack lacks it: sudo apt install nvidia-jetpack; {UNTIL_THEN}"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that engines would run on, where there is one."""

    facts: GpuFacts | None
    tensorrt: str | None
    """Version of a TensorRT that can be used with it."""

    @property
    def usable(self) -> bool:
        """Whether TensorRT engines can be run."""
        return self.facts is not None and self.tensorrt is not None


def look_at_graphics(machine: Machine) -> tuple[Gpu, list[Finding]]:
    """Check driver, TensorRT, pycuda, toolkit and kernels."""
    facts, findings = _driver(machine)
    expected = facts is not None or machine.is_jetson or machine.nvidia_cards > 0
    if not expected:
        return Gpu(None, None), findings
    found: list[str] = []
    findings += attempt("TensorRT", lambda: _tensorrt(machine, facts, found))
    findings += attempt("pycuda", lambda: _pycuda(machine, facts))
    findings += attempt("CUDA", _toolkit)
    if facts is not None:
        findings += attempt("kernels", lambda: _kernels(facts))
    without_pycuda = find_spec("pycuda") is None
    tensorrt = found[0] if found and not without_pycuda else None
    return Gpu(facts, tensorrt), findings


def look_at_plans(gpu: Gpu) -> Iterator[Finding]:
    """See which engines in the cache belong to this device; nothing where none could be used."""
    from edge_infer.engine.tensorrt.cache import PlanCache, cache_folder
    from edge_infer.engine.tensorrt.inventory import objection

    cache = PlanCache(cache_folder(None))
    entries = cache.entries()
    if not entries:
        if gpu.usable:
            later = "a run builds what it needs, in minutes; ahead of it: edge-infer build MODEL"
            yield Finding("engines", "ok", f"none are built yet ({cache.folder})", later)
        return
    if gpu.facts is None or gpu.tensorrt is None:
        lost = f"{len(entries)} in {cache.folder}, which need a GPU with TensorRT: the CPU runs the model"
        yield Finding("engines", "warning", lost, f"mend what lacks, or remove {cache.folder}")
        return
    whys = [objection(entry, None, gpu.facts, gpu.tensorrt) for entry in entries]
    of_others = [why for why in whys if why is not None]
    text = f"{len(entries) - len(of_others)} of {len(entries)} in {cache.folder} are for this device"
    figures = {"engines": len(entries), "usable": len(entries) - len(of_others)}
    if of_others:
        clean = "they are built anew when needed; remove them: edge-infer build --prune"
        yield Finding("engines", "ok", f"{text}; of the others, one: {of_others[0]}", clean, figures)
    else:
        yield Finding("engines", "ok", text, None, figures)


def _driver(machine: Machine) -> tuple[GpuFacts | None, list[Finding]]:
    from edge_infer.device.gpu import probe_gpu

    try:
        facts = probe_gpu()
    except EngineError as error:
        why, _, do = str(error).partition("; ")
        if not (machine.is_jetson or machine.nvidia_cards or machine.graphics_cards):
            return None, [Finding("GPU", "ok", "no NVIDIA GPU: the CPU runs the model, by OpenVINO")]
        board = "a Jetson" if machine.is_jetson else "an NVIDIA card"
        return None, [Finding("GPU", "warning", f"{board} is there, but {why}", do or "check nvidia-smi")]
    cards = machine.graphics_cards or ()
    drivers = sorted({card.driver for card in cards})
    driver = f", driver {', '.join(drivers)}" if drivers else ""
    return facts, [Finding("GPU", "ok", f"{facts}{driver}")]


def _tensorrt(machine: Machine, facts: GpuFacts | None, found: list[str]) -> Iterator[Finding]:
    from edge_infer.engine.tensorrt.bindings import load_tensorrt

    there = find_spec("tensorrt") is not None
    try:
        library = load_tensorrt("12" if facts is None else facts.driver)
    except EngineError as error:
        why, _, do = str(error).partition("; ")
        if there:  # what is there but broken ends a run, where what is absent sends it to the CPU
            yield Finding("TensorRT", "problem", why, do)
        else:
            install = ON_A_JETSON if machine.is_jetson else do
            yield Finding("TensorRT", "warning", "not there: the CPU runs the model, slowly", install)
        return
    found.append(library.text)
    yield Finding("TensorRT", "ok", library.text)


def _pycuda(machine: Machine, facts: GpuFacts | None) -> Iterator[Finding]:
    if find_spec("pycuda") is None:
        install = (
            "install.sh of the wheelhouse builds it, without a network"
            if machine.is_jetson
            else f"with a network: pip install pycuda; {UNTIL_THEN}"
        )
        yield Finding("pycuda", "warning", "not there: the CPU runs the model, slowly", install)
        return
    if facts is None:
        untried = f"{_version('pycuda')}, not tried without a driver"
        yield Finding("pycuda", "warning", untried, "mend the driver first: see GPU")
        return
    try:
        import pycuda.driver  # noqa: F401
    except (ImportError, OSError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        again = f"build it anew for this CUDA and NumPy (Jetson: install.sh of the wheelhouse); {UNTIL_THEN}"
        yield Finding("pycuda", "problem", f"cannot be loaded: {text}", again)
        return
    yield Finding("pycuda", "ok", _version("pycuda"))


def _toolkit() -> Iterator[Finding]:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=str(CUDA_FOLDER / "bin"))
    if nvcc is None:
        yield Finding("CUDA", "ok", "no toolkit: it only serves to build pycuda and the kernels")
        return
    from edge_infer.machine.tree import run_command

    told = run_command((nvcc, "--version")) or ""
    release = next((line for line in told.splitlines() if "release" in line), "").partition("release ")[2]
    yield Finding("CUDA", "ok", f"toolkit {release.split(',')[0] or 'of unknown version'} ({nvcc})")


def _kernels(facts: GpuFacts) -> Iterator[Finding]:
    from edge_infer.device.cuda_sampler import why_not

    reason = why_not(facts)
    if reason is None:
        yield Finding("kernels", "ok", f"built in for sm_{facts.architecture}")
    elif facts.integrated:
        yield Finding("kernels", "ok", f"{reason}; not missed, as this GPU leaves the cutting to the CPU")
    else:
        build = "install edge-infer where CMake finds nvcc; until then the CPU cuts the chips"
        yield Finding("kernels", "warning", reason, build)


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "of unknown version"
