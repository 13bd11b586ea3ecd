# Two commands on a fresh machine with Python (venv) and a C++ compiler: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard edge_infer/_native/*.cpp edge_infer/_native/*.h edge_infer/_native/*.cu)
PROJECTS := pyproject.toml export/pyproject.toml calibration/pyproject.toml

.PHONY: install demo test lint types bench clean

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

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s

clean:
	rm -rf .venv build demo-town
