"""The frame codec: lossless for whatever is pushed, and damage never comes out as pixels."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rollouts import ROLLOUTS
from vlac_queue.commands.demo.rollouts import Rollout
from vlac_queue.errors import FrameError
from vlac_queue.frames import (
    HEADER_BYTES,
    MAX_BATCH_BYTES,
    MAX_SIDE,
    Base,
    Frames,
    as_batch,
    decode,
    decode_episode,
    encode,
    follow,
    read_batch,
)

#: The header as docs/protocol.md gives it, written down a second time so that the two are compared.
_HEAD = struct.Struct("<4sBBHHHIIIII")


def make_frames(kind: str, count: int, height: int, width: int, seed: int = 0) -> Frames:
    """`count` frames: "random" noise, "flat" colours, or a "slow" scene in which one row changes a frame."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(0, 256, (count, height, width, 3), np.uint8)
    if kind == "flat":
        return np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), np.uint8), (count, height, width, 3)).copy()
    frames = np.repeat(rng.integers(0, 256, (1, height, width, 3), np.uint8), count, axis=0)
    for index in range(1, count):
        frames[index:, index % height] += 1
    return frames


def craft(block: bytes = b"", *, magic: bytes = b"VLQF", version: int = 1, encoding: int = 0, height: int = 1,
          width: int = 1, reserved: int = 0, count: int = 1, first: int = 0, base_crc: int = 0,
          has_base: int = 0) -> bytes:  # fmt: skip
    """A batch with the given header and a checksum that is right, as a hostile or newer writer would make."""
    head = _HEAD.pack(
        magic, version, encoding, height, width, reserved, count, first, base_crc, has_base, len(block)
    )
    return head + struct.pack("<I", zlib.crc32(head + block)) + block


def base_of(frame: Frames, first: int = 0) -> Base:
    """The base that a batch of this one frame is for the next."""
    return Base.after(frame[None], encode(frame, first=first))


def pack(pixels: Frames) -> bytes:
    return lz4.block.compress(np.ascontiguousarray(pixels), store_size=False)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[Base | None, Frames]:
    """(what came before the batch or None, the batch)."""
    count, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kind, seed = draw(st.sampled_from(["random", "flat", "slow"])), draw(st.integers(0, 2**32 - 1))
    frames = make_frames(kind, count + 1, height, width, seed)
    return (base_of(frames[0]) if draw(st.booleans()) else None), frames[1:]


#: One batch of each form: what is on the wire, and the base that it takes.
_SLOW = make_frames("slow", 4, 12, 10)
_FORMS = {
    "plain": (encode(make_frames("random", 1, 5, 4)), None),
    "xor": (encode(_SLOW), None),
    "xor with base": (encode(_SLOW[1:], first=1, base=base_of(_SLOW[0])), base_of(_SLOW[0])),
}


def test_the_examples_have_the_form_they_claim() -> None:
    forms = {name: read_batch(payload) for name, (payload, _) in _FORMS.items()}
    assert {name: (batch.xor, batch.has_base) for name, batch in forms.items()} == {
        "plain": (False, False),
        "xor": (True, False),
        "xor with base": (True, True),
    }


# What goes in comes out.


@given(episodes(), st.integers(0, 2**32 - 1))
def test_frames_come_back_exactly(episode: tuple[Base | None, Frames], first: int) -> None:
    base, frames = episode
    payload = encode(frames, first=first, base=base)
    assert len(payload) <= frames.nbytes * 1.004 + 52
    batch = read_batch(payload)
    assert (batch.shape, batch.first, batch.raw_bytes) == (frames.shape, first, frames.nbytes)
    assert not (batch.has_base and base is None)
    decoded = decode(payload, base=base)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    assert np.array_equal(decoded, frames)


@pytest.mark.parametrize("kind", ["random", "flat", "slow"])
@pytest.mark.parametrize("size", [(1, 1), (1, MAX_SIDE), (MAX_SIDE, 1)])
def test_extreme_sizes_come_back(kind: str, size: tuple[int, int]) -> None:
    frames = make_frames(kind, 3, *size)
    base = base_of(frames[0])
    payload = encode(frames[1:], base=base)
    assert len(payload) <= frames[1:].nbytes * 1.004 + 52
    assert np.array_equal(decode(payload, base=base), frames[1:])


def test_the_largest_frame_comes_back() -> None:
    frame = make_frames("random", 1, MAX_SIDE, MAX_SIDE)[0]
    payload = encode(frame)
    assert len(payload) <= frame.nbytes * 1.004 + 52
    assert np.array_equal(decode(payload)[0], frame)
    # The same picture again is next to nothing, and still exact.
    base = Base.after(frame[None], payload)
    again = encode(frame, base=base)
    assert len(again) < frame.nbytes / 200
    assert np.array_equal(decode(again, base=base)[0], frame)


def test_a_single_frame_is_a_batch_of_one() -> None:
    frame = make_frames("random", 1, 6, 7)[0]
    assert decode(encode(frame)).shape == (1, 6, 7, 3)


@pytest.mark.parametrize(
    "view",
    [
        lambda frames: frames[::2],
        lambda frames: frames[:, ::-1],
        lambda frames: frames[:, :, 3:9],
        lambda frames: frames[..., ::-1],
        lambda frames: np.asfortranarray(frames),
        lambda frames: frames.transpose(0, 2, 1, 3),
        lambda frames: np.broadcast_to(frames[:1], frames.shape),
    ],
    ids=["every second", "upside down", "cropped", "bgr", "fortran", "transposed", "broadcast"],
)
def test_views_that_are_not_contiguous_come_back(view) -> None:
    frames = view(make_frames("random", 5, 12, 12))
    assert np.array_equal(decode(encode(frames)), frames)
    before = view(make_frames("random", 5, 12, 12, seed=1))
    base = Base.after(before, encode(before))
    assert np.array_equal(decode(encode(frames, base=base), base=base), frames)


def test_encoding_leaves_its_input_alone() -> None:
    frames = make_frames("slow", 3, 8, 8)
    before = frames.copy()
    frames.setflags(write=False)
    encode(frames[1:], base=base_of(frames[0]))
    assert np.array_equal(frames, before)


def test_a_base_outlives_the_callers_array() -> None:
    frames = make_frames("slow", 2, 8, 8)
    camera = frames[:1].copy()
    base = Base.after(camera, encode(camera))
    camera[:] = 77  # the simulator draws its next picture into the same array
    assert np.array_equal(decode(encode(frames[1], base=base), base=base_of(frames[0]))[0], frames[1])


def test_a_base_of_another_size_is_not_used() -> None:
    frames = make_frames("slow", 1, 8, 8)
    payload = encode(frames, base=base_of(make_frames("slow", 1, 9, 8)[0]))
    assert not read_batch(payload).has_base
    assert np.array_equal(decode(payload), frames)


# Damage.


@pytest.mark.parametrize("form", _FORMS)
@given(data=st.data())
def test_a_changed_byte_is_found(form: str, data: st.DataObject) -> None:
    payload, base = _FORMS[form]
    position, change = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(payload)
    damaged[position] ^= change
    with pytest.raises(FrameError):
        decode(bytes(damaged), base=base)
    with pytest.raises(FrameError):
        read_batch(bytes(damaged))


@pytest.mark.parametrize("form", _FORMS)
def test_every_changed_header_byte_is_found(form: str) -> None:
    payload, base = _FORMS[form]
    for position in range(HEADER_BYTES):
        damaged = bytearray(payload)
        damaged[position] ^= 1
        with pytest.raises(FrameError):
            decode(bytes(damaged), base=base)


@pytest.mark.parametrize("form", _FORMS)
def test_every_cut_is_found(form: str) -> None:
    payload, base = _FORMS[form]
    for length in range(len(payload)):
        with pytest.raises(FrameError):
            decode(payload[:length], base=base)


@pytest.mark.parametrize("form", _FORMS)
@given(extra=st.binary(min_size=1, max_size=64))
def test_appended_bytes_are_found(form: str, extra: bytes) -> None:
    payload, base = _FORMS[form]
    with pytest.raises(FrameError):
        decode(payload + extra, base=base)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_frames(noise: bytes) -> None:
    with pytest.raises(FrameError):
        decode(noise)
    with pytest.raises(FrameError):
        decode(b"VLQF\x01" + noise)


def test_a_batch_is_not_decoded_after_another_history() -> None:
    payload, base = _FORMS["xor with base"]
    assert base is not None
    almost = _SLOW[0].copy()
    almost[0, 0, 0] ^= 1
    others = {
        "none": None,
        "another picture": base_of(almost),
        "another size": base_of(_SLOW[0][:, :-1]),
        "the same picture at another place": base_of(_SLOW[0], first=5),
        "a frame in between lost": Base.after(_SLOW[:2], encode(_SLOW[:2])),
        "another shape under the right checksum": Base(_SLOW[0][:, :-1], base.checksum),
    }
    for name, wrong in others.items():
        with pytest.raises(FrameError, match="base"):
            decode(payload, base=wrong)
            pytest.fail(name)


def test_a_base_that_is_not_needed_does_no_harm() -> None:
    frames = make_frames("random", 1, 6, 6)
    assert np.array_equal(decode(encode(frames), base=base_of(make_frames("random", 1, 9, 9)[0])), frames)


# Headers with a right checksum that no encoder of ours writes.


def test_the_crafted_header_is_the_real_one() -> None:
    frames = make_frames("random", 1, 3, 5)
    assert craft(pack(frames), height=3, width=5, first=7) == encode(frames, first=7)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding": 2},
        {"reserved": 1},
        {"has_base": 2},
        {"count": 0},
        {"height": 0},
        {"width": 0},
        {"height": MAX_SIDE + 1},
        {"width": 65535},
        {"magic": b"VLQX"},
    ],
    ids=str,
)
def test_header_values_outside_the_format_are_refused(fields: dict) -> None:
    with pytest.raises(FrameError):
        decode(craft(pack(make_frames("random", 1, 1, 1)), **fields))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_says_what_to_do(version: int) -> None:
    payload = craft(pack(make_frames("random", 1, 1, 1)), version=version)
    with pytest.raises(FrameError, match=rf"version {version}.*install the same vlac-queue"):
        decode(payload)


@pytest.fixture
def no_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> bytes:
        raise AssertionError("lz4 was asked to unpack what had to be refused")

    monkeypatch.setattr("vlac_queue.frames.lz4.block.decompress", refuse)


@pytest.mark.usefixtures("no_unpacking")
@pytest.mark.parametrize(
    "fields",
    [
        {"height": 4096, "width": 4096, "count": 6},  # 288 MiB, just above the limit
        {"height": 4096, "width": 4096, "count": 2**32 - 1},  # 2**57 bytes
        {"height": 4096, "width": 4096, "count": 5},  # 240 MiB: allowed, but not out of 100 bytes
    ],
    ids=["above the limit", "absurd", "out of nothing"],
)
def test_a_declared_size_is_checked_before_anything_is_allocated(fields: dict) -> None:
    payload = craft(bytes(100), **fields)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="declares"):
            decode(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_callers() -> None:
    frames = make_frames("flat", 2, 10, 10)
    assert np.array_equal(decode(encode(frames), limit=frames.nbytes), frames)
    with pytest.raises(FrameError, match=f"limit of {frames.nbytes - 1}"):
        decode(encode(frames), limit=frames.nbytes - 1)


@pytest.mark.parametrize(
    "block",
    [pack(make_frames("random", 1, 2, 2)), pack(make_frames("random", 1, 4, 4)), b"\xff" * 40, b""],
    ids=["too few pixels", "too many pixels", "no lz4", "empty"],
)
def test_a_block_that_does_not_fit_its_header_is_refused(block: bytes) -> None:
    with pytest.raises(FrameError):
        decode(craft(block, height=3, width=3))


# Frames that can't be pushed.


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[[1, 2, 3]]], "numpy array, not list"),
        ("run.mp4", "not the name of a file.*read_reference"),
        (Path("run.npy"), "not the name of a file.*read_reference"),
        (None, "numpy array, not NoneType"),
        (np.zeros((2, 4, 4, 3), np.float32), "uint8 in 0..255, not float32"),
        (np.zeros((2, 4, 4, 3), np.int8), "uint8 in 0..255, not int8"),
        (np.zeros((4, 4), np.uint8), r"of shape \(4, 4\)"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), r"of shape \(1, 2, 4, 4, 3\)"),
        (np.zeros((), np.uint8), r"of shape \(\)"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"3 channels \(RGB\) last, not 4"),
        (np.zeros((2, 3, 4, 4), np.uint8), "3 channels"),
        (np.zeros((4, 4, 1), np.uint8), "3 channels"),
        (np.zeros((0, 4, 4, 3), np.uint8), "push at least one"),
        (np.zeros((1, 0, 4, 3), np.uint8), "not 0x4; resize"),
        (np.zeros((1, 4, 0, 3), np.uint8), "not 4x0; resize"),
        (np.zeros((1, MAX_SIDE + 1, 1, 3), np.uint8), "not 4097x1; resize"),
        (np.zeros((1, 1, MAX_SIDE + 1, 3), np.uint8), "not 1x4097; resize"),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_unusable_frames_are_refused_with_a_reason(frames: Frames, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        encode(frames)


_RGB = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)


@pytest.mark.parametrize(
    "frames",
    [
        _RGB / 255,
        (_RGB / 255).astype(np.float32),
        (_RGB[0] / 255).astype(np.float16),
        _RGB.astype(np.float32),
        _RGB.astype(np.int64),
        np.concatenate([_RGB, np.full((5, 8, 6, 1), 255, np.uint8)], axis=-1),
        np.moveaxis(_RGB, -1, 1),
        np.moveaxis(_RGB[0], -1, 0),
        (np.moveaxis(_RGB, -1, 1) / 255).astype(np.float32),
    ],
    ids=lambda frames: f"{frames.dtype}-{frames.shape}",
)
def test_frames_of_another_kind_are_refused_with_the_conversion_to_paste(frames: Any) -> None:
    for _ in range(2):  # one thing after the other
        with pytest.raises(FrameError) as refused:
            as_batch(frames)
        frames = eval(str(refused.value).rpartition("push ")[2].removesuffix("."), {"np": np, "frames": frames})  # noqa: S307
        if frames.dtype == np.uint8 and frames.shape[-1] == 3:
            break
    assert np.array_equal(as_batch(frames), _RGB if frames.ndim == 4 else _RGB[:1])


def test_a_batch_above_the_limit_is_refused_before_it_is_copied() -> None:
    huge = np.broadcast_to(np.zeros(3, np.uint8), (6, 4096, 4096, 3))
    assert huge.nbytes > MAX_BATCH_BYTES
    with pytest.raises(FrameError, match="push fewer frames at once"):
        encode(huge)


def test_a_usable_batch_is_not_copied() -> None:
    frames = make_frames("flat", 2, 4, 4)
    assert np.shares_memory(as_batch(frames), frames)


@pytest.mark.parametrize("first", [-1, 2**32])
def test_an_index_outside_the_format_is_refused(first: int) -> None:
    with pytest.raises(FrameError):
        encode(make_frames("flat", 1, 2, 2), first=first)


# Several batches of one episode.


def cut_up(frames: Frames, sizes: list[int]) -> list[bytes]:
    payloads: list[bytes] = []
    first, base = 0, None
    for size in sizes:
        batch = frames[first : first + size]
        payloads.append(encode(batch, first=first, base=base))
        first, base = first + size, Base.after(batch, payloads[-1])
    return payloads


def decode_many(payloads: list[bytes], *, first: int = 0, base: Base | None = None) -> list[Frames]:
    decoded = []
    for batch in follow(payloads, first=first):
        decoded.append(batch.decode(base))
        base = batch.base(decoded[-1])
    return decoded


@given(st.sampled_from(["random", "flat", "slow"]), st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_batches_are_decoded_one_after_the_other(kind: str, sizes: list[int]) -> None:
    frames = make_frames(kind, sum(sizes), 9, 7)
    decoded = decode_many(cut_up(frames, sizes))
    assert [len(batch) for batch in decoded] == sizes
    assert np.array_equal(np.concatenate(decoded), frames)


def test_decoding_goes_on_from_a_later_batch() -> None:
    frames = make_frames("slow", 6, 9, 7)
    payloads = cut_up(frames, [2, 3, 1])
    base = Base.after(decode(payloads[0]), payloads[0])
    decoded = decode_many(payloads[1:], first=2, base=base)
    assert np.array_equal(np.concatenate(decoded), frames[2:])
    with pytest.raises(FrameError, match="base"):
        decode_many(payloads[1:], first=2)


@pytest.mark.parametrize("kind", ["random", "slow"])
@pytest.mark.parametrize("order", [[0, 2], [1, 2], [1, 0, 2], [0, 0, 1, 2], [2]], ids=str)
def test_missing_and_disordered_batches_are_refused(kind: str, order: list[int]) -> None:
    payloads = cut_up(make_frames(kind, 6, 9, 7), [2, 3, 1])
    with pytest.raises(FrameError, match="a batch is missing"):
        decode_many([payloads[index] for index in order])


@pytest.mark.usefixtures("no_unpacking")
def test_the_limit_is_for_all_batches_together() -> None:
    frames = make_frames("flat", 4, 8, 8)
    with pytest.raises(FrameError, match="together"):
        decode_episode(cut_up(frames, [2, 2]), limit=frames.nbytes - 1)


def test_no_batches_are_no_frames() -> None:
    assert decode_many([]) == []


# Size on the wire.


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return ROLLOUTS


def test_a_still_camera_costs_at_most_a_quarter(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for index in range(1, len(rollout.frames)):
            frame = rollout.frames[index]
            payload = encode(frame, first=index, base=base_of(rollout.frames[index - 1]))
            assert read_batch(payload).xor, rollout.name
            assert len(payload) <= frame.nbytes / 4, rollout.name


@pytest.mark.parametrize("count", [2, 4, 9])
def test_several_frames_in_one_batch_are_nearly_as_small_as_can_be(rollouts: list[Rollout], count: int) -> None:
    for rollout in rollouts:
        batch = rollout.frames[:count]
        delta = batch.copy()
        delta[1:] ^= batch[:-1]
        assert len(encode(batch)) <= 1.05 * min(len(pack(batch)), len(pack(delta))) + HEADER_BYTES, rollout.name


def test_the_chosen_encoding_is_nearly_the_smaller(rollouts: list[Rollout]) -> None:
    noise = make_frames("random", 2, 100, 100)
    slow = make_frames("slow", 2, 200, 200)
    flat = make_frames("flat", 2, 150, 150)
    pairs = [*noise[None], *slow[None], *flat[None]]
    # From one frame to the next, and to a frame of another scene, where XOR is no help.
    pairs += [rollout.frames[:2] for rollout in rollouts]
    pairs += [np.stack([a.frames[0], b.frames[-1]]) for a, b in zip(rollouts, rollouts[6:], strict=False)]
    for base, frame in pairs:
        smaller = min(len(pack(frame)), len(pack(frame ^ base)))
        # Differences are packed in haste: a twentieth more, and some bytes where hardly anything is left to pack.
        assert len(encode(frame, base=base_of(base))) <= 1.08 * smaller + HEADER_BYTES + 128


def test_noise_is_left_as_it_is() -> None:
    frames = make_frames("random", 2, 64, 64)
    payload = encode(frames[1], base=base_of(frames[0]))
    assert not read_batch(payload).xor
    assert len(payload) <= frames[1].nbytes * 1.004 + 52


@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["flat", "noise"]), min_size=6, max_size=6),
)
def test_an_episode_in_one_array_is_its_batches_joined(counts: list[int], kinds: list[str]) -> None:
    rng = np.random.default_rng(0)
    payloads, base, first, still = [], None, 0, rng.integers(0, 256, (9, 7, 3), np.uint8)
    for count, kind in zip(counts, kinds, strict=False):
        batch = np.stack([still] * count) if kind == "flat" else rng.integers(0, 256, (count, 9, 7, 3), np.uint8)
        payloads.append(encode(batch, first=first, base=base))
        base, first = Base.after(batch, payloads[-1]), first + count
    assert np.array_equal(decode_episode(payloads), np.concatenate(decode_many(payloads)))
    for wrong in (payloads[1:], payloads[::-1]):
        if len(payloads) > 1:
            with pytest.raises(FrameError):
                decode_episode(wrong)


def test_an_episode_of_several_sizes_or_over_the_limit_is_refused() -> None:
    payloads = [encode(np.zeros((1, side, side, 3), np.uint8), first=i) for i, side in enumerate((4, 5))]
    with pytest.raises(FrameError, match="several sizes"):
        decode_episode(payloads)
    with pytest.raises(FrameError, match="above the limit"):
        decode_episode(payloads[:1], limit=47)
