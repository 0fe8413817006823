"""Lets PyPI's torchvision be imported beside a CPU-only torch; on the PYTHONPATH of `make test-vlac` only.

torchvision registers the shapes of C++ operators that its wheel can't load there; none of them is used here.
"""

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _NMS)
