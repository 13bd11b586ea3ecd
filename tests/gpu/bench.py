"""Figures of this GPU as JSON: the engine alone, the sampler alone, and whole runs.  `make bench-gpu`

python tests/gpu/bench.py --out benchmarks/results [--model M.edgemodel] [--minutes 8] [--part engine ...]

Each part writes its file anew after every figure, so that what was measured stays where the time ends. Times
are those that trtexec defines: H2D, GPU compute and D2H by the GPU's clock, host latency as their sum,
enqueue as the host's time to launch. Throughput is that of ready batches with all lanes full.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from edge_infer.bundle import open_bundle
from edge_infer.device.cuda import CudaDevice
from edge_infer.device.gpu import probe_gpu
from edge_infer.engine import GpuOptions
from edge_infer.machine import Machine

if TYPE_CHECKING:
    from edge_infer.engine import Precision, SampleChoice

PERCENTILES = (50, 90, 95, 99)
SMI_FIELDS = (
    "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,"
    "clocks_throttle_reasons.active,pcie.link.gen.current,pcie.link.width.current"
)
PARTS = ("engine", "sampler", "run")


class Report:
    """One JSON file: the machine, and figures as they come."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self._path, self._machine = path, machine
        self._figures: list[dict[str, Any]] = []

    def add(self, **figure: Any) -> None:
        self._figures.append(figure)
        content = {
            "machine": self._machine,
            "clocks_at_the_end": smi(),
            "board_at_the_end": board(),
            "figures": self._figures,
        }
        self._path.write_text(json.dumps(content, indent=1) + "\n")
        print(json.dumps(figure), flush=True)


def smi() -> dict[str, str]:
    """What nvidia-smi tells of the first GPU; empty where it is absent (Jetson)."""
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI_FIELDS.split(","), done.stdout.strip().split(", "), strict=False))


def board() -> dict[str, Any]:
    """What can be read of the board without root: on a Jetson power mode, clocks, temperatures, rails."""
    found = Machine.read()
    return {
        "power_mode": None if found.power_mode is None else asdict(found.power_mode),
        "clocks": [{**asdict(clock), "locked": clock.locked} for clock in found.clocks or ()],
        "thermal_zones": [asdict(zone) for zone in found.thermal_zones or ()],
        "power": None if found.power is None else asdict(found.power),
        "absent": dict(found.absent),
    }


def describe_machine(tensorrt: str) -> dict[str, Any]:
    import pycuda

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    release = Path("/etc/nv_tegra_release")
    return {
        "gpu": asdict(probe_gpu()),
        "nvidia_smi": smi(),
        "board": board(),
        "tensorrt": tensorrt,
        "pycuda": pycuda.VERSION_TEXT,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "l4t": release.read_text().splitlines()[0] if release.exists() else None,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    found = {f"p{number}": float(np.percentile(values, number)) for number in PERCENTILES}
    return {**found, "mean": float(values.mean()), "max": float(values.max()), "n": len(values)}


class Bench:
    """The parts, each until the time is over."""

    def __init__(self, model: Path, out: Path, until: float) -> None:
        from edge_infer.engine.tensorrt.bindings import load_tensorrt

        self.model, self.out, self.until = model, out, until
        self.bundle = open_bundle(model)
        self.gpu = probe_gpu()
        self.tensorrt = load_tensorrt(self.gpu.driver)
        self.machine = {
            **describe_machine(self.tensorrt.text),
            "model": self.bundle.manifest.name,
            "model_sha256": self.bundle.sha256,
        }
        self.chips = self.bundle.golden()[0]

    def report(self, part: str) -> Report:
        return Report(self.out / f"gpu-{part}.json", self.machine)

    def plan(self, precision: Precision, batch: int) -> tuple[bytes, float]:
        from edge_infer.engine.tensorrt.plans import ready_plan

        started = time.perf_counter()
        plan = ready_plan(
            self.bundle, precision=precision, batch=batch, gpu=self.gpu, say=print, measure=None
        )
        return plan.content, time.perf_counter() - started

    def open(self, plan: bytes, batch: int, precision: Precision, **options: Any) -> Any:
        from edge_infer.engine.tensorrt.runtime import TensorRtEngine

        device = CudaDevice(self.gpu)
        try:
            return closing(
                TensorRtEngine(
                    device, self.tensorrt, plan, self.bundle.manifest.contract,
                    len(self.bundle.manifest.classes), batch=batch, precision=precision, why="measured",
                    options=GpuOptions(**{"sample_on": "cpu", **options}),
                )
            )  # fmt: skip
        except BaseException:
            device.close()
            raise

    def engine(self) -> None:
        """Latency and throughput; every option once for the batch that runs use."""
        from edge_infer.engine.load import images_per_second
        from edge_infer.ring import BatchSlot

        report = self.report("engine")
        # The most wanted first; a plan for N chips takes fewer as well, tuned for N.
        order: tuple[tuple[Precision, int, tuple[int, ...]], ...] = (
            ("int8", 64, (64, 8, 1)), ("fp16", 64, (64, 8, 1)), ("fp32", 64, (64, 8, 1)),
            ("int8", 1, (1,)), ("int8", 256, (256,)), ("fp16", 1, (1,)), ("fp16", 256, (256,)),
            ("fp32", 1, (1,)), ("fp32", 256, (256,)),
        )  # fmt: skip
        for precision, most, batches in order:
            if time.monotonic() > self.until:
                report.add(precision=precision, tuned_for=most, skipped="the time was over")
                continue
            plan, seconds = self.plan(precision, most)
            for batch in batches:
                tried: list[dict[str, Any]] = [{}]
                if most == 64 and batch != 8:
                    tried += [{"graphs": False}, {"memory": "mapped"}]
                    tried += [{"lanes": lanes} for lanes in (1, 2, 4)]
                for options in tried:
                    with self.open(plan, batch, precision, **options) as engine:
                        slot = BatchSlot.allocate(batch, self.chips.shape[1:], engine.memory)
                        slot.chips[:] = np.resize(self.chips, slot.chips.shape)
                        slot.count = batch
                        times = engine.time_batches(slot, 2000 if batch == 1 else 200)
                        rates = [images_per_second(engine, self.chips, 0.7) for _ in range(3)]
                        parts = {name: percentiles(values) for name, values in asdict(times).items()}
                        report.add(
                            precision=precision, batch=batch, tuned_for=most, options=options,
                            why=engine.facts.why, plan_bytes=len(plan), plan_seconds=seconds,
                            milliseconds={**parts, "host_latency": percentiles(times.host_latency)},
                            wall_over_host_latency_p99=parts["wall"]["p99"]
                            / float(np.percentile(times.host_latency, 99)),
                            images_per_second=statistics.median(rates), images_per_second_all=rates,
                        )  # fmt: skip
            with self.open(plan, most, precision) as engine:  # pageable: a slot of ordinary memory
                from edge_infer.device.host import HostMemory

                slot = BatchSlot.allocate(most, self.chips.shape[1:], HostMemory())
                slot.count = most
                times = engine.time_batches(slot, 200)
                report.add(
                    precision=precision, batch=most, options={"memory": "pageable"},
                    milliseconds={name: percentiles(values) for name, values in asdict(times).items()},
                )  # fmt: skip

    def sampler(self) -> None:
        """Chips a second by the kernels alone, with and without sending the tile, and by the CPU."""
        from edge_infer.device.cuda_sampler import CudaSampler
        from edge_infer.imagery import Tile
        from edge_infer.sampler import sample, sound_windows
        from edge_infer.shelf import TileShelf

        report = self.report("sampler")
        rng, side, count = np.random.default_rng(0), 224, 256
        with closing(CudaDevice(self.gpu)) as device:
            driver = device.driver
            for bands, wide, masked, extent in (
                (3, False, False, 200), (3, False, False, 300), (3, False, False, 440), (3, False, True, 300),
                (4, True, False, 300),
            ):  # fmt: skip
                dtype = np.uint16 if wide else np.uint8
                pixels = rng.integers(0, 255, (bands, 2048, 2048), dtype)
                valid = (rng.random((2048, 2048)) < 0.99).astype(np.uint8) if masked else None
                tile = Tile(pixels, valid, column=0, row=0, scale_x=1, scale_y=1)
                boxes = np.hstack([rng.uniform(0, 1500, (count, 2)), np.full((count, 2), float(extent))])
                shape = (count, side, side, bands)
                shelf = TileShelf(device.pinned((pixels.nbytes + 8_000_000,), np.uint8, mapped=False))
                shelved = shelf.put(tile, count)
                assert shelved is not None
                sampler = CudaSampler(device, shape[1:], (0.0, 255.0))
                stream, marks = device.stream(), [device.timed_event() for _ in range(3)]
                sizes = (len(shelf.memory), 32 * count, int(np.prod(shape)), 4 * count)
                memories = [device.device_memory(size) for size in sizes]
                on_shelf, on_windows, on_chips, on_counts = map(int, memories)
                driver.memcpy_htod_async(on_windows, sound_windows(tile, boxes), stream)
                times = []
                for _ in range(50):
                    marks[0].record(stream)
                    driver.memcpy_htod_async(on_shelf, shelf.memory[: shelved.stop], stream)
                    marks[1].record(stream)
                    driver.memset_d32_async(on_counts, 0, count, stream)
                    sampler.launch(shelved, on_shelf, on_windows, count, on_chips, on_counts, stream)
                    marks[2].record(stream)
                    marks[2].synchronize()
                    times.append([marks[0].time_till(marks[1]), marks[1].time_till(marks[2])])
                send, kernel = np.median(times[10:], axis=0)
                for memory in memories:
                    memory.free()
                sampler.close()
                device.free_pinned(shelf.memory)
                chips, fractions = np.empty(shape, np.uint8), np.empty(count, np.float32)
                threads = os.cpu_count() or 1
                rates = {}
                for number in (1, threads):
                    started = time.perf_counter()
                    for _ in range(3):
                        sample(tile, boxes, chips, fractions, threads=number)
                    rates[str(number)] = 3 * count / (time.perf_counter() - started)
                report.add(
                    bands=bands, bits=16 if wide else 8, masked=masked, window_pixels=extent,
                    tile_milliseconds=float(send), tile_gigabytes_per_second=shelved.stop / send / 1e6,
                    kernel_chips_per_second=count / kernel * 1e3, cpu_chips_per_second_by_threads=rates,
                )  # fmt: skip

    def run(self) -> None:
        """Whole runs on a dense and a sparse scene, against the engine alone."""
        from scene import write_scene  # type: ignore[import-not-found]

        from edge_infer.classify import classify
        from edge_infer.engine.load import images_per_second
        from edge_infer.request import RunRequest

        report = self.report("run")
        with tempfile.TemporaryDirectory() as folder:
            dense, sparse = Path(folder) / "dense", Path(folder) / "sparse"
            for path in (dense, sparse):
                path.mkdir()
            write_scene(dense, pixels=10_240, step_metres=8)
            write_scene(sparse, pixels=10_240, step_metres=0, scattered=2000)
            precisions: tuple[Precision, ...] = ("int8", "fp16", "fp32")
            cases: tuple[tuple[Path, SampleChoice, int | None], ...] = (
                (dense, "gpu", None), (dense, "cpu", None), (dense, "gpu", None), (sparse, "gpu", None),
                (sparse, "cpu", None), (dense, "gpu", 4),
            )  # fmt: skip
            for precision in precisions:
                if time.monotonic() > self.until:
                    report.add(precision=precision, skipped="the time was over")
                    continue
                plan, _ = self.plan(precision, 64)
                for scene, sample_on, threads in cases:
                    with self.open(plan, 64, precision) as engine:
                        alone = images_per_second(engine, self.chips)
                    summary = classify(
                        RunRequest(
                            bundle=self.model, imagery=(scene / "scene.tif",),
                            footprints=scene / "houses.gpkg", out=Path(folder) / "out.gpkg", overwrite=True,
                            engine="tensorrt", precision=precision, batch=64, sample_on=sample_on,
                            threads=threads,
                        ),
                        quiet=True,
                    )  # fmt: skip
                    report.add(
                        scene=scene.name, precision=precision, sample_on=sample_on, threads=threads,
                        footprints=summary.classified_now,
                        footprints_per_second=summary.footprints_per_second,
                        engine_alone_images_per_second=alone,
                        share=summary.footprints_per_second / alone, pixels_read=summary.work.pixels_read,
                        seconds=asdict(summary.times), why=summary.engine and summary.engine.why,
                    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="with all precisions; made where none is given")
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after so long")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            from model import write_model  # type: ignore[import-not-found]

            model = Path(folder) / "resnet34.edgemodel"
            write_model(model)
        bench = Bench(model, arguments.out, time.monotonic() + 60 * arguments.minutes)
        for part in arguments.part or PARTS:
            getattr(bench, part)()


if __name__ == "__main__":
    main()
