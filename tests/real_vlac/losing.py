"""A critic whose first process loses its accelerator while it answers."""

from __future__ import annotations

import os
from typing import Any

from workers.critics.vlac import VlacCritic


class LosesOnce(VlacCritic):
    """Raises what torch raises after an illegal memory access, until its worker has begun anew."""

    def load(self) -> None:
        super().load()
        if "_VLAC_WORKER_RESTARTS" not in os.environ:
            assert self._model is not None
            gac: Any = self._model.gac
            model = gac.engine.inner_model if self.config.engine == "vllm" else gac.model
            model.vision_model.register_forward_pre_hook(lost)


def lost(module: Any, *inputs: Any) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
