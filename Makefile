# The development loop. Every target uses .venv, which `make setup` makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FUZZ_EXAMPLES ?= 20000

.PHONY: setup demo test test-chaos fuzz lint bench clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is incomplete: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/vlac-queue demo

test: setup
	$(BIN)/pytest

# Harm done for real: kills, partitions, lost data; prints the table of docs/reliability.md.
test-chaos: setup
	$(BIN)/pytest tests/chaos -m chaos

# What is read from Redis, made up: FUZZ_EXAMPLES of each kind, some 15 minutes.
fuzz: setup
	FUZZ_EXAMPLES="$(FUZZ_EXAMPLES)" $(BIN)/pytest tests/security/test_fuzz.py --hypothesis-profile fuzz --timeout 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.queue
	$(BIN)/python -m benchmarks.busy

clean:
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

-include *.mk
