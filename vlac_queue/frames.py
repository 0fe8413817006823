"""The frame codec: camera frames to bytes and back, losslessly.

An encoded batch is a 36-byte header and an lz4 block. Robot cameras mostly stand still, so a frame XORed
with the one before is nearly all zeros, which lz4 packs 3 to 10 times better than the frame itself; on
moving cameras and photographs it is no better, so each batch is encoded in the way that came out smaller.

Layout of the header, little-endian (docs/protocol.md):

    offset  type      field
    0       4 bytes   magic b"VLQF"
    4       uint8     version, 1
    5       uint8     encoding: 0 plain, 1 XOR
    6       uint16    height H
    8       uint16    width W
    10      uint16    0
    12      uint32    number of frames T
    16      uint32    index within the episode of the batch's first frame
    20      uint32    checksum of the batch before this one, where it is the base; else 0
    24      uint32    1 where the first frame is XORed with the last frame of the batch before, else 0
    28      uint32    length of the lz4 block in bytes
    32      uint32    CRC-32 of the header before this field and of the block

CRC-32 finds every error within 32 consecutive bits, so no flipped byte passes; the length finds what was
cut or appended. A batch with a base holds the checksum of the batch before it, which holds that of the one
before: so it can't be decoded after any other history, and no checksum of pixels is needed.

Writing and reading of the format stand in one file, long as it is, since neither can be changed without the other.

The file is long since both directions of one format stand together.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from vlac_queue.errors import FrameError

Frames = NDArray[np.uint8]

#: Largest side of a frame in pixels.
MAX_SIDE = 4096
#: Most pixel bytes of one batch, when encoding and (by default) when decoding.
MAX_BATCH_BYTES = 256 << 20
#: Most pixel bytes that one query may need: 10,000 frames of 256x256, say.
MAX_QUERY_BYTES = 2 << 30

_MAGIC = b"VLQF"
_VERSION = 1
_PLAIN, _XOR = 0, 1
_HEADER = struct.Struct("<4sBBHHHIIIII")
_CRC = struct.Struct("<I")
#: Bytes of header before the lz4 block.
HEADER_BYTES = _HEADER.size + _CRC.size
#: A sample of differences that packs this many times is taken at once: no camera picture packs as well by itself.
_SURELY_BETTER = 8
#: How hastily lz4 goes over differences, mostly zeros: a quarter less time for a twentieth more bytes.
_XOR_ACCELERATION = 4
#: An lz4 block never unpacks to more than 255 times its size: more was never encoded by lz4.
_LZ4_MAX_RATIO = 255
#: Frames from this size on have their encoding chosen on every 16th row of the last one: compressing all of
#: them twice would double the cost of a push for a choice that the sample gets right.
_SAMPLE_FROM_BYTES = 64 << 10


@dataclass(frozen=True)
class Base:
    """What an XOR batch builds on: the batch before it.

    Attributes:
        frame: uint8 (H,W,3), that batch's last frame.
        checksum: that batch's checksum.
    """

    frame: Frames
    checksum: int

    @classmethod
    def after(cls, batch: Frames, payload: bytes) -> Base:
        """The base for what follows `batch` (uint8 (T,H,W,3)), given with its encoding.

        The frame is copied: the caller may fill the same array anew, and a view would keep the batch alive.
        """
        return cls(batch[-1].copy(), _CRC.unpack_from(payload, _HEADER.size)[0])


class EncodedBatch(NamedTuple):
    """An encoded batch whose length and checksum are right, as `read_batch` gives it.

    Attributes:
        shape: (T, H, W, 3).
        xor: whether it is XORed, and not plain.
        first: index within the episode of the batch's first frame.
        has_base: whether decoding needs the batch before it.
        base_checksum: that batch's checksum; else 0.
        checksum: its own.
        block: its lz4 block.
    """

    shape: tuple[int, int, int, int]
    xor: bool
    first: int
    has_base: bool
    base_checksum: int
    checksum: int
    block: memoryview

    @property
    def raw_bytes(self) -> int:
        """T * H * W * 3."""
        return math.prod(self.shape)

    def decode(self, base: Base | None, limit: int = MAX_BATCH_BYTES) -> Frames:
        """The batch's frames, as `vlac_queue.frames.decode` gives them."""
        delta = self._unpack(limit)
        if not self.xor:
            return delta
        pixels = np.empty_like(delta)
        self._unchain(delta, base, out=pixels)
        pixels.setflags(write=False)
        return pixels

    def base(self, frames: Frames) -> Base:
        """The base of what follows, given the batch's own frames, of which it keeps the last one alone."""
        return Base(frames[-1] if len(frames) == 1 else frames[-1].copy(), self.checksum)

    def write(self, out: Frames, base: Base | None) -> Base:
        """Decodes to `out`, uint8 (T,H,W,3); returns the base of what follows, a view of its last frame.

        Raises:
            FrameError: as `decode`.
        """
        delta = self._unpack(MAX_BATCH_BYTES)
        if self.xor:
            self._unchain(delta, base, out=out)
        else:
            out[:] = delta
        return Base(out[-1], self.checksum)

    def _unpack(self, limit: int) -> Frames:
        """What the block holds: pixels, or pixels XORed with those before; uint8 (T,H,W,3), read-only."""
        raw_bytes, block = self.raw_bytes, self.block
        # No encoder writes a larger batch, whatever the limit of an episode is.
        limit = min(limit, MAX_BATCH_BYTES)
        if raw_bytes > limit:
            raise FrameError(
                f"the batch declares {raw_bytes} bytes of pixels, above the limit of {limit}; refused."
            )
        if raw_bytes > _LZ4_MAX_RATIO * len(block):
            raise FrameError(f"the batch declares {raw_bytes} bytes of pixels, but its block can't hold as many.")
        try:
            raw: bytes = lz4.block.decompress(block, uncompressed_size=raw_bytes)
        except lz4.block.LZ4BlockError as error:
            raise FrameError(f"the batch's lz4 block is corrupted ({error}); push the frames again.") from None
        if len(raw) != raw_bytes:
            raise FrameError(
                f"the batch unpacks to {len(raw)} bytes instead of {raw_bytes}; push the frames again."
            )
        return np.frombuffer(raw, np.uint8).reshape(self.shape)

    def _unchain(self, delta: Frames, base: Base | None, *, out: Frames) -> None:
        """Writes the frames of an XOR batch to `out`, which does not overlap with `delta`."""
        if not self.has_base:
            out[0] = delta[0]
        elif base is None or base.frame.shape != delta.shape[1:] or base.checksum != self.base_checksum:
            raise FrameError("the batch is XORed with the frame before it, and the given base is not that frame.")
        else:
            np.bitwise_xor(delta[0], base.frame, out=out[0])
        for index in range(1, len(delta)):
            np.bitwise_xor(delta[index], out[index - 1], out=out[index])


def as_batch(frames: Frames) -> Frames:
    """Checked frames as a contiguous batch.

    Args:
        frames: uint8, (T,H,W,3) or (H,W,3), RGB, sides 1..4096, T >= 1.

    Returns:
        uint8 (T,H,W,3), C-contiguous; a view where the input already is.

    Raises:
        FrameError: dtype, shape, channel count or size is wrong, or the batch is empty; the message holds the
            conversion. RGB and BGR can't be told apart.
    """
    if isinstance(frames, str | os.PathLike):
        raise FrameError(
            f"frames must be a numpy array, not the name of a file ({frames}); "
            "vlac_queue.commands.score.read_reference(Path(...)) reads videos, folders of pictures, .npz and .npy."
        )
    if not isinstance(frames, np.ndarray):
        raise FrameError(f"frames must be a numpy array, not {type(frames).__name__}; use numpy.asarray(frames).")
    if frames.dtype != np.uint8:
        raise FrameError(f"frames must be uint8 in 0..255, not {frames.dtype}; {_to_uint8(frames)}.")
    batch = frames[None] if frames.ndim == 3 else frames
    if batch.ndim != 4:
        raise FrameError(f"frames must be (T,H,W,3) or (H,W,3), not of shape {frames.shape}.")
    count, height, width, channels = batch.shape
    if channels != 3:
        raise FrameError(
            f"frames must have 3 channels (RGB) last, not {channels}: shape {frames.shape}{_to_rgb(batch)}."
        )
    if count == 0:
        raise FrameError("the batch holds no frame; push at least one.")
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise FrameError(f"frames must be 1x1 to {MAX_SIDE}x{MAX_SIDE} pixels, not {height}x{width}; resize them.")
    if batch.nbytes > MAX_BATCH_BYTES:
        raise FrameError(
            f"a batch of {batch.nbytes} bytes exceeds the limit of {MAX_BATCH_BYTES}; push fewer frames at once."
        )
    return np.ascontiguousarray(batch)


def _to_uint8(frames: NDArray[Any]) -> str:
    """What to write in place of `frames`, of another dtype than uint8."""
    if frames.dtype.kind == "b" or (frames.dtype.kind == "f" and frames.size and frames.max() <= 1):
        return "where they are within 0..1, push (frames * 255.0).round().astype(np.uint8)"
    return "where they are within 0..255, push frames.astype(np.uint8)"


def _to_rgb(batch: NDArray[Any]) -> str:
    """What to write in place of frames with another number of channels than 3; "" where nobody knows."""
    _, first, _, channels = batch.shape
    if first == 3:
        return "; they seem to stand first: push np.moveaxis(frames, -3, -1)"
    if channels == 4:
        return "; the fourth seems to be alpha: push frames[..., :3]"
    if channels == 1:
        return "; they seem to be grey: push np.repeat(frames, 3, axis=-1)"
    return ""


def encode(frames: Frames, *, first: int = 0, base: Base | None = None) -> bytes:
    """Frames to bytes, in the smaller of the encodings plain and XOR.

    Args:
        frames: uint8, (T,H,W,3) or (H,W,3), RGB, sides 1..4096.
        first: index within the episode of the first of these frames, 0..2**32-1.
        base: the batch just before them; None where there is none. Not used where its frames' size differs.

    Returns:
        The encoded batch; at most 0.4% and 52 bytes longer than the raw pixels.

    Raises:
        FrameError: the frames are not usable (see `as_batch`), or `first` is out of range.
    """
    batch = as_batch(frames)
    if not 0 <= first < 2**32:
        raise FrameError(f"the index of a batch's first frame must be within 0..2**32-1, not {first}.")
    if base is not None and base.frame.shape != batch.shape[1:]:
        base = None
    delta = _xor_chain(batch, base.frame if base else None) if base is not None or len(batch) > 1 else None
    use_xor = delta is not None and _packs_better(delta, batch)
    pixels = delta if use_xor else batch
    has_base = use_xor and base is not None
    acceleration = _XOR_ACCELERATION if has_base else 1
    block: bytes = lz4.block.compress(pixels, mode="fast", acceleration=acceleration, store_size=False)
    base_crc = base.checksum if has_base and base is not None else 0
    count, height, width, _ = batch.shape
    encoding = _XOR if use_xor else _PLAIN
    head = _HEADER.pack(_MAGIC, _VERSION, encoding, height, width, 0, count, first, base_crc, has_base, len(block))
    return b"".join((head, _CRC.pack(zlib.crc32(block, zlib.crc32(head))), block))


def decode(payload: bytes, *, base: Base | None = None, limit: int = MAX_BATCH_BYTES) -> Frames:
    """Bytes back to frames.

    Args:
        payload: what `encode` returned.
        base: the batch before it; used only where the batch needs it.
        limit: most pixel bytes to decode to, checked before anything is allocated.

    Returns:
        uint8 (T,H,W,3), read-only.

    Raises:
        FrameError: the payload is truncated, corrupted, of another version or larger than `limit`, or
            `base` is missing or not the batch that it was encoded after.
    """
    return read_batch(payload).decode(base, limit)


def decode_episode(payloads: Sequence[bytes], *, limit: int = MAX_BATCH_BYTES) -> Frames:
    """All batches of an episode in one array, without a copy of each.

    Args:
        payloads: its encoded batches, one or more, in the order they were pushed.
        limit: most pixel bytes of all together, checked before anything is allocated.

    Returns:
        uint8 (T,H,W,3).

    Raises:
        FrameError: as `follow` and `decode`, or the frames are of several sizes.
    """
    batches = follow(payloads, limit=limit)
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise FrameError("the episode's frames are of several sizes; push one size only.")
    frames = np.empty((sum(batch.shape[0] for batch in batches), *batches[0].shape[1:]), np.uint8)
    write_all(batches, frames)
    return frames


def write_all(batches: Iterable[EncodedBatch], frames: Frames, base: Base | None = None) -> Base | None:
    """Decode consecutive batches into `frames`; return the base of what follows them."""
    end = 0
    for batch in batches:
        base = batch.write(frames[end : end + batch.shape[0]], base)
        end += batch.shape[0]
    return base


def follow(payloads: Sequence[bytes], *, first: int = 0, limit: int = MAX_BATCH_BYTES) -> list[EncodedBatch]:
    """Consecutive batches, read but not decoded.

    Args:
        payloads: encoded batches in the order they were pushed.
        first: index of the first batch's first frame.
        limit: most pixel bytes of all together.

    Raises:
        FrameError: one is damaged, they do not follow one another, or declare more than `limit`.
    """
    batches = [read_batch(payload) for payload in payloads]
    for batch in batches:
        if batch.first != first:
            raise FrameError(
                f"a batch begins at frame {batch.first}, but frame {first} comes next; a batch is missing."
            )
        first += batch.shape[0]
    total = sum(batch.raw_bytes for batch in batches)
    if total > limit:
        raise FrameError(
            f"the batches declare {total} bytes of pixels together, above the limit of {limit}; refused."
        )
    return batches


def _xor_chain(batch: Frames, base: Frames | None) -> Frames:
    """Each frame XORed with the one before it, the first with `base` (or left as it is)."""
    delta = np.empty_like(batch)
    if base is None:
        delta[0] = batch[0]
    else:
        np.bitwise_xor(batch[0], base, out=delta[0])
    np.bitwise_xor(batch[1:], batch[:-1], out=delta[1:])
    return delta


def _packs_better(delta: Frames, batch: Frames) -> bool:
    if batch[0].nbytes < _SAMPLE_FROM_BYTES or batch.shape[1] < 64:
        return len(lz4.block.compress(delta)) < len(lz4.block.compress(batch))
    # Rows of one frame only: sampled rows of several would lie within lz4's window of 64 KiB, where it finds
    # a frame's likeness to the one before, as it never does among whole frames.
    rows = np.ascontiguousarray(delta[-1, ::16])
    delta_bytes = len(lz4.block.compress(rows))
    if delta_bytes * _SURELY_BETTER <= rows.nbytes:
        return True
    return delta_bytes < len(lz4.block.compress(np.ascontiguousarray(batch[-1, ::16])))


def read_batch(payload: bytes) -> EncodedBatch:
    """Return an encoded batch, read but not decoded.

    Raises:
        FrameError: the payload is truncated, corrupted or of another version.
    """
    if len(payload) < HEADER_BYTES:
        raise FrameError(
            f"an encoded batch has at least {HEADER_BYTES} bytes, this one {len(payload)}: truncated."
        )
    fields = _HEADER.unpack_from(payload)
    magic, version, encoding, height, width, reserved, count, first, base_checksum, has_base, block_bytes = fields
    if magic != _MAGIC:
        raise FrameError("this is not an encoded frame batch (wrong magic bytes).")
    if version != _VERSION:
        raise FrameError(
            f"the batch is of version {version}, this program reads version {_VERSION}; "
            "install the same vlac-queue on rollouts and workers."
        )
    if len(payload) != HEADER_BYTES + block_bytes:
        raise FrameError(
            f"the batch should have {HEADER_BYTES + block_bytes} bytes and has {len(payload)}: cut or corrupted."
        )
    block = memoryview(payload)[HEADER_BYTES:]
    (crc,) = _CRC.unpack_from(payload, _HEADER.size)
    if crc != zlib.crc32(block, zlib.crc32(payload[: _HEADER.size])):
        raise FrameError("the batch's checksum is wrong: it was corrupted; push the frames again.")
    sides = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE
    if not sides or count == 0 or encoding not in (_PLAIN, _XOR) or reserved or has_base not in (0, 1):
        raise FrameError("the batch's header holds values that no encoder of this version writes.")
    return EncodedBatch(
        shape=(count, height, width, 3),
        xor=encoding == _XOR,
        first=first,
        has_base=bool(has_base),
        base_checksum=base_checksum,
        checksum=crc,
        block=block,
    )
