# `make test-lerobot`: datasets written by lerobot's own writer, and labels read by its own code, on a CPU.
# It builds an environment of its own, once (some 2 GB and 3 minutes); the tests take under a minute.

LEROBOT_VENV := .venv-lerobot
LEROBOT_PIP := $(LEROBOT_VENV)/bin/pip install --quiet

.PHONY: test-lerobot
test-lerobot: $(LEROBOT_VENV)/.installed  ## Label datasets that lerobot wrote, on a CPU
	HF_HUB_OFFLINE=1 PYTHONPATH=tests/real_vlac/site $(LEROBOT_VENV)/bin/pytest tests/real_lerobot

# 0.4.4 is the newest lerobot for Python 3.10 and 3.11. Without its own dependencies, which bring CUDA, a simulator
# and servers; named here is what datasets take.
$(LEROBOT_VENV)/.installed: tests/real_lerobot/lerobot.mk pyproject.toml
	python3 -m venv $(LEROBOT_VENV)
	$(LEROBOT_PIP) torch==2.13.0
	$(LEROBOT_PIP) --no-deps torchvision==0.28.0 lerobot==0.4.4
	$(LEROBOT_PIP) 'accelerate>=1.10,<2' 'datasets>=4,<5' 'av>=15,<16' 'pandas<3' 'huggingface-hub<0.36' draccus==0.10.0 \
		'deepdiff<9' einops gymnasium jsonlines 'opencv-python-headless<4.13' 'packaging<26' pillow safetensors termcolor
	$(LEROBOT_PIP) -e '.[datasets,embedded,plot]' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@
