# A small training by the critic's rewards: make learn, or make learn LEARN='--task drawer-open-v3'
# An environment of its own: torch and Meta-World are not in the base installation.
LEARN_VENV := .venv-learn
# The CPU build where one is offered; any torch does.
LEARN_TORCH ?= torch
LEARN ?= --done-confirm 2
# How Meta-World renders without a screen: egl, or osmesa.
MUJOCO_GL ?= egl

.PHONY: learn test-learn

learn: $(LEARN_VENV)/.ready  ## Train a policy of Meta-World by the critic's rewards, some minutes (LEARN='--help')
	@mkdir -p learn-out
	MUJOCO_GL="$(MUJOCO_GL)" $(LEARN_VENV)/bin/python examples/train_metaworld.py \
	  --json learn-out/figures.json --png learn-out/figures.png $(LEARN)

test-learn: $(LEARN_VENV)/.ready  ## Train until the policy has learned, and check that it has
	MUJOCO_GL="$(MUJOCO_GL)" $(LEARN_VENV)/bin/pytest tests/learn

$(LEARN_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LEARN_VENV)
	$(LEARN_VENV)/bin/pip install -q $(LEARN_TORCH)
	$(LEARN_VENV)/bin/pip install -q -e '.[learn]' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@
