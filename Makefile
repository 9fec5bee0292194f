# make demo and make test work on a fresh clone: each creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-sanitize lint format clean

demo: $(VENV)/.installed
	$(BIN)/stdc-fast predict stdc_fast/assets/street.jpg --out out

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest

# Every combination of dtypes, sizes and cases; without a GPU this takes long, as kernels are interpreted.
test-all: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m "wide or not wide"

# The native engine, and the CUDA kernels on the CPU, under AddressSanitizer and UBSan, the engine under ThreadSanitizer too.
test-sanitize: $(VENV)/.test-installed
	$(BIN)/python tests/sanitize.py
	$(BIN)/python tests/cuda_sanitize.py

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An editable install builds the native module; the environment of make test serves make demo as well.
INSTALL = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES = pyproject.toml setup.py constraints.txt $(wildcard $(addprefix csrc/,*.py *.cpp */*.cpp */*.h */*/*.cpp */*/*.h */*.cu */*.cuh))

$(VENV)/.installed: $(SOURCES)
	$(INSTALL) -e .
	touch $@

$(VENV)/.test-installed: $(SOURCES)
	$(INSTALL) -e ".[dev]"
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache stdc_fast/_C*.so stdc_fast/_build_info.json
