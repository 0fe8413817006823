"""`vlac-queue episodes`: what is listed, and the pictures, of Redis and of a log."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, Workers
from tests.rollouts import ROLLOUTS as SHIPPED
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient, CriticFailed
from vlac_queue.cli import main
from vlac_queue.commands.episodes.marks import read_marks
from vlac_queue.plot import evenly, fitting, shrunk, text_width

ROLLOUTS = {rollout.name: rollout for rollout in SHIPPED}


@pytest.fixture
def logging(client: CriticClient, tmp_path: Path) -> Iterator[CriticClient]:
    config = replace(client.config, decision_log=str(tmp_path / "log"), done_threshold=0.85)
    with CriticClient(config) as made:
        yield made


def run(client: CriticClient, *arguments: Any) -> Result:
    command = ["episodes", *map(str, arguments), "--redis-url", client.config.redis_url]
    return CliRunner().invoke(main, command, catch_exceptions=False, env={"COLUMNS": "80"})


def picture(path: Path) -> np.ndarray:
    """The picture's pixels, float (H,W,4), 0..1."""
    from matplotlib.image import imread

    return np.asarray(imread(path))


def has(pixels: np.ndarray, colour: str) -> bool:
    """Whether the colour, such as "#1a7f37", fills a border: many pixels of exactly it."""
    wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return bool((np.abs(pixels[..., :3] - wanted).max(axis=-1) < 1e-3).sum() > 500)


GREEN, BROWN = "#1a7f37", "#9a6700"


# Choosing frames.


@given(st.integers(1, 500), st.integers(2, 60), st.data())
def test_frames_are_evenly_chosen_with_those_that_matter(count: int, most: int, data: st.DataObject) -> None:
    also = data.draw(st.lists(st.integers(0, count - 1), max_size=1))
    chosen = evenly(count, most, also)
    assert len(chosen) == len(set(chosen)) == min(most, count) and chosen == sorted(chosen)
    assert chosen[0] == 0 and chosen[-1] == count - 1
    if most > 2:
        assert set(also) <= set(chosen)
        even = np.linspace(0, count - 1, len(chosen))
        assert np.abs(np.array(chosen) - even).max() <= max(1, count / max(1, len(chosen) - 1))


def test_small_frames_are_not_enlarged() -> None:
    assert shrunk(np.zeros((100, 50, 3), np.uint8), 160).shape == (100, 50, 3)
    assert shrunk(np.zeros((480, 640, 3), np.uint8), 160).shape == (160, 213, 3)
    assert shrunk(np.full((400, 1, 3), 7, np.uint8), 160).max() == 7


# Texts.


def test_texts_are_cut_to_their_place() -> None:
    task = "pick up the black bowl and put it on the plate, " * 9
    cut = fitting(task, 12, 8.9)
    assert cut["s"].endswith("…") and 8.5 < text_width(cut["s"], 12) <= 8.9
    assert fitting("lift  the\ncup", 12, 8.9)["s"] == "lift the cup"


#: Prints what `lettered` makes of a text where the only installed fonts are those of a folder.
_LETTERED = """
import sys
from matplotlib import font_manager, get_data_path
font_manager.X11FontDirectories[:] = [sys.argv[1]]
fonts = font_manager.fontManager.ttflist
fonts[:] = [font for font in fonts if font.fname.startswith(get_data_path())]
from vlac_queue.plot import lettered
print(ascii(lettered("打开 drawer é")))
"""


@pytest.mark.parametrize("installed", [True, False])
def test_letters_come_from_an_installed_font_or_are_escaped(installed: bool, tmp_path: Path) -> None:
    if installed:
        make_font(tmp_path / "chinese.ttf", "打开")
    # Without a PATH fontconfig isn't asked.
    environ = {**os.environ, "PATH": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _LETTERED, str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    if installed:
        expected = ("打开 drawer é", ["DejaVu Sans", "Chinese"])
    else:
        expected = ("\\u6253\\u5f00 drawer é", ["DejaVu Sans"])
    assert ast.literal_eval(done.stdout) == expected


def make_font(path: Path, letters: str) -> None:
    """A font with boxes for these letters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"uni{ord(letter):04X}" for letter in letters)]
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder(names)
    made.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    made.setupGlyf({name: pen.glyph() for name in names})
    made.setupHorizontalMetrics({name: (1000, 0) for name in names})
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Chinese", "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(path)


# On Redis.


def test_open_episodes_are_listed_those_used_last_first(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME)
    assert run(client, "list").output == "0 episodes open on queue 'vlac'\n"
    for number in range(3):
        episode = client.episode(f"task {number}", id=f"e-{number}")
        for red in range(number + 1):
            episode.observe(frame(red)).result()
    client._connection.zadd("vlac:vlac:open", {"e-0": 1e12})
    listed = json.loads(run(client, "list", "--json").output)
    assert listed["count"] == 3
    assert [(each["id"], each["batches"], each["queries"]) for each in listed["episodes"]] == [
        ("e-0", 1, 1),
        ("e-2", 3, 3),
        ("e-1", 2, 2),
    ]
    assert all(each["bytes"] > 0 and each["expires_s"] > 0 for each in listed["episodes"])
    limited = run(client, "list", "--limit", 2)
    assert "3 episodes open on queue 'vlac' (2 shown" in limited.output and "e-1" not in limited.output


def test_a_tasks_escape_sequences_do_not_reach_the_terminal(client: CriticClient) -> None:
    client.episode("\x1b[2Jlift \x07[red]")
    output = run(client, "list").output
    assert "\x1b" not in output and "\x07" not in output and "?[2Jlift ?" in output


def test_an_open_episode_is_drawn(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start("reference")
    expert = ROLLOUTS["drawer-open-v3_expert_s1"]
    with client.episode(expert.task, ROLLOUTS["drawer-open-v3_reference_s3"].frames, id="e-1") as episode:
        for each in expert.frames[:6]:
            episode.observe(each).result()
        # One on its way, as far as anybody can see.
        client._connection.hset("vlac:vlac:episode:e-1:queries", f"{episode.meta.token}-99", "value")
        result = run(client, "show", "e-1", "-o", tmp_path / "sheet.png")
    assert result.output == f"Written: {tmp_path / 'sheet.png'} (6 of 6 frames)\n"
    pixels = picture(tmp_path / "sheet.png")
    assert pixels.shape[1] == 1350 and not has(pixels, GREEN) and not has(pixels, BROWN)


def test_the_beginning_of_an_id_is_enough_where_one_episode_has_it(
    logging: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    ids = ["3493d376ca9c4d15b4041551cc2dca0d", "3493d376aa", "7f", "7f3"]
    episodes = logging.episodes([f"lift {id}" for id in ids], ids=ids)
    for episode in episodes:
        episode.observe(frame(1)).result()
    expected = {
        "3493d376ca9c4d15": 0,
        "3493d376ca9c4d15..": 0,
        "7f": 0,  # one that is called so, though another begins so
        "3493": "2 episodes have ids that begin with '3493': 3493d376aa, 3493d376ca9c4d15b4041551cc2dca0d; give",
        "8": "episode '8'",
    }
    for place in ([], ["--log", tmp_path / "log"]):
        for id, message in expected.items():
            result = run(logging, "show", id, *place, "-o", tmp_path / "sheet.png")
            assert result.exit_code == (0 if message == 0 else 1), result.output
            assert message == 0 or str(message) in result.output
        logging.close_many(episodes) if not place else None


def test_what_can_not_be_drawn_is_one_sentence(
    client: CriticClient, tmp_path: Path, connection: redis.Redis
) -> None:
    client.episode("lift", id="empty")
    client.episode("lift", id="damaged").push(frame(1))
    connection.rpush("vlac:vlac:episode:damaged:frames", b"no batch")
    connection.hset("vlac:vlac:episode:odd", "task", "lift")
    (tmp_path / "file").touch()
    expected = {
        ("none",): "no open episode 'none'",
        ("../none",): "episode id must be",
        ("empty",): "has no frames yet",
        ("damaged",): "at least 36 bytes",
        ("odd",): "not of this protocol",
        ("none", "--log", tmp_path): "is no decision log",
    }
    for arguments, message in expected.items():
        result = run(client, "show", *arguments, "-o", tmp_path / "sheet.png")
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    client.episode("lift", id="e-1").push(frame(1))
    result = run(client, "show", "e-1", "-o", tmp_path / "file" / "sheet.png")
    assert result.exit_code == 2 and "choose another -o" in result.output


def test_what_a_user_of_redis_may_not_read_is_one_sentence(
    client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    client.episode("lift the cup", id="e-1").push(frame(1))
    commands = [f"+{name}" for name in ("info", "time", "zcount", "zrange", "hget", "hlen", "hmget", "llen")]
    connection.acl_setuser(
        "looker", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@connection"], commands=commands
    )
    try:
        url = client.config.redis_url.replace("redis://", "redis://looker:pw@")
        arguments = ["--redis-url", url]
        listed = CliRunner().invoke(main, ["episodes", "list", *arguments], catch_exceptions=False)
        shown = CliRunner().invoke(
            main, ["episodes", "show", "e-1", "-o", str(tmp_path / "x.png"), *arguments], catch_exceptions=False
        )
        # A worker's user sees episodes, and not their list.
        connection.acl_setuser("looker", enabled=True, commands=["-zrange", "+exists"])
        begun = CliRunner().invoke(
            main, ["episodes", "show", "e", "-o", str(tmp_path / "x.png"), *arguments], catch_exceptions=False
        )
    finally:
        connection.acl_deluser("looker")
    assert listed.exit_code == 0 and "lift the cup" in listed.output, listed.output
    assert shown.exit_code == 1 and "`episodes show` those of vlac-worker" in shown.output
    assert begun.exit_code == 1 and "give the whole id" in begun.output


def test_a_missing_matplotlib_is_named(
    client: CriticClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(client, "show", "e-1", "-o", tmp_path / "sheet.png")
    assert result.exit_code == 1 and "pip install 'vlac-queue[plot]'" in result.output


# In a log.


def play(client: CriticClient, name: str, *, id: str) -> None:
    """An episode as training has it: until done, else the value."""
    rollout = ROLLOUTS[name]
    reference = next(each for each in ROLLOUTS.values() if each.env == rollout.env and each.kind == "reference")
    with client.episode(rollout.task, reference.frames, id=id) as episode:
        episode.push(rollout.frames[0])
        for each in rollout.frames[1:]:
            if episode.observe(each).result().done:
                return
        episode.ask_value().result()


def test_a_logs_episodes_are_listed_and_drawn(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start("reference")
    play(logging, "drawer-open-v3_expert_s1", id="expert")
    play(logging, "drawer-open-v3_random_s21", id="random")
    with logging.episode("lift", id="failed") as episode:
        episode.push(frame(1))
        with pytest.raises(CriticFailed, match="needs frames of a successful run"):
            episode.ask_done().result()
    listed = json.loads(run(logging, "list", "--log", tmp_path / "log", "--json").output)
    assert listed["count"] == 3
    failed, random, expert = listed["episodes"]
    assert (failed["id"], failed["failures"], failed["first_done"], failed["value"]) == ("failed", 1, None, None)
    assert random["first_done"] is None and 0 <= random["value"] < 20 and random["frames"] == 15
    assert expert["first_done"] == expert["frames"] - 1 == 12 and expert["value"] is None
    assert expert["critics"] == [{"name": "reference", "model": "", "prompt": ""}]
    text = run(logging, "list", "--log", tmp_path / "log", "--limit", 2).output
    assert "expert" not in text and "3 episodes in" in text
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])
    borders = {}
    for name in ("expert", "random", "failed"):
        out = tmp_path / f"{name}.png"
        assert run(logging, "show", name, "--log", tmp_path / "log", "-o", out).exit_code == 0
        borders[name] = (has(picture(out), GREEN), has(picture(out), BROWN))
    assert borders == {"expert": (True, False), "random": (False, True), "failed": (False, False)}


@pytest.mark.slow
def test_long_episodes_are_drawn_by_forty_frames(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    with logging.episode("lift", id="long") as episode:
        for number in range(0, 130, 10):
            # Done in frame 69, which is none of those evenly chosen.
            episode.observe(np.stack([frame(255 if number + i == 69 else 0, side=64) for i in range(10)])).result()
    result = run(logging, "show", "long", "--log", tmp_path / "log", "-o", tmp_path / "sheet.png")
    assert "(40 of 130 frames)" in result.output
    assert has(picture(tmp_path / "sheet.png"), GREEN)


# Many, marked and closed.


def write_log(folder: Path, episodes: int, *, dones: int = 20) -> None:
    """A log of one client, as `DecisionLog` writes it."""
    folder.mkdir(parents=True)
    with (folder / "verdicts.jsonl").open("w") as file:

        def line(kind: str, number: int, **fields: Any) -> None:
            about = {"episode": f"e-{number}", "token": f"{number:012x}", "task": "open the drawer"}
            file.write(
                json.dumps({"kind": kind, "time": 1e9 + number, **about, **fields}, separators=(",", ":")) + "\n"
            )

        file.write('{"kind":"log","version":1,"time":1.0}\n')
        who = {"sha256": "b" * 64, "critic": "vlac", "model": "/models/VLAC", "prompt": "1a2b3c4d"}
        for number in range(episodes):
            line("opened", number, reference="", threshold=0.9, stride=1)
            for place in range(dones):
                line("done", number, done=False, score=0.5, threshold=0.9, query="q-1", frame=place, **who)
            line("closed", number, frames=dones, unanswered=[])


@pytest.mark.slow
def test_ten_thousand_logged_episodes_are_listed_within_two_seconds_and_bounded_memory(tmp_path: Path) -> None:
    write_log(tmp_path / "log" / "client", 10_000)
    script = (
        "import sys, time; from vlac_queue.cli import main; main(sys.argv[1:], standalone_mode=False);"
        "print(time.process_time(), open('/proc/self/status').read(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "episodes", "list", "--log", str(tmp_path / "log"), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    listed = json.loads(ran.stdout)
    assert listed["count"] == 10_000
    assert [each["id"] for each in listed["episodes"][:2]] == ["e-9999", "e-9998"]
    assert listed["episodes"][0]["frames"] == listed["episodes"][0]["queries"] == 20
    # Of CPU, since other tests run beside it.
    assert float(ran.stderr.split()[0]) < 2
    peak = re.search(r"VmHWM:\s+(\d+) kB", ran.stderr)
    assert peak is not None and int(peak[1]) < 120 << 10


def test_a_person_says_what_succeeded(client: CriticClient, tmp_path: Path) -> None:
    write_log(tmp_path / "log" / "client", 12, dones=2)
    place = ("--log", tmp_path / "log")
    assert run_log("mark", "e-3", "success", *place, "--frame", 1).output == "e-3: success\n"
    assert run_log("mark", "e-11", "failure", *place).exit_code == 0
    assert "4 episodes have ids that begin with 'e-'" not in run_log("mark", "e-1", "success", *place).output
    assert run_log("mark", "e-1", "failure", *place).exit_code == 0  # the last word counts
    several = run_log("mark", "e", "success", *place)
    assert several.exit_code == 1 and "12 episodes have ids that begin with 'e'" in several.stderr
    listed = json.loads(run_log("list", *place, "--json").output)["episodes"]
    marks = {each["id"]: each["mark"] for each in listed if each["mark"] is not None}
    assert marks == {"e-3": True, "e-11": False, "e-1": False}
    beyond = run_log("mark", "e-3", "success", *place, "--frame", 2)
    assert beyond.exit_code == 1 and "has no frame 2: it has 2 frames" in beyond.stderr
    for wrong, message in {
        ("e-3",): "success or failure",
        ("e-3", "failure", "--frame", 1): "a failure has none",
        ("e-3", "--all"): "neither an ID nor --frame",
    }.items():
        usage = run_log("mark", *wrong, *place)
        assert usage.exit_code == 2 and message in usage.stderr


def test_a_mark_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_log(log / "client", 3, dones=2)
    assert run_log("mark", "e-1", "success", "--log", log).exit_code == 0
    marks = log / "marks.jsonl"
    whole = marks.read_bytes()
    marks.write_bytes(whole + b'{"kind":"mark","epi')  # as a full disk leaves it
    assert read_marks(log)["000000000001"].success
    assert run_log("mark", "e-2", "failure", "--log", log).exit_code == 0
    assert [mark.success for mark in read_marks(log).values()] == [True, False]
    marks.unlink()
    (tmp_path / "other").write_bytes(whole)
    marks.symlink_to(tmp_path / "other")
    refused = run_log("mark", "e-2", "failure", "--log", log)
    assert refused.exit_code == 2 and "can't write to" in refused.stderr
    assert (tmp_path / "other").read_bytes() == whole


def test_keys_take_a_terminal(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    with logging.episode("lift", id="e-1") as episode:
        episode.observe(frame(1, side=64)).result()
    outside = tmp_path / "outside.png"
    (tmp_path / "log" / "marking.png").symlink_to(outside)
    command = [sys.executable, "-m", "vlac_queue.cli", "episodes", "mark", "--all", "--no-open"]
    ran = subprocess.run(
        [*command, "--log", str(tmp_path / "log")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert ran.returncode == 1 and "takes keys from a terminal" in ran.stderr and "Traceback" not in ran.stderr
    assert not outside.exists()


def run_log(*arguments: Any, input: str = "") -> Result:
    return CliRunner().invoke(main, ["episodes", *map(str, arguments)], catch_exceptions=False, input=input)


def test_a_keyboard_pass_marks_what_nobody_has(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    for number in range(4):
        with logging.episode("lift", id=f"e-{number}") as episode:
            episode.observe(frame(number, side=64)).result()
            if number == 1:
                logging.note_truth(episode, None)
    place = ("--log", tmp_path / "log", "--no-open")
    passed = run_log("mark", "--all", *place, input="xs q")
    assert passed.exit_code == 0, passed.output
    assert "3 episodes;" in passed.output and "1 success, 1 passed over" in passed.output
    assert (tmp_path / "log" / "marking.png").read_bytes().startswith(b"\x89PNG")
    again = run_log("mark", "--all", *place, input="fs")
    assert "2 episodes;" in again.output and "1 failure, 1 success" in again.output
    assert "every episode has a mark" in run_log("mark", "--all", *place).output


def test_what_a_crashed_run_left_open_is_closed(client: CriticClient, connection: redis.Redis) -> None:
    reference = np.zeros((2, 8, 8, 3), np.uint8)
    for name in ("left-1", "left-2", "other"):
        client.episode("lift", reference, id=name).push(frame(1))
    refused = run(client, "close", "left-1")
    assert refused.exit_code == 1 and "the rollout of episode 'left-1' is there" in refused.stderr
    connection.delete(f"vlac:vlac:client:{client.id}")  # as it expires
    assert "2 episodes have ids" in run(client, "close", "left").stderr
    assert run(client, "close", "left-2", "o").output == "closed: left-2\nclosed: other\n"
    assert set(connection.keys("vlac:vlac:episode:*")) == {
        b"vlac:vlac:episode:left-1",
        b"vlac:vlac:episode:left-1:frames",
    }
    assert run(client, "close", "left-1").exit_code == 0
    assert connection.keys("vlac:vlac:reference:*") == connection.keys("vlac:vlac:sizes") == []
