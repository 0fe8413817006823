# Learning by the critic's rewards, on a CPU: make test-learn
# An environment of its own: torch and Stable-Baselines3 are not in the base installation.
LEARN_VENV := .venv-learn
# The CPU build where one is offered; any torch from 2.8 on does.
LEARN_TORCH ?= torch==2.13.0

.PHONY: test-learn

test-learn: $(LEARN_VENV)/.ready  ## Learn by the critic's rewards, and check that it did
	$(LEARN_VENV)/bin/pytest tests/learn

$(LEARN_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LEARN_VENV)
	$(LEARN_VENV)/bin/pip install -q $(LEARN_TORCH)
	$(LEARN_VENV)/bin/pip install -q -e '.[learn]' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@
