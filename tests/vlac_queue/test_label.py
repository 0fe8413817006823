"""`vlac-queue label`: whole datasets through real workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.conftest import Workers
from tests.lerobot_dataset import CAMERA, write_dataset
from tests.rollouts import ROLLOUTS as SHIPPED
from tests.workers.critics import NAME
from vlac_queue import CriticClient, FrameError
from vlac_queue.cli import main
from vlac_queue.client import Episode
from vlac_queue.commands.asking import MAX_OPEN
from vlac_queue.commands.datasets.recording import Recording
from vlac_queue.commands.demo.rollouts import success_step
from vlac_queue.commands.label import asking
from vlac_queue.commands.label.labels import How, open_labels
from vlac_queue.commands.score.reading import Clip
from vlac_queue.frames import Frames

ROLLOUTS = {rollout.name: rollout for rollout in SHIPPED}
DRAWER = [ROLLOUTS[f"drawer-open-v3_{name}"] for name in ("reference_s3", "expert_s1", "random_s21")]
DOOR = [ROLLOUTS[f"door-open-v3_{name}"] for name in ("reference_s0", "expert_s2", "stalled_s32")]


def label(client: CriticClient, *arguments: Any, **environ: str) -> Result:
    command = ["label", *map(str, arguments), "--redis-url", client.config.redis_url]
    return CliRunner().invoke(
        main, command, catch_exceptions=False, env={"COLUMNS": "100", "VLAC_DONE_THRESHOLD": "0.85", **environ}
    )


def progress(folder: Path) -> dict[str, np.ndarray]:
    """The columns of the table."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "progress.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def reds(*numbers: int) -> Frames:
    """uint8 (T,32,32,3): each frame of one red, as the critic of the tests scores it."""
    frames = np.zeros((len(numbers), 32, 32, 3), np.uint8)
    frames[..., 0] = np.array(numbers)[:, None, None]
    return frames


def table_of(folder: Path, runs: Sequence[tuple[str, Frames]]) -> Path:
    """A folder of .npz files with their table; no codec changes a pixel."""
    folder.mkdir(exist_ok=True)
    for number, (_, frames) in enumerate(runs):
        np.savez(folder / f"{number}.npz", frames=frames)
    rows = [f"{number}.npz,{task}" for number, (task, _) in enumerate(runs)]
    (folder / "episodes.csv").write_text("\n".join(["file,task", *rows]) + "\n")
    return folder


def test_a_lerobot_dataset_is_labelled_for_lerobot(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start()
    runs = [*DRAWER, *DOOR]
    dataset = write_dataset(tmp_path / "data", [(run.task, run.frames) for run in runs])
    result = label(client, dataset, "--reference", 0, "--reference", 3)
    assert result.exit_code == 0, result.output
    folder = dataset / "vlac-labels"
    columns = progress(folder)
    lengths = [len(run.frames) for run in runs]
    assert [str(columns[name].dtype) for name in columns] == ["int64"] * 3 + ["float32"] * 4
    np.testing.assert_array_equal(columns["index"], np.arange(sum(lengths)))
    np.testing.assert_array_equal(columns["episode_index"], np.repeat(np.arange(6), lengths))
    np.testing.assert_array_equal(columns["frame_index"], np.concatenate([np.arange(n) for n in lengths]))
    assert columns["progress_sparse"].min() >= 0 and columns["progress_sparse"].max() <= 1
    np.testing.assert_allclose(columns["progress_sparse"], columns["value"] / 100, atol=1e-6)
    mine = columns["episode_index"] == 1
    done = int((columns["done_score"][mine] > 0.85).argmax())
    success = success_step(DRAWER[1])
    assert success is not None and abs(done - success) <= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["critic"] == ["reference", "", ""] and summary["camera"] == CAMERA
    assert [task["episodes"] for task in summary["tasks"]] == [3, 3] and summary["total"]["done"] == 4
    assert set(summary["best"]) >= {0, 3} and 2 in summary["worst"]
    assert "open the drawer" in result.stdout and "all" in result.stdout
    assert (folder / "episodes.png").read_bytes().startswith(b"\x89PNG")
    assert client._connection.keys("vlac:vlac:episode*") == []


def test_frames_between_those_asked_about_are_interpolated(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    table_of(tmp_path / "data", [("lift", reds(*range(0, 200, 20))), ("lift", reds(255, 0, 51))])
    result = label(client, tmp_path / "data", "--stride", 4, "--no-png", "--json")
    assert result.exit_code == 0, result.output
    columns = progress(tmp_path / "data" / "vlac-labels")
    # Of ten frames 0, 4, 8 and 9 were asked about.
    scores = np.full(13, np.nan)
    scores[[0, 4, 8, 9, 10, 12]] = np.array([0, 80, 160, 180, 255, 51]) / 255
    np.testing.assert_allclose(columns["done_score"], scores, rtol=1e-6)
    values = np.full(13, np.nan)
    values[[0, 4, 8, 9, 10, 12]] = np.array([0, 80, 160, 180, 255, 51]) / 2.55
    np.testing.assert_allclose(columns["value"], values, rtol=1e-6)
    wanted = np.concatenate([np.linspace(0, 160, 9), [180], [255, 153, 51]]) / 255
    np.testing.assert_allclose(columns["progress_sparse"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(columns["index"], np.arange(13))
    assert json.loads(result.stdout)["total"]["frames"] == 13


def test_what_is_labelled_is_not_asked_again(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100, 200)) for _ in range(5)])
    arguments = (data, "--no-png", "--json")
    first = json.loads(label(client, *arguments, "--episodes", "0-1,3").stdout)
    assert (first["labelled_now"], first["total"]["episodes"]) == (3, 3)
    labels = data / "vlac-labels" / "labels.jsonl"
    whole = labels.read_bytes()
    # As a program that is killed while it writes leaves it: the last episode is asked about once more.
    labels.write_bytes(whole[:-20])
    again = label(client, *arguments)
    second = json.loads(again.stdout)
    assert (second["labelled_now"], second["total"]["episodes"]) == (3, 5)
    assert "2 of 5 episodes are labelled already" in again.stderr
    np.testing.assert_array_equal(progress(labels.parent)["episode_index"], np.repeat(np.arange(5), 3))
    assert json.loads(label(client, *arguments).stdout)["labelled_now"] == 0
    refused = label(client, *arguments, "--stride", 2)
    assert refused.exit_code == 1 and "was made with stride 1, and now it is 2" in refused.stderr


def test_labels_are_not_mixed_with_those_of_another_dataset_or_reference(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100, 200)), ("turn", reds(0, 100))])
    reference = tmp_path / "reference.npy"
    np.save(reference, reds(0, 255))
    arguments, environ = (data, "--no-png"), {"VLAC_REFERENCE": str(reference)}
    assert label(client, *arguments, **environ).exit_code == 0
    assert label(client, *arguments, **environ).exit_code == 0
    np.save(reference, reds(0, 254))  # the same name, other frames
    for other in (environ, {}):
        refused = label(client, *arguments, **other)
        assert refused.exit_code == 1 and "was made with references" in refused.stderr
    np.save(reference, reds(0, 255))
    rows = (data / "episodes.csv").read_text()
    for changed in (rows.replace("lift", "drop"), rows.replace("0.npz,lift\n", "1.npz,lift\n0.npz,lift\n")):
        (data / "episodes.csv").write_text(changed)
        refused = label(client, *arguments, **environ)
        assert refused.exit_code == 1 and "is another recording than the one labelled" in refused.stderr
    (data / "episodes.csv").write_text(rows + "0.npz,lift\n")  # it has grown
    assert label(client, *arguments, **environ).exit_code == 0
    assert len(progress(data / "vlac-labels")["index"]) == 3 + 2 + 3


def test_a_dataset_may_move_with_its_labels(
    client: CriticClient, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100)), ("lift", reds(0, 255))])
    (data / "episodes.csv").write_text("file,task,reference\n0.npz,lift,1.npz\n1.npz,lift,\n")
    assert label(client, data, "--no-png").exit_code == 0
    data.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    again = label(client, "moved", "--no-png", "--json")
    assert again.exit_code == 0 and "2 of 2 episodes are labelled already" in again.stderr
    assert json.loads(again.stdout)["dataset"] == str(tmp_path / "moved")
    outside = ("--no-png", "--out", tmp_path / "out")
    assert label(client, "moved", *outside).exit_code == 0
    table_of(tmp_path / "other", [("lift", reds(0, 100))])
    assert "was made with dataset" in label(client, "other", *outside).stderr


def test_one_labels_at_a_time(client: CriticClient, tmp_path: Path) -> None:
    data = table_of(tmp_path / "data", [("lift", reds(0, 100))])
    how = How(str(data), "", "", 1, 1, 0.85, ())
    with open_labels(data / "vlac-labels", how):
        refused = label(client, data, "--no-png")
    assert refused.exit_code == 1 and "another `vlac-queue label` adds to" in refused.stderr
    # While nothing is labelled nothing can be mixed.
    assert "no worker listens" in label(client, data, "--no-png", "--task", "turn").stderr


def test_no_link_in_a_folder_of_labels_leads_elsewhere(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100, 200))])
    (data / "vlac-labels").mkdir()
    for name in ("labels.jsonl", ".partial.progress.parquet", "progress.parquet", "summary.json", "episodes.png"):
        (tmp_path / name).write_text("precious")
        (data / "vlac-labels" / name).symlink_to(tmp_path / name)
    refused = label(client, data)
    assert refused.exit_code == 2 and "can't write to" in refused.stderr
    (data / "vlac-labels" / "labels.jsonl").unlink()
    assert label(client, data).exit_code == 0
    assert {path.read_text() for path in tmp_path.glob("*.*") if path.suffix != ".log"} == {"precious"}


def test_labels_of_two_critics_are_not_mixed(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    worker = workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100, 200)) for _ in range(2)])
    assert label(client, data, "--no-png", "--episodes", 0).exit_code == 0
    worker.terminate()
    worker.wait()
    workers.start("tests.workers.critics:Busy")
    result = label(client, data, "--no-png")
    assert result.exit_code == 1 and "holds labels of another critic (tests.workers.critics:T" in result.stderr


def test_damaged_episodes_are_named_and_left_out(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    dataset = write_dataset(tmp_path / "data", [("lift", reds(0, 100, 200))] * 5, a_file=1)
    video = dataset / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    video.write_bytes(video.read_bytes()[:200])
    (dataset / f"videos/{CAMERA}/chunk-000/file-003.mp4").unlink()
    result = label(client, dataset)
    assert result.exit_code == 1
    assert "left out: episode 1: " in result.stderr and "left out: episode 3: " in result.stderr
    assert "file-001.mp4" in result.stderr and "Traceback" not in result.output
    columns = progress(dataset / "vlac-labels")
    assert sorted(set(columns["episode_index"])) == [0, 2, 4]
    np.testing.assert_array_equal(columns["index"], [0, 1, 2, 6, 7, 8, 12, 13, 14])
    summary = json.loads((dataset / "vlac-labels" / "summary.json").read_text())
    assert list(summary["left_out"]) == ["episode 1", "episode 3"]


def test_whatever_reading_raises_is_an_error_of_its_episode(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME)

    def damaged(stride: int) -> Clip:
        def numbered() -> Iterator[tuple[int, Frames]]:
            yield 0, reds(7)[0]
            raise KeyError("a library's own")

        return Clip(Path("damaged"), 3, numbered())

    def recording(index: int, clip: Callable[[int], Clip]) -> Recording:
        return Recording(index, f"episode {index}", "lift", None, None, None, clip=clip)

    def whole(stride: int) -> Clip:
        return Clip(Path("whole"), 2, enumerate(reds(0, 100)))

    recordings = iter([recording(0, damaged), recording(1, whole)])
    answers = {
        each.recording.index: each for each in asking.ask_all(client, recordings, lambda recording: None, 1)
    }
    assert isinstance(answers[0].error, FrameError) and "(KeyError: " in str(answers[0].error)
    assert answers[1].error is None and answers[1].length == 2


def test_what_a_dataset_does_not_list_or_show_is_told(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    runs = [("lift", reds(0, 100)), ("lift", reds(0, 1)[:0]), ("lift", reds(50))]
    dataset = write_dataset(tmp_path / "data", runs)
    info = dataset / "meta/info.json"
    info.write_text(info.read_text().replace('"total_episodes": 3', '"total_episodes": 5'))
    result = label(client, dataset, "--json", "--no-png")
    assert result.exit_code == 1
    left_out = json.loads(result.stdout)["left_out"]
    assert "lists 3 episodes of 5" in left_out["data"] and "holds no frame" in left_out["episode 1"]
    np.testing.assert_array_equal(progress(dataset / "vlac-labels")["index"], [0, 1, 2])


def test_an_episode_too_long_for_a_value_list_is_left_out_at_its_first_frame(
    client: CriticClient, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start(NAME)
    monkeypatch.setattr("vlac_queue.commands.score.reading.MAX_QUERY_BYTES", 10 * reds(0).nbytes)
    data = table_of(tmp_path / "data", [("lift", reds(*range(12))), ("lift", reds(*range(10)))])
    result = label(client, data, "--no-png", "--json")
    assert result.exit_code == 1 and "more than 10 frames of 32x32 pixels" in result.stderr
    assert [list(json.loads(result.stdout)[name]) for name in ("left_out", "best")] == [["0.npz"], [1]]
    assert "Labelled 1 episode" in result.stderr
    assert label(client, data, "--no-png", "--stride", 2, "--out", tmp_path / "half").exit_code == 0
    command = ["score", str(data / "0.npz"), "--task", "lift", "--json", "--redis-url", client.config.redis_url]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 1 and "take fewer by --stride" in shown.stderr


def test_many_damaged_episodes_do_not_end_what_has_begun_well(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100))] * 14)
    for number in range(1, 13):
        (data / f"{number}.npz").write_bytes(b"damaged")
    assert label(client, data, "--no-png", "--episodes", 0).exit_code == 0
    assert label(client, data, "--no-png").exit_code == 1
    np.testing.assert_array_equal(progress(data / "vlac-labels")["episode_index"], [0, 0, 13, 13])
    (data / "13.npz").unlink()  # among the best: the picture goes on without it
    result = label(client, data, "--episodes", "0,13")
    assert result.exit_code == 0 and "note: the picture is without 13.npz: " in result.stderr
    assert (data / "vlac-labels" / "episodes.png").is_file()


def test_an_episode_that_the_critic_fails_on_is_left_out(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    data = table_of(tmp_path / "data", [("lift", reds(0, 100)), ("refuse", reds(0, 100)), ("lift", reds(7))])
    result = label(client, data, "--no-png")
    assert result.exit_code == 1 and "left out: 1.npz: the critic failed" in result.stderr
    columns = progress(data / "vlac-labels")
    np.testing.assert_array_equal(columns["episode_index"], [0, 0, 2])
    assert np.isnan(columns["progress_sparse"][2]) and columns["done_score"][2] == np.float32(7 / 255)
    table_of(tmp_path / "wrong", [("refuse", reds(0, 100))] * 30)
    result = label(client, tmp_path / "wrong", "--no-png")
    assert result.exit_code == 1 and "the first 10 episodes were all left out" in result.stderr


def test_many_episodes_are_open_but_not_all(
    client: CriticClient, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start("tests.workers.critics:Busy", VLAC_MAX_BATCH="64")
    most, queries = [0], [0]
    send = asking._Labelling.send

    def counting(labelling: asking._Labelling) -> int:
        sent = send(labelling)
        most[0] = max(most[0], len(labelling.runs))
        queries[0] = max(queries[0], sum(len(run.pendings) for run in labelling.runs))
        return sent

    monkeypatch.setattr(asking._Labelling, "send", counting)
    data = table_of(tmp_path / "data", [("lift", reds(*range(8)))] * 20)
    result = label(client, data, "--no-png")
    assert result.exit_code == 0, result.output
    # The value queries of recordings whose frames are all sent come on top.
    assert most[0] == asking.OPEN_EPISODES < queries[0] <= MAX_OPEN + asking.OPEN_EPISODES


def test_where_redis_holds_much_the_first_episode_goes_on_alone(
    client: CriticClient, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start(NAME)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (12, 64, 64, 3), np.uint8)  # 12 kB a frame, whatever the codec
    data = table_of(tmp_path / "data", [("lift", noise)] * 6)
    held: list[int] = []
    frames = Episode.frames.fget  # type: ignore[attr-defined]
    assert frames is not None
    send = asking._Labelling.send

    def measuring(labelling: asking._Labelling) -> int:
        held.append(sum(run.episode.sent_bytes for run in labelling.runs))
        return send(labelling)

    monkeypatch.setattr(asking._Labelling, "send", measuring)
    limit = 400_000
    result = label(client, data, "--no-png", VLAC_MAX_PENDING_BYTES=str(limit))
    assert result.exit_code == 0, result.output
    assert max(held) < limit and max(held) > limit / 4


def test_no_text_of_a_dataset_reaches_the_terminal_as_a_sequence(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    evil = "Tür\x1b[2J\x9b31m\u202e"
    dataset = write_dataset(tmp_path / "data", [(evil, reds(0, 100)), ("refuse " + evil, reds(1))], in_video=False)
    for arguments in ((), ("--json",)):
        result = label(client, dataset, "--no-png", *arguments)
        assert result.exit_code == 1 and "T" in result.stdout
        assert not set(result.output) & set(evil[3:4] + evil[7:8] + evil[-1:])
    info = dataset / "meta/info.json"
    info.write_text(info.read_text().replace('"v3.0"', json.dumps("v9" + evil[3:])))
    refused = label(client, dataset)
    assert "of version v9?[2J?31m?" in refused.stderr


def test_errors_are_one_sentence(client: CriticClient, tmp_path: Path) -> None:
    data = table_of(tmp_path / "data", [("lift", reds(0, 100))])
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    expected = {
        (data,): "no worker listens",
        (tmp_path / "empty",): "no LeRobot dataset",
        (data, "--episodes", "x"): "--episodes takes numbers",
        (data, "--episodes", "1-"): "none of these episodes",
        (data, "--reference", 4): "has no episode 4",
        (data, "--out", tmp_path / "file" / "out"): "can't write to",
    }
    for arguments, message in expected.items():
        result = label(client, *arguments)
        assert result.exit_code and message in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output and result.stdout == ""
