"""Lets RLinf be imported beside a CPU-only torch.

PyPI's torchvision registers the shapes of C++ operators that its wheel can't load there; none of them is used.
"""

from contextlib import suppress

import torch

if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        with suppress(RuntimeError):  # defined already
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
