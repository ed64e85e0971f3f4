# Every target that needs Python creates and fills .venv first. `make PYTHON=python3.12 test` uses another interpreter.
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV ?= .venv
EXTRAS ?= dev
WORKERS ?= 2
CONFIG ?= configs/quickstart_lfq.yaml
ARGS ?=

RUN := $(VENV)/bin/python
READY := $(VENV)/.filled
BENCHMARKS := $(sort $(wildcard scripts/benchmark_*.py))
CHECKED := $(wildcard voken.py voken_common voken_jax voken_torch scripts tests)
SCRIPTS := $(wildcard scripts/*.sh .ci/run)
TYPED := $(wildcard voken_common voken_jax voken_torch)

.DEFAULT_GOAL := help
.PHONY: help venv quickstart quickstart-ibq quickstart-generator quickstart-video test test-slow parity lint typecheck format bench faults clean

help:
	@echo 'make quickstart      train a small LFQ tokenizer on photographs and reconstruct held-out ones (minutes, CPU)'
	@echo 'make quickstart-ibq  the same with IBQ'
	@echo 'make quickstart-generator  train a small generator on its tokens and draw samples of every photograph'
	@echo 'make quickstart-video  a small video tokenizer, inflated from an image one, on a film and moving photographs'
	@echo 'make test            tests, without those marked slow or large (test-slow runs those; parity the golden cases)'
	@echo 'make lint typecheck  ruff, shellcheck and mypy; make format rewrites'
	@echo 'make bench           every benchmark of scripts/; make faults: the fault matrix'
	@echo 'Options: PYTHON=python3.12  WORKERS=8  CONFIG=FILE  ARGS="..." (passed on to the command)'

venv: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'voken needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=/path/to/python3.11'; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

quickstart: $(READY)
	@$(RUN) scripts/quickstart.py --config $(CONFIG) $(ARGS)

quickstart-ibq:
	@$(MAKE) --no-print-directory quickstart CONFIG=configs/quickstart_ibq.yaml

quickstart-generator: $(READY)
	@$(RUN) scripts/quickstart_generator.py $(ARGS)

quickstart-video: $(READY)
	@$(RUN) scripts/quickstart_video.py $(ARGS)

test: $(READY)
	$(RUN) -m pytest -n $(WORKERS) -m 'not slow and not large' $(ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m 'slow or large' $(ARGS)

parity: $(READY)
	$(RUN) -m pytest tests/parity $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check $(CHECKED)
	$(RUN) -m ruff format --check $(CHECKED)
	$(VENV)/bin/shellcheck -x $(SCRIPTS)

typecheck: $(READY)
	$(RUN) -m mypy $(TYPED)

format: $(READY)
	$(RUN) -m ruff check --fix $(CHECKED)
	$(RUN) -m ruff format $(CHECKED)

bench: $(READY)
	@test -n '$(BENCHMARKS)' || { echo 'no benchmark found: expected scripts/benchmark_*.py'; exit 1; }
	@set -e; for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(RUN) $$benchmark $(ARGS); done

faults: $(READY)
	@$(RUN) scripts/fault_matrix.py $(ARGS)

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
