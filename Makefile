# Everything on a fresh machine with Python 3.11+, pip and make:
#   make demo    the whole line on data that ships with scikit-learn
#   make test    the tests       make lint    style and types       make bench    the benchmarks
#   make engines the other six engines, into .venv; without them their tests are skipped
# The first call builds .venv; `make PYTHON=python3.12 setup` chooses the interpreter.

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
  $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)) python3)
TORCH := torch==2.13.0
BIN := .venv/bin

.PHONY: help setup engines demo test lint bench clean
help:
	@sed -n 's/^#  *//p' Makefile | head -5

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "modelmill needs Python 3.11 or later; '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || true). Next: make PYTHON=/path/to/python3.11 setup"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	@touch $@

engines: .venv/.engines

.venv/.engines: .venv/.ready
	$(BIN)/python -m pip install -c constraints.txt -e '.[engines]'
	@touch $@

demo: .venv/.ready
	@$(BIN)/modelmill demo

test: .venv/.ready
	$(BIN)/python -m pytest -q -n 2 -m 'not slow'

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict modelmill

bench: .venv/.ready
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
