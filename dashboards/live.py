"""`python -m dashboards.live`: the queue in a terminal, refreshed every second (docs/dashboard.md).

It only reads from Redis. Run it as often and wherever you like; q or Ctrl-C ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from dashboards.diagnosis import is_bad, judge
from dashboards.feed import Feed, Judged, replayed, watched
from dashboards.history import Series
from dashboards.pages import View, listed, page
from dashboards.reading import EPISODES_RECORDED, Reader
from dashboards.record import Recorder, Recording, document, head
from dashboards.screen import Screen
from dashboards.shown import Shown
from dashboards.snapshot import Look
from vlac_queue.config import VlacConfig
from vlac_queue.console import queue_option, redis_url_option, replace_what_can_not_be_shown
from vlac_queue.credentials import with_credentials
from vlac_queue.errors import ConfigError
from vlac_queue.signals import interrupt_on_signals

#: Seconds between the two looks of --once and --json: rates are differences, and workers report every second.
_TWO_LOOKS_S = 2.0
#: Seconds between two looks at the terminal's size.
_RESIZE_S = 0.25


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@redis_url_option
@queue_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; workers report every second.",
)
@click.option("--once", is_flag=True, help="Print one picture as text; exit code 1 if the diagnosis is bad.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document; exit code 1 if the diagnosis is bad."
)
@click.option("--record", metavar="FILE", help="Write each look to FILE as a line of JSON; - is the output.")
@click.option(
    "--replay", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Show a recording again."
)
@click.option("--speed", type=click.FloatRange(0.01, 10_000), default=1.0, show_default=True, help="Of --replay.")
@click.option("--export", metavar="FILE", help="Write Prometheus metrics to FILE at each look.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics at http://BIND:PORT/metrics."
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address of --port.")
def main(
    redis_url: str,
    queue: str,
    interval: float,
    once: bool,
    as_json: bool,
    replay: str | None,
    speed: float,
    **outputs: Any,
) -> None:
    """Shows the queue, its workers and what they do, and says in a sentence what holds it up.

    Only reads from Redis. q or Ctrl-C ends it; ? tells the other keys.
    """
    # Long by its options, whose combinations are checked here.
    goes_on = any(outputs[name] is not None for name in ("record", "export", "port"))
    if replay and (goes_on or once or as_json):
        raise click.UsageError("--replay goes with --speed only")
    if (once or as_json) and goes_on:
        raise click.UsageError(
            "--once and --json look once; --record, --export and --port go on: give one or the other"
        )
    replace_what_can_not_be_shown()
    # Ending in order gives the terminal back as it was.
    interrupt_on_signals()
    console = Console(highlight=False)
    stop, shown = threading.Event(), Shown()
    with _ended_in_order(130 if once or as_json else 0), ExitStack() as stack:
        if replay:
            recording = Recording(replay)
            note = "replay" if speed == 1 else f"replay {speed:g}x"
            view = _empty_view(recording.url, recording.queue, recording.interval_s, note, console)
            feed = Feed(replayed(recording, speed, stop, shown), stop)
        else:
            reader = Reader(VlacConfig(redis_url=with_credentials(redis_url), queue=queue))
            if once or as_json:
                sys.exit(_once(reader, queue, as_json, console))
            view = _empty_view(reader.url, queue, interval, "recording" if outputs["record"] else "", console)
            looks = watched(reader, interval, stop, shown, episodes=EPISODES_RECORDED if outputs["record"] else 0)
            feed = Feed(looks, stop, _takers(stack, view, **outputs))
        stack.enter_context(closing(feed))
        if outputs["record"] == "-":
            feed.drain()
        elif console.is_terminal and not console.is_dumb_terminal:
            with Screen(console) as screen:
                show(feed, screen, view, shown, keep_open=bool(replay))
        else:
            _print_each(feed, console, view)


@contextmanager
def _ended_in_order(interrupted: int) -> Iterator[None]:
    """Ends with the exit code `interrupted` at Ctrl-C, at others as a shell has it; tells errors in a sentence."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        (number,) = interrupt.args or (signal.SIGINT,)
        sys.exit(interrupted if number == signal.SIGINT else 128 + number)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} is there already; give --record another name.") from None
    except BrokenPipeError:
        # Who read the output has enough: as Rich does it. Python would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def show(feed: Feed, screen: Screen, view: View, shown: Shown, *, keep_open: bool = False) -> None:
    """Shows the looks of `feed` until q is pressed.

    Args:
        keep_open: whether the last picture stays when the looks end, and pausing holds the looks themselves.
    """
    note, latest, size = view.note, view, (0, 0)
    _draw(screen, view, shown, note)
    while True:
        news = feed.news()
        for judged in news:
            if judged is None:
                note = f"{view.note}, at its end"
            else:
                view.series.add(judged[0])
                latest = replace(view, look=judged[0], diagnoses=judged[1])
        if not shown.paused or keep_open:
            view = replace(latest, note=note)
        rows = screen.size[1] - 5
        if news or screen.size != size:
            size = screen.size
            _draw(screen, view, shown, note)
        keys = screen.wait(feed.wake, _RESIZE_S)
        for key in keys:
            if key == "q":
                return
            shown.press(key, rows=rows, items=listed(replace(view, page=shown.page)))
        if keys:
            _draw(screen, view, shown, note)


def _draw(screen: Screen, view: View, shown: Shown, note: str) -> None:
    if not view.diagnoses:
        screen.draw([Text(f"looking at queue {view.queue} at {view.url} ...")])
        return
    width, height = screen.size
    notes = ", ".join(filter(None, ("paused" if shown.paused else "", note)))
    picture = replace(view, page=shown.page, sort=shown.sort, scroll=shown.scroll, note=notes)
    screen.draw(page(picture, width, height)[:height])


def _print_each(feed: Feed, console: Console, view: View) -> None:
    """One picture after another, where there is no terminal to draw on."""
    while (judged := feed.next()) is not None:
        view.series.add(judged[0])
        _print(replace(view, look=judged[0], diagnoses=judged[1]), console)


def _print(view: View, console: Console) -> None:
    for line in page(view, console.width):
        console.print(line, no_wrap=True, overflow="crop")


def _once(reader: Reader, queue: str, as_json: bool, console: Console) -> int:
    """Prints one look; the exit code."""
    look = reader.look()
    if look.snapshot is not None and look.snapshot.listening:
        time.sleep(_TWO_LOOKS_S)
        look = reader.look()
    diagnoses = judge(look, url=reader.url, queue=queue)
    if as_json:
        click.echo(json.dumps({**head(reader.url, queue, _TWO_LOOKS_S), **document(look, diagnoses)}, indent=2))
    else:
        view = _empty_view(reader.url, queue, 0.0, "", console)
        view.series.add(look)
        _print(replace(view, look=look, diagnoses=diagnoses), console)
    return int(is_bad(tuple(diagnoses)))


def _takers(
    stack: ExitStack, view: View, record: str | None, export: str | None, port: int | None, bind: str
) -> list[Callable[[Judged], None]]:
    """What else is done with each look."""
    takers: list[Callable[[Judged], None]] = []
    if record:
        recorder = stack.enter_context(closing(Recorder(record, view.url, view.queue, view.interval_s)))
        takers.append(lambda judged: recorder.add(*judged))
    if export or port is not None:
        from dashboards.prometheus import Exporter  # takes some 25 ms to import: for who uses it

        exporter = Exporter(view.queue)
        takers.append(lambda judged: exporter.take(*judged))
        if export:
            takers.append(lambda _: exporter.write(export))
        if port is not None:
            try:
                stack.enter_context(exporter.serve(bind, port))
            except OSError as error:
                raise click.ClickException(
                    f"can't serve metrics at {bind}:{port} ({error.strerror}); choose another --port or --bind."
                ) from None
    return takers


def _empty_view(url: str, queue: str, interval_s: float, note: str, console: Console) -> View:
    ascii_only = not console.encoding.lower().startswith("utf")
    return View(url, queue, Look(time.time(), None), (), interval_s, Series(), note=note, ascii=ascii_only)


if __name__ == "__main__":
    main(prog_name="python -m dashboards.live")
