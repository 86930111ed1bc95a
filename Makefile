# All targets work on a fresh machine with Python 3.11 to 3.13: they create .venv first if needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TEST_PROCESSES ?= 3
# With bytecode, because each test process and each program that a test starts imports the same files.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(TEST_PROCESSES) --dist worksteal
CONVOLUTION_TESTS := tests/models/test_layout.py tests/analysis/test_probe.py tests/training/test_speedrun.py \
  tests/test_run.py tests/test_survival.py

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev quickstart study verify page dashboard figures fast test test-avx2 test-slurm torture notebooks check lint types format clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.runtime  ## create .venv with the requirements for training

setup-dev: $(VENV)/.dev  ## also install the requirements for tests and linters

quickstart: setup  ## train on handwritten digits to at least 97%; ARGS=... adds settings
	$(RUN) train.py experiment=quickstart $(ARGS)

study: setup  ## train or resume the runs that decide the claims (days); ONLY=table1 trains one experiment
	$(RUN) scripts/study.py $(foreach name,$(ONLY),--only $(name))

page: setup  ## make docs/index.html, the page to explore results/, without training
	$(RUN) scripts/make_page.py

dashboard: setup  ## open a local dashboard of results/ and outputs/ in the browser, without an account
	$(RUN) -m pip install --quiet --disable-pip-version-check "trackio>=0.40"
	$(RUN) scripts/dashboard.py

figures: setup  ## draw results/figures/ from results/, without training; ONLY=overview draws one
	$(RUN) scripts/make_figures.py $(if $(ONLY),--only $(ONLY))

verify: setup  ## check that pages, tables and costs match results/, without training, in a minute
	$(RUN) scripts/verify.py

fast: setup-dev  ## run the quick tests, in about a minute on two cores
	$(PYTEST) -m "not slow and not slurm" tests

test: setup-dev  ## run the whole CPU test suite, in about 10 minutes on two cores
	$(PYTEST) tests

test-avx2: setup-dev  ## run the tests that train convolutions as on a CPU without AVX-512
	@if grep -qs avx512f /proc/cpuinfo; then \
	  set -x; ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
	    $(RUN) -m pytest -n $(TEST_PROCESSES) -k "not bf16" $(CONVOLUTION_TESTS); \
	else echo "this CPU has no AVX-512: make test covers it"; fi

test-slurm: setup-dev  ## test sweeps on a one-node Slurm cluster on this machine (needs root and apt-get)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slurm tests/sweeps/slurm

torture: setup-dev  ## kill a run 50 times per recipe, damage its files, fill its disk, signal it
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN) tests/torture.py --kills 50
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/test_survival.py tests/training/test_distributed.py

notebooks: setup-dev  ## run the notebooks again and keep their outputs
	$(VENV)/bin/jupyter execute --inplace --kernel_name=python3 notebooks/*.ipynb

check: lint types test  ## lint, types and tests

lint: setup-dev  ## ruff: rules and format; oxlint: the JavaScript of the page
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/oxlint -c src/attnconv/report/page/.oxlintrc.json src/attnconv/report/page tests/report/page

types: setup-dev  ## mypy
	$(VENV)/bin/mypy

format: setup-dev  ## let ruff fix lint errors and format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove .venv and caches, but not outputs/ and data/
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version), and this needs Python 3.11 to 3.13: add PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf "$(VENV)"; exit 1; }

$(VENV)/.runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
