# make help lists the commands.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OMNI_VENV ?= .venv-omni
OMNI := $(OMNI_VENV)/bin
OMNI_PIP := $(OMNI)/python -m pip --disable-pip-version-check
# Two processes on two cores: more threads would only wait for each other.
TEST_WORKERS ?= 2

export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv browser pythons demo test lint symbols lock bench bench-serve omni-env omni-test omni-table omni-lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.stamp-porter ## the environment, from the lock

demo: venv ## convert QwenImageEditPipeline, run port and diffusers, compare
	$(BIN)/python -m porter.demo

test: venv browser pythons ## the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

browser: venv ## a headless Chromium for the tests of pages, where there is none: Debian's
	$(BIN)/python tools/browser.py

pythons: venv ## environments of the other versions of Python that are here, for the test of determinism
	@$(BIN)/python parity_tests/pythons.py

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

symbols: venv ## make the symbol table of the vllm-omni target again, from the published wheels
	$(BIN)/python tools/make_symbols.py

bench: venv ## measure the conversion
	$(BIN)/python benchmarks/convert.py

bench-serve: venv ## measure the server under load
	$(BIN)/python benchmarks/serve.py

omni-env: $(OMNI_VENV)/.stamp-porter ## the environment with vLLM-Omni, from its own lock

omni-test: omni-env ## the tests that need vLLM-Omni
	PORTER_REQUIRE_OMNI=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(OMNI)/python -m pytest parity_tests/omni $(PYTEST_ARGS)

omni-table: omni-env ## every port in vLLM-Omni against diffusers, and beside vLLM-Omni's own: hours
	OMP_NUM_THREADS=1 $(OMNI)/python tools/omni_warm_up.py
	OMP_NUM_THREADS=1 $(OMNI)/python tools/omni_table.py
	OMP_NUM_THREADS=1 $(OMNI)/python tools/omni_side_by_side.py

omni-lock: ## resolve requirements/omni.txt again, in an environment of its own
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet --upgrade pip
	.venv-lock/bin/python tools/lock.py omni
	rm -rf .venv-lock

lock: ## resolve requirements/lock.txt again, in an environment of its own
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet --upgrade pip
	.venv-lock/bin/python tools/lock.py
	rm -rf .venv-lock

clean: ## remove what the commands wrote, but for the environment
	rm -rf build dist out demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Each step of the environment leaves a stamp, so that the next command does not repeat it.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-torch: requirements/lock.txt | $(BIN)/python
	grep -E '^(torch|torchvision)==' $< > $(VENV)/torch.txt
	$(PIP) install --quiet --requirement $(VENV)/torch.txt
	touch $@

$(VENV)/.stamp-lock: requirements/lock.txt $(VENV)/.stamp-torch
	$(PIP) install --quiet --requirement $<
	touch $@

$(VENV)/.stamp-porter: pyproject.toml tools/hatch_build.py $(VENV)/.stamp-lock
	$(PIP) install --quiet --editable . --no-deps --no-build-isolation
	touch $@

# The environment with vLLM-Omni. Its libraries are installed without their dependencies: the lock has those that are
# needed, and several of the others are builds for CUDA.
$(OMNI)/python:
	$(PYTHON) -m venv $(OMNI_VENV)
	$(OMNI_PIP) install --quiet --upgrade pip

$(OMNI_VENV)/.stamp-torch: requirements/omni.txt | $(OMNI)/python
	grep -E '^torch==' $< > $(OMNI_VENV)/torch.txt
	$(OMNI_PIP) install --quiet --requirement $(OMNI_VENV)/torch.txt
	touch $@

$(OMNI_VENV)/.stamp-lock: requirements/omni.txt $(OMNI_VENV)/.stamp-torch
	$(OMNI_PIP) install --quiet --no-deps --requirement $<
	touch $@

$(OMNI_VENV)/.stamp-porter: pyproject.toml tools/hatch_build.py $(OMNI_VENV)/.stamp-lock
	$(OMNI_PIP) install --quiet --editable . --no-deps --no-build-isolation
	touch $@
