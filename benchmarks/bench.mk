# `make bench-peers`: the benchmark with what one would use instead (Celery, Ray Serve, FastAPI, ...).
# It builds an environment of its own, once (some 1 GB). BENCH holds options, as with `make bench`.

PEERS_VENV := .venv-peers

.PHONY: bench-peers
bench-peers: $(PEERS_VENV)/.ready  ## Measure it against Celery, FastAPI and Ray Serve too
	$(PEERS_VENV)/bin/vlac-queue bench $(BENCH)

$(PEERS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,peers]'
	@touch $@
