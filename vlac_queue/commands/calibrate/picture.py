"""Draw precision, recall and false dones over the threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.commands.calibrate.tally import CONFIRMS, THRESHOLDS, Tally
from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, figure_class, save

_COLOURS = (CURVE, DONE, UNDONE)
_PANELS = {"precision": "precision", "recall": "recall", "false_done_rate": "false dones"}


def write_curves(tally: Tally, path: Path, *, now: float, chosen: tuple[int, int] | None, wanted: float) -> None:
    """Draw the curves as PNG, with the 95% interval of one done.

    Args:
        now: the threshold in use, 0..1.
        chosen: the recommended setting, in CONFIRMS and THRESHOLDS; None for none.
        wanted: the false-done rate that was asked for, 0..1.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = figure_class()(figsize=(9.0, 3.2), layout="constrained")
    title = f"{tally.episodes:,} episodes, {tally.succeeded:,} succeeded; bands: 95 % of one done"
    figure.suptitle(title, fontsize=10, x=0.006, ha="left")
    for axes, (name, label) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        _draw(axes, tally, name, chosen)
        axes.axvline(now, color=TEXT, linewidth=1, linestyle=":", label=f"now: {now:g}")
        if name == "false_done_rate":
            axes.axhline(wanted, color=TEXT, linewidth=0.8, linestyle="--")
        axes.set(xlim=(0, 1), ylim=(-0.03, 1.03))
        axes.set_xlabel("threshold", fontsize=9, color=TEXT)
        axes.set_title(label, fontsize=10, loc="left")
        axes.tick_params(labelsize=8, colors=TEXT)
        axes.grid(color="#eaeef2", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, fontsize=8, frameon=False, loc="lower left")
    save(figure, path, dpi=150)


def _draw(axes: Any, tally: Tally, name: str, chosen: tuple[int, int] | None) -> None:
    for row, confirm in enumerate(CONFIRMS):
        figures = [tally.figures(row, column)[name] for column in range(len(THRESHOLDS))]
        rates, low, high = (
            np.array([np.nan if each is None else each[key] for each in figures])
            for key in ("rate", "low", "high")
        )
        said = "one done" if confirm == 1 else f"{confirm} in a row"
        axes.step(THRESHOLDS, rates, where="post", color=_COLOURS[row], linewidth=1.6, label=said)
        if row == 0:
            axes.fill_between(THRESHOLDS, low, high, step="post", color=_COLOURS[row], alpha=0.15, linewidth=0)
        if chosen and chosen[0] == row:
            axes.plot(THRESHOLDS[chosen[1]], rates[chosen[1]], "o", color=_COLOURS[row], label="recommended")
