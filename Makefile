# make demo and make test work on a fresh clone: each creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Processes of the tests; each has one thread, but for tests that ask for more.
WORKERS ?= logical
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.PHONY: demo check test test-all test-exports test-ecosystem test-ray test-ros test-triton test-frameworks test-sanitize \
        sanitize-cpu sanitize-cuda lint format clean

demo: $(VENV)/.installed
	$(BIN)/stdc-fast predict stdc_fast/assets/street.jpg --out out

# Two minutes, and no compiler: the linter, and all tests that need neither the native module nor kernels.
check: $(VENV)/.check-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) --check

# Every kind of test, in some of the sizes, dtypes and schedules.
test: $(VENV)/.test-installed
	$(PYTEST)

# All of them; without a GPU this takes hours, as kernels are interpreted.
test-all: $(VENV)/.test-installed
	$(PYTEST) -m "wide or not wide"

# Exports whose packages are not in the dev extras, each in an environment of its own. Not editable: without the native
# module that would remove the tree's.
test-exports:
	for extra in litert executorch; do \
		$(PYTHON) -m venv .venv-$$extra && \
		STDC_FAST_NATIVE=0 .venv-$$extra/bin/python -m pip install --quiet -c constraints.txt ".[test,export,$$extra]" && \
		.venv-$$extra/bin/python -m pytest tests/exporters || exit 1; \
	done

# Live models of the real packages, each in an environment of its own; python -m bench.frameworks times them.
FRAMEWORKS = mmseg onedl super_gradients
test-frameworks: $(VENV)/.test-installed $(FRAMEWORKS:%=.frameworks/%/.installed)
	for name in $(FRAMEWORKS); do PYTHONPATH=. .frameworks/$$name/bin/python -m pytest --noconftest -p no:cacheprovider \
	  tests/live/test_frameworks.py || exit 1; done

.frameworks/%/.installed: bench/framework_pins/%.txt
	$(PYTHON) -m venv .frameworks/$*
	.frameworks/$*/bin/python -m pip install --quiet --disable-pip-version-check -r bench/framework_pins/common.txt
	.frameworks/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.frameworks/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/framework_pins/$*_alone.txt
	touch $@

# The native engine, and the CUDA kernels on the CPU, under AddressSanitizer and UBSan, the engine under ThreadSanitizer too.
test-sanitize: $(VENV)/.test-installed
	$(MAKE) --no-print-directory -j 2 --output-sync=target sanitize-cpu sanitize-cuda

sanitize-cpu sanitize-cuda: $(VENV)/.test-installed
	$(BIN)/python tests/$(if $(filter %-cuda,$@),cuda_)sanitize.py

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An editable install builds the native module; the environment of make test serves make demo as well. Python compiles
# what it imports, as pip would compile all of the packages, on one core.
INSTALL = $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
SOURCES = pyproject.toml setup.py constraints.txt $(wildcard $(addprefix csrc/,*.py *.cpp */*.cpp */*.h */*/*.cpp */*/*.h */*.cu */*.cuh))

$(VENV)/.installed: $(SOURCES)
	$(INSTALL) -e .
	touch $@

$(VENV)/.test-installed: $(SOURCES)
	$(INSTALL) -e ".[dev]"
	touch $(VENV)/.installed $@

# An environment without the native module, unless there is one already: then it is that.
$(VENV)/.check-installed: pyproject.toml constraints.txt
	if test -e $(VENV)/.installed; then $(MAKE) $(VENV)/.test-installed; \
	else export STDC_FAST_NATIVE=0; $(INSTALL) -e ".[test]" ruff; fi
	touch $@

# Against the packages whose interfaces are offered, which are no dependency of development.
test-ecosystem:
	$(PYTHON) -m venv .venv-ecosystem
	STDC_FAST_NATIVE=0 .venv-ecosystem/bin/python -m pip install --quiet -c constraints.txt ".[test,hub]" timm
	.venv-ecosystem/bin/python -m pytest tests/test_hub.py tests/test_pretrained.py tests/test_features.py

# Jobs by Ray, which is a big package: a cluster of two nodes on this machine, of which one is killed.
test-ray:
	$(PYTHON) -m venv .venv-ray
	STDC_FAST_NATIVE=0 .venv-ray/bin/python -m pip install --quiet -c constraints.txt ".[test,ray]" psutil
	.venv-ray/bin/python -m pytest tests/bulk

# Exported folders in a real Triton Inference Server, that of PyTriton's wheel, which reads arrays of NumPy 1 only.
test-triton:
	$(PYTHON) -m venv .venv-triton
	STDC_FAST_NATIVE=0 .venv-triton/bin/python -m pip install --quiet -c constraints.txt ".[test,export]" "tritonclient[grpc]"
	.venv-triton/bin/python -m pip install --quiet --no-deps --target .venv-triton/server nvidia-pytriton==0.7.0 numpy==1.26.4
	TRITON_SERVER=.venv-triton/server .venv-triton/bin/python -m pytest tests/exporters/test_triton.py tests/exporters/test_triton_server.py

# The example for ROS 2, with its wheels; Debian's and ROS's own packages have the same modules.
test-ros:
	$(PYTHON) -m venv .venv-ros
	STDC_FAST_NATIVE=0 .venv-ros/bin/python -m pip install --quiet -c constraints.txt ".[test]" ros-rclpy ros-sensor-msgs ros-rmw-fastrtps-cpp
	.venv-ros/bin/python -m pytest tests/test_ros_example.py

clean:
	rm -rf $(VENV) .venv-litert .venv-executorch .venv-ecosystem .venv-ray .venv-ros .venv-triton out build dist *.egg-info .pytest_cache .ruff_cache stdc_fast/_C*.so stdc_fast/_build_info.json
