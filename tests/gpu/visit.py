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
    tests    tests/gpu, with EDGE_INFER_REQUIRE_GPU=1
    engine, sampler, run    the parts of tests/gpu/bench.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
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
    bench = [python, str(HERE / "bench.py"), "--out", str(out), "--model", str(model)]
    making = [[python, str(HERE / "model.py"), str(model)]] if not model.exists() else []
    build = [python, "-c", COMMAND, "build", str(model), "--precision"]
    tests = [
        python, "-m", "pytest", str(HERE), "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-v",
        "-p", "no:cacheprovider", "-W", "default", "--durations=10", f"--junitxml={out / 'tests.xml'}",
    ]  # fmt: skip
    return {
        "facts": ([["nvidia-smi"], [python, "-c", FACTS]], 90),
        "model": (making, 300),
        "cutting": ([[python, str(HERE / "cutting.py")]], 90),
        "build": ([[*build, precision] for precision in ("int8", "fp16", "fp32")], 300),
        "tests": ([tests], 580),
        "engine": ([[*bench, "--part", "engine"]], 580),
        "sampler": ([[*bench, "--part", "sampler"]], 120),
        "run": ([[*bench, "--part", "run"]], 580),
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
            # Elsewhere than in the checkout, whose edge_infer/ has no compiled part.
            done = subprocess.run(
                command, cwd=work, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT,
                check=False, timeout=max(seconds, 1),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"ended after {seconds:.0f} s"
        except OSError as error:
            return str(error)
    return done.returncode


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
