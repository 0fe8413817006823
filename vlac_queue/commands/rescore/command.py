"""`vlac-queue rescore`: a log's frames through the queue again, compared with what was said then."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import click
from msgspec import structs

from vlac_queue.commands.episodes.log import read_log
from vlac_queue.commands.episodes.record import EpisodeRecord
from vlac_queue.commands.rescore.comparison import Comparison, Drift, together
from vlac_queue.commands.rescore.replay import Replayed, replay, verdicts
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, print_table, progress_bar, queue_option, redis_url_option
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
@redis_url_option
@queue_option
@click.option("--timeout", type=float, help="Seconds to wait for an answer.  [default: VLAC_TIMEOUT_S, or 120]")
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
    """Asks the critic that the workers run now about the frames of a decision log, and compares.

    Shows for each task how many done verdicts agree, which are new or gone, how often each critic calls a
    frame done that the simulator does not (where the log has its word), and how far scores (0..1) and values
    (0..100) moved: mean, 95th percentile and maximum. Frames that are not what the log's hashes say are not sent.

    Exit code 1 if --max-drift or --max-flips is exceeded, a frame was refused, the critic failed on a query, or
    there was nothing to compare.
    """
    messages = _Messages()
    with errors_as_messages():
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, timeout_s=timeout)
        # Through the whole log once: what is wrong with it shows before any work, and how much there is.
        total = sum(len(verdicts(record)) for record in _chosen(folder, every, messages))
        if not total:
            raise ProtocolError(f"{folder} holds no verdict to compare with.")
        then: dict[CriticIdentity, None] = {}
        now: dict[CriticIdentity, None] = {}
        tasks: dict[str, Comparison] = {}
        with progress_bar() as bar:
            answers = bar.add_task("asking the critic", total=total)
            records = _noting_critics(_chosen(folder, every, messages), then)
            for each in replay(config, folder, records, note=messages.note, refuse=messages.refuse):
                _check_critic(each, critic)
                now[each.critic] = None
                if isinstance(each.now, CriticFailed):
                    messages.fail(f"frame {each.frame}, {each.task!r}: {each.now.args[0]}")
                tasks.setdefault(each.task, Comparison(each.task)).add(
                    each.then, None if isinstance(each.now, CriticFailed) else each.now, truth=each.truth
                )
                bar.advance(answers)
    found = together(tasks.values())
    reasons = _reasons(found, messages, max_drift, max_flips)
    if as_json:
        document = {
            "log": str(folder),
            "passed": not reasons,
            "reasons": reasons,
            "critics_then": [structs.asdict(each) for each in then],
            "critics_now": [structs.asdict(each) for each in now],
            "total": found.as_dict(),
            "tasks": [tasks[task].as_dict() for task in sorted(tasks)],
            "refused": messages.refused,
            "failures": messages.failures,
            "notes": messages.notes,
        }
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        _show([tasks[task] for task in sorted(tasks)], found, list(then), list(now))
    messages.show()
    for reason in reasons:
        click.echo(reason, err=True)
    if reasons:
        raise SystemExit(1)


class _Messages:
    """What is to be said besides the figures, each once."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.refused: list[str] = []
        self.failures: list[str] = []

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, text: str) -> None:
        self.refused.append(text)

    def fail(self, text: str) -> None:
        self.failures.append(text)

    def show(self) -> None:
        for what, texts in (("refused", self.refused), ("failed", self.failures), ("note", self.notes)):
            for text in texts[:_SHOWN]:
                click.echo(f"{what}: {' '.join(text.split())}", err=True)
            if len(texts) > _SHOWN:
                click.echo(f"{what}: and {len(texts) - _SHOWN:,} more", err=True)


def _chosen(folder: Path, every: int, messages: _Messages) -> Iterator[EpisodeRecord]:
    return islice(read_log(folder, messages.note), None, None, every)


def _noting_critics(
    records: Iterator[EpisodeRecord], found: dict[CriticIdentity, None]
) -> Iterator[EpisodeRecord]:
    for record in records:
        found.update(dict.fromkeys(record.critics))
        yield record


def _check_critic(each: Replayed, wanted: str | None) -> None:
    if wanted and each.critic.name != wanted:
        raise ProtocolError(
            f"the critic {each.critic.name!r} answered, not {wanted!r}; see `vlac-queue workers list`, and stop "
            "its workers or give another --queue."
        )


def _reasons(found: Comparison, messages: _Messages, max_drift: float | None, max_flips: int | None) -> list[str]:
    """Why the exit code is 1."""
    reasons = []
    if not found.compared:
        reasons.append("nothing was compared")
    if messages.refused:
        reasons.append(f"refused: {len(messages.refused):,} (see above)")
    if found.failed:
        reasons.append(f"the critic failed on {many(found.failed, 'query')}")
    if max_drift is not None and found.largest_drift > max_drift:
        reasons.append(f"the largest drift is {found.largest_drift:.4g}, above --max-drift {max_drift:g}")
    if max_flips is not None and found.flips > max_flips:
        reasons.append(f"{found.flips:,} done verdicts differ, above --max-flips {max_flips}")
    return reasons


def _show(
    tasks: Sequence[Comparison], found: Comparison, then: Sequence[CriticIdentity], now: Sequence[CriticIdentity]
) -> None:
    headers = ["task", "done", "agree", "new", "gone", *(["false"] if found.judged else []), "scores", "values"]
    rows = []
    for each in [*tasks, found] if len(tasks) > 1 else tasks:
        judged = f"{each.false_done_then:,}>{each.false_done_now:,}" if each.judged else "-"
        rows.append(
            [
                "all" if each is found else clean(each.task),
                f"{each.done_verdicts:,}",
                percent(each.agreement),
                f"{each.newly_done:,}",
                f"{each.no_longer_done:,}",
                *([judged] if found.judged else []),
                _drift(each.scores, 2),
                _drift(each.values, 1),
            ]
        )
    click.echo(f"then  {_critics(then)}\nnow   {_critics(now)}")
    print_table(headers, rows, texts=1)
    click.echo(
        "done: verdicts compared; new, gone: done now and not then, or the other way;\n"
        + ("false: called done where the simulator says it is not, then>now;\n" if found.judged else "")
        + "scores (0..1), values (0..100): how far they moved, mean/p95/max."
    )
    if found.uneven_lists:
        click.echo(f"{found.uneven_lists:,} value lists have another length than then, and were not compared.")


def _drift(drift: Drift, digits: int) -> str:
    if drift.mean is None:
        return "-"
    return "/".join(f"{number:.{digits}f}" for number in (drift.mean, drift.p95, drift.max))


def _critics(critics: Sequence[CriticIdentity]) -> str:
    shown = [
        " ".join(
            filter(None, (clean(each.name), clean(each.model), each.prompt and f"(prompts {clean(each.prompt)})"))
        )
        for each in critics
    ]
    return ", ".join(shown) or "nobody"
