"""Read a LeRobotDataset v3 as it lies on disk, with pyarrow and PyAV; neither torch nor lerobot is needed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.score.reading import Clip, every, frames_at, of_one_size, picture
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames

#: Where files lie if info.json does not say.
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
#: Rows of a parquet file read at a time.
_ROWS = 64


def is_lerobot(path: Path) -> bool:
    """Return whether a folder is a LeRobot dataset, of whatever version."""
    return (path / "meta" / "info.json").is_file()


def open_lerobot(path: Path, *, camera: str | None = None, task: str | None = None) -> Dataset:
    """Open a LeRobotDataset v3.

    Args:
        path: its folder.
        camera: its camera's key, such as observation.images.top, or the end of it, such as top.
        task: what the robot should do in all episodes, instead of the dataset's own tasks.

    Raises:
        FrameError: it is of another version, has several cameras and none is chosen, or is damaged.
        ImportError: pyarrow is missing.
    """
    _import_parquet()
    try:
        info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
        version, features = str(info["codebase_version"]), info["features"]
        fps = float(info["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FrameError(f"{path}/meta/info.json can't be read ({error!r}); it is no LeRobotDataset v3.") from None
    if not version.startswith("v3."):
        raise FrameError(
            f"{path} is a LeRobot dataset of version {version[:20]}, and v3 is needed; convert it with lerobot's "
            "convert_dataset_v21_to_v30."
        )
    key = _camera(path, features, camera)
    layout = _Layout(path, info, key, features[key]["dtype"] == "video", fps, task)
    return Dataset(path, key, layout.episodes, layout.recordings)


def _camera(path: Path, features: Mapping[str, Any], wanted: str | None) -> str:
    """Return the key of the camera that is meant."""
    cameras = [key for key, feature in features.items() if _shows_colours(feature)]
    if not cameras:
        raise FrameError(f"{path} has no camera: no feature of dtype video or image.")
    found = [key for key in cameras if wanted is None or key == wanted or key.endswith(f".{wanted}")]
    exact = [key for key in found if key == wanted]
    if len(exact or found) != 1:
        which = "several cameras" if wanted is None else f"no single camera {wanted!r}"
        raise FrameError(f"{path} has {which}; choose one of them with --camera: {', '.join(cameras)}.")
    return (exact or found)[0]


def _shows_colours(feature: Mapping[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    depth = about.get("is_depth_map") or about.get("video.is_depth_map")
    return feature.get("dtype") in ("video", "image") and not depth


@dataclass
class _Layout:
    """Where a dataset's frames lie. Threads may share it."""

    path: Path
    info: Mapping[str, Any]
    camera: str
    in_video: bool
    fps: float
    task: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Columns of the data file read last, and its path: episodes that follow one another share it.
    read_last: tuple[Path, dict[str, Any]] | None = None

    @cached_property
    def files(self) -> list[Path]:
        """The files that list the episodes, in order."""
        found = sorted((self.path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not found:
            raise FrameError(f"{self.path}/meta/episodes holds no parquet file; was the dataset finalized?")
        return found

    @property
    def episodes(self) -> int:
        """How many there are."""
        parquet = _import_parquet()
        return sum(_readable(file, partial(parquet.read_metadata, file)).num_rows for file in self.files)

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The tasks' texts by their numbers."""
        parquet, file = _import_parquet(), self.path / "meta" / "tasks.parquet"
        table = _readable(file, partial(parquet.read_table, file))
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise FrameError(f"{file} has the columns {table.column_names}, not task_index and the task.")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[texts[0]].to_pylist()), strict=True))

    def recordings(self) -> Iterator[Recording]:
        """Yield the episodes; some rows of the list are in memory at a time."""
        for file in self.files:
            for row in _rows(file, self._columns(file)):
                yield self._recording(file, row)

    def _columns(self, file: Path) -> list[str]:
        wanted = ["episode_index", "length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index"]
        if self.in_video:
            place = f"videos/{self.camera}"
            wanted += [f"{place}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        parquet = _import_parquet()
        there = _readable(file, partial(parquet.read_schema, file)).names
        if missing := [name for name in wanted if name not in there]:
            raise FrameError(f"{file} lacks the column {missing[0]!r}; it is no LeRobotDataset v3.")
        return wanted

    def _recording(self, file: Path, row: dict[str, Any]) -> Recording:
        index = row["episode_index"]
        task, clip = self.task or "", partial(self._clip, row)
        try:
            length, first = int(row["length"]), int(row["dataset_from_index"])
        except (TypeError, ValueError):
            raise FrameError(f"{file}: episode {index} has no length.") from None
        try:
            task = task or self._task(row)
        except FrameError as error:  # of this episode alone
            clip = partial(_raise, error)
        return Recording(int(index), f"episode {index}", task, length, first, reference=None, clip=clip)

    def _task(self, row: dict[str, Any]) -> str:
        """Return an episode's task: where it has several, the one of its first frame."""
        tasks: Sequence[str] = row["tasks"] or ()
        if len(tasks) == 1:
            return str(tasks[0])
        number = self._episode(row, ["task_index"])["task_index"][0]
        return self.tasks.get(number, "") or str(tasks[0] if tasks else "")

    def _clip(self, row: dict[str, Any], stride: int) -> Clip:
        length = int(row["length"])
        places = [place for _, place in every(range(length), stride, True)]
        if self.in_video:
            place = f"videos/{self.camera}"
            path = self._file("video_path", _VIDEO, row, place)
            named = self._of_video(path, row, places, row[f"{place}/from_timestamp"])
        else:
            path = self._file("data_path", _DATA, row, "data")
            named = self._of_table(path, row, set(places))
        return Clip(path, len(places), of_one_size(path, named))

    def _file(self, template: str, default: str, row: dict[str, Any], place: str) -> Path:
        text = self.info.get(template) or default
        numbers = {name: int(row[f"{place}/{name}"]) for name in ("chunk_index", "file_index")}
        file = (self.path / text.format(video_key=self.camera, **numbers)).resolve()
        if not file.is_relative_to(self.path.resolve()):
            raise FrameError(f"{self.path}/meta/info.json: {template} leads out of the dataset.")
        return file

    def _of_video(
        self, path: Path, row: dict[str, Any], places: Sequence[int], start: float
    ) -> Iterator[tuple[int, str, Frames]]:
        """Yield frames of an episode's part of a video, with their numbers and names."""
        times = self._episode(row, ["timestamp"])["timestamp"]
        wanted = [float(start) + float(times[place]) for place in places]
        for place, frame in zip(places, frames_at(path, wanted, 0.5 / self.fps), strict=True):
            yield place, f"frame {place}", frame

    def _of_table(self, path: Path, row: dict[str, Any], places: set[int]) -> Iterator[tuple[int, str, Frames]]:
        """Yield frames that stand in the table of data, with their numbers and names."""
        columns = [self.camera, "episode_index", "frame_index"]
        left = len(places)
        for each in _rows(path, columns, row["episode_index"]):
            if each["frame_index"] in places:
                left -= 1
                yield each["frame_index"], f"frame {each['frame_index']}", self._picture(path, each)
        if left:
            raise FrameError(f"{path} lacks {left} frames of episode {row['episode_index']}.")

    def _picture(self, path: Path, each: dict[str, Any]) -> Frames:
        stored = each[self.camera] or {}
        name = f"{path}, episode {each['episode_index']}, frame {each['frame_index']}"
        if stored.get("bytes"):
            return picture(stored["bytes"], name)
        file = (self.path / str(stored.get("path"))).resolve()
        if not file.is_relative_to(self.path.resolve()):
            raise FrameError(f"{name}: its picture is not in the dataset.")
        return _readable(file, lambda: picture(file.read_bytes(), name))

    def _episode(self, row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return columns of an episode's frames, in their order."""
        path = self._file("data_path", _DATA, row, "data")
        with self.lock:
            if self.read_last is None or self.read_last[0] != path:
                columns = ["episode_index", "frame_index", "timestamp", "task_index"]
                parquet = _import_parquet()
                table = _readable(path, partial(parquet.read_table, path, columns=columns))
                self.read_last = path, {name: table[name].to_numpy() for name in columns}
            data = self.read_last[1]
        mine = (data["episode_index"] == row["episode_index"]).nonzero()[0]
        mine = mine[data["frame_index"][mine].argsort(kind="stable")]
        if len(mine) != row["length"]:
            raise FrameError(
                f"{path} has {len(mine)} frames of episode {row['episode_index']}, which has {row['length']}; the "
                "dataset is damaged."
            )
        return {name: data[name][mine] for name in names}


def _raise(error: FrameError, stride: int) -> Clip:
    raise error


def _rows(file: Path, columns: list[str], episode: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, some in memory at a time; given an episode, its own alone."""
    parquet = _import_parquet()
    opened = _readable(file, partial(parquet.ParquetFile, file))
    with opened:
        groups: Iterable[int] = range(opened.num_row_groups)
        if episode is not None:
            groups = [group for group in groups if _may_hold(opened, group, episode)]
        batches = opened.iter_batches(batch_size=_ROWS, row_groups=list(groups), columns=columns)
        while (batch := _readable(file, lambda: next(batches, None))) is not None:
            for row in batch.to_pylist():
                if episode is None or row["episode_index"] == episode:
                    yield row


def _may_hold(opened: Any, group: int, episode: int) -> bool:
    """Return whether a row group may hold rows of an episode, by what the file says of its columns."""
    meta = opened.metadata.row_group(group)
    columns = (meta.column(place) for place in range(meta.num_columns))
    known = next((each.statistics for each in columns if each.path_in_schema == "episode_index"), None)
    return known is None or not known.has_min_max or known.min <= episode <= known.max


def _readable(file: Path, read: Any) -> Any:
    """Return what `read` gives; its errors become one that names the file."""
    import pyarrow

    try:
        return read()
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        if isinstance(error, FrameError):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise FrameError(f"{file} can't be read ({reason}); download or record it again.") from None


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "datasets need pyarrow and PyAV: pip install 'vlac-queue[datasets]', or in a checkout "
            "pip install -e '.[datasets]'"
        ) from error
    return pyarrow.parquet
