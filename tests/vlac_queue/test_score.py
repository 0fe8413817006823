"""`vlac-queue score`: reading runs, VLAC's figures, and whole runs through a real worker."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.conftest import Workers
from tests.lerobot_dataset import write_dataset
from tests.rollouts import ROLLOUTS as SHIPPED
from vlac_queue import CriticClient, FrameError
from vlac_queue.client import Episode, Pending
from vlac_queue.commands.asking import MAX_OPEN
from vlac_queue.commands.demo.rollouts import success_step
from vlac_queue.commands.score import reading
from vlac_queue.commands.score.command import ask, score
from vlac_queue.commands.score.figures import make_score, negative_rate, summary, value_order_correlation
from vlac_queue.commands.score.picture import Thumbnails
from vlac_queue.commands.score.reading import open_clip, read_reference
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict

ROLLOUTS = {rollout.name: rollout for rollout in SHIPPED}
REFERENCE = ROLLOUTS["door-open-v3_reference_s0"]


def colour(number: int, height: int = 32, width: int = 48) -> Frames:
    """uint8 (H,W,3): grey by its number, with a white bar at the left."""
    frame = np.full((height, width, 3), 5 * number, np.uint8)
    frame[:, :8] = 255
    return frame


def write_video(path: Path, frames: Frames) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_picture(path: Path, frame: Frames) -> None:
    from matplotlib.image import imsave

    imsave(path, frame)


def middles(frames: Iterator[Frames]) -> list[int]:
    """The grey of each frame at its middle, rounded to the numbers of `colour`."""
    return [round(float(frame[10:20, 20:30].mean()) / 5) for frame in frames]


# Reading.


def test_a_videos_frames_are_read_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "run.mp4", np.stack([colour(number) for number in range(40)]))
    clip = open_clip(tmp_path / "run.mp4")
    frames = list(clip.frames)
    assert clip.count == len(frames) == 40
    assert all(frame.dtype == np.uint8 and frame.shape == (32, 48, 3) for frame in frames)
    assert middles(iter(frames)) == list(range(40))
    assert frames[0][:, :6].mean() > 240
    clip = open_clip(tmp_path / "run.mp4", 7)
    assert clip.count == 6 and middles(clip.frames) == [0, 7, 14, 21, 28, 35]


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[..., 0], frame[..., 2] = 200, 60
    write_video(tmp_path / "run.mp4", frame[None])
    write_picture(tmp_path / "run.png", frame)
    for name, slack in (("run.mp4", 12), ("run.png", 0)):
        (read,) = open_clip(tmp_path / name).frames
        assert np.abs(read.astype(int) - frame).max() <= slack


def test_a_video_that_is_cut_off_or_damaged_is_refused_and_one_that_was_trimmed_is_not(tmp_path: Path) -> None:
    import av

    whole, cut, trimmed = (tmp_path / f"{name}.mp4" for name in ("whole", "cut", "trimmed"))
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert len(list(open_clip(whole).frames)) == 40
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(FrameError, match=r"cut\.mp4 is (cut off|no video)"):
        list(open_clip(cut).frames)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(1).bytes(3000)
    cut.write_bytes(content)
    with pytest.raises(FrameError, match=r"cut\.mp4 is (damaged at|no video)"):
        list(open_clip(cut).frames)
    # The first second is behind, as a phone trims: its frames are in the file, and not shown.
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(whole)) as source, av.open(str(trimmed), "w", options=options) as container:
        copied = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                second = int(1 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - second, packet.dts - second, copied
                container.mux(packet)
    assert len(list(open_clip(trimmed).frames)) == 30


def test_a_video_held_sideways_comes_upright(tmp_path: Path) -> None:
    path = tmp_path / "run.mp4"
    write_video(path, colour(10)[None])
    # The matrix in the track's header says: turn by 90 degrees clockwise when showing.
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (frame,) = open_clip(path).frames
    assert frame.shape == (48, 32, 3)
    assert frame[:6].mean() > 240 and frame[10:].mean() < 80


def test_a_folders_pictures_come_in_natural_order(tmp_path: Path) -> None:
    numbers = (1, 2, 9, 10, 11, 30)
    for number in numbers:
        write_picture(tmp_path / f"frame {number}{'.PNG' if number % 2 else '.jpg'}", colour(number))
    (tmp_path / "._frame 1.png").write_bytes(b"left by another system")
    (tmp_path / "notes.txt").write_text("no picture")
    clip = open_clip(tmp_path)
    assert clip.count == 6 and middles(clip.frames) == list(numbers)
    assert middles(open_clip(tmp_path, 2).frames) == [1, 9, 11]


def test_a_pictures_name_is_no_pattern(tmp_path: Path) -> None:
    write_picture(tmp_path / "a%03d.png", colour(3))
    for number in range(2):
        write_picture(tmp_path / f"a{number:03}.png", colour(9))
    (frame,) = open_clip(tmp_path / "a%03d.png").frames
    np.testing.assert_array_equal(frame, colour(3))


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
def test_arrays_are_read(name: str, tmp_path: Path) -> None:
    frames = np.stack([colour(number) for number in range(5)])
    if name.endswith(".npz"):
        np.savez_compressed(tmp_path / name, frames=frames, task="other arrays are ignored")
    else:
        np.save(tmp_path / name, frames)
    clip = open_clip(tmp_path / name, 2)
    assert clip.count == 3
    np.testing.assert_array_equal(list(clip.frames), frames[::2])
    np.save(tmp_path / "one.npy", frames[0])
    np.testing.assert_array_equal(list(open_clip(tmp_path / "one.npy").frames), frames[:1])


def test_of_a_reference_the_last_frame_is_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "run.npy", np.stack([colour(number) for number in range(9)]))
    assert middles(iter(read_reference(tmp_path / "run.npy", 3))) == [0, 3, 6, 8]
    assert middles(iter(read_reference(tmp_path / "run.npy", 4))) == [0, 4, 8]
    write_video(tmp_path / "run.mp4", np.stack([colour(number) for number in range(9)]))
    assert middles(iter(read_reference(tmp_path / "run.mp4", 5))) == [0, 5, 8]


def test_a_reference_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "run.npy", np.stack([colour(number) for number in range(9)]))
    monkeypatch.setattr(reading, "MAX_BATCH_BYTES", 4 * colour(0).nbytes)
    with pytest.raises(FrameError, match="raise its stride"):
        read_reference(tmp_path / "run.npy")
    assert len(read_reference(tmp_path / "run.npy", 3)) == 4


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", colour(1))
    write_picture(tmp_path / "2.png", colour(2, width=40))
    with pytest.raises(FrameError, match=r"1\.png is 48x32 pixels and 2\.png 40x32"):
        list(open_clip(tmp_path).frames)


def _broken(kind: str, folder: Path) -> Path:
    path = folder / kind
    if kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("no picture")
    elif kind in ("text.mp4", "text.npz", "text.npy"):
        path.write_text("these are no frames")
    elif kind == "empty.mp4":
        path.write_bytes(b"")
    elif kind == "cut.mp4":
        write_video(path, np.stack([colour(number) for number in range(9)]))
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "sound.wav":
        samples = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 836, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 800
        )
        path.write_bytes(samples + bytes(800))
    elif kind == "cut.npz":
        np.savez_compressed(path, frames=np.stack([colour(number) for number in range(9)]))
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "other.npz":
        np.savez(path, pictures=colour(1))
    elif kind == "float.npy":
        np.save(path, np.zeros((3, 8, 8, 3)))
    elif kind == "grey.npy":
        np.save(path, np.zeros((3, 8, 8), np.uint8))
    elif kind == "none.npy":
        np.save(path, np.zeros((0, 8, 8, 3), np.uint8))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing.mp4", "does not exist"),
        ("folder", "holds no .png, .jpg"),
        ("text.mp4", "no video or picture"),
        ("empty.mp4", "no video or picture"),
        ("cut.mp4", "no video or picture"),
        ("sound.wav", "no picture stream"),
        ("text.npz", "holds no frames (no file of numpy's, or one of objects)"),
        ("text.npy", "holds no frames (no file of numpy's, or one of objects)"),
        ("cut.npz", "holds no frames"),
        ("other.npz", "frames"),
        ("float.npy", "uint8"),
        ("grey.npy", "3 channels"),
        ("none.npy", "no frame"),
    ],
)
def test_what_can_not_be_read_is_named(kind: str, reason: str, tmp_path: Path) -> None:
    path = _broken(kind, tmp_path)
    with pytest.raises(FrameError) as caught:
        open_clip(path)
    assert reason in str(caught.value) and kind in str(caught.value)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.mp4").write_bytes(b"a video")
    np.save(tmp_path / "run.npy", colour(1))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'vlac-queue\[video\]'"):
        open_clip(tmp_path / "run.mp4")
    assert open_clip(tmp_path / "run.npy").count == 1


# Figures.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # What scipy.stats.spearmanr(values, range(len(values))) of scipy 1.17.1 gives.
        ([0, 10, 10, 35, 30, 60, 60, 60, 95], 0.961919879757386),
        ([0.0, -3.5, 12, 120, 12, -3.5, 50], 0.32732683535398865),
        ([1, 1, 2], 0.8660254037844387),
        ([5, 3, 1], -1.0),
        ([0, 1], 1.0),
    ],
)
def test_voc_is_scipys_rank_correlation_with_time(values: list[float], expected: float) -> None:
    assert value_order_correlation(values) == (pytest.approx(expected, abs=1e-12), "")


@pytest.mark.parametrize(("values", "reason"), [([7.5, 7.5, 7.5], "equal"), ([0.0], "two values")])
def test_voc_is_undefined_without_an_order(values: list[float], reason: str) -> None:
    number, why = value_order_correlation(values)
    assert number is None and reason in why


def test_negative_rate_counts_steps_backwards() -> None:
    assert negative_rate([10, -1, 0, -0.5]) == (0.5, "")
    assert negative_rate([0, 0]) == (0.0, "")
    number, why = negative_rate([])
    assert number is None and "no two frames" in why


def test_frames_are_numbered_as_in_the_recording() -> None:
    verdicts = [DoneVerdict(done=place >= 3, score=place / 4, frame=place) for place in range(5)]
    made = make_score(
        verdicts, ValueVerdict((0.0, 40.0, 90.0), (40.0, 50.0)),
        source="run.mp4", task="task", stride=10, done_threshold=0.7, value_stride=2,
    )  # fmt: skip
    assert made.frames == (0, 10, 20, 30, 40) and made.value_frames == (0, 20, 40)
    assert made.first_done == 30
    assert json.loads(made.to_json())["done_scores"] == [0, 0.25, 0.5, 0.75, 1]
    assert "first at frame 30" in summary(made) and "every 10th" in summary(made)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 64, 65, 1000])
def test_thumbnails_are_spread_over_the_run(count: int) -> None:
    thumbnails = Thumbnails()
    for number in range(count):
        thumbnails.add(number, np.full((4, 4, 3), number % 256, np.uint8))
    chosen = thumbnails.chosen()
    places = [place for place, _ in chosen]
    assert len(places) == min(count, 8) and places[0] == 0 and places[-1] == count - 1
    assert all(frame[0, 0, 0] == place % 256 for place, frame in chosen)
    assert np.all(np.abs(np.array(places) - np.linspace(0, count - 1, len(places))) <= max(1, count / 32))


# Through a worker.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The recorded door rollouts as files; the reference as a folder of pictures."""
    for name in ("expert_s3", "random_s21"):
        np.savez(tmp_path / f"{name}.npz", frames=ROLLOUTS[f"door-open-v3_{name}"].frames)
    (tmp_path / "reference").mkdir()
    for number, frame in enumerate(REFERENCE.frames):
        write_picture(tmp_path / "reference" / f"{number}.png", frame)
    return tmp_path


def run(client: CriticClient, *arguments: Any, **environ: str) -> Result:
    command = [*arguments, "--task", REFERENCE.task, "--redis-url", client.config.redis_url]
    return CliRunner().invoke(
        score, list(map(str, command)), env={"VLAC_DONE_THRESHOLD": "0.85", **environ}, catch_exceptions=False
    )


def test_an_experts_run_scores_well_and_a_random_one_does_not(
    client: CriticClient, workers: Workers, files: Path
) -> None:
    workers.start()
    scores = {}
    for name in ("expert_s3", "random_s21"):
        result = run(client, files / f"{name}.npz", "--reference", files / "reference", "--out", files / name)
        assert result.exit_code == 0, result.output
        scores[name] = json.loads((files / name / "score.json").read_text())
        assert (files / name / "score.png").read_bytes().startswith(b"\x89PNG")
        assert f"VOC            {scores[name]['voc']:.3f}" in result.stdout
    expert, random = scores["expert_s3"], scores["random_s21"]
    success = success_step(ROLLOUTS["door-open-v3_expert_s3"])
    assert expert["voc"] > 0.95 and expert["negative_rate"] <= 0.1
    assert success is not None and abs(expert["first_done"] - success) <= 1
    assert expert["done_scores"] == pytest.approx([value / 100 for value in expert["values"]])
    assert random["voc"] < 0.6 and random["first_done"] is None and random["values"][-1] < 20
    assert len(random["frames"]) == len(random["values"]) == len(ROLLOUTS["door-open-v3_random_s21"].frames)


def test_a_run_that_ships_and_an_episode_of_a_dataset_bring_their_task(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start()
    runs = [ROLLOUTS[f"door-open-v3_{name}"] for name in ("reference_s0", "expert_s3")]
    dataset = write_dataset(tmp_path / "data", [(run.task, run.frames) for run in runs])
    np.savez(tmp_path / "reference.npz", frames=REFERENCE.frames)
    reference = ("--reference", tmp_path / "reference.npz")

    def scored(*arguments: Any) -> Any:
        command = [*map(str, arguments), "--json", "--redis-url", client.config.redis_url]
        result = CliRunner().invoke(score, command, env={"VLAC_DONE_THRESHOLD": "0.85"}, catch_exceptions=False)
        return json.loads(result.stdout) if result.exit_code == 0 else result.output

    shipped, episode = scored("door-open-v3_expert_s3"), scored(dataset, "--episode", 1, *reference)
    assert shipped["task"] == episode["task"] == REFERENCE.task
    assert episode["source"] == f"{dataset}, episode 1" and shipped["voc"] > 0.95
    np.testing.assert_allclose(episode["done_scores"], shipped["done_scores"], atol=0.1)
    compared = scored(dataset, "--episode", 1, "--reference", 0)
    np.testing.assert_allclose(compared["done_scores"], episode["done_scores"], atol=0.1)
    assert "does not exist" in scored(dataset, "--episode", 1, "--reference", "0.mp4")
    assert "such as --episode 0" in scored(dataset)
    assert "has no episode 2" in scored(dataset, "--episode", 2)
    assert "--task 'open the drawer'" in scored(tmp_path / "reference.npz")


def test_json_stands_alone_on_stdout(
    client: CriticClient, workers: Workers, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start()
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    made = run(client, "expert_s3.npz", "--reference", "reference", "--stride", 3, "--json", VLAC_VALUE_STRIDE="2")
    assert made.exit_code == 0, made.output
    scored = json.loads(made.stdout)
    count = len(ROLLOUTS["door-open-v3_expert_s3"].frames)
    assert count % 3 == 2 and scored["frames"] == [*range(0, count, 3), count - 1]
    *others, last = scored["frames"]
    assert scored["value_frames"] == [*others[::2], last] and len(scored["values"]) == len(scored["value_frames"])
    assert sorted(files.iterdir()) == before
    made = run(client, "expert_s3.npz", "--reference", "reference", "--json", "--out", "scored", "--no-png")
    assert json.loads(made.stdout) == json.loads((files / "scored" / "score.json").read_text())
    assert [each.name for each in (files / "scored").iterdir()] == ["score.json"]


def test_one_frame_is_judged_but_has_no_values(client: CriticClient, workers: Workers, files: Path) -> None:
    workers.start()
    result = run(client, files / "reference" / "4.png", "--reference", files / "reference", "--out", files / "out")
    assert result.exit_code == 0, result.output
    scored = json.loads((files / "out" / "score.json").read_text())
    assert scored["done_scores"] == [pytest.approx(4 / (len(REFERENCE.frames) - 1))]
    assert scored["values"] == scored["critics"] == scored["value_frames"] == []
    assert scored["voc"] is None and scored["voc_undefined"] == "there are no two frames to compare"
    assert scored["negative_rate"] is None and "undefined" in result.stdout
    assert (files / "out" / "score.png").read_bytes().startswith(b"\x89PNG")


def test_values_that_are_all_equal_have_no_voc(client: CriticClient, workers: Workers, files: Path) -> None:
    workers.start()
    np.save(files / "still.npy", REFERENCE.frames[[3, 3, 3]])
    result = run(client, files / "still.npy", "--reference", files / "reference", "--json")
    scored = json.loads(result.stdout)
    assert len(set(scored["values"])) == 1 and scored["negative_rate"] == 0
    assert scored["voc"] is None and scored["voc_undefined"] == "all values are equal"


def test_many_questions_are_open_but_not_all(
    client: CriticClient, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start()
    opened: list[int] = []
    ask_done = Episode.ask_done

    def counting(episode: Episode) -> Any:
        pending = ask_done(episode)
        opened.append(episode.queries - episode.answers)
        return pending

    monkeypatch.setattr(Episode, "ask_done", counting)
    # A critic that is slower than the reading of frames.
    monkeypatch.setattr(Pending, "done", lambda pending: False)
    answered: list[int] = []
    frames = [colour(number % 50) for number in range(3 * MAX_OPEN)]
    reference = np.stack([colour(number) for number in range(50)])
    verdicts, value = ask(client, "task", reference, frames, on_answer=lambda: answered.append(len(opened)))
    assert [verdict.frame for verdict in verdicts] == list(range(3 * MAX_OPEN))
    assert [verdict.score for verdict in verdicts] == [pytest.approx(number % 50 / 49) for number in range(192)]
    assert value is not None and len(value.values) == 3 * MAX_OPEN and len(answered) == 3 * MAX_OPEN + 1
    assert max(opened) == MAX_OPEN


def test_errors_are_one_sentence(client: CriticClient, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "broken.mp4").write_text("no video")
    (files / "file").write_text("no folder")
    expected = {
        ("expert_s3.npz",): "no worker listens",
        ("missing.mp4",): "does not exist",
        ("broken.mp4",): "no video or picture",
        ("expert_s3.npz", "--reference", "missing.npz"): "does not exist",
        ("expert_s3.npz", "--queue", "not a queue"): "queue must be",
        ("expert_s3.npz", "--timeout", "0"): "timeout_s must be",
        ("expert_s3.npz", "--out", "file/out"): "can't write to",
    }
    monkeypatch.chdir(files)
    for arguments, message in expected.items():
        result = run(client, *arguments)
        code = 2 if "write" in message else 1
        assert result.exit_code == code and message in result.stderr, (arguments, result.output)
        assert result.stdout == "" and "Traceback" not in result.stderr
    assert client._connection.keys("vlac:*:episode*") == []


def test_a_missing_matplotlib_is_named_before_the_work(
    client: CriticClient, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(client, files / "expert_s3.npz", "--out", files / "out")
    assert result.exit_code == 1 and "pip install 'vlac-queue[plot]'" in result.stderr
    assert not (files / "out").exists()
