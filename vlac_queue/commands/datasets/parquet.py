"""Parquet files read a few rows at a time, with errors that name them; needs the extra `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vlac_queue.errors import FrameError


def read_rows(file: Path, columns: list[str], most: int, episode: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, at most `most` in memory; given an episode, its own alone."""
    import pyarrow.compute

    for batch in read_batches(file, columns, most, episode):
        if episode is not None:
            batch = batch.filter(pyarrow.compute.equal(batch["episode_index"], episode))
        yield from batch.to_pylist()


def read_batches(file: Path, columns: list[str], most: int, episode: int | None = None) -> Iterator[Any]:
    """Yield the rows of a parquet file, `most` at a time; given an episode, of those parts that may hold it."""
    parquet = import_parquet()
    opened = readable(file, partial(parquet.ParquetFile, file))
    with opened:
        groups: Iterable[int] = range(opened.num_row_groups)
        if episode is not None:
            groups = [group for group in groups if _may_hold(opened, group, episode)]
        batches = opened.iter_batches(batch_size=most, row_groups=list(groups), columns=columns)
        while (batch := readable(file, lambda: next(batches, None))) is not None:
            yield batch


def _may_hold(opened: Any, group: int, episode: int) -> bool:
    """Return whether a row group may hold rows of an episode, by what the file says of its columns."""
    meta = opened.metadata.row_group(group)
    columns = (meta.column(place) for place in range(meta.num_columns))
    known = next((each.statistics for each in columns if each.path_in_schema == "episode_index"), None)
    return known is None or not known.has_min_max or known.min <= episode <= known.max


def readable(file: Path, read: Any) -> Any:
    """Return what `read` gives; its errors become one that names the file."""
    import pyarrow

    try:
        return read()
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        if isinstance(error, FrameError):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise FrameError(f"{file} can't be read ({reason}); download or record it again.") from None


def import_parquet() -> Any:
    """Return pyarrow.parquet; raises ImportError, whose message says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "datasets need pyarrow and PyAV: pip install 'vlac-queue[datasets]', or in a checkout "
            "pip install -e '.[datasets]'"
        ) from error
    return pyarrow.parquet
