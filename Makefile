# Every target sets itself up: Python 3.11+, git and make are all that must be there.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test lint app report bench lock

repro: $(BIN)/.installed ## the whole pipeline; runs only what changed
	dvc repro

test: $(BIN)/.installed ## the tests; no network needed
	python -m pytest

lint: $(BIN)/.installed ## style, formatting, and that the lock matches pyproject.toml
	ruff check .
	ruff format --check .
	python -m pytest tests/test_lock.py

app: $(BIN)/.installed ## chat with the base model and the variants on http://127.0.0.1:7860
	python -m app

report: $(BIN)/.installed ## the report of the last run, made again if it is out of date
	dvc repro --single-item plot
	@echo "open plots/report.html"

bench: $(BIN)/.installed ## time and memory of each stage
	python -m benchmarks.pipeline

lock: ## pin all of pyproject.toml's dependencies, with hashes, into requirements.txt
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	.venv-lock/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.txt
	rm -rf .venv-lock

$(BIN)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with `make PYTHON=python3.12`")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.txt
	touch $@
