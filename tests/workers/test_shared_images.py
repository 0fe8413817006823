from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from workers.critics.vlac.images import PreparedImages
from workers.critics.vlac.rows import Row, read_number

pytest.importorskip("PIL")


def test_an_image_is_made_once_and_never_copied_and_known_by_its_frame() -> None:
    from PIL.ExifTags import Base

    from workers.critics.vlac.shared_images import SharedImages

    black, again, white = (
        np.zeros((8, 6, 3), np.uint8),
        np.zeros((8, 6, 3), np.uint8),
        np.full((8, 6, 3), 255, np.uint8),
    )
    made: list[Any] = []

    def prepare(image: Any) -> Any:
        made.append(image)
        return image.resize((16, 16))

    images = SharedImages(PreparedImages(prepare))
    (first, second, third), (fourth,) = images.of(
        [Row("x", (black, white, again), read_number), Row("y", (black,), read_number)]
    )
    assert first is fourth and len(made) == 3
    assert copy.deepcopy([first])[0] is first
    assert first.resize((16, 16)) is first and first.convert("RGB") is first
    assert first.resize((4, 4)).size == (4, 4) and first.convert("L").mode == "L"
    ids = [image.getexif()[Base.ImageID] for image in (first, second, third)]
    assert ids[0] == ids[2] != ids[1]
    images.close()
