# Two commands, `make demo` and `make test`, in an environment of their own (.venv).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
RUN := demo_run
CHECK := import sys; v = sys.version.split()[0]; \
	sys.exit(0 if sys.version_info >= (3, 11) else f"expected Python 3.11 or newer, got {v}; name one: make PYTHON=python3.12")

.PHONY: help demo test lint docs clean

help:
	@echo 'make demo    convert the tiny pi0.5, prepare data, train Sigma, evaluate; about 5 minutes on two cores'
	@echo 'make test    lint, formatting, types and tests, as continuous integration runs them'
	@echo 'make lint    the first three of these'
	@echo 'make docs    the documentation as pages, in site/; a warning is an error'
	@echo 'make clean   remove the demo run and the environment'
	@echo 'PYTHON=...   the interpreter to make the environment with (3.11 or newer)'

# --- environment: each stamp is newer than the requirements it has installed

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'expected python3.11 or newer on the PATH, got none; name one: make PYTHON=...'; exit 1; }
	@$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for_demo: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.for_test: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[test,sim]'
	@touch $(VENV)/.for_demo $@

# --- tests

lint: $(VENV)/.for_test
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# two runs: a worker that has compiled the programs of training keeps some of their memory for good;
# and one arena of glibc's malloc: what a compiler thread has freed is kept by its arena otherwise
LARGE := tests/training tests/ablations tests/nn

test: export MALLOC_ARENA_MAX = 1
test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal $(LARGE)
	$(BIN)/python -m pytest -n auto --dist worksteal $(LARGE:%=--ignore=%)

# --- documentation

$(VENV)/.for_docs: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[docs]'
	@touch $(VENV)/.for_demo $@

docs: $(VENV)/.for_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

# --- demo: a step whose stamp exists is done

demo: $(RUN)/table.txt
	@cat $(RUN)/table.txt

$(RUN)/.base: $(wildcard assets/pi05_tiny/*) | $(VENV)/.for_demo
	@mkdir -p $(RUN); rm -rf $(RUN)/base
	$(BIN)/python convert_weights.py --checkpoint=assets/pi05_tiny --out=$(RUN)/base
	@touch $@

$(RUN)/.shards: $(RUN)/.base configs/data_so101.py
	$(BIN)/python prepare_data.py --config=configs/data_so101.py --out=$(RUN)/shards --base=$(RUN)/base
	@touch $@

$(RUN)/.sigma: $(RUN)/.shards configs/sigma_so101.py configs/defaults.py
	$(BIN)/python train.py --config=configs/sigma_so101.py --workdir=$(RUN)/sigma
	@touch $@

$(RUN)/table.txt: $(RUN)/.sigma
	COLUMNS=120 $(BIN)/python evaluate.py --workdir=$(RUN)/sigma > $@.part
	@mv $@.part $@

clean:
	rm -rf $(RUN) $(VENV) site .pytest_cache .mypy_cache .ruff_cache *.egg-info
