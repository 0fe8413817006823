"""What the vision tower makes of frames: computed once, and kept for the rows that show a frame again.

For the torch engine, whose template asks for all images of all rows in each call; vLLM has caches of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from swift.llm.template.template import internvl

from vlac_queue.frames import Frames
from workers.critics.vlac.images import PreparedImages, content, made_once
from workers.critics.vlac.rows import Row

#: A picture's number travels in place of its pixels, in digits that every dtype of the weights holds exactly.
_BASE = 256


class Picture(Image.Image):
    """Stands for a frame in a request: whatever resizes or copies it on its way to the template gets it back.

    Attributes:
        number: the frame's place among those of the call.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def mode(self) -> str:
        """Return what a prepared image has."""
        return "RGB"

    def resize(self, *args: Any, **kwargs: Any) -> Picture:
        """Return itself: the frame was prepared, or needs no preparing any more."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Picture:
        return self


_pixels = internvl.transform_image


def _pixels_or_number(image: Any, *sizes: int) -> torch.Tensor:
    """Return the pixels of an image, (tiles, 3, 448, 448), but for a picture its number, (1, 2)."""
    return torch.tensor([divmod(image.number, _BASE)]) if isinstance(image, Picture) else _pixels(image, *sizes)


# The template calls it for each image of each row.
internvl.transform_image = _pixels_or_number


class FrameFeatures:
    """Gives the language model the features of frames; each frame passes through the vision tower once.

    Features are known by the content of the frame, so queries of every kind, and episodes with the same reference,
    share them. They are kept in main memory; those used last longest. From here on the model's `extract_feature`
    takes pictures and no pixels.

    Args:
        model: an InternVL2.
        images: makes frames ready.
        limit: most bytes of features kept; a frame has 256 tokens of the language model's width (1 MiB for
            InternVL2-2B in bfloat16).
    """

    def __init__(self, model: Any, images: PreparedImages, limit: int) -> None:
        self._model = model
        self._images = images
        self._limit = limit
        self._tower = model.extract_feature
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        #: Bytes of features kept.
        self.nbytes = 0
        #: Features of the frames of the call, by number.
        self._shown: list[torch.Tensor] = []
        model.extract_feature = self._features

    def of(self, rows: Sequence[Row]) -> list[list[Picture]]:
        """Return each row's pictures for the next call; frames that are not known go through the vision tower."""
        return made_once(rows, self._show)

    def clear(self) -> None:
        """Forget all features."""
        self._kept.clear()
        self._shown = []
        self.nbytes = 0

    def close(self) -> None:
        """Forget all features, and take no more frames."""
        self.clear()
        self._images.close()

    def _show(self, frames: list[Frames]) -> list[Picture]:
        contents = [content(frame) for frame in frames]
        missing = {name: frame for name, frame in zip(contents, frames, strict=True) if name not in self._kept}
        features = {name: self._kept[name] for name in contents if name in self._kept}
        if missing:
            features |= zip(missing, self._compute(list(missing.values())), strict=True)
        numbers = {name: number for number, name in enumerate(features)}
        self._shown = list(features.values())
        self._keep(features)
        return [Picture(numbers[name]) for name in contents]

    @torch.inference_mode()
    def _compute(self, frames: Sequence[Frames]) -> list[torch.Tensor]:
        """Return the features of frames, each (256, width), in main memory."""
        # The size makes it one tile.
        pixels = torch.cat(self._images.prepared(frames, then=_pixels))
        features = self._tower(pixels.to(self._model.device, self._model.dtype)).cpu()
        # Copies: a part of a tensor keeps all of it.
        return [each.clone() for each in features]

    def _keep(self, features: dict[bytes, torch.Tensor]) -> None:
        for name, tensor in features.items():
            if name not in self._kept:
                self._kept[name] = tensor
                self.nbytes += tensor.nbytes
            self._kept.move_to_end(name)
        while self.nbytes > self._limit:
            _, tensor = self._kept.popitem(last=False)
            self.nbytes -= tensor.nbytes

    def _features(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the features of pictures: (N, 2) -> (N, 256, width)."""
        numbers = [int(high) * _BASE + int(low) for high, low in digits.tolist()]
        return torch.stack(self._shown).to(digits.device)[numbers]
