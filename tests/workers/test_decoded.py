"""What a worker keeps of an episode: always the right frames, in whatever order they are wanted."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vlac_queue.test_frames import cut_up, make_frames
from vlac_queue import CriticClient, FrameError, ProtocolError
from vlac_queue.frames import encode
from vlac_queue.keys import Keys
from vlac_queue.messages import Query
from workers.critics import CriticQuery
from workers.decoded import History
from workers.flow import JobQuery
from workers.preparing import Intake
from workers.store import WorkerStore

LIMIT = 1 << 30


@given(st.data())
def test_frames_are_right_whenever_they_are_wanted(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    frames = make_frames(data.draw(st.sampled_from(["slow", "random"])), sum(sizes), 6, 5)
    payloads, ends = cut_up(frames, sizes), np.cumsum(sizes)
    history, handed_out = History(LIMIT), []
    while history.batches < len(payloads):
        known = history.batches
        count = data.draw(st.integers(1, len(payloads) - known))
        history.extend(payloads[known : known + count], every_frame=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            history.catch_up()
        batch = data.draw(st.integers(0, history.batches - 1))
        if data.draw(st.booleans()):
            handed_out.append((history.last(batch, ends[batch] - 1), frames[ends[batch] - 1 : ends[batch]]))
        else:
            handed_out.append((history.until(batch, ends[batch] - 1), frames[: ends[batch]]))
    # What was handed out early is what it was.
    for got, expected in handed_out:
        assert np.array_equal(got, expected) and not got.flags.writeable


def test_an_episode_longer_than_its_first_room_goes_on() -> None:
    frames = make_frames("slow", 60, 512, 512)  # 47 MB
    payloads = cut_up(frames, [20, 20, 20])
    history = History(LIMIT)
    for payload in payloads:
        history.extend([payload], every_frame=True)
    assert np.array_equal(history.until(2, 59), frames)


def test_what_is_forgotten_goes_on_from_the_last_frame() -> None:
    frames = make_frames("slow", 6, 40, 40)
    payloads = cut_up(frames, [1] * 6)
    history = History(LIMIT)
    history.extend(payloads[:3], every_frame=True)
    whole = history.nbytes
    history.forget()
    assert history.nbytes < whole / 2 and not history.whole and not history.behind
    assert np.array_equal(history.last(2, 2), frames[2:3])
    history.extend(payloads[3:], every_frame=False)
    assert np.array_equal(history.last(5, 5), frames[5:]) and not history.behind


@pytest.mark.parametrize("every_frame", [True, False])
def test_a_damaged_batch_changes_nothing(every_frame: bool) -> None:
    frames = make_frames("slow", 4, 20, 20)
    payloads = cut_up(frames, [1] * 4)
    damaged = payloads[2][:-1] + bytes([payloads[2][-1] ^ 1])
    history = History(LIMIT)
    history.extend(payloads[:1], every_frame=False)
    with pytest.raises(FrameError):
        history.extend([payloads[1], damaged], every_frame=every_frame)
    assert history.batches == 1 and np.array_equal(history.last(0, 0), frames[:1])
    history.extend(payloads[1:], every_frame=every_frame)
    assert np.array_equal(history.until(3, 3), frames)


def test_a_frame_of_another_size_leaves_the_last_one_only() -> None:
    small, large = make_frames("random", 2, 10, 10), make_frames("random", 1, 20, 20)
    payloads = [*cut_up(small, [2]), encode(large, first=2)]
    history = History(LIMIT)
    history.extend(payloads[:1], every_frame=True)
    history.extend(payloads[1:], every_frame=True)
    assert not history.whole and np.array_equal(history.last(1, 2), large)


def test_beyond_the_limit_the_last_frame_is_kept_and_all_are_refused() -> None:
    frames = make_frames("slow", 4, 10, 10)
    payloads = cut_up(frames, [1] * 4)
    wanted, watched = History(frames[:3].nbytes), History(frames[:3].nbytes)
    for history in (wanted, watched):
        history.extend(payloads[:3], every_frame=False)
    with pytest.raises(FrameError, match="more than"):
        wanted.extend(payloads[3:], every_frame=True)
    watched.extend(payloads[3:], every_frame=False)
    assert np.array_equal(watched.last(3, 3), frames[3:])


def test_a_query_about_a_frame_inside_a_batch_is_refused() -> None:
    history = History(LIMIT)
    history.extend(cut_up(make_frames("slow", 3, 5, 5), [3]), every_frame=False)
    with pytest.raises(ProtocolError, match="not the last of batch"):
        history.last(0, 1)


# How the intake uses it, with episodes on a real server.


class Reading(WorkerStore):
    """Notes how many batches are read."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.batches = 0

    def read_episodes(self, wanted):
        reads = super().read_episodes(wanted)
        self.batches += sum(len(read.batches) for read in reads)
        return reads


def open_queries(client: CriticClient, kind, episodes, *, about: int | None = None) -> list[JobQuery]:
    """A query about each episode that waits for its answer, with a job's id, though no worker is there."""
    queries = []
    for episode in episodes:
        frame = episode.frames - 1 if about is None else about
        episode.queries += 1
        query = Query(
            id=f"{episode.meta.token}-{episode.queries}",
            episode=episode.id,
            kind=kind,
            frame=frame,
            batch=frame,
            client=client.id,
            asked=time.time(),
            deadline=time.time() + 60,
        )
        client._connection.hset(Keys("vlac").episode(episode.id).queries, query.id, kind)
        queries.append(JobQuery("job", query))
    return queries


def ask(client: CriticClient, intake: Intake, kind, episodes, *, about: int | None = None) -> list[CriticQuery]:
    """What the critic would get for a query about each episode; `about` is a frame's (and batch's) index."""
    queries = open_queries(client, kind, episodes, about=about)
    asks = [prepared.ask for prepared in intake.prepare(queries)]
    assert all(isinstance(each, CriticQuery) for each in asks), asks
    return asks


@pytest.fixture
def store(connection) -> Reading:
    return Reading(connection, Keys("vlac"), ttl_s=100)


def test_a_value_list_reads_nothing_that_done_queries_have_read(client: CriticClient, store: Reading) -> None:
    frames = make_frames("slow", 6, 30, 30)
    intake = Intake(store)
    with client.episode("task") as episode:
        for index in range(6):
            episode.push(frames[index])
            (done,) = ask(client, intake, "done", [episode])
            assert np.array_equal(done.frames, frames[index : index + 1])
        assert store.batches == 6
        assert intake.behind()
        intake.work_ahead(10)
        assert not intake.behind()
        (value,) = ask(client, intake, "value", [episode])
        (earlier,) = ask(client, intake, "done", [episode], about=2)
    assert np.array_equal(value.frames, frames) and np.array_equal(earlier.frames, frames[2:3])
    assert store.batches == 6


@pytest.mark.parametrize("history_bytes", [0, 3 * 6 * 2700, LIMIT])
def test_answers_do_not_depend_on_how_much_is_kept(
    client: CriticClient, store: Reading, history_bytes: int
) -> None:
    """Here 8 episodes of 6 frames of 2,700 bytes: none, some or all of them fit."""
    runs = [make_frames("slow", 6, 30, 30, seed=seed) for seed in range(8)]
    intake = Intake(store, history_bytes=history_bytes)
    episodes = client.episodes(["task"] * 8)
    for index in range(6):
        client.push_many([(episode, run[index]) for episode, run in zip(episodes, runs, strict=True)])
        if index != 3:
            for run, done in zip(runs, ask(client, intake, "done", episodes), strict=True):
                assert np.array_equal(done.frames, run[index : index + 1])
        if index == 2:
            intake.work_ahead(10)
    for run, value in zip(runs, ask(client, intake, "value", episodes), strict=True):
        assert np.array_equal(value.frames, run)
    for run, earlier in zip(runs, ask(client, intake, "done", episodes, about=1), strict=True):
        assert np.array_equal(earlier.frames, run[1:2])
    assert intake._kept.nbytes <= history_bytes
    if history_bytes == 0:
        assert not intake.behind()


def test_an_episode_whose_frames_change_size_is_not_kept_twice(
    client: CriticClient, store: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Our client refuses them; another may not.
    monkeypatch.setattr("vlac_queue.client.Episode.check_size", lambda *_: None)
    intake = Intake(store)
    with client.episode("task") as episode:
        for side in (10, 20, 20):
            frames = make_frames("slow", 1, side, side)
            episode.push(frames)
            (done,) = ask(client, intake, "done", [episode])
            assert np.array_equal(done.frames, frames)
        assert not intake.behind() and store.batches == 3
        assert intake._kept.nbytes < 2 * frames.nbytes + 2048
