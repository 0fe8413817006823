"""Recordings: what was written is read again, whole or cut off."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboards.diagnosis import judge
from dashboards.record import Recorder, Recording, document
from dashboards.snapshot import Look, Snapshot, from_json, to_json
from tests.dashboards.states import AT, CRITIC_BOUND, LOOKS, URL
from vlac_queue.records import Training


def write(path: Path, *looks: Look) -> Path:
    recorder = Recorder(str(path), URL, "vlac", 1.0)
    for look in looks:
        recorder.add(look, judge(look))
    recorder.close()
    return path


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    recording = Recording(write(tmp_path / "r", LOOKS[name], LOOKS[name]))
    assert (recording.url, recording.queue, recording.interval_s) == (URL, "vlac", 1.0)
    looks = list(recording.looks())
    assert [look for look, _ in looks] == [LOOKS[name]] * 2
    assert looks[0][1] == judge(LOOKS[name])
    assert not recording.truncated


def test_each_look_is_in_the_file_at_once(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "r"), URL, "vlac", 1.0)
    recorder.add(LOOKS["critic-bound"], judge(LOOKS["critic-bound"]))
    assert len(list(Recording(tmp_path / "r").looks())) == 1
    recorder.close()


def test_a_truncated_last_line_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "r", *LOOKS.values())
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    recording = Recording(path)
    assert len(list(recording.looks())) == len(LOOKS) - 1
    assert recording.truncated
    # A last line that is whole but for its end of line is one.
    path.write_bytes(whole[:-1])
    assert len(list(Recording(path).looks())) == len(LOOKS)


_NO_DIAGNOSIS = '{"at":1,"error":"","verdicts":[],"snapshot":null}'


@pytest.mark.parametrize("damage", ["{}", "[]", "not JSON", '{"at": "noon"}', "[" * 100_000, _NO_DIAGNOSIS])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "r", LOOKS["critic-bound"], LOOKS["critic-bound"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damage, lines[2]]) + "\n")
    with pytest.raises(ValueError, match="line 3"):
        list(Recording(path).looks())


@pytest.mark.parametrize("text", ["", "{}\n", "[1]\n", "not JSON\n", '{"kind":"something else","schema":1}\n'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(ValueError, match="is no recording; make one with"):
        Recording(tmp_path / "r")


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('{"kind":"vlac-queue record","schema":99}\n')
    with pytest.raises(ValueError, match="version 99, this reads 1"):
        Recording(tmp_path / "r")


def test_a_recording_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "r", LOOKS["critic-bound"])
    with pytest.raises(FileExistsError):
        Recorder(str(tmp_path / "r"), URL, "vlac", 1.0)


def test_texts_of_a_recording_can_not_drive_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "r", LOOKS["critic-bound"])
    path.write_text(path.read_text().replace("gpu-0-4242-ab10", r"\u001b[2J").replace('"vlac"', r'"\u0007"'))
    recording = Recording(path)
    ((look, _),) = recording.looks()
    assert look.snapshot is not None
    assert look.snapshot.workers[0].name == "?[2J"
    assert recording.queue == "?"


# The JSON form.


def test_documents_are_strict_json_of_bounded_precision() -> None:
    training = Training(audit={"precision": None}, reward_sum=math.pi * 100, audit_at=1_767_268_800.123456)
    look = Look(AT, replace(CRITIC_BOUND, training=training))
    text = json.dumps(document(look, judge(look)), allow_nan=False)
    said = json.loads(text)["snapshot"]["training"]
    assert said == {"episodes": 0, "done": 0, "masked": 0, "reward_sum": 314.159, "values": 0, "value_sum": 0.0,
                    "audited": 0, "contradicted": 0,
                    "audit": {"precision": None}, "audit_at": 1767268800.123}  # fmt: skip
    assert to_json(math.nan) is None


def test_what_is_missing_takes_its_default_and_what_is_new_is_left_out() -> None:
    said: Any = to_json(CRITIC_BOUND)
    del said["workers"][0]["model"], said["training"]
    said["news"] = said["queue"]["news"] = 1
    read = from_json(Snapshot, said)
    assert (read.workers[0].model, read.training, read.queue) == ("", Training(), CRITIC_BOUND.queue)


@pytest.mark.parametrize(
    ("field", "value"), [("time", "noon"), ("workers", 3), ("workers", [3]), ("redis", None), ("latency", [])]
)
def test_values_of_another_type_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError):
        from_json(Snapshot, {**to_json(CRITIC_BOUND), field: value})
