# The suite that learns with the critic's rewards, on a CPU: make test-learn
# An environment of its own: torch and Stable-Baselines3 are not in the base installation.
LEARN_VENV := .venv-learn
# The CPU build where one is offered; any torch from 2.8 on does.
LEARN_TORCH ?= torch==2.13.0

.PHONY: setup-learn test-learn

setup-learn: $(LEARN_VENV)/.ready  ## Make the environment of test-learn

$(LEARN_VENV)/.ready: pyproject.toml tests/learn/requirements.txt
	$(PYTHON) -m venv $(LEARN_VENV)
	$(LEARN_VENV)/bin/pip install -q $(LEARN_TORCH)
	$(LEARN_VENV)/bin/pip install -q -e '.[embedded,gymnasium]' -r tests/learn/requirements.txt
	touch $@

test-learn: setup-learn  ## Learn with Stable-Baselines3 by the critic's rewards
	$(LEARN_VENV)/bin/pytest tests/learn
