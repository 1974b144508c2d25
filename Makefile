# `make demo` and `make test` are all a fresh machine needs; both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test lint types chaos bench bench-check papers lock wheel clean

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with the locked dependencies and batchser itself

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"batchser needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; say which: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup  ## score sample_data/ and show the tables (one file there is broken on purpose)
	@$(BIN)/python sample_data/demo.py

test: setup lint types  ## lint, types and every test but the long ones
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

chaos: setup  ## the long tests: drivers and workers killed a hundred times, thirty nights (most of an hour)
	$(BIN)/python -m pytest -s -m slow
	$(BIN)/python tests/chaos/fuzz_parsers.py -max_total_time=300 -timeout=10

bench: setup  ## print speed and memory of the job and each stage beside the papers' way and peers
	$(BIN)/python tests/bench/bench.py

bench-check: setup  ## the same, and fail if a ratio has fallen by more than 20 % of the one kept
	$(BIN)/python tests/bench/bench.py --check

papers: setup  ## fill and print the table of the published systems (hours; make papers DATA=CORPORA)
	$(BIN)/python tests/bench/published.py --data "$(DATA)"

wheel: setup  ## build dist/*.whl, the models inside
	$(BIN)/python -m build --wheel --no-isolation

lock:  ## renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-header --extra dev pyproject.toml -o requirements.lock

clean:  ## remove what the targets above made
	rm -rf $(VENV) build dist results.parquet results.segments.parquet results.parquet.work
