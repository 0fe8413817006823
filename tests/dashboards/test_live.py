"""The live dashboard: what it shows of each state of the queue, and how it starts and ends."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from rich.console import Console

from dashboards.live import View, bars, bins, duration, elide, frame, main, many, number, size
from dashboards.snapshot import CriticState, PlainWorker, QueueState, RedisState, Snapshot
from tests.conftest import ROOT
from tests.dashboards.test_snapshot import contents, describe_worker
from vlac_queue.server import RedisServer, free_port

_URL = "redis://localhost:6379/0"
_SERVER = RedisState("7.2.4", used_bytes=64 << 20, max_bytes=0, policy="noeviction", clients=9)
_QUEUE = QueueState("vlac", waiting=0, oldest_s=None, taken=0, failed=0, episodes=0, frame_bytes=0)
_CRITIC = CriticState(
    "gpu-1-4242-ab12", "busy", host="gpu-1", pid=4242, critic="vlac", uptime_s=7200, jobs=120, queries=123_456,
    failures=7, batches=9_000, mean_batch=13.7, busy=0.87, queries_per_s=42.5, rss_bytes=3 << 30,
    accelerator_bytes=6 << 30,
)  # fmt: skip
_IDLE = Snapshot(0.0, _SERVER, _QUEUE, (_CRITIC,), (), 0.0)
_PLAIN = PlainWorker("plain-1", "gpu-2", 7, "idle")


def view(snapshot: Snapshot | None = _IDLE, **fields: Any) -> View:
    return View(_URL, "vlac", 1.0, snapshot, **fields)


def recording(width: int, **settings: Any) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), **settings)


def picture(shown: View, width: int = 100, height: int | None = 30) -> str:
    """The frame as text."""
    console = recording(width)
    console.print(frame(shown, width, height))
    return console.export_text()


def with_queue(**fields: Any) -> Snapshot:
    return replace(_IDLE, queue=replace(_QUEUE, **fields))


# The picture.


def test_a_busy_queue_shows_its_numbers() -> None:
    queue = replace(_QUEUE, waiting=3, oldest_s=1.25, taken=2, failed=1, episodes=16, frame_bytes=12 << 20)
    text = picture(view(replace(_IDLE, queue=queue, queries_per_s=42.5)))
    for part in (_URL, "working", "3 jobs, 1.2 s", "2 jobs", "1 job", "16, 12.0 MiB", "7.2.4", "64.0 MiB"):
        assert part in text
    line = next(line for line in text.splitlines() if "gpu-1-4242-ab12" in line)
    for part in ("vlac", "busy", "87%", "42.5", "123,456", "7", "13.7", "3.0 GiB", "6.0 GiB"):
        assert part in line


@pytest.mark.parametrize(
    ("snapshot", "status"),
    [
        (replace(_IDLE, critics=(replace(_CRITIC, state="idle"),)), "the queue is empty"),
        (replace(with_queue(episodes=4), critics=(replace(_CRITIC, state="idle"),)), "waiting for queries"),
        (with_queue(waiting=1), "working"),
        (replace(_IDLE, critics=(replace(_CRITIC, state="loading"),)), "loading the critic"),
        (replace(_IDLE, critics=(), plain=(_PLAIN,)), "the queue is empty"),
        (replace(_IDLE, critics=()), "no workers"),
        (replace(_IDLE, critics=(CriticState("w", "gone", taken=2),)), "no workers"),
        (None, "Redis is away"),
    ],
)
def test_the_first_line_says_what_the_queue_is_at(snapshot: Snapshot | None, status: str) -> None:
    header = picture(view(snapshot, error="Redis can't be reached")).splitlines()[0]
    assert "queue vlac at redis://localhost:6379/0" in header
    assert f" {status} " in header


def test_without_a_worker_it_says_how_to_start_one() -> None:
    text = picture(view(replace(_IDLE, critics=())), width=80)
    assert "No worker listens on the queue 'vlac'" in text
    assert f"RQ_REDIS_URL={_URL}" in text
    assert "RQ_WORKER_CLASS=workers.CriticWorker rq worker vlac --with-scheduler" in text
    assert "died" not in text
    assert "2 jobs of workers that died" in picture(
        view(replace(_IDLE, critics=(CriticState("w", "gone", taken=2),)))
    )


def test_with_redis_away_it_says_so_and_goes_on() -> None:
    text = picture(view(None, error=f"Redis at {_URL} can't be reached (refused)"), width=140)
    assert f"Redis at {_URL} can't be reached (refused); retrying every 1 s." in text


def test_a_plain_worker_is_shown_without_critic() -> None:
    text = picture(view(replace(_IDLE, plain=(_PLAIN,))))
    assert "2, 1 no critic" in text
    assert "no critic" in next(line for line in text.splitlines() if "plain-1" in line)


def test_a_worker_that_died_is_shown_as_gone() -> None:
    text = picture(view(replace(_IDLE, critics=(_CRITIC, CriticState("dead-1", "gone", taken=2)))))
    assert "gone" in next(line for line in text.splitlines() if "dead-1" in line)


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("height", [24, 30, 50])
@pytest.mark.parametrize("count", [0, 1, 8, 200])
def test_every_line_fits_the_terminal(width: int, height: int, count: int) -> None:
    workers = [
        replace(_CRITIC, name=f"a-host-with-a-very-long-name.example-{n}", host="x" * 80) for n in range(count)
    ]
    snapshot = replace(
        with_queue(waiting=10**9, oldest_s=10**9, failed=10**9, episodes=10**9, frame_bytes=10**15),
        critics=tuple(workers),
        redis=replace(_SERVER, used_bytes=10**15, max_bytes=10**15, policy="volatile-random", clients=10**6),
    )
    shown = View(f"redis://{'x' * 200}:6379/0", "vlac", 1.0, snapshot)
    lines = picture(shown, width, height).rstrip("\n").splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if count:
        assert "Ctrl-C" in lines[-1]
        assert len({len(line) for line in lines if line.startswith(("╭", "│", "╰"))}) == 1


def test_workers_beyond_the_screen_are_counted() -> None:
    workers = tuple(replace(_CRITIC, name=f"w{n}") for n in range(50))
    text = picture(view(replace(_IDLE, critics=workers)), 80, 24)
    shown = sum(f" w{n} " in text for n in range(50))
    assert 1 <= shown < 50
    assert f"and {50 - shown} more" in text
    assert all(f" w{n} " in picture(view(replace(_IDLE, critics=workers)), 80, None) for n in range(50))


@pytest.mark.parametrize(("width", "titles"), [(80, ["critic", "state", "busy", "q/s", "batch"]),
                                               (140, ["host", "pid", "up", "jobs", "memory", "GPU"])])  # fmt: skip
def test_a_wider_screen_has_more_columns(width: int, titles: list[str]) -> None:
    header = next(line for line in picture(view(), width).splitlines() if " worker " in line)
    assert all(title in header for title in titles)


def test_markup_in_names_is_shown_as_it_is() -> None:
    text = picture(view(replace(_IDLE, critics=(replace(_CRITIC, name="[red]w[/red]"),))))
    assert "[red]w[/red]" in text


def test_an_eviction_policy_that_loses_frames_is_red() -> None:
    def styled(server: RedisState) -> str:
        console = recording(100, color_system="standard", force_terminal=True, no_color=False)
        console.print(frame(view(replace(_IDLE, redis=server)), 100, 30))
        return console.export_text(styles=True)

    red = "\x1b[31mallkeys-lru"
    assert red in styled(replace(_SERVER, max_bytes=1 << 30, policy="allkeys-lru"))
    assert red not in styled(replace(_SERVER, max_bytes=0, policy="allkeys-lru"))


def test_the_chart_is_drawn_in_ascii_where_the_terminal_knows_no_more() -> None:
    console = recording(80)
    console.print(frame(view(rates=[(1.0, 5.0), (2.0, 1.0)]), 80, 24, blocks=" .:-=+*#@"))
    text = console.export_text()
    assert "@" in text
    assert "█" not in text


# The chart.


def test_bars_rise_with_their_values() -> None:
    assert bars([0, 4, 8, None], 1) == [" ▄█ "]
    assert bars([0, 4, 8, 12], 2) == ["  ▃█", " ▅██"]


def test_a_small_value_can_still_be_seen() -> None:
    assert bars([0.001, 1000], 3)[-1] == "▁█"


def test_no_values_are_an_empty_chart() -> None:
    assert bars([None, None], 2) == bars([0, 0], 2) == ["  ", "  "]
    assert bins([], 3, 1.0) == [None, None, None]


def test_bins_hold_means_and_the_newest_is_last() -> None:
    rates = [(0.1, 100.0), (10.0, 1.0), (10.5, 3.0), (12.2, 7.0)]
    assert bins(rates, 4, 1.0) == [None, 2.0, None, 7.0]
    assert bins(rates, 2, 10.0) == [100.0, pytest.approx(11 / 3)]


def test_the_chart_names_its_values_and_its_span() -> None:
    text = picture(view(replace(_IDLE, queries_per_s=2.0), rates=[(100.0, 8.0), (200.0, 2.0)]))
    assert "Queries/s: 2.0 now, 8.0 at most in 5 min" in text


# Texts.


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(1000), "1.0 KiB"),
        (size(150 << 20), "150 MiB"),
        (size(2 << 30), "2.0 GiB"),
        (size(3 << 40), "3.0 TiB"),
        (duration(0), "0.0 s"),
        (duration(9.96), "10 s"),
        (duration(99.6), "2 min"),
        (duration(7200), "2.0 h"),
        (duration(10 * 86400), "10 d"),
        (number(None), "-"),
        (number(0), "0.0"),
        (number(12345.6), "12,346"),
        (many(1, "job"), "1 job"),
        (many(2000, "job"), "2,000 jobs"),
        (elide("abcdef", 6), "abcdef"),
        (elide("abcdefg", 6), "abcd.."),
        (elide("abc", 1), "."),
    ],
)
def test_numbers_are_for_people(made: str, text: str) -> None:
    assert made == text


# The command.


def run(*arguments: str, **environ: str) -> Any:
    return CliRunner().invoke(main, arguments, env=environ)


def test_once_prints_one_frame(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "gpu-1-4242", state="busy")
    before = contents(connection).keys()
    result = run("--once", "--redis-url", server.url)
    assert result.exit_code == 0
    assert "gpu-1-4242" in result.output
    assert result.output.count("Workers") == 1
    assert "\x1b" not in result.output
    assert contents(connection).keys() == before


@pytest.mark.parametrize("variable", ["VLAC_REDIS_URL", "RQ_REDIS_URL"])
def test_once_as_json_is_one_object(server: RedisServer, connection: redis.Redis, variable: str) -> None:
    describe_worker(connection)
    result = run("--once", "--json", **{variable: server.url})
    assert result.exit_code == 0
    read = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert read["queue"]["name"] == "vlac"
    assert [worker["name"] for worker in read["critics"]] == ["w1"]
    assert read["redis"]["policy"] == "noeviction"


def test_the_queue_is_a_choice(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    for environ, arguments in ({"VLAC_QUEUE": "other"}, []), ({}, ["--queue", "other"]):
        result = run("--once", "--json", "--redis-url", server.url, *arguments, **environ)
        read = json.loads(result.stdout)
        assert (read["queue"]["name"], read["critics"]) == ("other", [])


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["picture", "json"])
def test_once_without_redis_fails_with_a_sentence(as_json: list[str]) -> None:
    port = free_port()
    result = run("--once", "--redis-url", f"redis://:s3cr3t@127.0.0.1:{port}/0", *as_json)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"Redis at redis://:***@127.0.0.1:{port}/0 can't be reached" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "s3cr3t" not in result.output


def test_a_wrong_password_is_told_from_a_redis_that_is_away() -> None:
    with RedisServer("--requirepass", "right") as server:
        wrong = server.url.replace("redis://", "redis://:wrong@")
        for url in (server.url, wrong):
            result = run("--once", "--redis-url", url)
            assert result.exit_code == 1
            assert "refused the password" in result.stderr
        assert run("--once", "--redis-url", server.url.replace("redis://", "redis://:right@")).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--redis-url", "http://localhost"], "redis_url must be a redis://"),
        (["--redis-url", "redis://localhost:port"], "can't be used"),
        (["--queue", "a:b"], "queue must be"),
        (["--interval", "0"], "--interval"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], part: str) -> None:
    result = run("--once", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr


# The program, for real.


@pytest.fixture
def environ(server: RedisServer, connection: redis.Redis) -> dict[str, str]:
    return {**os.environ, "VLAC_REDIS_URL": server.url, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color",
            "COLUMNS": "80", "LINES": "24", "PYTHONUTF8": "1"}  # fmt: skip


_COMMAND = [sys.executable, "-m", "dashboards.live", "--interval", "0.1"]


class Terminal:
    """A pseudo-terminal with the dashboard in it, and all that it has drawn so far."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.drawn = ""
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            _COMMAND, stdin=side, stdout=side, stderr=side, env=environ, start_new_session=True
        )
        os.close(side)

    def read_until(self, text: str) -> None:
        """Reads until `text` is drawn, from here on."""
        start, deadline = len(self.drawn), time.monotonic() + 30
        while text not in self.drawn[start:]:
            assert time.monotonic() < deadline, f"never drawn: {text}"
            if select.select([self._main], [], [], 0.2)[0]:
                self.drawn += os.read(self._main, 65536).decode(errors="replace")

    def read_to_end(self) -> None:
        with suppress(OSError):  # how Linux says that nobody has the other side open any more
            while data := os.read(self._main, 65536):
                self.drawn += data.decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Terminal]:
    started = Terminal(environ)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_ending_it_gives_the_terminal_back(terminal: Terminal, number: signal.Signals, code: int) -> None:
    terminal.read_until("no workers")
    terminal.process.send_signal(number)
    terminal.read_to_end()
    assert terminal.process.wait(30) == code
    assert "Traceback" not in terminal.drawn
    # The alternate screen is left and the cursor shown, after the last time they were not.
    assert terminal.drawn.rindex("\x1b[?1049l") > terminal.drawn.rindex("\x1b[?1049h")
    assert terminal.drawn.rindex("\x1b[?25h") > terminal.drawn.rindex("\x1b[?25l")


def test_it_recovers_when_redis_comes_back(environ: dict[str, str]) -> None:
    port = free_port()
    terminal = Terminal({**environ, "VLAC_REDIS_URL": f"redis://127.0.0.1:{port}/0"})
    try:
        terminal.read_until("can't be reached")
        with RedisServer(port=port):
            terminal.read_until("No worker listens")
        terminal.read_until("Redis is away")
        with RedisServer(port=port):
            terminal.read_until("No worker listens")
        assert terminal.process.poll() is None
    finally:
        terminal.close()


def test_json_is_one_object_a_line_and_says_when_redis_is_away(environ: dict[str, str]) -> None:
    port = free_port()
    with RedisServer(port=port) as server:
        process = subprocess.Popen(
            [*_COMMAND, "--json", "--redis-url", server.url], env=environ, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        times = [next(lines)["time"] for _ in range(3)]
        assert times == sorted(set(times))
    assert any("can't be reached" in line.get("error", "") for line in lines)
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) == 0


def test_without_a_terminal_frames_follow_one_another(environ: dict[str, str]) -> None:
    process = subprocess.Popen(_COMMAND, env=environ, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        assert "\x1b" not in line
        seen += "no workers" in line
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) == 0
