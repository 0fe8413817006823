"""`vlac-queue calibrate`: show how often "done" is right at every threshold, and recommend one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vlac_queue.commands.calibrate.choice import Choice, choose
from vlac_queue.commands.calibrate.judged import read_judged
from vlac_queue.commands.calibrate.picture import write_curves
from vlac_queue.commands.calibrate.tally import CONFIRMS, THRESHOLDS, Tally
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, note, print_table, writing
from vlac_queue.errors import ProtocolError
from vlac_queue.plot import figure_class
from vlac_queue.texts import clean, many

#: Thresholds of the table, beside those in use and recommended.
_SHOWN = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@click.command(short_help="Choose the threshold of done.")
@click.argument("folder", metavar="LOG|LABELS", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--truth",
    "table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV file: episode, success (1 or 0), and perhaps frame, the first one that is done.",
)
@click.option(
    "--false-done",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="Largest part wanted of the episodes that are not done to be found done.",
)
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curves (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every threshold, by task.")
def calibrate(folder: Path, table: Path | None, false_done: float, png: Path | None, as_json: bool) -> None:
    """Show what "done" is worth at every threshold and for 1 to 3 dones in a row, and recommend a setting.

    LOG is a decision log whose episodes have the simulator's word, or a person's (`vlac-queue episodes mark`);
    LABELS a folder of `vlac-queue label`, which needs --truth. Precision: of what is found done, the part that is.
    Recall: of what succeeded, the part found done. False dones: of the episodes that are not done where they end,
    the part found done; as the audit of training has it. Delay: frames from the success until it is found.
    All with 95% intervals.

    Exit code 1 if no setting has as few false dones as wanted.
    """
    with errors_as_messages():
        if png is not None:
            figure_class()  # better missed now than after the work
        total, tasks, judged, now = _count(folder, table)
        choice = choose(total, false_done)
        if png is not None:
            with writing(png, "--png"):
                write_curves(total, png, now=now, chosen=choice.place, wanted=false_done)
    if as_json:
        click.echo(json.dumps(_document(total, tasks, choice, judged, now, false_done), indent=2))
    else:
        _show(total, tasks, choice, judged, now)
    if png is not None:
        click.echo(f"Written: {png}", err=as_json)
    if choice.place is None:
        raise SystemExit(1)


def _count(folder: Path, table: Path | None) -> tuple[Tally, list[Tally], int, float]:
    """Return the counts of all and by task, how many episodes there are, and the threshold that was used."""
    total, tasks, episodes = Tally(""), dict[str, Tally](), 0
    threshold = VlacConfig.done_threshold

    for judged in read_judged(folder, table, note):
        episodes += 1
        threshold = judged.threshold
        if judged.truth is not None:
            total.add(judged)
            tasks.setdefault(judged.task, Tally(judged.task)).add(judged)
    if not total.episodes:
        raise ProtocolError(
            f"of {many(episodes, 'episode')} in {folder} none has an end that is known: give --truth FILE, or "
            "mark some with `vlac-queue episodes mark --all --log DIR`."
        )
    return total, [tasks[task] for task in sorted(tasks)], episodes, threshold


def _setting(choice: Choice) -> dict[str, Any] | None:
    if choice.place is None:
        return None
    row, column = choice.place
    return {"done_threshold": float(THRESHOLDS[column]), "done_confirm": CONFIRMS[row]}


def _document(
    total: Tally, tasks: Sequence[Tally], choice: Choice, episodes: int, now: float, wanted: float
) -> dict[str, Any]:
    def figures(tally: Tally) -> dict[str, Any]:
        places = [(row, column) for row in range(len(CONFIRMS)) for column in range(len(THRESHOLDS))]
        counts = {"task": tally.task, "succeeded": tally.succeeded, "failed": tally.failed}
        return {**counts, "settings": [tally.figures(*place) for place in places]}

    return {
        "episodes": episodes,
        "judged": total.episodes,
        "threshold_now": now,
        "false_done_wanted": wanted,
        "recommended": _setting(choice),
        "enough_episodes": choice.shown,
        "remark": choice.remark,
        "total": figures(total),
        "tasks": [figures(tally) for tally in tasks],
    }


def _show(total: Tally, tasks: Sequence[Tally], choice: Choice, episodes: int, now: float) -> None:
    known = "" if total.episodes == episodes else f" of {episodes:,}"
    click.echo(
        f"{many(total.episodes, 'episode')}{known} with a known end: {total.succeeded:,} succeeded, "
        f"{total.failed:,} failed"
    )
    here = _column(now)
    wanted = {(0, _column(threshold)) for threshold in (*_SHOWN, now)}
    if choice.place is not None:
        wanted |= {(row, choice.place[1]) for row in range(len(CONFIRMS))}
    rows = []
    for row, column in sorted(wanted):
        marks = ["now"] * ((row, column) == (0, here)) + ["take"] * ((row, column) == choice.place)
        rows.append(
            [f"{THRESHOLDS[column]:.2f} {' '.join(marks)}", str(CONFIRMS[row]), *_cells(total, row, column)]
        )
    print_table(("threshold", "dones", *_HEADERS), rows, texts=1)
    if len(tasks) > 1:
        row, column = choice.place or (0, here)
        click.echo(f"by task, at {THRESHOLDS[column]:.2f} and {many(CONFIRMS[row], 'done')}:")
        # Without what is unknown, which JSON has: tasks often differ in their last words.
        print_table(
            ("task", "episodes", *_HEADERS[:-1]),
            [[clean(t.task), f"{t.episodes:,}", *_cells(t, row, column)[:-1]] for t in tasks],
            texts=1,
        )
    if setting := _setting(choice):
        click.echo(f"export VLAC_DONE_THRESHOLD={setting['done_threshold']:g}", nl=False)
        click.echo(f" VLAC_DONE_CONFIRM={setting['done_confirm']}" if setting["done_confirm"] > 1 else "")
    if choice.remark:
        click.echo(choice.remark, err=True)


def _column(threshold: float) -> int:
    """Return the place of the largest of THRESHOLDS that is not above one."""
    return int((threshold + 1e-9 >= THRESHOLDS).sum()) - 1


_HEADERS = ("precision", "recall", "false dones", "delay", "unknown")


def _cells(tally: Tally, row: int, column: int) -> list[str]:
    figures = tally.figures(row, column)
    delay = figures["delay"]
    rates = [_interval(figures[name]) for name in ("precision", "recall", "false_done_rate")]
    return [*rates, "-" if delay is None else f"{delay:+.1f}", f"{figures['unknown']:,}"]


def _interval(found: dict[str, float] | None) -> str:
    """Return a rate with its interval, in percent."""
    if found is None:
        return "-"
    return f"{100 * found['rate']:.0f} % ({100 * found['low']:.0f}-{100 * found['high']:.0f})"
