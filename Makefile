# The development loop; `make help` lists the targets. Every one uses .venv, which `make setup` makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FUZZ_EXAMPLES ?= 20000
# What CI installs: exact versions with their hashes.
LOCK := .ci/requirements.txt

.PHONY: help setup demo test test-all test-chaos test-day fuzz lint lock audit bench clean

# LOCKED=1 installs the versions in .ci/requirements.txt, whose hashes are checked, instead of the newest.
setup: $(READY)  ## Make .venv with all that is needed (PYTHON=python3.11, LOCKED=1)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is incomplete: apt-get install python3-venv"; exit 1; }
ifdef LOCKED
	$(PIP) --require-hashes --requirement $(LOCK)
	$(PIP) --no-deps --no-build-isolation --editable .
else
	$(PIP) --editable '.[dev]'
endif
	@touch $@

demo: setup  ## Play recorded episodes through Redis and two workers
	$(BIN)/vlac-queue demo

# PYTEST holds options, e.g. make test PYTEST='-k gate'. Two processes a core: half of the time a test waits.
PYTEST_ALL := $(BIN)/pytest -n auto --dist worksteal

test: setup  ## Run the tests, some 3 minutes (PYTEST='-k gate')
	$(PYTEST_ALL) $(PYTEST)

# Those that take long too.
test-all: setup  ## Run those that take long too
	$(PYTEST_ALL) -m 'not chaos' $(PYTEST)

# Harm done for real: kills, partitions, lost data; prints the table of docs/reliability.md.
test-chaos: setup  ## Do harm for real: kills, partitions, lost data; some minutes
	$(BIN)/pytest tests/chaos -m 'chaos and not soak'

# A day's queries in some minutes: memory and latencies over a million of them.
QUERIES ?= 1000000
test-day: setup  ## Ask a day's queries: memory and latencies (QUERIES=100000)
	CHAOS_QUERIES=$(QUERIES) $(BIN)/pytest tests/chaos/test_size.py -m chaos -k day

# Fault after fault, drawn from tests/chaos/faults.py for SOAK_MINUTES: the same ones in the same order for one SEED.
# SOAK_FAULTS names some of them, with commas.
SOAK_MINUTES ?= 30
SEED ?= 1
.PHONY: soak
soak: setup  ## Do fault after fault, as SEED draws them (SOAK_MINUTES=30 SEED=1)
	SOAK_MINUTES=$(SOAK_MINUTES) SEED=$(SEED) SOAK_FAULTS=$(SOAK_FAULTS) $(BIN)/pytest tests/chaos/test_soak.py -m soak -s

# What is read from Redis, made up: FUZZ_EXAMPLES of each kind, some 15 minutes.
fuzz: setup  ## Make up what is read from Redis, some 15 minutes
	FUZZ_EXAMPLES="$(FUZZ_EXAMPLES)" $(BIN)/pytest tests/security/test_fuzz.py --hypothesis-profile fuzz --timeout 0

lint: setup  ## Check style and types: ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The newest versions that pyproject.toml allows go to the lock file.
lock: setup  ## Write the newest versions to .ci/requirements.txt
	$(PIP) uv
	printf 'hatchling\neditables\n' | $(BIN)/uv pip compile pyproject.toml - --extra dev --universal --python-version 3.10 --upgrade --quiet \
		--generate-hashes --no-annotate --custom-compile-command 'make lock' --output-file $(LOCK)

# Asks the Python Packaging Advisory Database about the versions in the lock file; not part of CI, which may be offline.
audit: setup  ## Look up known vulnerabilities of the locked versions
	$(PIP) pip-audit
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement $(LOCK) || \
		{ echo "make audit: a version has a known vulnerability, or the advisory service can't be reached: see above"; exit 1; }

# BENCH holds options, e.g. make bench BENCH='--only peers --rounds 1'; --help lists them.
bench: setup  ## Measure the queue against RQ and bare Redis (BENCH='--help')
	$(BIN)/vlac-queue bench $(BENCH)

help:  ## Show this list
	@$(PYTHON) -c 'import re, sys; \
		rows = sorted(row for name in sys.argv[1:] for row in re.findall(r"^([a-z-]+):.*?  \#\# (.*)", open(name).read(), re.M)); \
		[print(f"{target:12} {what}") for target, what in rows]' $(MAKEFILE_LIST)

clean:  ## Delete .venv and caches
	rm -rf $(VENV) demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Suites with an environment of their own.
include $(sort $(wildcard */*.mk */*/*.mk))
