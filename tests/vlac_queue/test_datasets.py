"""Reading datasets: LeRobot's as they lie on disk, and tables of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lerobot_dataset import CAMERA, write_dataset
from vlac_queue import FrameError
from vlac_queue.commands.datasets.opening import find_recording, open_dataset
from vlac_queue.commands.datasets.recording import chosen_episodes
from vlac_queue.frames import Frames


def shades(*numbers: int, side: int = 64) -> Frames:
    """uint8 (T,side,side,3): each frame grey by its number."""
    return np.stack([np.full((side, side, 3), 5 * number, np.uint8) for number in numbers])


def read(frames: object) -> list[int]:
    return [round(float(frame.mean()) / 5) for frame in frames]  # type: ignore[attr-defined]


EPISODES = [
    ("lift the cup", shades(*range(0, 8))),
    ("open the drawer", shades(*range(10, 21))),
    ("lift the cup", shades(*range(30, 36))),
]


@pytest.mark.parametrize("in_video", [True, False], ids=["video", "pictures"])
def test_each_episode_gives_its_own_frames(tmp_path: Path, in_video: bool) -> None:
    write_dataset(tmp_path, EPISODES, in_video=in_video)
    dataset = open_dataset(tmp_path)
    recordings = list(dataset.recordings())
    assert (dataset.camera, dataset.episodes) == (CAMERA, 3)
    assert [(each.index, each.task, each.length, each.first) for each in recordings] == [
        (0, "lift the cup", 8, 0),
        (1, "open the drawer", 11, 8),
        (2, "lift the cup", 6, 19),
    ]
    assert read(recordings[0].clip(1).frames) == list(range(8))
    assert read(recordings[1].clip(4).frames) == [10, 14, 18, 20]
    assert read(recordings[2].clip(1).frames) == list(range(30, 36))
    clip = recordings[1].clip(3)
    assert clip.count == 5 and next(clip.frames).shape == (64, 64, 3)


def test_a_camera_is_chosen_by_the_end_of_its_key(tmp_path: Path) -> None:
    write_dataset(tmp_path, EPISODES[:1], cameras=[CAMERA, "observation.images.wrist"])
    with pytest.raises(FrameError, match=r"several cameras.*--camera: observation\.images\.top, observation"):
        open_dataset(tmp_path)
    with pytest.raises(FrameError, match="no single camera 'side'"):
        open_dataset(tmp_path, camera="side")
    assert open_dataset(tmp_path, camera="wrist").camera == "observation.images.wrist"
    info = tmp_path / "meta" / "info.json"
    about = json.loads(info.read_text())
    about["features"][CAMERA]["info"] = {"video.is_depth_map": True}
    info.write_text(json.dumps(about))
    assert open_dataset(tmp_path).camera == "observation.images.wrist"


def test_an_episode_of_several_tasks_has_the_one_of_its_first_frame(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_dataset(tmp_path, EPISODES)
    file = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1]["tasks"] = ["lift the cup", "open the drawer"]
    pq.write_table(pq.read_table(file).from_pylist(rows), file)
    assert find_recording(open_dataset(tmp_path), 1).task == "open the drawer"
    assert find_recording(open_dataset(tmp_path, task="close it"), 1).task == "close it"
    with pytest.raises(FrameError, match="has no episode 3; it has 3"):
        find_recording(open_dataset(tmp_path), 3)


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_dataset(tmp_path, EPISODES)
    video = tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    data = tmp_path / "data/chunk-000/file-001.parquet"
    video.write_bytes(video.read_bytes()[:300])
    pq.write_table(pq.read_table(data).slice(1), data)
    first, _, last = open_dataset(tmp_path).recordings()
    with pytest.raises(FrameError, match=r"file-000\.mp4 is no video or picture"):
        list(first.clip(1).frames)
    with pytest.raises(FrameError, match="has 5 frames of episode 2, which has 6"):
        list(last.clip(1).frames)
    video.unlink()
    with pytest.raises(FrameError, match="No such file"):
        list(first.clip(1).frames)
    (tmp_path / "meta/info.json").write_text('{"codebase_version": "v2.1", "features": {}, "fps": 10}')
    with pytest.raises(FrameError, match=r"version v2\.1, and v3 is needed"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"fps": 0}, "Expected `float` > 0"),
        ({"features": ["front"]}, "Expected `object`"),
        ({"features": {CAMERA: {"dtype": "video", "info": "rgb"}}}, "Expected `object | null`"),
        ({"video_path": "{file}.mp4"}, "names files by"),
        ({"video_path": "{chunk_index:9999999999d}"}, "names files by"),
        ({"data_path": "{video_key.__class__}"}, "names files by"),
    ],
)
def test_an_info_file_that_is_none_is_refused(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    write_dataset(tmp_path, EPISODES[:1], in_video=False)
    info = tmp_path / "meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | about))
    with pytest.raises(FrameError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": None}, "not as LeRobotDataset v3 has it"),
        ({"length": -1}, "not as LeRobotDataset v3 has it"),
        ({"length": 10**12}, "has 11 frames of episode 1"),
        ({f"videos/{CAMERA}/from_timestamp": None}, "not as LeRobotDataset v3 has it"),
        ({f"videos/{CAMERA}/chunk_index": None}, "not as LeRobotDataset v3 has it"),
        ({f"videos/{CAMERA}/from_timestamp": 1e6}, "has no frame at"),
    ],
)
def test_a_damaged_row_is_an_error_of_its_episode(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_dataset(tmp_path, EPISODES)
    change_rows(tmp_path, 1, change)
    first, damaged, last = open_dataset(tmp_path).recordings()
    assert len(list(first.clip(1).frames)) == 8 and len(list(last.clip(5).frames)) == 2
    with pytest.raises(FrameError, match=message):
        list(damaged.clip(1).frames)


def change_rows(dataset: Path, row: int, change: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = dataset / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[row] |= change
    pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.parametrize("in_video", [True, False], ids=["video", "pictures"])
def test_episodes_of_one_frame_and_of_none(tmp_path: Path, in_video: bool) -> None:
    write_dataset(
        tmp_path, [("lift", shades(1)), ("lift", shades(2, 3)[:0]), ("lift", shades(4, 5))], in_video=in_video
    )
    one, none, two = open_dataset(tmp_path).recordings()
    assert (read(one.clip(3).frames), read(two.clip(3).frames)) == ([1], [4, 5])
    with pytest.raises(FrameError, match="holds no frame"):
        list(none.clip(1).frames)


def test_pictures_that_are_out_of_order_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_dataset(tmp_path, EPISODES[:1], in_video=False)
    file = tmp_path / "data/chunk-000/file-000.parquet"
    pq.write_table(pa.Table.from_pylist(pq.read_table(file).to_pylist()[::-1]), file)
    (recording,) = open_dataset(tmp_path).recordings()
    with pytest.raises(FrameError, match="lacks frame 1 of episode 0"):
        list(recording.clip(1).frames)


def test_a_list_of_episodes_with_a_gap_is_told(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_dataset(tmp_path, EPISODES, in_video=False)
    first, second = (tmp_path / f"meta/episodes/chunk-000/file-{number:03}.parquet" for number in (0, 1))
    rows = pq.read_table(first)
    pq.write_table(rows.slice(2), second)
    pq.write_table(rows.slice(0, 2), first)
    whole = open_dataset(tmp_path)
    assert (whole.episodes, whole.damage) == (3, ())
    second.write_bytes(second.read_bytes()[:-30])
    damaged = open_dataset(tmp_path)
    assert damaged.episodes == len(list(damaged.recordings())) == 2
    assert "file-001.parquet can't be read" in damaged.damage[0]
    second.unlink()
    assert "lists 2 episodes of 3: a file is missing" in open_dataset(tmp_path).damage[0]


def test_files_may_be_links_as_the_hub_caches_them(tmp_path: Path) -> None:
    """huggingface_hub keeps what it downloads under its hash, and links there from the names."""
    root = write_dataset(tmp_path / "recorded", EPISODES[:2])
    snapshot, blobs = tmp_path / "hub/snapshots/1a2b", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in root.rglob("*") if path.is_file()):
        file.rename(blobs / str(number))
        link = snapshot / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert [len(list(each.clip(1).frames)) for each in open_dataset(snapshot).recordings()] == [8, 11]


def test_no_path_leads_out_of_the_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", EPISODES[:1])
    (tmp_path / "elsewhere.mp4").write_bytes(b"another's")
    info = tmp_path / "data/meta/info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"video_path": "../elsewhere.mp4"}))
    (recording,) = open_dataset(tmp_path / "data").recordings()
    with pytest.raises(FrameError, match="leads out of the dataset"):
        recording.clip(1)


def test_a_table_lists_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", frames=shades(1, 2, 3, 4))
    np.savez(tmp_path / "b.npz", frames=shades(5, 6))
    (tmp_path / "episodes.csv").write_text('file,task,reference\na.npz,"lift, then turn",\nb.npz,turn,a.npz\n')
    dataset = open_dataset(tmp_path)
    first, second = dataset.recordings()
    assert dataset.episodes == 2 and (first.name, first.task, first.reference) == (
        "a.npz",
        "lift, then turn",
        None,
    )
    assert second.reference == tmp_path / "a.npz" and read(first.clip(2).frames) == [1, 3, 4]
    assert open_dataset(tmp_path / "episodes.csv").episodes == 2
    with pytest.raises(FrameError, match="--camera is for LeRobot"):
        open_dataset(tmp_path, camera="top")
    (tmp_path / "episodes.csv").write_text("file,task\na.npz\n")
    with pytest.raises(FrameError, match="line 2: no task"):
        open_dataset(tmp_path)
    table = tmp_path / "episodes.csv"
    for text, message in {
        "file;task\na.npz;lift\n": "has no column file .*separated by commas",
        "file,task\n\n a.npz, \n": "line 3: no task",
        "file,task\na.npz,schlie\xdfen\n": "no table of recordings in UTF-8",
    }.items():
        table.write_bytes(text.encode("latin-1"))
        with pytest.raises(FrameError, match=message):
            open_dataset(tmp_path)
    table.write_text("\ufefffile, task\n a.npz ,Tür schließen \n", encoding="utf-8")
    (odd,) = open_dataset(tmp_path).recordings()
    assert (odd.name, odd.task, len(list(odd.clip(1).frames))) == ("a.npz", "Tür schließen", 4)
    table.unlink()
    with pytest.raises(FrameError, match=r"no LeRobot dataset .* and has no episodes\.csv"):
        open_dataset(tmp_path)


def test_episodes_are_chosen_by_numbers_and_ranges() -> None:
    assert [index for index in range(60) if chosen_episodes("0-2, 7,57-")(index)] == [0, 1, 2, 7, 57, 58, 59]
    for text in ("", "a", "-3", "1--2"):
        with pytest.raises(ValueError, match="0-9,12,40-"):
            chosen_episodes(text)
