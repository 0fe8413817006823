"""Read a LeRobotDataset v3 as it lies on disk, with pyarrow and PyAV; neither torch nor lerobot is needed."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from vlac_queue.commands.datasets.parquet import import_parquet, read_batches, read_rows, readable
from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.score.reading import Clip, every, frames_at, how_many, of_one_size, picture
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames
from vlac_queue.texts import many

#: Where files lie if info.json does not say.
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
#: What such a template may hold: a width of many digits would fill the memory.
_TEMPLATE = re.compile(r"([^{}\0]|\{video_key\}|\{(chunk|file)_index(:0?[1-9]d)?\})+")
#: Rows of a parquet file read at a time: of texts and numbers, and with a picture each.
_ROWS, _PICTURES = 1024, 16

_Whole = Annotated[int, Meta(ge=0, le=2**53)]


class _Feature(Struct):
    """What info.json says of a column."""

    dtype: str = ""
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @property
    def shows_colours(self) -> bool:
        """Return whether it is a camera, and not one of depths."""
        about = self.info or self.video_info or {}
        depth = about.get("is_depth_map") or about.get("video.is_depth_map")
        return self.dtype in ("video", "image") and not depth


class _Info(Struct):
    """What is read of info.json."""

    codebase_version: str
    fps: Annotated[float, Meta(gt=0)]
    features: dict[str, _Feature]
    total_episodes: _Whole | None = None
    data_path: str | None = None
    video_path: str | None = None


class _Place(Struct):
    """A file of the dataset, and where an episode begins in it."""

    chunk_index: _Whole
    file_index: _Whole
    from_timestamp: Annotated[float, Meta(ge=0, le=1e9)] = 0.0  # seconds; of videos


class _Row(Struct):
    """An episode as meta/episodes lists it."""

    episode_index: _Whole
    length: _Whole
    dataset_from_index: _Whole
    data: _Place
    video: _Place | None
    tasks: list[str] | None


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
    import_parquet()
    file = path / "meta" / "info.json"
    try:
        info = msgspec.json.decode(file.read_bytes(), type=_Info)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"{file} can't be read ({error}); it is no LeRobotDataset v3.") from None
    if not info.codebase_version.startswith("v3."):
        raise FrameError(
            f"{path} is a LeRobot dataset of version {info.codebase_version[:20]}, and v3 is needed; convert it "
            "with lerobot's convert_dataset_v21_to_v30."
        )
    for template in filter(None, (info.data_path, info.video_path)):
        if not _TEMPLATE.fullmatch(template):
            raise FrameError(f"{file} names files by {template[:80]!r}, which is no LeRobotDataset v3.")
    key = _camera(path, info.features, camera)
    layout = _Layout(path, info, key, info.features[key].dtype == "video", task)
    episodes, damage = layout.look()
    return Dataset(path, key, episodes, layout.recordings, damage)


def _camera(path: Path, features: Mapping[str, _Feature], wanted: str | None) -> str:
    """Return the key of the camera that is meant."""
    cameras = [key for key, feature in features.items() if feature.shows_colours]
    if not cameras:
        raise FrameError(f"{path} has no camera: no feature of dtype video or image.")
    found = [key for key in cameras if wanted is None or key == wanted or key.endswith(f".{wanted}")]
    exact = [key for key in found if key == wanted]
    if len(exact or found) != 1:
        which = "several cameras" if wanted is None else f"no single camera {wanted!r}"
        raise FrameError(f"{path} has {which}; choose one of them with --camera: {', '.join(cameras)}.")
    return (exact or found)[0]


@dataclass
class _Layout:
    """Where a dataset's frames lie. Threads may share it."""

    path: Path
    info: _Info
    camera: str
    in_video: bool
    task: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: The files that list the episodes, in order; those that can't be read are not among them.
    files: list[Path] = field(default_factory=list)
    #: Columns of the data file read last, and its path: episodes that follow one another share it.
    read_last: tuple[Path, dict[str, Any]] | None = None

    def look(self) -> tuple[int, tuple[str, ...]]:
        """Find the files that list the episodes; return how many episodes there are, and what is damaged."""
        found = sorted((self.path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        if not found:
            raise FrameError(f"{self.path}/meta/episodes holds no parquet file; was the dataset finalized?")
        episodes, damage = 0, []
        for file in found:
            try:
                episodes += sum(batch.num_rows for batch in read_batches(file, self._columns(file), _ROWS))
                self.files.append(file)
            except FrameError as error:
                damage.append(str(error))
        if not self.files:
            raise FrameError(damage[0])
        total = self.info.total_episodes
        if not damage and total is not None and episodes < total:
            damage.append(
                f"{self.path}/meta/episodes lists {many(episodes, 'episode')} of {total:,}: a file is missing; "
                "download or record the dataset again."
            )
        return episodes, tuple(damage)

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The tasks' texts by their numbers."""
        parquet, file = import_parquet(), self.path / "meta" / "tasks.parquet"
        table = readable(file, partial(parquet.read_table, file))
        texts = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(texts) != 1:
            raise FrameError(f"{file} has the columns {table.column_names}, not task_index and the task.")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[texts[0]].to_pylist()), strict=True))

    def recordings(self) -> Iterator[Recording]:
        """Yield the episodes; some rows of the list are in memory at a time."""
        for file in self.files:
            for row in read_rows(file, self._columns(file), _ROWS):
                yield self._recording(file, row)

    def _columns(self, file: Path) -> list[str]:
        wanted = ["episode_index", "length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index"]
        if self.in_video:
            place = f"videos/{self.camera}"
            wanted += [f"{place}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        parquet = import_parquet()
        there = readable(file, partial(parquet.read_schema, file)).names
        if missing := [name for name in wanted if name not in there]:
            raise FrameError(f"{file} lacks the column {missing[0]!r}; it is no LeRobotDataset v3.")
        return wanted

    def _recording(self, file: Path, columns: dict[str, Any]) -> Recording:
        index = columns["episode_index"]
        if not isinstance(index, int):
            raise FrameError(f"{file} has an episode without a number; the dataset is damaged.")
        name = f"episode {index}"
        try:
            row = self._row(file, columns)
            task, clip = self.task or self._task(row), partial(self._clip, row)
        except FrameError as error:  # of this episode alone
            return Recording(index, name, self.task or "", None, None, None, clip=partial(_raise, error))
        return Recording(index, name, task, row.length, row.dataset_from_index, reference=None, clip=clip)

    def _row(self, file: Path, columns: dict[str, Any]) -> _Row:
        def place(begin: str) -> dict[str, Any]:
            return {name: columns.get(f"{begin}/{name}", 0) for name in _Place.__struct_fields__}

        video = place(f"videos/{self.camera}") if self.in_video else None
        try:
            return msgspec.convert(columns | {"data": place("data"), "video": video}, _Row)
        except msgspec.MsgspecError as error:
            raise FrameError(
                f"{file}: episode {columns['episode_index']} is not as LeRobotDataset v3 has it ({error}); the "
                "dataset is damaged."
            ) from None

    def _task(self, row: _Row) -> str:
        """Return an episode's task: where it has several, the one of its first frame."""
        tasks = row.tasks or [""]
        if len(tasks) == 1 and tasks[0]:
            return tasks[0]
        numbers = self._episode(row, "task_index")
        return self.tasks.get(int(numbers[0]), tasks[0]) if len(numbers) else tasks[0]

    def _clip(self, row: _Row, stride: int) -> Clip:
        if row.video is not None:
            path = self._file(self.info.video_path or _VIDEO, row.video)
            named = self._of_video(path, row, row.video, stride)
        else:
            path = self._file(self.info.data_path or _DATA, row.data)
            named = self._of_table(path, row, stride)
        return Clip(path, how_many(row.length, stride, True), of_one_size(path, named))

    def _file(self, template: str, place: _Place) -> Path:
        text = template.format(video_key=self.camera, chunk_index=place.chunk_index, file_index=place.file_index)
        return self._inside(text, "meta/info.json")

    def _inside(self, name: str, where: str) -> Path:
        """Return a file of the dataset, which may be a link: the Hub's cache holds nothing else."""
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise FrameError(f"{self.path}, {where}: {name[:80]!r} leads out of the dataset.")
        return self.path / name

    def _of_video(self, path: Path, row: _Row, video: _Place, stride: int) -> Iterator[tuple[int, str, Frames]]:
        """Yield frames of an episode's part of a video, with their numbers and names."""
        numbered = list(every(self._episode(row, "timestamp"), stride, True))
        wanted = [video.from_timestamp + float(time) for _, time in numbered]
        frames = frames_at(path, wanted, 0.5 / self.info.fps)
        for (number, _), frame in zip(numbered, frames, strict=True):
            yield number, f"frame {number}", frame

    def _of_table(self, path: Path, row: _Row, stride: int) -> Iterator[tuple[int, str, Frames]]:
        """Yield frames that stand in the table of data, with their numbers and names."""
        columns = [self.camera, "episode_index", "frame_index"]
        numbers = (number for number, _ in every(range(row.length), stride, True))
        wanted = next(numbers, None)
        for each in read_rows(path, columns, _PICTURES, row.episode_index):
            if each["frame_index"] == wanted:
                yield each["frame_index"], f"frame {wanted}", self._picture(path, each)
                if (wanted := next(numbers, None)) is None:
                    return
        if wanted is not None:
            raise FrameError(
                f"{path} lacks frame {wanted} of episode {row.episode_index}; the dataset is damaged."
            )

    def _picture(self, path: Path, each: dict[str, Any]) -> Frames:
        name = f"{path}, episode {each['episode_index']}, frame {each['frame_index']}"
        stored = each[self.camera]
        if not isinstance(stored, dict):
            raise FrameError(f"{name} has no picture; the dataset is damaged.")
        if stored.get("bytes"):
            return picture(stored["bytes"], name)
        file = self._inside(str(stored.get("path")), name)
        return readable(file, lambda: picture(file.read_bytes(), name))

    def _episode(self, row: _Row, column: str) -> Any:
        """Return a column of an episode's frames, in their order."""
        path = self._file(self.info.data_path or _DATA, row.data)
        with self.lock:
            if self.read_last is None or self.read_last[0] != path:
                columns = ["episode_index", "frame_index", "timestamp", "task_index"]
                parquet = import_parquet()
                table = readable(path, partial(parquet.read_table, path, columns=columns))
                self.read_last = path, {name: readable(path, table[name].to_numpy) for name in columns}
            data = self.read_last[1]
        mine = (data["episode_index"] == row.episode_index).nonzero()[0]
        mine = mine[data["frame_index"][mine].argsort(kind="stable")]
        if len(mine) != row.length:
            raise FrameError(
                f"{path} has {len(mine)} frames of episode {row.episode_index}, which has {row.length}; the "
                "dataset is damaged."
            )
        return data[column][mine]


def _raise(error: FrameError, stride: int) -> Clip:
    raise error
