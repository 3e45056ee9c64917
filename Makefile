# Needs Python 3.11 or newer, and make. Everything is installed into .venv and nothing outside this folder is touched.
#
#   make quickstart   train, lock, serve and explain, in minutes; writes quickstart/report.html
#   make test         run the tests
#   make check        format, lint, types, layers, generated stubs
#   make install      install keylock with all its parts, for use by hand: .venv/bin/keylock
#   make proto        generate the stubs from proto/ again
#   make clean        remove what was installed here
#
# PYTHON names the interpreter .venv is made with, TESTS what pytest is given. What is trained in seconds is tested in
# float32 and in bfloat16, whatever the processor; TESTS="--precision bfloat16" does the same to longer training.

PYTHON ?= python3
TESTS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart test check install proto clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/make/p' Makefile

quickstart: $(VENV)/.installed-all
	$(BIN)/keylock quickstart

# The tests are bound by the processor: one worker for each core, and one thread of torch for each worker.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python sh proto/generate.sh --check

install: $(VENV)/.installed-all

proto: $(VENV)/bin/python
	PYTHON=$(BIN)/python sh proto/generate.sh

clean:
	rm -rf $(VENV) .venv-proto .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: keylock needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "error: this Python cannot make environments: install its venv module" >&2; exit 1; }

# A stamp for each set of extras; pyproject.toml says what they are, so a change of it installs again.
$(VENV)/.installed-all: pyproject.toml | $(VENV)/bin/python
	@echo "installing keylock[all] into $(VENV); the first time this takes some minutes"
	@$(PIP) install --quiet --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing keylock[dev] into $(VENV); the first time this takes some minutes"
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed-all
