# A small training by the critic's rewards: make learn, or make learn LEARN='--task drawer-open-v3'
# An environment of its own: torch, Meta-World and Stable-Baselines3 are not in the base installation.
LEARN_VENV := .venv-learn
# The CPU build where one is offered; any torch from 2.8 on does.
LEARN_TORCH ?= torch==2.13.0
LEARN ?= --done-confirm 2
# How Meta-World renders without a screen: egl, or osmesa.
MUJOCO_GL ?= egl

.PHONY: learn setup-learn test-learn

setup-learn: $(LEARN_VENV)/.ready  ## Make the environment of learn and test-learn

$(LEARN_VENV)/.ready: pyproject.toml tests/learn/requirements.txt
	$(PYTHON) -m venv $(LEARN_VENV)
	$(LEARN_VENV)/bin/pip install -q $(LEARN_TORCH)
	$(LEARN_VENV)/bin/pip install -q -e '.[learn,gymnasium]' -r tests/learn/requirements.txt
	touch $@

learn: setup-learn  ## Train a policy by the critic's rewards (LEARN='--help')
	@mkdir -p learn-out
	MUJOCO_GL="$(MUJOCO_GL)" $(LEARN_VENV)/bin/python -W ignore examples/train_metaworld.py \
	  --json learn-out/figures.json --png learn-out/figures.png $(LEARN)

test-learn: setup-learn  ## Train until policies have learned, and check it
	MUJOCO_GL="$(MUJOCO_GL)" $(LEARN_VENV)/bin/pytest tests/learn
