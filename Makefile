# Everyday commands for people who work on XCCL. Each target does its own set-up in a virtual environment of its
# own, on a machine that has python3 (with venv), a C++20 compiler and make; cmake and ninja come from PyPI.
# A second run builds nothing. Not here: how things are compiled (CMakeLists.txt), what is installed (pyproject.toml).

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
PEERS ?= torch impi openmpi mpich iceoryx2
BENCH ?= bench
DEMO_ARGS ?=
MUTANTS ?=
CRASH_ARGS ?=
# Of the long run: for how long, from which seed. A seed alone plays the one round that it stands for.
SEED ?=
MINUTES ?= $(if $(SEED)$(ROUNDS)$(TIMES),,10)

BIN := $(abspath $(VENV))/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet
export PATH := $(BIN):$(PATH)

# What has been done already, as empty files that are newer than what they were made from. They live in the
# environment that they speak about, so removing it forgets them.
MADE := $(VENV)/.made-with-$(subst /,_,$(PYTHON))
BUILD_TOOLS := $(VENV)/.build-tools
PACKAGE := $(VENV)/.package
LINTERS := $(VENV)/.linters
DEMO_NEEDS := $(VENV)/.demo-needs
BENCH_NEEDS := $(VENV)/.bench-needs

PYTEST := $(BIN)/pytest -c $(CURDIR)/pyproject.toml --rootdir=$(CURDIR) $(CURDIR)/tests

DEMO := examples/moe_llm
SOURCES := $(shell find $(wildcard csrc xccl cmake) -type f -not -path '*/__pycache__/*' | LC_ALL=C sort)
PYTHON_CODE := $(wildcard xccl tests bench examples)
CXX_CODE := $(shell find $(wildcard csrc tests bench) -name '*.[ch]' -o -name '*.[ch]pp')

# ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
NO_ASLR := $(shell setarch $$(uname -m) -R true 2>/dev/null && echo setarch $$(uname -m) -R)

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test long native crash-matrix tsan asan asan-python soak model mutants bench lint format clean FORCE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "another Python:      make test PYTHON=python3.12"
	@echo "some tests only:     make test PYTEST_ARGS='-k spawn -x'"

demo: $(PACKAGE) $(DEMO_NEEDS)  ## a real language model, its experts spread over four processes, writes text
	$(BIN)/python $(DEMO)/main.py $(DEMO_ARGS)

# Pytest runs in a directory of its own: the source folder xccl/ has no compiled _core, and `python -m xccl` in a
# test's child process would find it before the installed package.
test: native $(PACKAGE) $(DEMO_NEEDS)  ## all tests: native, then Python; not the long checks below
	@mkdir -p build/pytest
	cd build/pytest && $(PYTEST) $(PYTEST_ARGS)

long: $(PACKAGE)  ## the Python tests that take long: 64 and 256 ranks, a message of 5 GiB
	@mkdir -p build/pytest
	cd build/pytest && $(PYTEST) -m long --long $(PYTEST_ARGS)

native: build/debug/build.ninja  ## native tests, assertions on
	cmake --build --preset debug
	ctest --preset debug

# CRASH_ARGS=--write renews docs/crash-matrix.md, CRASH_ARGS='--only shrink' runs some of the cases.
crash-matrix: build/debug/build.ninja  ## kill, stop or fail a rank at every step; then how soon a death is known
	cmake --build --preset debug --target crash_rank
	$(BIN)/python tests/crash_matrix.py build/debug/tests/native/crash_rank $(CRASH_ARGS)
	$(BIN)/python tests/crash_matrix.py build/debug/tests/native/crash_rank --detection

tsan: build/tsan/build.ninja  ## native tests under ThreadSanitizer
	cmake --build --preset tsan
	$(NO_ASLR) ctest --preset tsan

asan: build/asan/build.ninja  ## native tests under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --build --preset asan
	ctest --preset asan

# Python itself is not built with AddressSanitizer, so the runtimes are loaded before it, with the
# C++ library, whose exceptions they look for at once. What Python never frees is no finding, so leaks are not looked for.
ASAN_PACKAGE := $(CURDIR)/build/asan/python
ASAN_ENVIRON = PYTHONPATH=$(ASAN_PACKAGE) UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=0 \
  LD_PRELOAD="$(foreach library,libasan.so libubsan.so libstdc++.so.6,$(shell $(or $(CXX),c++) -print-file-name=$(library)))"

asan-python: build/asan/build.ninja $(PACKAGE)  ## Python tests under the same
	cmake --build --preset asan
	@rm -rf $(ASAN_PACKAGE) && mkdir -p $(ASAN_PACKAGE) build/pytest && cp -r xccl $(ASAN_PACKAGE)
	cmake --install build/asan --prefix $(ASAN_PACKAGE)
	cd build/pytest && $(ASAN_ENVIRON) $(PYTEST) $(PYTEST_ARGS)

model:  ## the models of the protocols and their broken variants, searched by spin
	$(PYTHON) tests/models/run.py

mutants: $(BUILD_TOOLS)  ## ten and more mistakes, each made in a copy of the sources and caught by a test or a model
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# A failure prints the line that plays its round again: make soak SEED=...; TIMES=100 for what depends on timing.
soak: $(PACKAGE)  ## random operations and kills with checked results: make soak MINUTES=10
	cd tests && $(BIN)/python -m soak $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(TIMES),--times $(TIMES))

# Without peers: make bench PEERS=
bench: $(PACKAGE) $(BENCH_NEEDS)  ## measurements beside other libraries, see bench/README.md
	$(if $(PEERS),$(BIN)/python bench/peers/install.py $(PEERS))
	@mkdir -p build/pytest
	cd build/pytest && $(BIN)/pytest -c $(CURDIR)/pyproject.toml --rootdir=$(CURDIR) -o faulthandler_timeout=0 \
	  --benchmark-enable --benchmark-disable-gc --benchmark-json=$(CURDIR)/build/benchmark.json $(abspath $(BENCH)) $(PYTEST_ARGS)

lint: $(LINTERS)  ## what the tools say about style and types; changes nothing
	ruff check $(PYTHON_CODE)
	ruff format --check $(PYTHON_CODE)
	mypy
	clang-format --dry-run -Werror $(CXX_CODE)

format: $(LINTERS)  ## rewrite the sources in the tree's style
	ruff check --fix --select I $(PYTHON_CODE)
	ruff format $(PYTHON_CODE)
	clang-format -i $(CXX_CODE)

clean:  ## remove everything that was built, the virtual environment too
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A new environment when PYTHON names another interpreter than last time: --clear forgets all the marks too.
$(MADE):
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --upgrade pip
	@touch $@

# Without build isolation the compiled objects stay valid from one install to the next. The versions that are
# needed stand in pyproject.toml; --check-build-dependencies below holds this list to them.
$(BUILD_TOOLS): pyproject.toml $(MADE)
	$(PIP_INSTALL) --upgrade scikit-build-core pybind11 cmake ninja
	@touch $@

# The list of the sources is a source as well: a deleted file leaves no newer file behind.
$(VENV)/.source-list: $(MADE) FORCE
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) > $@

$(PACKAGE): $(BUILD_TOOLS) $(VENV)/.source-list $(SOURCES) CMakeLists.txt pyproject.toml
	$(PIP_INSTALL) --no-build-isolation --check-build-dependencies '.[test]'
	@touch $@

$(LINTERS): pyproject.toml $(PACKAGE)
	$(PIP_INSTALL) --no-build-isolation '.[lint]'
	@touch $@

$(DEMO_NEEDS): $(DEMO)/requirements.txt $(DEMO)/requirements-nodeps.txt $(MADE)
	$(PIP_INSTALL) -r $(DEMO)/requirements.txt
	$(PIP_INSTALL) --no-deps -r $(DEMO)/requirements-nodeps.txt
	@touch $@

$(BENCH_NEEDS): pyproject.toml $(PACKAGE)
	$(PIP_INSTALL) --no-build-isolation '.[bench]'
	@touch $@

# Later changes of CMakeLists.txt are noticed by the build itself.
build/%/build.ninja: CMakePresets.json $(BUILD_TOOLS)
	VIRTUAL_ENV=$(abspath $(VENV)) pybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) cmake --preset $*
	@touch $@
