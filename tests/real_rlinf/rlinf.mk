# The suite against RLinf itself, on a CPU: make test-rlinf RLINF_HOME=<its checkout>
# An environment of its own: torch, Ray and Meta-World are not in the base installation.
RLINF_VENV := .venv-rlinf
# The CPU build where one is offered; any torch with its torchvision does.
RLINF_TORCH ?= torch==2.13.0 torchvision==0.28.0
# How Meta-World renders without a screen: egl, or osmesa.
MUJOCO_GL ?= egl

.PHONY: setup-rlinf test-rlinf

setup-rlinf: $(RLINF_VENV)/.ready  ## Make the environment of test-rlinf

$(RLINF_VENV)/.ready: pyproject.toml tests/real_rlinf/requirements.txt
	$(PYTHON) -m venv $(RLINF_VENV)
	$(RLINF_VENV)/bin/pip install -q $(RLINF_TORCH)
	$(RLINF_VENV)/bin/pip install -q -e '.[embedded]' -r tests/real_rlinf/requirements.txt
	touch $@

test-rlinf: setup-rlinf  ## Run the suite against RLinf (RLINF_HOME=its checkout)
	@test -f "$(RLINF_HOME)/rlinf/workers/reward/reward_worker.py" || { \
	  echo "set RLINF_HOME to a checkout of https://github.com/RLinf/RLinf"; exit 2; }
	RLINF_HOME="$(abspath $(RLINF_HOME))" PYTHONPATH="$(abspath $(RLINF_HOME))" MUJOCO_GL="$(MUJOCO_GL)" \
	  $(RLINF_VENV)/bin/pytest tests/real_rlinf
