"""`vlac-queue report`: a recording of the dashboard as a page of plots, for a lab notebook."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

import click
from rich.console import Console
from rich.progress import Progress

from dashboards.plots import Plot, plots
from dashboards.record import Recording
from dashboards.run import Run, read_run
from vlac_queue.console import errors_as_messages, writing
from vlac_queue.texts import duration, latency, many, number, percent, size

_TEMPLATE = Path(__file__).with_name("report.html")


@click.command(short_help="Make a page of plots of a recording.")
@click.argument("record", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False),
    help="Page to write.",
)
def report(record: str, output: str) -> None:
    """Makes a page of plots out of RECORD, a file of `python -m dashboards.live --record`.

    The page needs nothing but itself: it can be mailed, archived, and read without a network.
    """
    with errors_as_messages():
        try:
            recording = Recording(record)
            with Progress(console=Console(stderr=True), transient=True) as progress:
                looks = recording.looks()
                run = read_run(progress.track(looks, description="reading"))
                drawn = plots(run)
        except OSError as error:
            raise ValueError(str(error)) from None
        except ImportError as error:
            raise ImportError("the report needs matplotlib: pip install 'vlac-queue[plot]'") from error
        if not run.at:
            raise ValueError(f"{record} holds no look; record for a while")
        with writing(Path(output), "-o"):
            Path(output).write_text(html(recording, run, drawn), encoding="utf-8")
    click.echo(f"Written: {output} ({many(len(run.at), 'look')}, {duration(run.seconds)})")
    if recording.truncated:
        click.echo("The last line of the recording is incomplete and was left out.", err=True)


def html(recording: Recording, run: Run, drawn: list[Plot]) -> str:
    """The page."""
    started = datetime.fromtimestamp(run.at[0]).astimezone()
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Queue {recording.queue}, {started:%Y-%m-%d %H:%M}"),
        queue=escape(recording.queue),
        url=escape(recording.url),
        when=escape(f"{started:%A, %Y-%m-%d, %H:%M:%S %Z}"),
        length=escape(duration(run.seconds)),
        summary="\n".join(_summary(run)),
        timeline=_timeline(run),
        diagnoses="\n".join(_diagnoses(run)),
        plots="\n".join(map(_figure, drawn)),
    )


def _summary(run: Run) -> Iterator[str]:
    last, seconds = run.last, run.seconds
    most = {name: max(run.known(name), default=None) for name in ("waiting", "oldest", "queries", "workers")}
    busy = run.known("busy")

    def row(name: str, value: str, more: str = "") -> str:
        return f"<tr><th>{escape(name)}</th><td>{escape(value)}</td><td>{escape(more)}</td></tr>"

    yield row("Recorded", duration(seconds), f"{many(len(run.at), 'look')}; Redis away {duration(run.away_s)}")
    rate = number(run.queries / seconds) if seconds else "-"
    yield row("Queries answered", f"{run.queries:,}", f"{rate}/s on average, {number(most['queries'])}/s at most")
    failed = percent(run.failures / run.queries) if run.queries else "-"
    yield row("Failed", f"{run.failures:,}", f"{failed} of them")
    yield row("Waiting jobs", f"{most['waiting'] or 0:,.0f} at most", f"oldest {latency(most['oldest'])}")
    for name in ("p50", "p95", "p99"):
        times = run.known(f"total_{name}")
        typical = latency(statistics.median(times)) if times else "-"
        worst = latency(max(times, default=None))
        yield row(f"Latency {name}", typical, f"in the median minute, {worst} in the worst")
    yield row("Workers", f"{most['workers'] or 0:.0f} at most", f"{len(run.workers)} in all")
    yield row("Busy", percent(statistics.mean(busy)) if busy else "-", "mean over time and workers")
    if last is not None:
        training = last.training
        value = f", mean value {training.mean_value:.2f}" if training.mean_value is not None else ""
        told = (
            f"done {percent(training.done_rate)}{value}, {training.masked:,} masked" if training.episodes else ""
        )
        yield row("Training episodes", f"{training.episodes:,}", told)
        for audited, figure in training.audit.items():
            yield row(f"Audit: {audited}", "-" if figure is None else f"{figure:.3g}", "at the end")
        critics = sorted({f"{each.critic} {each.model} {each.prompt}".strip() for each in last.workers})
        yield row("Critic", "; ".join(critics) or "-")
        limit = f"of {size(last.redis.max_bytes)}" if last.redis.max_bytes else "no limit"
        yield row(
            "Redis", f"{size(max(run.known('redis_bytes'), default=0))} at most", f"{limit}, {last.redis.policy}"
        )


def _timeline(run: Run) -> str:
    """The diagnoses as a strip of colours."""
    total = run.seconds or 1.0
    parts = []
    for span in run.spans:
        told = f"{datetime.fromtimestamp(span.start):%H:%M:%S} {span.diagnosis.kind}: {span.diagnosis.sentence}"
        share = 100 * (span.end - span.start) / total
        parts.append(
            f'<span class="{span.diagnosis.severity}" style="flex-grow:{share:.4f}" title="{escape(told)}"></span>'
        )
    return "".join(parts)


def _diagnoses(run: Run) -> Iterator[str]:
    for severity, kind, seconds, sentence in run.time_by_diagnosis():
        share = percent(seconds / run.seconds) if run.seconds else "-"
        yield (
            f'<tr><td><b class="{severity}">{severity}</b></td><th>{escape(kind)}</th>'
            f"<td>{escape(duration(seconds))}</td><td>{share}</td><td>{escape(sentence)}</td></tr>"
        )


def _figure(plot: Plot) -> str:
    picture = plot.svg or '<p class="none">no data</p>'
    return f"<figure><h2>{escape(plot.title)}</h2>{picture}<figcaption>{escape(plot.note)}</figcaption></figure>"
