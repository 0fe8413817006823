"""RLinf's own check of its configs with our block on top: python -m tests.real_rlinf.validate NAME ..."""

# isort: skip_file
from __future__ import annotations

import sys

import tests.real_rlinf.on_cpu  # noqa: F401  torchvision can be imported after it

from rlinf.config import validate_cfg

from tests.real_rlinf.configs import composed


def main() -> None:
    for name in sys.argv[1:]:
        validate_cfg(composed(name, "reward.model.vlac.redis_url=redis://127.0.0.1:1/0"))
    print("valid:", *sys.argv[1:])


if __name__ == "__main__":
    main()
