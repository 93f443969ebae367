# make help lists the commands.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two processes on two cores: more threads would only wait for each other.
TEST_WORKERS ?= 2

export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint symbols lock bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.stamp-porter ## the environment, from the lock

demo: venv ## convert QwenImageEditPipeline, run port and diffusers, compare
	$(BIN)/python -m porter.demo

test: venv ## the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

symbols: venv ## make the symbol table of the vllm-omni target again, from the published wheels
	$(BIN)/python tools/make_symbols.py

bench: venv ## measure the conversion
	$(BIN)/python benchmarks/convert.py

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
