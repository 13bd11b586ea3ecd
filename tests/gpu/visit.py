"""Everything that wants a GPU, in one go on a machine that is lent for minutes.

    python3 tests/gpu/visit.py --out RESULTS --work SCRATCH [--minutes 9] [--step NAME ...]

It needs no installation of its own: what `python3` imports counts (see README.md beside this for how wheels,
TensorRT and pycuda come there). Each step is a process with a time limit of its own; its output goes to
RESULTS/NAME.log as it comes, and RESULTS/visit.json is written anew after each, so that what was done stays
where the time ends. SCRATCH keeps the model and the engines, so that a second call goes on.

    facts    what is there: driver, TensorRT, pycuda, kernels
    model    makes the bundle with all three precisions, unless SCRATCH holds it; needs torch and onnx
    cutting  the sampler's kernels against the CPU
    build    an engine of each precision, by the command a user gives
    engine, run, sampler    the parts of tests/gpu/bench.py, cut short
    tests-NAME    tests/gpu/test_gpu_NAME.py, with EDGE_INFER_REQUIRE_GPU=1

What is short and wanted most comes first. Where one call may not take long enough for all, the later steps
are for further calls: --step tests-engine, then tests-command, then tests-sanitizer, which fails where there
is no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMMAND = "import sys; from edge_infer.cli import main; main(sys.argv[1:])"
FACTS = """
import importlib, platform, sys
print("Python", platform.python_version(), platform.platform())
for name in ("edge_infer", "numpy", "tensorrt", "pycuda", "rasterio", "pyogrio", "openvino", "onnxruntime"):
    try:
        module = importlib.import_module(name)
        text = getattr(module, "__version__", getattr(module, "VERSION_TEXT", "?"))
        print(name, text, module.__file__)
    except Exception as error:
        print(name, "-", type(error).__name__, error)
from edge_infer.device.gpu import probe_gpu
from edge_infer.device.cuda_sampler import why_not
from edge_infer.engine.choose import find_gpu
from edge_infer.version import describe
gpu = probe_gpu()
print(gpu); print(describe()); print("kernels:", why_not(gpu) or "there are some for this GPU")
found = find_gpu()
print("engine:", found)
from contextlib import closing
from edge_infer.device.cuda import CudaDevice
with closing(CudaDevice(gpu)) as device:
    print("pycuda:", device.driver.get_version(), "driver", device.driver.get_driver_version())
sys.exit(isinstance(found, str))
"""


def steps(work: Path, out: Path) -> dict[str, tuple[list[list[str]], float]]:
    """Commands of each step, and the most seconds for each of them."""
    python, model = sys.executable, work / "resnet34.edgemodel"
    making = [[python, str(HERE / "model.py"), str(model)]] if not model.exists() else []
    build = [python, "-c", COMMAND, "build", str(model), "--precision"]

    def bench(part: str, seconds: float) -> tuple[list[list[str]], float]:
        """Nothing new is begun in the last third of its time, so that it ends by itself."""
        minutes = f"{seconds / 90:.1f}"
        options = ["--out", str(out), "--model", str(model), "--minutes", minutes, "--part", part]
        return [[python, str(HERE / "bench.py"), *options]], seconds

    def tests(name: str, seconds: float) -> tuple[list[list[str]], float]:
        command = [
            python, "-m", "pytest", str(HERE / f"test_gpu_{name}.py"), "-c", str(ROOT / "pyproject.toml"),
            "--rootdir", str(ROOT), "-v", "-p", "no:cacheprovider", "-W", "default", "--durations=10",
            f"--junitxml={out / f'tests-{name}.xml'}",
        ]  # fmt: skip
        return [command], seconds

    return {
        "facts": ([["nvidia-smi"], [python, "-c", FACTS]], 60),
        "model": (making, 300),
        "cutting": ([[python, str(HERE / "cutting.py")]], 60),
        "build": ([[*build, precision] for precision in ("int8", "fp16", "fp32")], 200),
        "tests-sampler": tests("sampler", 120),
        "engine": bench("engine", 150),
        "run": bench("run", 150),
        "sampler": bench("sampler", 60),
        "tests-engine": tests("engine", 580),
        "tests-command": tests("command", 580),
        "tests-sanitizer": tests("sanitizer", 580),
    }


def do(command: list[str], log: Path, work: Path, seconds: float) -> int | str:
    """Run one command, its output appended to `log`; its status, or what prevented one."""
    environment = {
        "EDGE_INFER_CACHE": str(work / "engines"),
        "EDGE_INFER_GPU_MODEL": str(work / "resnet34.edgemodel"),
        "EDGE_INFER_REQUIRE_GPU": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(
            [os.environ.get("PYTHONPATH", ""), str(ROOT / "export"), str(ROOT / "calibration")]
        ).strip(os.pathsep),
    }
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)[:400]}\n")
        file.flush()
        try:
            # Elsewhere than in the checkout, whose edge_infer/ has no compiled part. A session of its own, so
            # that what it starts can be ended with it, and does not keep the GPU from the next step.
            process = subprocess.Popen(
                command, cwd=work, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return str(error)
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # also what it has left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="for results")
    parser.add_argument("--work", type=Path, required=True, help="for the model and the engines")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--step", action="append", help="default: all, in order")
    arguments = parser.parse_args()
    out, work = arguments.out.resolve(), arguments.work.resolve()
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    started, results = time.monotonic(), []
    for name, (commands, most) in steps(work, out).items():
        if arguments.step and name not in arguments.step:
            continue
        for command in commands:
            left = 60 * arguments.minutes - (time.monotonic() - started)
            began = time.monotonic()
            log = out / f"{name}.log"
            status = do(command, log, work, min(most, left)) if left > 5 else "the time was over"
            result = {"step": name, "status": status, "seconds": round(time.monotonic() - began, 1)}
            results.append(result)
            (out / "visit.json").write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(result), flush=True)
            if log.exists():
                print("\n".join(log.read_text(errors="replace").splitlines()[-12:])[-1800:], flush=True)
    return int(any(result["status"] != 0 for result in results))


if __name__ == "__main__":
    sys.exit(main())
