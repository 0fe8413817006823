"""What the pages show of chosen states, at chosen sizes.

The pictures in tests/dashboards/screens are what they should be. After a change that is meant:

    UPDATE_SCREENS=1 .venv/bin/pytest tests/dashboards/test_pages.py

and look at `git diff tests/dashboards/screens`.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dashboards.charts import bars, bins, gauge
from dashboards.diagnosis import judge
from dashboards.frame import elide, fit, pad
from dashboards.pages import Page, View, listed, page
from dashboards.snapshot import Look
from dashboards.tables import SORTS
from tests.dashboards.states import AT, CRITIC_BOUND, LOOKS, MANY_WORKERS, TROUBLED, view, worker
from vlac_queue.records import Episode, Episodes, Failed, PlainWorker, QueueState, RedisState

_SCREENS = Path(__file__).parent / "screens"
_PAGES: tuple[Page, ...] = ("overview", "workers", "episodes", "failures", "help")


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def picture(shown: View, width: int = 80, height: int | None = 24) -> str:
    return "".join(f"{line.plain.rstrip()}\n" for line in page(shown, width, height))


@pytest.mark.parametrize(
    ("look", "shown", "width", "height"),
    [
        ("critic-bound", "overview", 80, 24),
        ("critic-bound", "overview", 120, 30),
        ("critic-bound", "episodes", 80, 24),
        ("rollout-bound", "overview", 100, 30),
        ("troubled", "overview", 80, 24),
        ("troubled", "overview", 200, 60),
        ("troubled", "workers", 140, 30),
        ("troubled", "failures", 100, 24),
        ("many-workers", "workers", 80, 24),
        ("no-workers", "overview", 80, 24),
        ("redis-away", "overview", 80, 24),
        ("critic-bound", "help", 80, 24),
    ],
)
def test_screens(look: str, shown: Page, width: int, height: int) -> None:
    made = picture(view(look, page=shown), width, height)
    file = _SCREENS / f"{look}-{shown}-{width}x{height}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 80, 100, 140, 250])
@pytest.mark.parametrize("height", [10, 24, 30, 60])
@pytest.mark.parametrize("shown", _PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_every_picture_fills_the_terminal_and_no_more(width: int, height: int, shown: Page, look: str) -> None:
    lines = page(view(look, page=shown), width, height)
    assert len(lines) <= max(height, 20)
    assert {line.cell_len for line in lines} == {width}
    if height >= 24:
        assert len(lines) == height
        assert "quit" in lines[-1].plain


def test_values_of_any_size_fit() -> None:
    huge = replace(
        TROUBLED,
        queue=QueueState(10**12, 10.0**9, 10**12, 10**12),
        redis=RedisState("x" * 200, 10**15, 10**15, "volatile-random", 10**6),
        workers=tuple(
            worker(n, name="n" * 200, host="東京" * 50, queries=10**12, failures=10**9, last_error="e" * 200)
            for n in range(5)
        ),
        episodes=Episodes(10**9, 10**15, 10**15, (Episode("e" * 128, "東京" * 100, 10.0**6, 10.0**6, 10**9),)),
        failed=(Failed(AT, "w" * 200, "e" * 200, "t" * 200, "done", 10**9, "東" * 200),),
    )
    look = Look(AT, huge)
    for shown in _PAGES:
        for width in (80, 200):
            lines = page(view(look, page=shown, diagnoses=judge(look)), width, 24)
            assert {cell_len(line.plain) for line in lines} == {width}


def test_without_a_height_all_of_a_list_is_shown() -> None:
    text = picture(view(Look(AT, MANY_WORKERS)), 80, None)
    assert all(f"gpu-{n:03d}-4242" in text for n in range(200))
    assert "quit" not in text


def test_long_lists_are_scrolled() -> None:
    def shown(scroll: int) -> str:
        return picture(view("many-workers", page="workers", scroll=scroll))

    assert "gpu-000" in shown(0) and "more below" in shown(0) and "above" not in shown(0)
    assert "gpu-100" in shown(100) and "gpu-099" not in shown(100) and "100 above, 82 more below" in shown(100)
    assert "gpu-199" in shown(10_000) and "more below" not in shown(10_000)
    assert listed(view("many-workers", page="workers")) == 200
    assert listed(view("critic-bound", page="episodes")) == 40
    assert listed(view("redis-away", page="workers")) == 0


@pytest.mark.parametrize("sort", SORTS)
def test_workers_are_sorted(sort: str) -> None:
    workers = (
        worker(1, busy=0.2, queries_per_s=9.0, failures=1, accelerator_bytes=1, silent_s=0.1),
        worker(2, busy=0.9, queries_per_s=1.0, failures=9, accelerator_bytes=9, silent_s=0.9, state="lost"),
        worker(3, busy=None, queries_per_s=None, accelerator_bytes=0, silent_s=0.5, state="idle"),
    )
    look = Look(AT, replace(CRITIC_BOUND, workers=workers, plain=(PlainWorker("plain", "h", 1, "idle"),)))
    text = picture(view(look, page="workers", sort=sort))
    order = [int(line[6]) for line in text.splitlines() if line.startswith("│ gpu-")]
    expected = {"name": [1, 2, 3], "state": [2, 1, 3], "q/s": [1, 2, 3], "beat": [2, 3, 1]}
    assert order == expected.get(sort, [2, 1, 3])
    assert f"by {sort}" in text


def test_pairs_scored_ahead_are_told_where_there_are_any() -> None:
    shown = view()
    assert shown.look and shown.look.snapshot
    workers = (worker(0, pairs_ahead=12_000, pairs_unused=500), worker(1, pairs_ahead=500, pairs_unused=0))
    scored = replace(shown.look.snapshot, workers=workers)
    assert "pairs" not in picture(shown, 100, 40)
    text = picture(replace(shown, look=replace(shown.look, snapshot=scored)), 100, 40)
    assert "12,500 ahead, 4 % for nothing" in text


def test_an_old_error_is_told_with_its_age() -> None:
    """Workers that were started anew count from 0; what failed before is still known."""
    anew = replace(CRITIC_BOUND, failed=(Failed(AT - 300, error="ValueError: banana"),))
    assert "0 in all; 5 min ago: ValueError: banana" in picture(view(Look(AT, anew)))
    by_worker = replace(CRITIC_BOUND, workers=(worker(1, last_error="OSError: no", last_error_at=AT - 20),))
    assert "0 in all; 20 s ago: OSError: no" in picture(view(Look(AT, by_worker)))
    assert "11:59:40 OSError: no" in picture(view(Look(AT, by_worker), page="workers"), 250)


def test_the_wider_the_more_columns() -> None:
    def titles(width: int) -> str:
        return next(line for line in picture(view(page="workers"), width).splitlines() if "│ worker" in line)

    assert [part for part in ("state", "busy", "q/s") if part in titles(60)] == ["state", "busy", "q/s"]
    assert "device" not in titles(60)
    assert all(part in titles(250) for part in ("host", "pid", "device", "model", "GPU GiB", "last error", "up"))


def test_many_findings_are_counted_and_tall_screens_list_them() -> None:
    assert "(+4)" in picture(view("troubled"), 80, 24).splitlines()[1]
    tall = picture(view("troubled"), 100, 40).splitlines()
    assert "Redis at 91 %" in tall[1] and "may evict" in tall[2] and "lost" in tall[3] and "(+2)" in tall[3]


def test_markup_in_names_is_shown_as_it_is() -> None:
    look = Look(AT, replace(CRITIC_BOUND, workers=(worker(1, name="[red]w[/red]"),)))
    assert "[red]w[/red]" in picture(view(look))


def test_ascii_where_the_terminal_knows_no_more() -> None:
    for name in LOOKS:
        for shown in _PAGES:
            assert picture(view(name, page=shown, ascii=True)).isascii(), (name, shown)
    look = Look(AT, replace(CRITIC_BOUND, episodes=Episodes(1, 0, 0, (Episode("e-1", "打开 é"),))))
    text = picture(view(look, page="episodes", ascii=True))
    assert "????" in text and {len(line) for line in text.splitlines()[2:]} == {80}


def styled(shown: View, **settings: object) -> str:
    console = Console(width=100, file=io.StringIO(), force_terminal=True, **settings)  # type: ignore[arg-type]
    with console.capture() as captured:
        for line in page(shown, 100, 30):
            console.print(line)
    return captured.get()


def test_colours_mean_something() -> None:
    colour = styled(view("troubled"), color_system="standard", no_color=False)
    assert "\x1b[1;37;41m BAD " in colour
    assert "\x1b[31mallkeys-lru" in colour
    assert "\x1b[1;31mlost" in colour
    assert "\x1b[31m" not in styled(view("rollout-bound"), color_system="standard", no_color=False)


def test_without_colour_words_say_the_same() -> None:
    plain = styled(view("troubled"), color_system="standard", no_color=True)
    assert not any(f"\x1b[{code}m" in plain for code in (31, 32, 33, 36, 41, "1;31"))
    assert " BAD " in plain and "lost" in plain


# Charts.


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


def test_gauges_fill() -> None:
    assert (gauge(0.5, 4), gauge(2.0, 4), gauge(0.0, 4)) == ("██··", "████", "····")
    assert gauge(0.5, 4, " .:-=+*#@") == "@@.."


def test_the_last_failures_error_is_told_whole_where_rows_are_free() -> None:
    error = "CriticFailed: the critic needs frames of a run; " + "very long " * 11 + "so give --reference FILE"
    troubled = LOOKS["troubled"].snapshot
    assert troubled is not None
    failed = replace(troubled, failed=(replace(troubled.failed[0], error=error),))
    shown = view(replace(LOOKS["troubled"], snapshot=failed), page="failures")
    said = " ".join(re.sub("[│\\s]+", " ", picture(shown)).split())
    assert error in said and len(picture(shown).splitlines()) == 24


# Texts.


def test_texts_fit_their_columns() -> None:
    assert (elide("abcdef", 6), elide("abcdefg", 6), elide("abc", 1), elide("東京東京", 5)) == (
        "abcdef", "abcd..", ".", "東..",
    )  # fmt: skip
    assert (pad("ab", 4), pad("ab", 4, right=True), pad("東", 3)) == ("ab  ", "  ab", "東 ")
    assert (fit(Text("abc"), 5).plain, fit(Text("abcdef"), 5).plain) == ("abc  ", "abc..")
