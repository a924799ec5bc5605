# make demo    train, test, serve and ask a model, on data that comes with the project
# make test    the tests, the linter, the types: what CI runs
# make lint    the linter and the types alone
# make docs    the README's tables, written anew from the code
#
# Each sets up .venv by itself and needs Python 3.11 or newer, pip and make, nothing else.

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

LINT := $(BIN)/ruff check || status=1; $(BIN)/ruff format --check || status=1; $(BIN)/mypy || status=1;

help:
	@sed '/^$$/q; s/^# \{0,1\}//' Makefile

demo: .venv/installed
	@$(BIN)/bigmodel demo

# Every part runs whatever became of the others: one run shows all that is wrong.
test: .venv/installed-dev
	@status=0; $(LINT) $(BIN)/python -m pytest || status=1; exit $$status

lint: .venv/installed-dev
	@status=0; $(LINT) exit $$status

docs: .venv/installed
	@$(BIN)/python docs/tables.py

# pip comes last into a new .venv: where it is missing, .venv is not whole.
.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "There is no Python 3.11 or newer in PATH. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv

# Installed again when pyproject.toml has changed, and only then.
.venv/installed: pyproject.toml | .venv/bin/pip
	@echo "Installing bigmodel into .venv: once, some minutes"
	@$(INSTALL) .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/pip
	@echo "Installing bigmodel and what its tests need into .venv: once, some minutes"
	@$(INSTALL) '.[dev]'
	@touch .venv/installed $@
