# The suite against SimpleVLA-RL itself, on CPU: make test-verl SIMPLEVLA_RL_HOME=<its checkout>
# An environment of its own: torch and Ray are not in the base installation.
VERL_PYTHON ?= python3
VERL_VENV := .venv-verl
# The CPU build where one is offered; any torch does.
VERL_TORCH ?= torch
# How Meta-World renders without a screen: egl, or osmesa.
MUJOCO_GL ?= egl

.PHONY: setup-verl test-verl

setup-verl: $(VERL_VENV)/.ready  ## Make the environment of test-verl

$(VERL_VENV)/.ready: pyproject.toml tests/real_verl/requirements.txt
	$(VERL_PYTHON) -m venv $(VERL_VENV)
	$(VERL_VENV)/bin/pip install -q $(VERL_TORCH)
	$(VERL_VENV)/bin/pip install -q -e '.[embedded]' -r tests/real_verl/requirements.txt
	touch $@

test-verl: setup-verl  ## Run the suite against SimpleVLA-RL (SIMPLEVLA_RL_HOME=its checkout)
	@test -f "$(SIMPLEVLA_RL_HOME)/verl/trainer/main_ppo.py" || { \
	  echo "set SIMPLEVLA_RL_HOME to a checkout of https://github.com/PRIME-RL/SimpleVLA-RL"; exit 2; }
	SIMPLEVLA_RL_HOME="$(abspath $(SIMPLEVLA_RL_HOME))" MUJOCO_GL="$(MUJOCO_GL)" \
	  $(VERL_VENV)/bin/pytest tests/real_verl
