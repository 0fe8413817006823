"""The decision log: what a client writes, and that nothing of it is lost in silence."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import ROOT, Workers, until
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient, RolloutGate
from vlac_queue.client.decision_log import frames_path
from vlac_queue.commands.episodes.log import find_episode, read_batches, read_log, read_reference
from vlac_queue.commands.episodes.record import EpisodeRecord, decoded
from vlac_queue.errors import (
    CriticFailed,
    DecisionLogError,
    FrameError,
    NoWorkers,
    ProtocolError,
    RedisUnavailable,
)
from vlac_queue.frames import Frames
from vlac_queue.messages import CriticIdentity, DoneVerdict, Failure, ValueVerdict


@pytest.fixture
def logging(client: CriticClient, tmp_path: Path) -> Iterator[CriticClient]:
    """A client that logs to tmp_path / "log"."""
    with CriticClient(replace(client.config, decision_log=str(tmp_path / "log"))) as made:
        yield made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/verdicts.jsonl"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files(folder) for line in file.read_text().splitlines()]


def read(folder: Path) -> tuple[list[EpisodeRecord], list[str]]:
    notes: list[str] = []
    return list(read_log(folder, notes.append)), notes


def frames_of(record: EpisodeRecord, note: Callable[[str], object] = print) -> list[Frames]:
    return [each for _, batch in decoded(read_batches(record, note)) for each in batch]


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Files of this process can't grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_verdicts_and_frames_are_logged(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    reference = np.stack([frame(0), frame(255)])
    batch = np.stack([frame(10), frame(100)])
    with logging.episode("lift the cup", reference, id="e-1") as episode:
        episode.push(frame(3))
        assert not episode.observe(batch).result().done
        assert episode.observe(frame(255)).result().done
        value = episode.ask_value().result()
        logging.note_truth(episode, 3)
    ((record,), notes) = read(tmp_path / "log")
    assert notes == [] and (record.id, record.task, record.frames) == ("e-1", "lift the cup", 4)
    assert record.truth_known and record.truth == 3
    critic = CriticIdentity(NAME, "", "")
    done, last, values = record.asked
    assert done.answer == DoneVerdict(False, 100 / 255, 2) and last.answer == DoneVerdict(True, 1.0, 3)
    assert values.answer == ValueVerdict(value.values, value.critics) and values.frame == 3
    assert {each.critic for each in record.asked} == {critic}
    np.testing.assert_array_equal(frames_of(record), np.stack([frame(3), *batch, frame(255)]))
    assert done.sha256 == hashlib.sha256(batch[-1].tobytes()).hexdigest()
    assert last.sha256 == values.sha256 == hashlib.sha256(frame(255).tobytes()).hexdigest()
    np.testing.assert_array_equal(read_reference(tmp_path / "log", record.reference, print), reference)
    said = next(line for line in lines(tmp_path / "log") if line["kind"] == "done")
    assert said["threshold"] == 0.9 and said["task"] == "lift the cup" and said["query"].endswith("-1")
    assert 0 < said["latency_s"] < 30 and abs(said["time"] - time.time()) < 60


def test_failures_are_logged_and_so_is_what_stayed_unanswered(
    logging: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME)
    with logging.episode("refuse", id="refused") as episode:
        episode.push(frame(1))
        with pytest.raises(CriticFailed):
            episode.ask_done().result()
    with logging.episode(f"hold {tmp_path / 'go'}", id="held") as episode:
        episode.observe(frame(1))
        until((tmp_path / "go.begun").exists)
    (tmp_path / "go").touch()
    with CriticClient(replace(logging.config, keep_frames_bytes=0)) as forgetful:
        for asking, id in ((False, "lost"), (True, "lost-while-asking")):
            with forgetful.episode(f"hold {tmp_path / 'never'}", id=id) as episode:
                pending = episode.observe(frame(1)) if asking else episode.push(frame(1))
                for key in connection.keys(f"vlac:vlac:episode:{id}*"):  # type: ignore[union-attr]
                    connection.delete(key)
                with pytest.raises(RedisUnavailable):
                    (pending or episode.ask_done()).result()
    (tmp_path / "never").touch()
    records = {record.id: record for record in read(tmp_path / "log")[0]}
    (failed,) = records["refused"].asked
    assert isinstance(failed.answer, Failure) and "banana" in failed.answer.message and failed.kind == "done"
    (held,) = records["held"].asked
    assert (held.answer, held.frame, records["held"].pending) == (None, 0, 1)
    for id in ("lost", "lost-while-asking"):
        (lost,) = records[id].asked
        assert isinstance(lost.answer, Failure) and "are gone" in lost.answer.message and lost.critic is None


def test_what_redis_lost_and_got_again_is_logged_once(
    logging: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME)
    with logging.episode("lift", id="e-1") as episode:
        episode.observe(frame(1)).result()
        for key in connection.keys("vlac:vlac:episode:e-1*"):  # type: ignore[union-attr]
            connection.delete(key)
        episode.observe(frame(255)).result()
    ((record,), notes) = read(tmp_path / "log")
    assert notes == [] and [verdict.done for verdict in record.done_verdicts.values()] == [False, True]
    np.testing.assert_array_equal(frames_of(record), np.stack([frame(1), frame(255)]))


def test_ranks_share_a_folder(logging: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    reference = np.stack([frame(0), frame(255)])
    other = pickle.loads(pickle.dumps(logging))  # noqa: S301
    with other:
        for client, red in ((logging, 10), (other, 20)):
            # The same id, one after another, as a restarted training would use it.
            with client.episode("lift", reference, id="same") as episode:
                episode.observe(frame(red)).result()
    assert len(files(tmp_path / "log")) == 2 and len(list((tmp_path / "log" / "references").iterdir())) == 1
    records, notes = read(tmp_path / "log")
    assert sorted(int(frames_of(record)[0][0, 0, 0]) for record in records) == [10, 20] and notes == []
    assert int(frames_of(find_episode(tmp_path / "log", "same", notes.append))[0][0, 0, 0]) == 20
    assert notes == ["2 episodes have the id 'same'; this is the last one"]


def test_a_forked_child_writes_to_a_folder_of_its_own(client: CriticClient, tmp_path: Path) -> None:
    script = f"""
import os
from vlac_queue import CriticClient, VlacConfig
client = CriticClient(VlacConfig(redis_url={client.config.redis_url!r}, decision_log={str(tmp_path / "log")!r}))
client.episode("parent").close()
if os.fork() == 0:
    CriticClient.episode(client, "child").close()
    os._exit(0)
assert os.wait()[1] == 0
client.episode("parent").close()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
    tasks = [
        {line["task"] for line in map(json.loads, file.read_text().splitlines()) if line["kind"] != "log"}
        for file in files(tmp_path / "log")
    ]
    assert sorted(map(sorted, tasks)) == [["child"], ["parent"]]


def test_what_was_written_stays_when_the_client_is_killed(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    script = f"""
import os, signal
from tests.workers.critics import frame
from vlac_queue import CriticClient, VlacConfig
client = CriticClient(VlacConfig(redis_url={client.config.redis_url!r}, decision_log={str(tmp_path / "log")!r}))
episode = client.episode("lift")
for red in (1, 2, 3):
    episode.observe(frame(red)).result()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60)
    ((record,), notes) = read(tmp_path / "log")
    assert notes == [] and record.frames is None
    assert list(record.done_verdicts) == [0, 1, 2] and len(frames_of(record)) == 3


def test_without_the_setting_nothing_is_written(
    client: CriticClient, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start(NAME)
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with client.episode("lift") as episode:
        episode.observe(frame(1)).result()
        client.note_truth(episode, None)
    assert set(tmp_path.iterdir()) == before


# What goes wrong while writing.


def test_a_folder_that_cannot_be_written_is_named_at_the_start(client: CriticClient, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "log", Path("/proc/log")):
        with pytest.raises(DecisionLogError, match=f"can't write the decision log in {folder}"):
            CriticClient(replace(client.config, decision_log=str(folder)))
    with files_end_at(20), pytest.raises(DecisionLogError, match="File too large"):
        CriticClient(replace(client.config, decision_log=str(tmp_path / "full")))
    assert list((tmp_path / "full").iterdir()) == []


def test_a_full_disk_stops_training_whatever_on_failure_says(
    logging: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    with RolloutGate(logging, ["lift"], on_failure="mask") as gate:
        gate.push({0: noise[0]})
        with files_end_at(noise[0].nbytes + 5000):
            with pytest.raises(DecisionLogError, match=r"can't write .* free space there"):
                gate.observe(1, {0: noise[1]})
            with pytest.raises(DecisionLogError):
                gate.observe(2, {0: noise[2]})
        # Room again: a log with a gap would be none.
        with pytest.raises(DecisionLogError):
            gate.observe(3, {0: noise[3]})
    assert logging._connection.keys("vlac:vlac:episode*") == []
    ((record,), notes) = read(tmp_path / "log")
    np.testing.assert_array_equal(frames_of(record, notes.append), noise[:1])
    assert any("ends within a batch" in note for note in notes)


def test_a_verdict_that_cannot_be_logged_is_an_error_and_still_there(
    logging: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    with RolloutGate(logging, ["lift"], on_failure="mask", overlap=True) as gate:
        gate.observe(1, {0: frame(255)})
        (run,) = gate._runs
        (pending,) = run.open.values()
        (file,) = files(tmp_path / "log")
        with files_end_at(file.stat().st_size + 10), pytest.raises(DecisionLogError):
            gate.settle()
        assert pending.verdict().done
    records, notes = read(tmp_path / "log")
    assert records[0].asked == () and any("ends within a line" in note for note in notes)


# What goes wrong while reading.


@pytest.fixture
def log(logging: CriticClient, workers: Workers, tmp_path: Path) -> Path:
    """A log of one episode: three frames with a verdict each."""
    workers.start(NAME)
    with logging.episode("lift", id="e-1") as episode:
        for red in (1, 2, 3):
            episode.observe(frame(red)).result()
    return tmp_path / "log"


def test_a_log_cut_anywhere_tells_what_stands_before_the_cut(log: Path) -> None:
    (file,) = files(log)
    whole = file.read_bytes()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        records, notes = read(log)
        complete = whole[:cut].count(b"\n")
        expected = max(0, min(3, complete - 2))
        assert [len(record.asked) for record in records] == ([] if complete < 2 else [expected])
        assert bool(notes) == (not whole[:cut].endswith(b"\n")), cut


def test_frames_cut_anywhere_are_those_before_the_cut(log: Path) -> None:
    ((record,), _) = read(log)
    assert record.writer is not None
    file = frames_path(record.writer, record.id, record.token)
    whole = file.read_bytes()
    ends = [0]
    for batch in read_batches(record, print):
        ends.append(ends[-1] + len(batch))
    assert ends[-1] == len(whole)
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        notes: list[str] = []
        assert len(frames_of(record, notes.append)) == sum(end <= cut for end in ends[1:])
        assert bool(notes) == (cut not in ends)


def test_a_damaged_line_is_named(log: Path) -> None:
    (file,) = files(log)
    good = file.read_text().splitlines()
    opened, done = json.loads(good[1]), json.loads(good[2])
    damaged = {
        "no json": "not JSON",
        "[]": "not a JSON object",
        json.dumps({**done, "kind": "banana"}): "unknown kind",
        json.dumps({**done, "score": float("nan")}): "finite",
        json.dumps({**done, "score": 10**400}): "finite",
        json.dumps({**done, "frame": -1}): "index",
        json.dumps({**done, "done": 1}): "true or false",
        json.dumps({**done, "token": "000000000000"}): "not open",
        json.dumps({**opened, "episode": "../../etc/passwd", "token": "1"}): "episode id must be",
        json.dumps({**opened, "token": "../x"}): "token must be",
        json.dumps({**opened, "reference": "/etc/passwd"}): "reference id must be",
        good[0]: "begins with",
    }
    for line, message in damaged.items():
        file.write_text("\n".join([*good[:3], line, *good[3:]]) + "\n")
        with pytest.raises(ProtocolError, match=message) as raised:
            read(log)
        assert f"{file}, line 4: " in str(raised.value)
    file.write_text(json.dumps({**json.loads(good[0]), "version": 2}) + "\n")
    with pytest.raises(ProtocolError, match="version 2"):
        read(log)


def test_frames_that_are_gone_or_something_else_are_named(log: Path) -> None:
    ((record,), _) = read(log)
    assert record.writer is not None
    file = frames_path(record.writer, record.id, record.token)
    file.write_bytes(b"VLQF" + b"\xff" * 100)
    with pytest.raises(FrameError, match="exceeds the limit"):
        frames_of(record)
    file.write_bytes(b"no frames at all, but long enough for a header")
    with pytest.raises(FrameError, match="no encoded frame batch at byte 0"):
        frames_of(record)
    file.unlink()
    with pytest.raises(FrameError, match=r"e-1.*can't be read"):
        frames_of(record)
    with pytest.raises(ProtocolError, match="is no decision log"):
        read(log / "references")
    with pytest.raises(ProtocolError, match="no episode 'e-2'"):
        find_episode(log, "e-2", print)


def test_no_worker_no_line(logging: CriticClient, tmp_path: Path) -> None:
    with logging.episode("lift") as episode, pytest.raises(NoWorkers):
        episode.observe(frame(1))
    ((record,), _) = read(tmp_path / "log")
    assert record.asked == () and record.frames == 0 and frames_of(record) == []


def test_nothing_is_kept_of_closed_episodes(logging: CriticClient) -> None:
    for _ in range(3):
        with logging.episode("lift") as episode:
            episode.push(frame(1))
    assert logging._log is not None and logging._log._hashes == {}
    assert len(os.listdir("/proc/self/fd")) < 200
