# Every target installs what it needs: Python 3.11 or newer, git and make are the only requirements.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Test processes: one more than there are cores, since each also waits for commands it starts. About 1.5 GB each.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')

.DEFAULT_GOAL := repro
.PHONY: help repro own check test test-faults lint format app report exp show watch verify promote prune bench lock audit

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

repro: $(BIN)/.installed ## the whole pipeline; runs only what changed. JOBS=3: stages at the same time, where memory allows
	$(if $(JOBS),python -m tools.together --jobs $(JOBS),dvc repro)

own: $(BIN)/.installed ## your own data: `make own FILE=path` shows what is trained on, adds a source and a variant
	$(if $(FILE),,$(error name the file: `make own FILE=path`, and ARGS="--help" for options))
	@python -m tools.own "$(FILE)" $(ARGS)

check: lint ## what to run before a commit: lint, types, the quick tests, and the slow ones of the code you change
	OMP_NUM_THREADS=1 python -m pytest --quick -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder tests

test: $(BIN)/.installed ## all tests, in parallel; no network needed
	OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-faults: $(BIN)/.installed ## kills, damage, full disks, hostile data, many times over; prints figures
	python -m pytest -m faults --capture=no

lint: $(BIN)/.installed ## style, formatting, types, and that the lock matches pyproject.toml
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -p no:xdist tests/test_lock.py

format: $(BIN)/.installed ## rewrite code as `make lint` wants it, and params.yaml as DVC writes it
	ruff check --fix-only --quiet .
	ruff format .
	python -m tools.tidy_params

app: $(BIN)/.installed ## chat with the base model and the variants on http://127.0.0.1:7860
	python -m app

report: $(BIN)/.installed ## the report of the last run, made again if it is out of date
	dvc repro --single-item plot
	python -m tools.experiments --report dvc_plots/report.html
	@echo "open plots/report.html, or dvc_plots/report.html with the experiments in it"

exp: $(BIN)/.installed ## all experiments in one table: what each changed, every model's loss, what is shown
	@python -m tools.experiments

show: $(BIN)/.installed ## DVC's own table of experiments, without the columns that nobody compares
	@python -m tools.show $(ARGS)

watch: $(BIN)/.installed ## follow a training in a second terminal: time left, curves, samples
	@python -m tools.watch

verify: $(BIN)/.installed ## whether adapters, data and results are whole and follow from the committed code
	@python -m tools.verify

promote: $(BIN)/.installed ## whether the best variant should replace the registered one, and why
	@python -m tools.promote

prune: $(BIN)/.installed ## remove outputs of variants that params.yaml no longer has
	@python -m tools.prune

bench: $(BIN)/.installed ## time and memory of each stage
	python -m benchmarks.pipeline

audit: ## known vulnerabilities of the locked packages, where PyPI's advisory data can be reached
	rm -rf .venv-audit && $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit
	-.venv-audit/bin/pip-audit --disable-pip --no-deps --requirement requirements.txt --progress-spinner off \
		--format json --output .venv-audit/found.json 2> .venv-audit/log
	$(PYTHON) .ci/audit.py .venv-audit/found.json
	rm -rf .venv-audit

COMPILE := .venv-lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet
lock: ## pin all of pyproject.toml's dependencies, with hashes, into requirements.txt
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet --no-deps --require-hashes --requirement requirements-uv.txt
	$(COMPILE) pyproject.toml --group dev --custom-compile-command "make lock" --output-file requirements.txt
	rm -rf .venv-lock

# pip installs uv, and uv the lock, in a third of pip's time; both check every hash. uv does not read pip's settings:
# where those name an index, uv is told. Compiled here, since with PYTHONDONTWRITEBYTECODE set every process would
# compile all that it imports again: 20 s instead of 8 s for torch, transformers, peft and trl.
$(BIN)/.installed: requirements.txt requirements-uv.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with `make PYTHON=python3.12`")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements-uv.txt
	index=$$($(BIN)/pip config list | sed -n "s/^[^=]*\.index-url='\(.*\)'$$/\1/p" | tail -1); \
	export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${index:-https://pypi.org/simple}}"; \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes --requirement requirements.txt
	$(BIN)/python -m tools.vega_page
	touch $@
