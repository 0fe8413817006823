"""A recorded run and its score: reading frames, VLAC's figures of a value list, JSON and picture. No Redis.

`vlac-queue score` (vlac_queue/score_command.py) asks the critic; here is what it needs before and after.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlac_queue.errors import FrameError
from vlac_queue.frames import MAX_BATCH_BYTES, Frames, as_batch
from vlac_queue.messages import DoneVerdict, ValueVerdict

if TYPE_CHECKING:
    from av import VideoFrame

Item = TypeVar("Item")

#: Pictures that a folder may hold.
_PICTURES = (".png", ".jpg", ".jpeg")
#: Frames at the top of the picture, and about their height in pixels.
_THUMBNAILS, _THUMBNAIL_HEIGHT = 8, 160
#: Colours of the picture: curves, "done", what goes backwards, and text.
_CURVE, _DONE, _BACKWARDS, _TEXT = "#0969da", "#1a7f37", "#cf222e", "#57606a"
#: Why there are no values.
NO_PAIR = "there are no two frames to compare"
#: A curve of up to this many points shows them.
_MARKED_POINTS = 80


# Frames.


@dataclass(frozen=True)
class Clip:
    """A recorded run, read while it is used.

    Attributes:
        path: its file or folder.
        count: how many frames `frames` will give, as the file says; None where it does not.
        frames: each frame taken, uint8 (H,W,3), RGB, all of one size; gives at least one, and only once.
            Raises FrameError where the file is damaged, or its frames are of several sizes.
    """

    path: Path
    count: int | None
    frames: Iterator[Frames] = field(repr=False)


def open_clip(path: Path, stride: int = 1, *, keep_last: bool = False) -> Clip:
    """Opens a recorded run.

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
    named: Iterator[tuple[str, Frames]]
    total: int | None
    if path.is_dir():
        pictures = _pictures(path)
        total = len(pictures)
        named = ((each.name, _picture(each)) for _, each in _every(pictures, stride, keep_last))
    elif path.suffix in (".npz", ".npy"):
        array = _array(path)
        total = len(array)
        named = ((f"frame {i}", array[i]) for _, i in _every(range(total), stride, keep_last))
    else:
        total = _video_length(path)
        named = ((f"frame {i}", _pixels(each)) for i, each in _every(_decoded(path), stride, keep_last))
    count = None if total is None else len(list(_every(range(total), stride, keep_last)))
    return Clip(path, count, _of_one_size(path, named))


def read_reference(path: Path, stride: int = 1) -> Frames:
    """A whole successful run, for `CriticClient.episode(reference=...)`.

    Args:
        path: as for `open_clip`.
        stride: takes every stride-th frame, and always the last: it shows the goal.

    Returns:
        uint8 (T,H,W,3).

    Raises:
        FrameError: it can't be read, or is larger than a reference may be.
        ImportError: PyAV is missing.
    """
    frames: list[Frames] = []
    for frame in open_clip(path, stride, keep_last=True).frames:
        frames.append(frame)
        if len(frames) * frame.nbytes > MAX_BATCH_BYTES:
            raise FrameError(
                f"reference {path} exceeds {MAX_BATCH_BYTES >> 20} MiB of pixels; raise its stride, or resize it."
            )
    return np.stack(frames)


def _every(items: Iterable[Item], stride: int, keep_last: bool) -> Iterator[tuple[int, Item]]:
    """Every stride-th item and its index; with `keep_last` the last one too."""
    index = -1
    for index, item in enumerate(items):
        if index % stride == 0:
            yield index, item
    if keep_last and index >= 0 and index % stride:
        yield index, item


def _of_one_size(path: Path, named: Iterable[tuple[str, Frames]]) -> Iterator[Frames]:
    """The frames, checked; the names are for messages."""
    first = None
    for name, frame in named:
        if first is None:
            first = (name, frame.shape)
        elif frame.shape != first[1]:
            raise FrameError(
                f"the frames of {path} are of several sizes: {first[0]} is {_size(first[1])} pixels and {name} "
                f"{_size(frame.shape)}; give frames of one size."
            )
        yield as_batch(frame)[0]
    if first is None:
        raise FrameError(f"{path} holds no frame.")


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _array(path: Path) -> Frames:
    """uint8 (T,H,W,3), T >= 1, from a file of numpy's; an .npy stays on the disk."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        array = loaded["frames"] if path.suffix == ".npz" else loaded
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise FrameError(
            f"{path} holds no frames ({error}); give an .npz with an array 'frames', or an .npy."
        ) from None
    try:
        as_batch(array[:1] if isinstance(array, np.ndarray) and array.ndim == 4 else array)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None
    return array if array.ndim == 4 else array[None]


def _pictures(folder: Path) -> list[Path]:
    """The folder's pictures in natural order, at least one."""
    found = [
        each for each in folder.iterdir() if each.suffix.lower() in _PICTURES and not each.name.startswith(".")
    ]
    if not found:
        raise FrameError(f"the folder {folder} holds no {', '.join(_PICTURES)} files.")
    return sorted(found, key=lambda each: _natural(each.name))


def _natural(name: str) -> tuple[list[str | int], str]:
    """A sort key by which 'f2' comes before 'f10'."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)], name


def _picture(path: Path) -> Frames:
    """One picture's pixels, uint8 (H,W,3)."""
    with closing(_decoded(path)) as decoded:
        for frame in decoded:
            return _pixels(frame)
    raise FrameError(f"{path} holds no picture.")


def _video_length(path: Path) -> int | None:
    """How many frames a video says it has; None where it does not say."""
    av = _import_av()
    try:
        with path.open("rb") as file, av.open(file) as container:
            return container.streams.video[0].frames or None
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(path, error) from None


def _decoded(path: Path) -> Generator[VideoFrame, None, None]:
    """The frames of a video, or of a picture, one after the other."""
    av = _import_av()
    try:
        # As an open file and not by its name, in which FFmpeg would see addresses and patterns.
        with path.open("rb") as file, av.open(file) as container:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)
    except (OSError, IndexError, av.FFmpegError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> FrameError:
    reason = "it has no picture stream" if isinstance(error, IndexError) else getattr(error, "strerror", error)
    return FrameError(f"{path} is no video or picture that can be read ({reason}); give an mp4, png or jpg file.")


def _pixels(frame: VideoFrame) -> Frames:
    """uint8 (H,W,3), RGB, upright: a phone stores how it was held instead of turning the pixels."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading videos and pictures needs PyAV: pip install 'vlac-queue[video]' (.npz and .npy need nothing)"
        ) from error
    return av


# Figures.


def value_order_correlation(values: Sequence[float]) -> tuple[float | None, str]:
    """VOC: how well a value list keeps the order of time, -1..1; 1 where it never falls back nor stands still.

    Spearman's rank correlation of the values with their places in time, equal values sharing the mean of
    their ranks. The same number as `GAC_model.compute_voc` of VLAC (evo_vlac/utils/model_utils.py), which
    takes it from `scipy.stats.spearmanr`.

    Args:
        values: a value list, in the order of time.

    Returns:
        VOC, and "". Where it is undefined (VLAC gives nan there) None, and why.
    """
    if len(values) < 2:
        return None, "an order takes two values or more"
    if min(values) == max(values):
        return None, "all values are equal"
    ranks = _ranks(np.asarray(values, np.float64))
    ranks -= ranks.mean()
    times = np.arange(len(values)) - (len(values) - 1) / 2
    return float(ranks @ times / np.sqrt((ranks @ ranks) * (times @ times))), ""


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value from 1 on, float64 (T,); equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def negative_rate(critics: Sequence[float]) -> tuple[float | None, str]:
    """The part of the steps that lead away from the goal, 0..1: pair-wise scores below 0.

    The same number as `GAC_model.compute_negative_rate` of VLAC (evo_vlac/utils/model_utils.py).

    Args:
        critics: pair-wise scores, nominally -100..100.

    Returns:
        The rate, and "". Where it is undefined (VLAC divides by zero there) None, and why.
    """
    if not critics:
        return None, NO_PAIR
    return sum(score < 0 for score in critics) / len(critics), ""


@dataclass(frozen=True)
class Score:
    """What the critic says of a recorded run. Frames are numbered as in the recording, from 0.

    Attributes:
        source: the recording's file or folder.
        task: the task's text.
        stride: every stride-th frame was looked at.
        frames: numbers of the frames asked about, ascending.
        done_scores: the critic's "done" score of each of `frames`, 0..1.
        done_threshold: a score above this (strictly) means done, 0..1.
        first_done: number of the first frame that is done; None where none is.
        value_frames: number of the frame that each of `values` is about.
        values: the critic's value list, nominally 0..100; empty where no two frames can be compared.
        critics: pair-wise scores, nominally -100..100: `critics[i]` leads from `values[i]` to `values[i + 1]`.
        voc: Value-Order Correlation, -1..1; None where it is undefined.
        voc_undefined: why it is undefined, or "".
        negative_rate: part of `critics` below 0, 0..1; None where it is undefined.
        negative_rate_undefined: why it is undefined, or "".
    """

    source: str
    task: str
    stride: int
    frames: tuple[int, ...]
    done_scores: tuple[float, ...]
    done_threshold: float
    first_done: int | None
    value_frames: tuple[int, ...]
    values: tuple[float, ...]
    critics: tuple[float, ...]
    voc: float | None
    voc_undefined: str
    negative_rate: float | None
    negative_rate_undefined: str

    def to_json(self) -> str:
        """All fields as a JSON object; what is undefined is null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False)


def make_score(
    verdicts: Sequence[DoneVerdict],
    value: ValueVerdict | None,
    *,
    source: str,
    task: str,
    stride: int,
    done_threshold: float,
    value_stride: int,
) -> Score:
    """The score of a run.

    Args:
        verdicts: the verdict of each frame sent, in order.
        value: the value list over these frames; None where no two of them can be compared.
        source, task, stride, done_threshold: as in `Score`.
        value_stride: distance between the frames of the value list, counted in frames sent.
    """
    last = len(verdicts) - 1
    values, critics = (value.values, value.critics) if value else ((), ())
    voc, voc_undefined = value_order_correlation(values) if value else (None, NO_PAIR)
    rate, rate_undefined = negative_rate(critics)
    return Score(
        source=source,
        task=task,
        stride=stride,
        frames=tuple(stride * place for place in range(len(verdicts))),
        done_scores=tuple(verdict.score for verdict in verdicts),
        done_threshold=done_threshold,
        first_done=next((stride * place for place, verdict in enumerate(verdicts) if verdict.done), None),
        value_frames=tuple(stride * min(place * value_stride, last) for place in range(len(values))),
        values=values,
        critics=critics,
        voc=voc,
        voc_undefined=voc_undefined,
        negative_rate=rate,
        negative_rate_undefined=rate_undefined,
    )


def summary(score: Score) -> str:
    """The score in a few lines for a terminal."""
    done = "never" if score.first_done is None else f"first at frame {score.first_done}"
    span = f"undefined: {NO_PAIR}"
    if score.values:
        span = f"{score.values[0]:.1f} at first, {score.values[-1]:.1f} at last, {max(score.values):.1f} at most"
    rows = {
        "frames": f"{len(score.frames)}" + (f" (every {score.stride}.)" if score.stride > 1 else ""),
        "value": span,
        "done": f"{done}; highest score {max(score.done_scores):.2f}, threshold {score.done_threshold:g}",
        "VOC": _figure(score.voc, score.voc_undefined),
        "negative rate": _figure(score.negative_rate, score.negative_rate_undefined),
    }
    return "\n".join(f"{name:14} {text}" for name, text in rows.items())


def _figure(number: float | None, undefined: str) -> str:
    return f"undefined: {undefined}" if number is None else f"{number:.3f}"


# Picture.


class Thumbnails:
    """Small copies of a few frames, spread evenly over a run whose length is not known beforehand."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Frames]] = []
        self._step = 1
        self._count = 0
        self._last: Frames | None = None

    def add(self, frame: Frames) -> None:
        """Takes the next frame in, uint8 (H,W,3)."""
        if self._count % self._step == 0:
            self._kept.append((self._count, _shrunk(frame)))
            if len(self._kept) >= 8 * _THUMBNAILS:
                del self._kept[1::2]
                self._step *= 2
        self._count += 1
        self._last = frame

    def chosen(self) -> list[tuple[int, Frames]]:
        """Up to 8 of the frames with their places, the first and the last among them."""
        if self._last is None:
            return []
        kept = [each for each in self._kept if each[0] != self._count - 1]
        kept.append((self._count - 1, _shrunk(self._last)))
        places = [place for place, _ in kept]
        wanted = np.linspace(0, places[-1], min(_THUMBNAILS, len(kept)))
        nearest = {int(np.argmin([abs(place - want) for place in places])) for want in wanted}
        return [kept[index] for index in sorted(nearest)]


def _shrunk(frame: Frames) -> Frames:
    """The frame at about _THUMBNAIL_HEIGHT, as means over squares; uint8 (h,w,3)."""
    side = max(1, min(frame.shape[0] // _THUMBNAIL_HEIGHT, frame.shape[1]))
    height, width = frame.shape[0] // side, frame.shape[1] // side
    squares = frame[: height * side, : width * side].reshape(height, side, width, side, 3)
    return squares.mean(axis=(1, 3)).astype(np.uint8)


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib: pip install 'vlac-queue[plot]', or pass --no-png"
        ) from error
    return Figure


def write_picture(score: Score, thumbnails: Thumbnails, path: Path) -> None:
    """Frames, value curve and done curve over the recording's frame numbers, as PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    shown = thumbnails.chosen()
    height, width, _ = shown[0][1].shape
    strip = min(11 / _THUMBNAILS * height / width, 3.0)
    figure = figure_class()(figsize=(11, strip + 5.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[strip + 0.6, 4.8])
    _draw_frames(top, shown, score)
    value, done = bottom.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    bottom.align_ylabels()
    _draw_values(value, score)
    _draw_done(done, score)
    done.set_xlim(_limits(0, max(score.frames[-1], 1), 0.015))
    with warnings.catch_warnings():
        # A task's text in a script that the font lacks shows as boxes; a warning for each letter is no help.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=100, facecolor="white")


def _draw_frames(figure: Any, shown: Sequence[tuple[int, Frames]], score: Score) -> None:
    places = figure.subplots(1, _THUMBNAILS, squeeze=False)[0]
    for axes in places:
        axes.set_axis_off()
    for axes, (place, frame) in zip(places, shown, strict=False):
        number = place * score.stride
        axes.imshow(frame)
        reached = score.first_done is not None and number >= score.first_done
        axes.set_title(f"frame {number}", fontsize=8, color=_DONE if reached else _TEXT, pad=3)
    # A dollar sign in a task's text is no formula.
    title = f"{_cut(score.task, 90)}   ({_cut(Path(score.source).name, 40)})"
    figure.suptitle(title, fontsize=12, x=0.006, ha="left", parse_math=False)


def _draw_values(axes: Any, score: Score) -> None:
    frames, values = score.value_frames, score.values
    marker = "o" if len(values) <= _MARKED_POINTS else ""
    axes.plot(frames, values, color=_CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    backwards = [place for place, critic in enumerate(score.critics) if critic < 0]
    for place in backwards:
        label = "pair-wise score below 0" if place == backwards[0] else None
        pair = slice(place, place + 2)
        axes.plot(frames[pair], values[pair], color=_BACKWARDS, linewidth=2.2, label=label)
    axes.set_ylim(_limits(min((0.0, *values)), max((100.0, *values)), 0.05))
    if score.first_done is not None:
        axes.axvline(score.first_done, color=_DONE, linewidth=1.2)
    voc, rate = ("undefined" if number is None else f"{number:.3f}" for number in (score.voc, score.negative_rate))
    _finish(axes, "value, 0..100", f"VOC {voc}, negative rate {rate}")


def _draw_done(axes: Any, score: Score) -> None:
    marker = "o" if len(score.frames) <= _MARKED_POINTS else ""
    axes.plot(score.frames, score.done_scores, color=_CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    axes.axhline(
        score.done_threshold,
        color=_TEXT,
        linewidth=1,
        linestyle="--",
        label=f"done above {score.done_threshold:g}",
    )
    axes.set_ylim(_limits(min((0.0, *score.done_scores)), max((1.0, *score.done_scores)), 0.07))
    axes.set_xlabel("frame", fontsize=9, color=_TEXT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if score.first_done is None:
        _finish(axes, "done, 0..1", "never done")
    else:
        axes.axvline(score.first_done, color=_DONE, linewidth=1.2, label="first done")
        _finish(axes, "done, 0..1", f"first done at frame {score.first_done}")


def _finish(axes: Any, name: str, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(name, fontsize=9, color=_TEXT)
    axes.tick_params(labelsize=8, colors=_TEXT)
    axes.grid(color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Beside the curves, which may run anywhere.
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, borderpad=0)


def _limits(low: float, high: float, margin: float) -> tuple[float, float]:
    """The range with a margin, given as part of it, on both sides."""
    return low - margin * (high - low), high + margin * (high - low)


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
