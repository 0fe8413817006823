"""Read a recorded run: frames of a video, a folder of pictures, or a file of numpy's."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from vlac_queue.errors import FrameError
from vlac_queue.frames import MAX_BATCH_BYTES, MAX_QUERY_BYTES, Frames, as_batch

if TYPE_CHECKING:
    from av import VideoFrame

Item = TypeVar("Item")

#: Seconds by which a video's sound may be longer than its pictures.
_SOUND_S = 1.0
#: Pictures that a folder may hold.
_PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Clip:
    """A recorded run, read while it is used."""

    path: Path  # its file or folder
    count: int | None  # how many frames `frames` will give, as the file says; None where it does not
    # Each frame taken with its number in the recording: uint8 (H,W,3), RGB, all of one size; gives at least one,
    # and only once. Raises FrameError where the file is damaged, or its frames are of several sizes.
    numbered: Iterator[tuple[int, Frames]] = field(repr=False)

    @property
    def frames(self) -> Iterator[Frames]:
        """Return the frames alone."""
        return (frame for _, frame in self.numbered)

    @property
    def askable(self) -> Iterator[tuple[int, Frames]]:
        """Return `numbered`, which raises FrameError where all frames are more than a value list takes.

        At the first frame, where their number is known, and not after hours of asking.
        """
        for taken, (number, frame) in enumerate(self.numbered, 1):
            if max(taken, self.count or 0) * frame.nbytes > MAX_QUERY_BYTES:
                height, width, _ = frame.shape
                raise FrameError(
                    f"{self.path} has more than {MAX_QUERY_BYTES // frame.nbytes:,} frames of {width}x{height} "
                    f"pixels, more than a value list takes ({MAX_QUERY_BYTES >> 20:,} MiB of pixels); take "
                    "fewer by --stride."
                )
            yield number, frame


def open_clip(path: Path, stride: int = 1, *, keep_last: bool = False) -> Clip:
    """Open a recorded run.

    Args:
        path: a video (whatever PyAV decodes), a folder of png or jpg files (in the natural order of their
            names: 2 before 10), an .npz with `frames`, or an .npy; arrays are uint8 (T,H,W,3).
        stride: takes the frames 0, stride, 2 * stride, ...
        keep_last: takes the last frame as well, wherever it falls.

    Raises:
        FrameError: there is nothing to read; errors further inside are raised by `Clip.frames`.
        ImportError: PyAV is missing; the message says how to get it.
    """
    if stride < 1:
        raise FrameError(f"the stride must be 1 or more frames, not {stride}.")
    if not path.exists():
        raise FrameError(f"{path} does not exist; give a video, an .npz, an .npy or a folder of png or jpg files.")
    named: Iterator[tuple[int, str, Frames]]
    total: int | None
    if path.is_dir():
        pictures = _pictures(path)
        total = len(pictures)
        named = ((i, picture.name, _picture(picture)) for i, picture in every(pictures, stride, keep_last))
    elif path.suffix in (".npz", ".npy"):
        array = _array(path)
        total = len(array)
        named = ((i, f"frame {i}", array[i]) for _, i in every(range(total), stride, keep_last))
    else:
        total = _video_length(path)
        named = ((i, f"frame {i}", _pixels(frame)) for i, frame in every(_video(path), stride, keep_last))
    count = None if total is None else how_many(total, stride, keep_last)
    return Clip(path, count, of_one_size(path, named))


def read_reference(path: Path, stride: int = 1) -> Frames:
    """Return a whole successful run, for `CriticClient.episode(reference=...)`.

    Args:
        path: as for `open_clip`.
        stride: takes every stride-th frame, and always the last: it shows the goal.

    Returns:
        uint8 (T,H,W,3).

    Raises:
        FrameError: it can't be read, or is larger than a reference may be.
        ImportError: PyAV is missing.
    """
    return stacked(open_clip(path, stride, keep_last=True), f"reference {path}")


def stacked(clip: Clip, name: str) -> Frames:
    """Return all frames of a clip, uint8 (T,H,W,3).

    Raises:
        FrameError: as `Clip.numbered`, or they are more than a reference may hold; `name` tells which.
    """
    frames: list[Frames] = []
    for frame in clip.frames:
        frames.append(frame)
        if len(frames) * frame.nbytes > MAX_BATCH_BYTES:
            raise FrameError(
                f"{name} exceeds {MAX_BATCH_BYTES >> 20} MiB of pixels; raise its stride, or resize it."
            )
    return np.stack(frames)


def every(items: Iterable[Item], stride: int, keep_last: bool) -> Iterator[tuple[int, Item]]:
    """Yield every stride-th item and its index; with `keep_last` the last one too."""
    index = -1
    for index, item in enumerate(items):
        if index % stride == 0:
            yield index, item
    if keep_last and index >= 0 and index % stride:
        yield index, item


def how_many(total: int, stride: int, keep_last: bool) -> int:
    """Return how many of `total` items `every` yields."""
    taken = -(-total // stride)
    return taken + (keep_last and total > 0 and (total - 1) % stride > 0)


def of_one_size(path: Path, named: Iterable[tuple[int, str, Frames]]) -> Iterator[tuple[int, Frames]]:
    """Yield frames and their numbers, checked; the names are for messages."""
    first = None
    for number, name, frame in named:
        if first is None:
            first = (name, frame.shape)
        elif frame.shape != first[1]:
            raise FrameError(
                f"the frames of {path} are of several sizes: {first[0]} is {first[1][1]}x{first[1][0]} pixels and "
                f"{name} {frame.shape[1]}x{frame.shape[0]}; give frames of one size."
            )
        yield number, as_batch(frame)[0]
    if first is None:
        raise FrameError(f"{path} holds no frame.")


def _array(path: Path) -> Frames:
    """Return uint8 (T,H,W,3), T >= 1, from a file of numpy's; an .npy stays on the disk."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        array = loaded["frames"] if path.suffix == ".npz" else loaded
    except (OSError, EOFError, ValueError, LookupError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        # numpy takes any other file for pickled objects, and advises to load them "unsafely".
        reason = "no file of numpy's, or one of objects" if "allow_pickle" in str(error) else error
        raise FrameError(
            f"{path} holds no frames ({reason}); give an .npz with an array 'frames', or an .npy."
        ) from None
    try:
        as_batch(array[:1] if isinstance(array, np.ndarray) and array.ndim == 4 else array)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None
    return array if array.ndim == 4 else array[None]


def _pictures(folder: Path) -> list[Path]:
    """Return the folder's pictures in natural order, at least one."""
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in shown if path.suffix.lower() in _PICTURES]
    if not found:
        raise FrameError(f"the folder {folder} holds no {', '.join(_PICTURES)} files.")
    return sorted(found, key=lambda picture: _natural(picture.name))


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which 'f2' comes before 'f10'."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)], name


def _picture(path: Path) -> Frames:
    """Return one picture's pixels, uint8 (H,W,3)."""
    with _opened(path) as file:
        return _of_picture(file, str(path))


def picture(encoded: bytes, name: str) -> Frames:
    """Return the pixels of an encoded picture (png, jpg), uint8 (H,W,3).

    Raises:
        FrameError: it is none; `name` tells which.
    """
    return _of_picture(BytesIO(encoded), name)


def _of_picture(file: BinaryIO, name: str) -> Frames:
    with closing(_decoded(file, name)) as decoded:
        for frame in decoded:
            return _pixels(frame)
    raise FrameError(f"{name} holds no picture.")


def frames_at(path: Path, times: Sequence[float], tolerance_s: float) -> Iterator[Frames]:
    """Yield the frames of a video that are shown at given times.

    Args:
        times: seconds on the video's clock, ascending.
        tolerance_s: how far a frame may be from its time.

    Yields:
        uint8 (H,W,3), one for each of `times`.

    Raises:
        FrameError: the video can't be read, or has no frame at one of the times.
    """
    left = iter(times)
    if (wanted := next(left, None)) is None:
        return
    with _opened(path) as file, closing(_decoded(file, str(path), start_s=times[0] - tolerance_s)) as decoded:
        for frame in decoded:
            while frame.time is not None and frame.time >= wanted - tolerance_s:
                if frame.time > wanted + tolerance_s:
                    raise FrameError(f"{path} has no frame at {wanted:.3f} s; the video is damaged.")
                yield _pixels(frame)
                following = next(left, None)
                if following is None:
                    return
                wanted = following
    raise FrameError(f"{path} has no frame at {wanted:.3f} s: it ends before; the video is damaged.")


def _video_length(path: Path) -> int | None:
    """Return how many frames a video says it has; None where it does not say."""
    av = _import_av()
    try:
        with _opened(path) as file, av.open(file) as container:
            return container.streams.video[0].frames or None
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(str(path), error) from None


def _video(path: Path) -> Iterator[VideoFrame]:
    """Yield the frames of a video, one after the other."""
    with _opened(path) as file:
        yield from _decoded(file, str(path))


def _opened(path: Path) -> BinaryIO:
    """Open a file by ourselves: in its name FFmpeg would see addresses and patterns."""
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(str(path), error) from None


def _decoded(file: BinaryIO, name: str, start_s: float = 0.0) -> Generator[VideoFrame, None, None]:
    """Yield the frames of an open video or picture: all, or from the last key frame before `start_s` on."""
    av = _import_av()
    try:
        with av.open(file) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if start_s > 0:
                container.seek(int(start_s / stream.time_base), stream=stream)
            last = None
            for last in container.decode(stream):
                if last.is_corrupt and last.time is not None and last.time >= start_s:  # FFmpeg made something up
                    raise FrameError(f"{name} is damaged at {last.time:.1f} s; copy or record it again.")
                yield last
            _check_end(container, stream, last, name)
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(name, error) from None


def _check_end(container: Any, stream: Any, last: VideoFrame | None, name: str) -> None:
    """Refuse a video that ends before the end that its head tells: of one that was cut off FFmpeg says nothing.

    The number of frames in the head doesn't tell: of a video that was trimmed without encoding it anew, it is that
    of all frames.
    """
    if last is None or last.time is None or last.time_base is None:
        return
    if stream.duration is not None:
        end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        tolerance = 2 / float(stream.average_rate or 10)
    elif container.duration is not None:
        end = ((container.start_time or 0) + container.duration) / 1e6  # that of the sound, if it is longer
        tolerance = _SOUND_S
    else:
        return
    if last.time + float((last.duration or 0) * last.time_base) + tolerance < end:
        raise FrameError(
            f"{name} is cut off: its last frame is at {last.time:.1f} s of {end:.1f}; copy or record it again."
        )


def _unreadable(name: str, error: Exception) -> FrameError:
    reason = "it has no picture stream" if isinstance(error, IndexError) else getattr(error, "strerror", error)
    return FrameError(f"{name} is no video or picture that can be read ({reason}); give an mp4, png or jpg file.")


def _pixels(frame: VideoFrame) -> Frames:
    """Return uint8 (H,W,3), RGB, upright: a phone stores how it was held instead of turning the pixels."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading videos and pictures needs PyAV: pip install 'vlac-queue[video]' (.npz and .npy need nothing)"
        ) from error
    return av
