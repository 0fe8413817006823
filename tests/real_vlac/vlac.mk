# `make test-vlac VLAC_HOME=/path/to/VLAC`: the critic vlac with the real evo_vlac, on a tiny checkpoint and a CPU.
# It builds an environment of its own, once (some 2 GB and 3 minutes); the tests take about 3 minutes.
# Without VLAC_HOME it clones VLAC.

VLAC_HOME ?= .vlac-checkout
VLAC_VENV := .venv-vlac
VLAC_PIP := $(VLAC_VENV)/bin/pip install --quiet

.PHONY: test-vlac
test-vlac: $(VLAC_VENV)/.installed  ## Run the suite against evo_vlac, on a CPU (VLAC_HOME=its checkout)
	PYTHONPATH=$(CURDIR)/tests/real_vlac/site $(VLAC_VENV)/bin/pytest tests/real_vlac

# ms-swift 3.3.0 asks for numpy 1, and pyarrow from 22 on refuses it; evo_vlac needs loguru and cv2 undeclared.
$(VLAC_VENV)/.installed: tests/real_vlac/vlac.mk pyproject.toml | $(VLAC_HOME)
	python3 -m venv $(VLAC_VENV)
	$(VLAC_PIP) torch==2.13.0
	$(VLAC_PIP) ms-swift==3.3.0 transformers==4.51.3 'pyarrow<22' loguru 'opencv-python-headless<4.12'
	$(VLAC_PIP) --no-deps torchvision==0.28.0 timm==1.0.31
	$(VLAC_PIP) --no-deps -e $(VLAC_HOME)
	$(VLAC_PIP) -e '.[embedded]' 'numpy<2' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@

.vlac-checkout:
	git clone --quiet --depth 1 https://github.com/InternRobotics/VLAC $@
