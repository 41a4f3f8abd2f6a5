# Every target sets itself up: Python 3.11+, git and make are all that must be there.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-faults lint app report exp watch bench lock audit

repro: $(BIN)/.installed ## the whole pipeline; runs only what changed
	dvc repro

test: $(BIN)/.installed ## the tests; no network needed
	python -m pytest

test-faults: $(BIN)/.installed ## kills, damage, full disks, hostile data, many times over; prints figures
	python -m pytest -m faults --capture=no

lint: $(BIN)/.installed ## style, formatting, and that the lock matches pyproject.toml
	ruff check .
	ruff format --check .
	python -m pytest tests/test_lock.py

app: $(BIN)/.installed ## chat with the base model and the variants on http://127.0.0.1:7860
	python -m app

report: $(BIN)/.installed ## the report of the last run, made again if it is out of date
	dvc repro --single-item plot
	python -m tools.experiments --report dvc_plots/report.html
	@echo "open plots/report.html, or dvc_plots/report.html with the experiments in it"

exp: $(BIN)/.installed ## all experiments in one table: what each changed, every model's loss, what is shown
	@python -m tools.experiments

watch: $(BIN)/.installed ## follow a training in a second terminal: time left, curves, samples
	@python -m tools.watch

bench: $(BIN)/.installed ## time and memory of each stage
	python -m benchmarks.pipeline

audit: ## known vulnerabilities of the locked packages, where PyPI's advisory data can be reached
	rm -rf .venv-audit && $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit
	-.venv-audit/bin/pip-audit --disable-pip --no-deps --requirement requirements.txt --progress-spinner off \
		--format json --output .venv-audit/found.json 2> .venv-audit/log
	$(PYTHON) .ci/audit.py .venv-audit/found.json
	rm -rf .venv-audit

lock: ## pin all of pyproject.toml's dependencies, with hashes, into requirements.txt
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	.venv-lock/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.txt
	rm -rf .venv-lock

$(BIN)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with `make PYTHON=python3.12`")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.txt
	$(BIN)/python -m tools.vega_page
	touch $@
