# One word per chore. `make demo` and `make test` work from a bare checkout: they make .venv,
# install the pinned packages and this one, and run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check docs peers bench format clean

help:
	@echo "make demo    align a small model by six objectives; a page shows how far each came"
	@echo "make test    all tests"
	@echo "make check   format, lint and types, without changing anything"
	@echo "make docs    write the generated pages and parts of pages"
	@echo "make peers   run the checks on TRL's and Liger-Kernel's losses; write docs/peers.md"
	@echo "make bench   a training step beside TRL's, case by case; writes docs/performance.md"
	@echo "make format  format the code"
	@echo "make setup   only make $(VENV) and install"
	@echo "make clean   remove $(VENV) and what the demo wrote"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/veritune demo output=demo-run overwrite=true

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/generate.py

# Their releases have an environment of their own: what they need must not decide what we test with.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
PEERS_NEEDS := benchmarks/peers/requirements.txt

$(PEERS_STAMP): pyproject.toml constraints.txt $(PEERS_NEEDS)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(PEERS_NEEDS) -e .
	@touch $@

peers: $(PEERS_STAMP)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python benchmarks/peers_under_laws.py

bench: $(PEERS_STAMP)
	$(PEERS)/bin/python benchmarks/preference_step.py $(if $(PAIRS),--pairs $(PAIRS))

format: setup
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEERS) demo-run
