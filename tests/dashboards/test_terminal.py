"""The dashboard in a real terminal: real Redis, real workers, load, keys, and Redis going away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from dashboards.diagnosis import judge
from dashboards.record import Recorder
from tests.conftest import ROOT, Workers, until
from tests.dashboards.states import LOOKS, URL
from tests.tools import need
from tests.workers.critics import NAME as TASK_CRITIC
from tests.workers.critics import frame
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.errors import VlacQueueError
from vlac_queue.server import RedisServer, free_port

pytestmark = pytest.mark.timeout(240)


class Terminal:
    """A tmux window of its own server, with a program in it."""

    def __init__(self, folder: Path, program: str, width: int = 80, height: int = 24) -> None:
        self._tmux = [need("tmux"), "-f", "/dev/null", "-S", str(folder / "tmux")]
        script = folder / "program.sh"
        # The shell's own settings and last words show whether the terminal was given back.
        script.write_text(
            f'trap : INT\necho before\n{program}\necho "ended with $?"\nstty -a | tr "\\n" " "\nexec cat\n'
        )
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "TMUX", "NO_COLOR"):
            variables.pop(name, None)
        variables["LC_ALL"] = "C.UTF-8"
        command = [*self._tmux, "new-session", "-d", "-x", str(width), "-y", str(height), "sh", str(script)]
        subprocess.run(command, env=variables, check=True)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def shows(self, *parts: str) -> str:
        """Waits until all of `parts` are on the screen, and returns it."""
        try:
            return str(until(lambda: (seen := self.screen()) and all(part in seen for part in parts) and seen, 60))
        except AssertionError:
            raise AssertionError(f"{parts} never came; the screen:\n{self.screen()}") from None

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def is_given_back(self) -> bool:
        alternate, cursor = self._run("display-message", "-p", "#{alternate_on} #{cursor_flag}").split()
        seen = self.screen()
        return (alternate, cursor) == ("0", "1") and " icanon" in seen and " echo " in seen and "before" in seen

    def pid(self) -> int:
        """Of the dashboard."""
        shell = self._run("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)

    def _run(self, *command: str) -> str:
        return subprocess.run([*self._tmux, *command], check=True, capture_output=True, text=True).stdout


def dashboard(*arguments: str) -> str:
    return " ".join([sys.executable, "-m", "dashboards.live", "--interval", "0.2", *arguments])


@contextmanager
def opened(folder: Path, *arguments: str, width: int = 80, height: int = 24) -> Iterator[Terminal]:
    terminal = Terminal(folder, dashboard(*arguments), width, height)
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def load(url: str) -> Iterator[None]:
    """Eight episodes that ask about a frame again and again, with Redis or without."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                with CriticClient(VlacConfig(redis_url=url, timeout_s=20)) as client:
                    episodes = [client.episode(f"task {n}") for n in range(8)]
                    for step in range(30):
                        client.push_many([(episode, frame(step)) for episode in episodes])
                        client.wait(client.ask_done_many(episodes))
                        if stop.wait(0.02):
                            return
                    client.close_many(episodes)
            except VlacQueueError:
                stop.wait(0.1)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_day_at_the_dashboard(tmp_path: Path) -> None:
    port = free_port()
    server = RedisServer(port=port)
    with redis.Redis(port=port) as connection, opened(tmp_path, "--redis-url", server.url) as terminal:
        workers = Workers(server.url, connection, tmp_path)
        try:
            terminal.shows(" BAD ", "can't reach Redis")
            server.start()
            terminal.shows("no workers: start one with VLAC_REDIS_URL=", "vlac-queue worker")
            first = workers.start(TASK_CRITIC)
            workers.start(TASK_CRITIC)
            terminal.shows(" OK ", "Workers: 2")
            with load(server.url):
                shown = terminal.shows("episodes 8 open", "TaskCritic")
                until(lambda: re.search(r"queries  [1-9][\d,.]*/s", terminal.screen()), 60)
                until(lambda: re.search(r"total +\d+(\.\d+)? m?s", terminal.screen()), 60)
                assert len(shown.splitlines()) == 24

                terminal.press("w")
                terminal.shows("╭─ Workers: 2", "by name")
                terminal.press("s")
                terminal.shows("by state")
                terminal.press("e")
                terminal.shows("╭─ Episodes: 8 open", "task 7", "untouched")
                terminal.press("f")
                terminal.shows("╭─ Failures: none yet")
                with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
                    episode = client.episode("refuse")
                    episode.push(frame(1))
                    with pytest.raises(VlacQueueError, match="banana"):
                        episode.ask_done().result()
                terminal.shows("╭─ Failures: the last 1", "the model said 'banana'")
                terminal.press("?")
                terminal.shows("╭─ Help", "pause: the picture stands still")
                terminal.press("Escape")
                terminal.shows("╭─ Queue", "1 in all")

                terminal.resize(130, 40)
                wide = terminal.shows("device", "host")
                until(lambda: {len(line) for line in terminal.screen().splitlines()[2:]} == {130})
                assert "device" in wide
                terminal.resize(80, 24)
                until(lambda: {len(line) for line in terminal.screen().splitlines()[2:]} == {80})

                terminal.press("p")
                still = terminal.shows("paused")
                assert terminal.screen() == still
                terminal.press("p")
                until(lambda: "paused" not in terminal.screen())

                first.kill()
                terminal.shows("was lost")
            server.stop()
            terminal.shows(" BAD ", "can't reach Redis", "Trying again every 0.2 s")
            server.start()
            assert "reached" not in terminal.shows("noeviction", "idle")
            terminal.press("q")
            terminal.shows("ended with 0")
            assert until(terminal.is_given_back)
        finally:
            workers.stop()
            server.stop()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_ending_it_gives_the_terminal_back(
    server: RedisServer, connection: redis.Redis, tmp_path: Path, number: int, code: int
) -> None:
    with opened(tmp_path, "--redis-url", server.url) as terminal:
        terminal.shows("no workers")
        if number == signal.SIGINT:
            terminal.press("C-c")
        else:
            os.kill(terminal.pid(), number)
        assert "Traceback" not in terminal.shows(f"ended with {code}")
        assert until(terminal.is_given_back)


@pytest.mark.parametrize("shown", [False, True], ids=["taking it", "giving it back"])
def test_ctrl_c_while_the_terminal_changes(tmp_path: Path, shown: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import signal
from rich.console import Console
from dashboards.screen import Screen
from vlac_queue.signals import interrupt_on_signals

class Interrupted(Console):
    def show_cursor(self, show=True):
        if show == {shown}:
            signal.raise_signal(signal.SIGINT)
        return super().show_cursor(show)

interrupt_on_signals()
try:
    with Screen(Interrupted()):
        pass
except KeyboardInterrupt:
    print("interrupted")
""")
    terminal = Terminal(tmp_path, f"{sys.executable} {program}")
    try:
        terminal.shows("interrupted", "ended with 0")
        assert until(terminal.is_given_back)
    finally:
        terminal.close()


def test_an_error_gives_the_terminal_back(server: RedisServer, connection: redis.Redis, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    with opened(tmp_path, "--redis-url", server.url, "--export", str(folder / "m.prom")) as terminal:
        terminal.shows("no workers")
        for file in folder.iterdir():
            file.unlink()
        until(lambda: _removed(folder))
        assert "No such file" in terminal.shows("ended with 1")
        assert until(terminal.is_given_back)


def _removed(folder: Path) -> bool:
    """Whether the folder could be removed; the dashboard writes to it all the time."""
    try:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def test_stopping_gives_the_terminal_back_until_it_goes_on(
    server: RedisServer, connection: redis.Redis, tmp_path: Path
) -> None:
    with opened(tmp_path, "--redis-url", server.url) as terminal:
        terminal.shows("no workers")
        os.kill(terminal.pid(), signal.SIGTSTP)
        until(lambda: "no workers" not in terminal.screen())
        os.kill(terminal.pid(), signal.SIGCONT)
        terminal.shows("no workers")
        terminal.press("q")
        terminal.shows("ended with 0")
        assert until(terminal.is_given_back)


def test_a_recording_is_played_with_the_same_screens_and_keys(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "run.jsonl"), URL, "vlac", 1.0)
    for name in ("rollout-bound", "redis-away", "troubled"):
        recorder.add(LOOKS[name], judge(LOOKS[name]))
    recorder.close()
    with opened(tmp_path, "--replay", str(tmp_path / "run.jsonl"), "--speed", "50", height=30) as terminal:
        terminal.shows("replay 50x, at its end", "Redis at 91 % of maxmemory", f"at {URL}")
        terminal.press("f")
        terminal.shows("╭─ Failures: the last 12")
        terminal.press("e")
        terminal.shows("╭─ Episodes: 64 open, the 40 longest untouched", "put the red mug")
        terminal.press("Down")
        terminal.shows("1 above")
        terminal.press("q")
        terminal.shows("ended with 0")


@pytest.mark.parametrize("setting", ["NO_COLOR=1", "TERM=dumb"])
def test_terminals_without_colour_get_none(
    server: RedisServer, connection: redis.Redis, tmp_path: Path, setting: str
) -> None:
    out = tmp_path / "typescript"
    # script(1) gives it a terminal and keeps what it wrote.
    run = f"{setting} script -qfc '{dashboard('--redis-url', server.url)}' {out} >/dev/null"
    need("script")
    terminal = Terminal(tmp_path, run)
    try:
        # It may end within a letter while it is written.
        text = until(lambda: out.exists() and "no workers" in (seen := out.read_text(errors="replace")) and seen)
        assert not re.search(r"\x1b\[[\d;]*(3[0-7]|4[0-7])m", text)
        if setting == "TERM=dumb":
            assert "\x1b" not in text
        terminal.press("C-c")
        terminal.shows("ended with")
    finally:
        terminal.close()
