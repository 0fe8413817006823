"""`vlac-queue rescore`: send a log's frames through the queue again, and compare with what was said then."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
from msgspec import structs

from vlac_queue.commands.asking import timeout_option
from vlac_queue.commands.episodes.log import read_log
from vlac_queue.commands.episodes.record import EpisodeRecord, described
from vlac_queue.commands.rescore.comparison import Comparison, Drift, together
from vlac_queue.commands.rescore.replay import Replayed, replay, verdicts
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, print_table, progress_bar, queue_options
from vlac_queue.errors import CriticFailed, ProtocolError
from vlac_queue.messages import CriticIdentity
from vlac_queue.texts import clean, many, percent

#: Messages shown of a kind that may come by the thousand.
_SHOWN = 10


@click.command(short_help="Ask the critic about logged frames again.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--critic", help="Refuse answers of any other critic than this, e.g. vlac.")
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Take every N-th episode of the log."
)
@click.option(
    "--max-drift",
    type=click.FloatRange(min=0),
    help="Largest drift allowed, 0..1: of a done score, or of a value divided by 100.",
)
@click.option("--max-flips", type=click.IntRange(min=0), help="Most done verdicts that may differ.")
@queue_options
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print the JSON alone to stdout.")
def rescore(
    folder: Path,
    critic: str | None,
    every: int,
    max_drift: float | None,
    max_flips: int | None,
    redis_url: str,
    queue: str,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask the critic that the workers run now about the frames of a decision log, and compare.

    Shows for each task how many done verdicts agree, which are new or gone, how often each critic calls a
    frame done that the simulator does not (where the log has its word), and how far scores (0..1) and values
    (0..100) moved: mean, 95th percentile and maximum. Frames that are not what the log's hashes say are not sent.

    Exit code 1 if --max-drift or --max-flips is exceeded, a frame was refused, the critic failed on a query, or
    there was nothing to compare.
    """
    with errors_as_messages():
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, timeout_s=timeout)
        found = _ask_again(config, folder, every, critic)
    reasons = _reasons(found, max_drift, max_flips)
    if as_json:
        document = {"log": str(folder), "passed": not reasons, "reasons": reasons, **found.as_dict()}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show(found)
    for what, texts in (("refused", found.refused), ("failed", found.failures), ("note", list(found.notes))):
        for text in texts[:_SHOWN]:
            click.echo(f"{what}: {' '.join(text.split())}", err=True)
        if len(texts) > _SHOWN:
            click.echo(f"{what}: and {len(texts) - _SHOWN:,} more", err=True)
    for reason in reasons:
        click.echo(reason, err=True)
    if reasons:
        raise SystemExit(1)


@dataclass
class _Found:
    """What came of asking again."""

    tasks: dict[str, Comparison] = field(default_factory=dict)
    then: dict[CriticIdentity, None] = field(default_factory=dict)  # who answered, each once
    now: dict[CriticIdentity, None] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)  # what is to be said of frames
    failures: list[str] = field(default_factory=list)  # of queries
    notes: dict[str, None] = field(default_factory=dict)  # of the log, each once

    @property
    def total(self) -> Comparison:
        return together(self.tasks.values())

    def note(self, text: str) -> None:
        self.notes[text] = None

    def add(self, answer: Replayed) -> None:
        """Compare an answer with the one then."""
        self.now[answer.critic] = None
        task = self.tasks.setdefault(answer.task, Comparison(answer.task))
        if isinstance(answer.now, CriticFailed):
            self.failures.append(f"frame {answer.frame}, {answer.task!r}: {answer.now.args[0]}")
            task.failed += 1
        else:
            task.add(answer.then, answer.now, truth=answer.truth)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "critics_then": [structs.asdict(critic) for critic in self.then],
            "critics_now": [structs.asdict(critic) for critic in self.now],
            "total": self.total.as_dict(),
            "tasks": [self.tasks[task].as_dict() for task in sorted(self.tasks)],
            "refused": self.refused,
            "failures": self.failures,
            "notes": list(self.notes),
        }


def _ask_again(config: VlacConfig, folder: Path, every: int, wanted: str | None) -> _Found:
    found = _Found()

    def chosen() -> Iterator[EpisodeRecord]:
        return islice(read_log(folder, found.note), None, None, every)

    # Through the whole log once: what is wrong with it shows before any work, and how much there is.
    total = 0
    for record in chosen():
        total += len(verdicts(record))
        found.then.update(dict.fromkeys(record.critics))
    if not total:
        raise ProtocolError(f"{folder} holds no verdict to compare with.")
    with progress_bar() as bar:
        answers = bar.add_task("asking the critic", total=total)
        for answer in replay(config, folder, chosen(), note=found.note, refuse=found.refused.append):
            if wanted and answer.critic.name != wanted:
                raise ProtocolError(
                    f"the critic {answer.critic.name!r} answered, not {wanted!r}; see `vlac-queue workers list`, "
                    "and stop its workers or give another --queue."
                )
            found.add(answer)
            bar.advance(answers)
    return found


def _reasons(found: _Found, max_drift: float | None, max_flips: int | None) -> list[str]:
    """Return why the exit code is 1."""
    total = found.total
    reasons = []
    if not total.compared:
        reasons.append("nothing was compared")
    if found.refused:
        reasons.append(f"refused: {len(found.refused):,} (see above)")
    if total.failed:
        reasons.append(f"the critic failed on {many(total.failed, 'query')}")
    if max_drift is not None and total.largest_drift > max_drift:
        reasons.append(f"the largest drift is {total.largest_drift:.4g}, above --max-drift {max_drift:g}")
    if max_flips is not None and total.flips > max_flips:
        reasons.append(f"{total.flips:,} done verdicts differ, above --max-flips {max_flips}")
    return reasons


def _show(found: _Found) -> None:
    total, tasks = found.total, [found.tasks[task] for task in sorted(found.tasks)]
    judged = bool(total.judged)
    headers = ["task", "done", "agree", "new", "gone", *(["false"] if judged else []), "scores", "values"]
    rows = []
    for row in [*tasks, total] if len(tasks) > 1 else tasks:
        false = f"{row.false_done_then:,}>{row.false_done_now:,}" if row.judged else "-"
        rows.append(
            [
                "all" if row is total else clean(row.task),
                f"{row.done_verdicts:,}",
                percent(row.agreement),
                f"{row.newly_done:,}",
                f"{row.no_longer_done:,}",
                *([false] if judged else []),
                _drift(row.scores, 2),
                _drift(row.values, 1),
            ]
        )

    def critics(found: Iterable[CriticIdentity]) -> str:
        return clean(described(found), 1000) or "nobody"

    click.echo(f"then  {critics(found.then)}\nnow   {critics(found.now)}")
    print_table(headers, rows, texts=1)
    click.echo(
        "done: verdicts compared; new, gone: done now and not then, or the other way;\n"
        + ("false: called done where the simulator says it is not, then>now;\n" if judged else "")
        + "scores (0..1), values (0..100): how far they moved, mean/p95/max."
    )
    if total.uneven_lists:
        click.echo(f"{total.uneven_lists:,} value lists have another length than then, and were not compared.")


def _drift(drift: Drift, digits: int) -> str:
    if drift.mean is None:
        return "-"
    return "/".join(f"{number:.{digits}f}" for number in (drift.mean, drift.p95, drift.max))
