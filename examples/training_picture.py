"""Pictures of runs of `train_metaworld.py`: python examples/training_picture.py RUN.json ... --out PNG"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, WRONG, figure_class, save

#: Of an iteration: the figure's name, what it is called, and how it is drawn.
_LINES = (
    ("reward", "reward", CURVE, "-"),
    ("done", "found done", UNDONE, "--"),
    ("success", "true success", DONE, "-"),
    ("false_done", "false dones", WRONG, "-"),
)


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw reward, the critic's done, true success and false dones by iteration."""
    figure = figure_class()(figsize=(3.4 * len(runs) + 1, 2.8), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, run in zip(panels, runs, strict=True):
        rows = run["iterations"]
        for name, label, colour, style in _LINES if run["reward"] == "critic" else _LINES[0::2]:
            axes.plot([r["number"] for r in rows], [r[name] for r in rows], style, color=colour, label=label)
        by = f"done said {run['done_confirm']}x" if run["reward"] == "critic" else f"reward: {run['reward']}"
        axes.set_title(f"{run['task']}, {by}, seed {run['seed']}", fontsize=9, loc="left", color=TEXT)
        axes.set_xlabel("iteration", fontsize=8, color=TEXT)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8, colors=TEXT)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    save(figure, path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw([json.loads(path.read_text()) for path in options.runs], options.out)
