"""The report: numbers of a recorded run, and a page that a real browser shows."""

from __future__ import annotations

import html as html_module
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

from dashboards.diagnosis import judge
from dashboards.record import Recorder, Recording
from dashboards.run import read_run
from dashboards.snapshot import Look, Rates, Snapshot, Worker
from tests.dashboards.states import AT, CRITIC_BOUND, FAILED, LATENCY, ROLLOUT_BOUND, URL, worker
from tests.tools import need
from vlac_queue.cli import main
from vlac_queue.records import Training


def looks(seconds: int = 120) -> Iterator[Look]:
    """Two minutes: rollout-bound, then critic-bound; Redis is away for the last ten seconds of the first."""
    for second in range(seconds):
        if seconds // 2 - 10 <= second < seconds // 2:
            yield Look(AT + second, None, f"Redis at {URL} can't be reached")
            continue
        base = ROLLOUT_BOUND if second < seconds // 2 else CRITIC_BOUND
        workers = tuple(worker(n, busy=0.1 + 0.8 * second / seconds, queries=1000 + 50 * second) for n in range(4))
        training = Training(episodes=4 * second, done=2 * second, masked=0, reward_sum=3.0 * second,
                            values=2 * second, value_sum=0.5 * second,
                            audit={"precision": 0.9, "recall": None})  # fmt: skip
        seen = replace(base, time=AT + second, workers=workers, training=training, latency=LATENCY)
        yield Look(AT + second, seen)


def record(path: Path, given: Any = None) -> Path:
    recorder = Recorder(str(path), URL, "vlac", 1.0)
    for look in given if given is not None else looks():
        recorder.add(look, judge(look))
    recorder.close()
    return path


def report(tmp_path: Path, record_file: Path) -> str:
    """The page of a recording."""
    page = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(record_file), "-o", str(page)])
    assert result.exit_code == 0, result.output
    assert f"Written: {page}" in result.output
    return page.read_text(encoding="utf-8")


# The numbers.


def test_what_was_answered_is_counted_over_restarts() -> None:
    def look(second: int, *workers: Worker) -> tuple[Look, Any]:
        made = Look(AT + second, replace(CRITIC_BOUND, workers=workers))
        return made, judge(made)

    run = read_run([
        look(0, worker(1, queries=100, failures=1)),
        look(1, worker(1, queries=150, failures=3)),
        look(2, worker(1, queries=10, failures=0, pid=99), worker(2, queries=5000)),
        look(3, worker(1, queries=20, failures=1, pid=99), worker(2, queries=5007)),
    ])  # fmt: skip
    assert (run.queries, run.failures) == (50 + 10 + 10 + 7, 2 + 0 + 1)
    assert run.workers == {"gpu-1-4242-ab11", "gpu-2-4242-ab12"}
    assert run.seconds == 3.0


def test_diagnoses_are_spans_of_time(tmp_path: Path) -> None:
    run = read_run(Recording(record(tmp_path / "r")).looks())
    assert [(span.diagnosis.kind, span.end - span.start) for span in run.spans] == [
        ("rollout-bound", 50.0), ("redis-away", 10.0), ("critic-bound", 59.0),
    ]  # fmt: skip
    assert run.away_s == 10.0
    assert [(kind, seconds) for _, kind, seconds, _ in run.time_by_diagnosis()] == [
        ("critic-bound", 59.0), ("rollout-bound", 50.0), ("redis-away", 10.0),
    ]  # fmt: skip


def test_columns_hold_a_number_for_each_look(tmp_path: Path) -> None:
    run = read_run(Recording(record(tmp_path / "r")).looks())
    assert {len(column) for column in (*run.columns.values(), *run.audit.values())} == {120}
    assert run.columns["waiting"][55] != run.columns["waiting"][55]  # not known while Redis was away
    assert run.columns["waiting"][-1] == 412
    assert run.columns["total_p95"][-1] == 4.3
    assert run.columns["done_rate"][-1] == pytest.approx(0.5)
    assert run.columns["value"][-1] == pytest.approx(0.25)
    assert run.known("queries") and min(run.known("busy_least")) >= 0.1


# The page.


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    report(folder, record(folder / "r"))
    return folder / "report.html"


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    text = page.read_text()
    assert text.count("<svg") == text.count("<figure>") == 10
    assert not re.findall(r"<script|<link|<img|@import|url\(http|src=", text)
    # Names of XML vocabularies are the only addresses.
    assert set(re.findall(r'"(https?://[^"]*)"', text)) <= {
        "http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg",
    }  # fmt: skip


def test_the_page_tells_the_run(page: Path) -> None:
    text = " ".join(html_module.unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())
    told = ("Queue vlac", URL, "for 2 min", "critic-bound", "59 s 50 %", "Redis away 10 s", "p95", "4.30 s",
            "done 50 %, mean value 0.25", "Audit: precision 0.9", "vlac /models/VLAC 3fa9c1")  # fmt: skip
    for part in told:
        assert part in text, part


def test_texts_from_redis_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>$x^{2$&"
    snapshot: Snapshot = replace(
        CRITIC_BOUND,
        workers=(worker(1, name=evil, critic=evil, model=evil),),
        training=Training(episodes=1, audit={evil: 0.5}),
        failed=(replace(FAILED[0], error=evil),),
        rates=replace(CRITIC_BOUND.rates, failures_in_window=9000),
    )
    page = report(tmp_path, record(tmp_path / "r", [Look(AT + n, snapshot) for n in range(3)]))
    assert "<script" not in page
    assert page.count(html_module.escape(evil)) >= 3


@pytest.mark.parametrize("given", [
    [Look(AT, CRITIC_BOUND)],
    [Look(AT, None, "away"), Look(AT + 1, None, "away")],
    [Look(AT + n, replace(ROLLOUT_BOUND, rates=Rates(), latency={}, workers=())) for n in range(3)],
], ids=["one look", "only away", "nothing known"])  # fmt: skip
def test_a_run_with_little_in_it_is_a_page_too(tmp_path: Path, given: list[Look]) -> None:
    assert "</html>" in report(tmp_path, record(tmp_path / "r", given))


def test_a_truncated_recording_is_reported_with_a_word(tmp_path: Path) -> None:
    path = record(tmp_path / "r")
    path.write_bytes(path.read_bytes()[:-30])
    result = CliRunner().invoke(main, ["report", str(path), "-o", str(tmp_path / "page")])
    assert result.exit_code == 0
    assert "119 looks" in result.stdout
    assert "The last line of the recording is incomplete" in result.stderr


@pytest.mark.parametrize(("text", "part"), [("{}\n", "is no recording"), (None, "holds no look")])
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str | None, part: str) -> None:
    path = record(tmp_path / "r", [])
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(main, ["report", str(path), "-o", str(tmp_path / "page")])
    assert result.exit_code == 1
    assert part in result.stderr
    assert not (tmp_path / "page").exists()


def test_a_page_that_can_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    path = record(tmp_path / "r", list(looks(3)))
    result = CliRunner().invoke(main, ["report", str(path), "-o", str(tmp_path / "nonexist" / "x.html")])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert "x.html (No such file or directory); choose another -o." in result.stderr


def test_axes_have_round_numbers(page: Path) -> None:
    drawn = dict(re.findall(r"<figure><h2>(.*?)</h2>(.*?)<figcaption>", page.read_text(), re.DOTALL))
    ticks = {title: re.findall(r"<text[^>]*>([^<]*)</text>", svg) for title, svg in drawn.items()}
    # Nothing failed.
    assert [tick for tick in ticks["Failures"] if tick.isdigit() and len(tick) == 1] == ["0", "1"]
    assert [tick for tick in ticks["Memory of Redis"] if "iB" in tick] == [
        "1.0 GiB", "2.0 GiB", "3.0 GiB", "4.0 GiB",
    ]  # fmt: skip
    # A single figure of the audit has its name.
    assert "precision" in ticks["Audit"]


@pytest.mark.slow
def test_long_recordings_are_drawn_by_means(tmp_path: Path) -> None:
    page = report(tmp_path, record(tmp_path / "r", looks(650)))
    curves = [path.count("L") for path in re.findall(r' d="([^"]*)"', page)]
    assert 100 < max(curves) <= 2 * 600 + 5


# A real browser.


def browser(*arguments: str, page: Path) -> subprocess.CompletedProcess[str]:
    profile = page.parent / "profile"
    program = need("chromium", "chromium-browser", "google-chrome")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={profile}", *arguments, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)


def test_a_browser_lays_the_page_out(page: Path) -> None:
    seen = browser("--dump-dom", page=page).stdout
    assert "<title>Queue vlac, 2026-01-01 " in seen
    assert seen.count("<svg") == seen.count("<figure>") == 10


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_the_page(page: Path, dark: bool) -> None:
    picture = page.parent / f"{dark}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browser(f"--screenshot={picture}", "--window-size=1280,2200", scheme, page=page)
    pixels = matplotlib.image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (2200, 1280)
    paper = pixels[5, 5]
    assert paper.mean() < 0.2 if dark else paper.mean() > 0.9
    # Ink and curves stand all over the page: every strip of it has some.
    ink = np.abs(pixels - paper).max(axis=2) > 0.3
    assert all(strip.mean() > 0.001 for strip in np.array_split(ink, 8))
    # The curves' green and orange, which text and paper have not.
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    assert ((green > red + 0.3) & (green > blue + 0.1)).sum() > 500
    assert ((red > green + 0.2) & (green > blue + 0.2)).sum() > 500
