# Two commands on a fresh machine with Python (venv) and a C++ compiler: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard edge_infer/_native/*.cpp edge_infer/_native/*.h edge_infer/_native/*.cu)
PROJECTS := pyproject.toml export/pyproject.toml calibration/pyproject.toml

.PHONY: install demo test test-tensorrt test-gpu lint types bench bench-gpu aarch64 clean

install: .venv/installed

# PyTorch first and alone: another package's plain requirement would draw in a build with CUDA libraries.
.venv/installed: constraints.txt $(PROJECTS) $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
	  --group dev -e . -e calibration -e export
	$(BIN)/edge-infer --version
	touch $@

demo: install
	$(BIN)/edge-infer demo demo-town --overwrite

test: lint types
	$(BIN)/python -m pytest
	$(MAKE) test-tensorrt

# Real TensorRT code without a GPU; says so in capitals where its libraries cannot be had.
test-tensorrt: install
	$(BIN)/python tools/tensorrt_without_gpu.py .tensorrt tests/tensorrt

# Need an NVIDIA GPU, TensorRT and pycuda; EDGE_INFER_REQUIRE_GPU=1 makes their absence a failure (tests/gpu/README.md).
test-gpu: install
	$(BIN)/python -m pytest tests/gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s
	$(BIN)/python -m pytest -m slow -s

bench-gpu: install
	$(BIN)/python tests/gpu/bench.py --out benchmarks/results

# The runtime under emulation, in an aarch64 Debian root: about half an hour, as root, with a network.
aarch64: demo
	tests/jetson/aarch64.sh demo-town build/aarch64

clean:
	rm -rf .venv .tensorrt build demo-town
