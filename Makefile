# Everything runs in .venv, which is made on first use. `make native PYTHON=/path/to/python` builds with another environment.

BOOTSTRAP ?= python3
PYTHON ?= .venv/bin/python
RUN := .venv/bin/python
SOURCES := pyproject.toml CMakeLists.txt README.md $(shell find csrc python -type f ! -name '*.so' ! -path '*/__pycache__/*' ! -path 'python/adaptive_search/include/*')

.PHONY: help demo test bench lint format native clean

help:
	@echo "make demo     search real sentence embeddings, and compare cascades on every backend of this machine"
	@echo "make test     the whole test suite, doctests included, on the installed package"
	@echo "make bench    benchmarks against the peers, one table each; 'PYTEST_ARGS=\"-k kernels\"' for the table of kernels alone"
	@echo "make lint     ruff, mypy and clang-format; 'make format' repairs what can be repaired"
	@echo "make native   build the extension module into python/adaptive_search, for work in the tree (PYTHONPATH=python)"
	@echo "make clean    remove everything that was made"

demo: .venv/.demo
	.venv/bin/adaptive-search demo

test: .venv/.dev
	$(RUN) -m pytest $(PYTEST_ARGS)
	$(RUN) -m pytest --doctest-modules --pyargs adaptive_search

bench: .venv/.bench
	mkdir -p build
	$(RUN) -m pytest bench -q --benchmark-json=build/bench.json --benchmark-columns=median,rounds --benchmark-sort=mean $(PYTEST_ARGS)
	$(RUN) -m bench.report kernels build/bench.json
	$(RUN) -m bench.report build/bench.json

lint: .venv/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	find csrc bench -name '*.h' -o -name '*.cpp' | xargs .venv/bin/clang-format --dry-run --Werror

format: .venv/.dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	find csrc bench -name '*.h' -o -name '*.cpp' | xargs .venv/bin/clang-format -i

native: $(if $(filter .venv/%,$(PYTHON)),.venv/.tools)
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release \
	    -DPython_EXECUTABLE="$(abspath $(PYTHON))" -Dpybind11_DIR="$$($(PYTHON) -m pybind11 --cmakedir)"
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" cmake --build build/native
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" cmake --install build/native --prefix python

clean:
	rm -rf .venv build dist python/adaptive_search/_native*.so python/adaptive_search/include \
	    .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find python tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: one stamp for each set of extras, renewed when the sources are newer ------------------------------------
.venv/.tools: pyproject.toml
	$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adaptive_search needs Python 3.11 or newer: make BOOTSTRAP=python3.12")'
	$(BOOTSTRAP) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.21" "ninja>=1.11"
	touch $@

install = $(RUN) -m pip install --quiet --disable-pip-version-check --no-build-isolation

.venv/.demo: .venv/.tools $(SOURCES)
	$(install) ".[cli,numba]"
	touch $@

.venv/.dev: .venv/.tools $(SOURCES)
	$(install) ".[test,lint]"
	touch $@

.venv/.bench: .venv/.tools $(SOURCES)
	$(install) ".[bench]"
	touch $@
