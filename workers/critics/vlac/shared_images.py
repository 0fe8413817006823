"""The images of rows for vLLM, which keeps by itself what it makes of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image
from PIL.ExifTags import Base

from vlac_queue.frames import Frames
from workers.critics.vlac.images import PreparedImages, content, made_once
from workers.critics.vlac.rows import Row


class SharedImage(Image.Image):
    """A prepared image that nobody changes: its copies are itself, and vLLM knows it by its frame.

    Otherwise ms-swift and vLLM would copy and hash the images of each row: a pair with reference frames has 12.
    """

    frame_id: uuid.UUID

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedImage:
        return self

    def resize(self, size: Any, *args: Any, **kwargs: Any) -> Image.Image:
        """Return itself where the size is its own."""
        return self if tuple(size) == self.size else super().resize(size, *args, **kwargs)

    def convert(self, mode: str | None = None, *args: Any, **kwargs: Any) -> Image.Image:
        """Return itself where the mode is its own."""
        return self if mode == self.mode else super().convert(mode, *args, **kwargs)

    def getexif(self) -> Any:
        """Return the id by which vLLM tells images apart; without one it hashes their pixels."""
        return {Base.ImageID: self.frame_id}


class SharedImages:
    """Makes images ready that rows share."""

    def __init__(self, images: PreparedImages) -> None:
        self._images = images

    def of(self, rows: Sequence[Row]) -> list[list[SharedImage]]:
        """Return each row's images, for the next call."""
        return made_once(rows, self._shared)

    def clear(self) -> None:
        """Do nothing: no image is kept."""

    def close(self) -> None:
        """End the threads."""
        self._images.close()

    def _shared(self, frames: list[Frames]) -> list[SharedImage]:
        images: list[Any] = self._images.prepared(frames)
        for image, frame in zip(images, frames, strict=True):
            image.__class__ = SharedImage
            image.frame_id = uuid.UUID(bytes=content(frame)[:16])
        return images
