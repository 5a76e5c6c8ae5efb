# make demo, make test: each does all the set-up it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint bench full docs clean

demo: $(VENV)/.all  ## optimize the built-in model on the built-in images
	$(BIN)/lowbit demo --out build/demo

test: $(VENV)/.dev  ## everything that needs no GPU and no network
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs/reference docs/images
	$(BIN)/mypy

bench: $(VENV)/.dev  ## the claims in benchmarks/, about ten minutes
	$(BIN)/python benchmarks/calibration.py

docs: $(VENV)/.dev  ## regenerate the reference pages
	$(BIN)/python docs/reference/generate.py

full: $(VENV)/.train  ## also what trains and exports models: PyTorch, transformers

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.all
	$(PIP) --editable '.[dev]'
	touch $@

# torch first and by itself: pulled in by another package it may come as a build of several gigabytes.
$(VENV)/.train: $(VENV)/.dev
	$(PIP) torch
	$(PIP) --editable '.[train]'
	touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
