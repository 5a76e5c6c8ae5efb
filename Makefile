# make demo, make test: each does all the set-up it needs, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE := 1

MINUTES ?= 30
WORKERS ?= 2

.PHONY: demo test lint bench soak full inside apart language targets optimum intel executorch litert web ray clients mlflow docs clean

demo: $(VENV)/.all  ## optimize the built-in model on the built-in images
	$(BIN)/lowbit demo --out build/demo

test: $(VENV)/.dev  ## everything that needs no GPU and no network, in WORKERS processes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs/reference docs/images
	$(BIN)/mypy

bench: $(VENV)/.dev  ## the claims in benchmarks/, about ten minutes
	$(BIN)/python benchmarks/calibration.py

soak: $(VENV)/.dev  ## mixed load on a server for MINUTES, with all that may happen to it
	$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

docs: $(VENV)/.dev  ## regenerate the reference pages
	$(BIN)/python docs/reference/generate.py

full: inside apart  ## also what trains and exports models (PyTorch, transformers), engines for language models, other targets, Ray, MLflow, and clients that tests talk to servers with

inside: $(VENV)/.language $(VENV)/.targets $(VENV)/.ray $(VENV)/.mlflow  ## of that, what shares .venv

apart: clients optimum intel executorch litert web .venv-mlflow/.done  ## and what has environments of its own

language: $(VENV)/.language  ## engines for language models; llama.cpp is compiled

targets: $(VENV)/.targets  ## what writes and runs artifacts for other targets

ray: $(VENV)/.ray  ## what runs models on several machines, 340 MB

clients: .venv-clients/.done

optimum: .venv-optimum/.done  ## what loads folders for Hugging Face Optimum

intel: .venv-optimum-intel/.done  ## what loads its OpenVINO half, OVModelFor...

litert: .venv-litert-torch/.done  ## what converts transformers for LiteRT, 2 GB

executorch: .venv-executorch/.done  ## what makes and runs ExecuTorch programs, 1.5 GB

web: .node/.done  ## onnxruntime-web, from npm

mlflow: $(VENV)/.mlflow .venv-mlflow/.done  ## what shows the registry in MLflow, and a server to try that on

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

# llama.cpp is compiled here, for this processor: five minutes.
$(VENV)/.language: $(VENV)/.train
	$(PIP) --editable '.[language,tasks]'
	touch $@

$(VENV)/.targets: $(VENV)/.dev
	$(PIP) --editable '.[targets]'
	touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable '.[ray]'
	touch $@

$(VENV)/.mlflow: $(VENV)/.dev
	$(PIP) --editable '.[mlflow]'
	touch $@

# A server brings what we have no use for: an environment of its own.
.venv-mlflow/.done: tests/registry/mlflow.txt
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/registry/mlflow.txt
	touch $@

# tritonclient wants another protobuf than we: an environment of its own.
.venv-clients/.done: tests/serving/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/serving/clients.txt
	touch $@

# Optimum wants an older transformers than we, its OpenVINO half another, litert-torch brings JAX, ExecuTorch one torch: environments of their own.
.venv-%/.done: tests/export/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

.node/.done:
	npm install --silent --no-audit --no-fund --prefix .node onnxruntime-web@1.30.0
	touch $@

clean:
	rm -rf $(VENV) .venv-clients .venv-mlflow .venv-optimum .venv-optimum-intel .venv-executorch .venv-litert-torch .node build .mypy_cache .pytest_cache .ruff_cache
