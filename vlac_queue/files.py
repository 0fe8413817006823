"""Files that stand under their names only once they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; at the end of the `with` statement the file there takes the place of `path`.

    Where it ends with an error, what was at `path` stays. A link at `path` is replaced and not followed.

    Raises:
        OSError: the folder can't be written.
    """
    partial = path.with_name(f".partial.{path.name}")  # with its ending, by which some writers go
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
