"""Writes small LeRobotDatasets v3, laid out as lerobot's own writer does; `make test-lerobot` compares with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.frames import Frames

CAMERA = "observation.images.top"
_FPS = 10
#: lerobot's own codec where PyAV has it.
_CODECS = ("libsvtav1", "libx264")


def write_dataset(
    root: Path,
    episodes: Sequence[tuple[str, Frames]],
    *,
    in_video: bool = True,
    a_file: int = 2,
    cameras: Sequence[str] = (CAMERA,),
) -> Path:
    """Write a dataset of episodes: each a task and its frames, uint8 (T,H,W,3); return its folder.

    Args:
        in_video: in mp4 files, else as pictures in the tables of data.
        a_file: episodes in one file.
        cameras: the keys of cameras, which all see the same.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tasks = list(dict.fromkeys(task for task, _ in episodes))
    rows, first = [], 0
    for start in range(0, len(episodes), a_file):
        part, number = episodes[start : start + a_file], start // a_file
        data: list[dict[str, Any]] = []
        seconds = 0.0
        for index, (task, frames) in enumerate(part, start):
            row: dict[str, Any] = {
                "episode_index": index, "tasks": [task], "length": len(frames), "dataset_from_index": first,
                "dataset_to_index": first + len(frames), "data/chunk_index": 0, "data/file_index": number,
            }  # fmt: skip
            for camera in cameras if in_video else ():
                place = f"videos/{camera}"
                row |= {f"{place}/chunk_index": 0, f"{place}/file_index": number}
                row |= {f"{place}/from_timestamp": seconds, f"{place}/to_timestamp": seconds + len(frames) / _FPS}
            rows.append(row)
            for frame_index, frame in enumerate(frames):
                each: dict[str, Any] = {"timestamp": np.float32(frame_index / _FPS), "frame_index": frame_index}
                each |= {"episode_index": index, "index": first + frame_index, "task_index": tasks.index(task)}
                if not in_video:
                    each |= {camera: {"bytes": _png(frame), "path": None} for camera in cameras}
                data.append(each)
            first += len(frames)
            seconds += len(frames) / _FPS
        _write(pa, pq, root / f"data/chunk-000/file-{number:03}.parquet", data)
        for camera in cameras if in_video else ():
            shown = np.concatenate([frames for _, frames in part])
            write_video(root / f"videos/{camera}/chunk-000/file-{number:03}.mp4", shown)
    _write(pa, pq, root / "meta/episodes/chunk-000/file-000.parquet", rows)
    numbered = [{"task_index": number, "task": task} for number, task in enumerate(tasks)]
    _write(pa, pq, root / "meta/tasks.parquet", numbered)
    dtype = "video" if in_video else "image"
    features = {name: {"dtype": dtype} for name in cameras}
    info = {"codebase_version": "v3.0", "fps": _FPS, "total_episodes": len(episodes), "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def _write(pa: Any, pq: Any, path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_video(path: Path, frames: Frames) -> None:
    """Write frames, uint8 (T,H,W,3), as a video."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SVT_LOG", "1")  # its encoder talks
    codec = next(name for name in _CODECS if name in av.codecs_available)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=_FPS, options={"crf": "20", "g": "2"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _png(frame: Frames) -> bytes:
    import io

    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, frame, format="png")
    return file.getvalue()
