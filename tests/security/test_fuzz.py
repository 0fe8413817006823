"""What is read from Redis, made up: it is refused with our own errors within its limits, or it is what it says.

`make test` tries a few hundred of each; `make fuzz` tries FUZZ_EXAMPLES (20,000) of each.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.frames import Base, decode, decode_episode, encode, read_batch
from vlac_queue.messages import (
    JOB_FUNCTION,
    MAX_JOB_QUERIES,
    Query,
    decode_answer,
    decode_job,
    encode_answer,
    encode_job,
)
from vlac_queue.store import EpisodeMeta
from workers.envelope import MAX_ENVELOPE_BYTES, DataOnlySerializer, read_envelope

#: Most pixel bytes that the codec may decode to here.
_LIMIT = 1 << 20


@contextlib.contextmanager
def at_most(allowed: int) -> Iterator[None]:
    """Fails where more than `allowed` bytes were in use at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= allowed, f"{peak} bytes were in use, {allowed} are allowed"


# Frames.

_HEADER = struct.Struct("<4sBBHHHIIIII")


def sealed(fields: tuple[Any, ...], block: bytes) -> bytes:
    """A batch whose checksum is right, whatever it says."""
    head = _HEADER.pack(*fields)
    return head + struct.pack("<I", zlib.crc32(block, zlib.crc32(head))) + block


def some(*likely: int, bits: int) -> st.SearchStrategy[int]:
    return st.sampled_from(likely) | st.integers(0, 2**bits - 1)


blocks = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=3000).map(lambda raw: lz4.block.compress(raw, store_size=False)),
    st.sampled_from([1 << 20, (1 << 20) + 1, 3 << 20]).map(
        lambda size: lz4.block.compress(bytes(size), store_size=False)
    ),
)


@st.composite
def sealed_batches(draw: st.DrawFn) -> bytes:
    block = draw(blocks)
    fields = (
        draw(st.sampled_from([b"VLQF"] * 9 + [b"VLQG"])),
        draw(some(1, 1, 1, bits=8)),
        draw(some(0, 1, bits=8)),
        draw(some(0, 1, 4, 9, 4096, 4097, bits=16)),
        draw(some(0, 1, 4, 7, 4096, 4097, bits=16)),
        draw(some(0, 0, 0, bits=16)),
        draw(some(0, 1, 2, 3, 2**32 - 1, bits=32)),
        draw(some(0, 0, 1, bits=32)),
        draw(some(0, bits=32)),
        draw(some(0, 1, bits=32)),
        draw(st.just(len(block)) | some(0, 2**32 - 1, bits=32)),
    )
    return sealed(fields, block)


_STILL = np.arange(4 * 9 * 7 * 3, dtype=np.uint8).reshape(4, 9, 7, 3)
_FIRST = encode(_STILL[:2])
_SECOND = encode(_STILL[2:], first=2, base=Base.after(_STILL[:2], _FIRST))


@st.composite
def changed_batches(draw: st.DrawFn) -> bytes:
    """A batch of ours, changed in a field or in its block, and sealed anew."""
    payload = draw(st.sampled_from([_FIRST, _SECOND]))
    fields, block = list(_HEADER.unpack_from(payload)), bytearray(payload[_HEADER.size + 4 :])
    if draw(st.booleans()):
        fields[draw(st.integers(1, 10))] = draw(st.integers(0, 255))
    for _ in range(draw(st.integers(0, 3))):
        block[draw(st.integers(0, len(block) - 1))] = draw(st.integers(0, 255))
    return sealed(tuple(fields), bytes(block))


@given(sealed_batches() | changed_batches(), st.sampled_from([None, Base.after(_STILL[:2], _FIRST)]))
def test_a_batch_is_what_its_header_says_or_refused(payload: bytes, base: Base | None) -> None:
    with at_most(2 * _LIMIT + 4 * len(payload) + (1 << 16)), contextlib.suppress(FrameError):
        frames = decode(payload, base=base, limit=_LIMIT)
        assert frames.shape == read_batch(payload).shape and frames.nbytes <= _LIMIT


@given(st.lists(st.sampled_from([_FIRST, _SECOND]) | sealed_batches() | changed_batches(), min_size=1, max_size=4))
def test_an_episode_is_within_its_limit_or_refused(payloads: list[bytes]) -> None:
    allowed = 3 * _LIMIT + 4 * sum(map(len, payloads)) + (1 << 16)
    with at_most(allowed), contextlib.suppress(FrameError):
        assert decode_episode(payloads, limit=_LIMIT).nbytes <= _LIMIT


@given(data=st.data())
def test_a_damaged_batch_is_refused_or_decodes_to_the_same(data: st.DataObject) -> None:
    damaged = bytearray(_SECOND)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(damaged)))
        match data.draw(st.sampled_from(["change", "insert", "cut"])):
            case "change" if position < len(damaged):
                damaged[position] ^= data.draw(st.integers(0, 255))
            case "insert":
                damaged[position:position] = data.draw(st.binary(max_size=4))
            case _:
                del damaged[position:]
    with contextlib.suppress(FrameError):
        assert np.array_equal(decode(bytes(damaged), base=Base.after(_STILL[:2], _FIRST)), _STILL[2:])


# Messages.

_QUERIES = [Query(f"tok-{n}", f"ep-{n}", "done", n, n, "client", 1.7e9, 1.7e9) for n in range(1, 4)]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def changed_json(original: str) -> st.SearchStrategy[str]:
    """The text with a value exchanged somewhere in it, or with characters of it changed."""

    @st.composite
    def exchanged(draw: st.DrawFn) -> str:
        message = json.loads(original)
        where: Any = message
        while True:
            keys = list(where) if isinstance(where, dict) else list(range(len(where)))
            key = draw(st.sampled_from(keys))
            if isinstance(where[key], dict | list) and where[key] and draw(st.booleans()):
                where = where[key]
                continue
            where[key] = draw(json_values)
            return json.dumps(message)

    @st.composite
    def edited(draw: st.DrawFn) -> str:
        start = draw(st.integers(0, len(original)))
        end = draw(st.integers(start, min(len(original), start + 20)))
        return original[:start] + draw(st.text(max_size=10)) + original[end:]

    return exchanged() | edited()


@given(changed_json(encode_job(_QUERIES)) | json_values.map(json.dumps) | st.text())
def test_a_job_holds_queries_or_is_refused(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        queries = decode_job(text)
        assert 1 <= len(queries) <= MAX_JOB_QUERIES
        assert decode_job(encode_job(queries)) == queries


_ANSWERS = [
    '{"id":"tok-1","kind":"done","done":true,"score":0.95,"frame":12,"critic":["vlac","m","p"]}',
    '{"id":"tok-1","kind":"value","values":[0.0,31.5],"critics":[31.5],"critic":["vlac","m","p"]}',
    '{"id":"tok-1","kind":"failure","message":"m","traceback":"t","critic":["vlac","m","p"]}',
]


@given(st.sampled_from(_ANSWERS).flatmap(changed_json) | json_values.map(json.dumps) | st.text())
def test_an_answer_is_one_or_is_refused(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        query_id, answer, critic = decode_answer(text)
        assert decode_answer(encode_answer(query_id, answer, critic)) == (query_id, answer, critic)


@given(
    st.dictionaries(
        st.sampled_from([b"task", b"reference", b"done_threshold", b"value_stride", b"ttl_s"]),
        st.binary(max_size=30)
        | st.floats().map(lambda n: str(n).encode())
        | st.integers().map(lambda n: b"%d" % n),
    )
)
def test_the_settings_of_an_episode_are_in_range_or_refused(fields: dict[bytes, bytes]) -> None:
    usual = {b"task": b"t", b"reference": b"", b"done_threshold": b"0.9", b"value_stride": b"1", b"ttl_s": b"60"}
    with contextlib.suppress(ProtocolError):
        meta = EpisodeMeta.from_hash({**usual, **fields})
        assert 0 <= meta.done_threshold <= 1 and meta.value_stride >= 1 and meta.ttl_s >= 1


# The job entry.

_ENVELOPE = pickle.dumps((JOB_FUNCTION, None, (encode_job(_QUERIES),), {}), protocol=4)


@st.composite
def changed_pickles(draw: st.DrawFn) -> bytes:
    """A job's pickle with bytes changed, added or taken away: opcodes, lengths or text."""
    changed = bytearray(_ENVELOPE)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, min(60, len(changed))) | st.integers(0, len(changed)))
        changed[position : position + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(changed)


_PACKED: list[Callable[[bytes], bytes]] = [bytes, zlib.compress, lambda data: zlib.compress(data, 9)[:-2]]


@pytest.mark.parametrize("packed", _PACKED, ids=["plain", "zlib", "cut"])
@given(pickled=changed_pickles() | st.binary(max_size=200))
def test_a_job_is_a_text_or_is_refused(packed: Callable[[bytes], bytes], pickled: bytes) -> None:
    with at_most(3 * MAX_ENVELOPE_BYTES), contextlib.suppress(ProtocolError):
        assert isinstance(read_envelope(packed(pickled)), str)


@given(changed_pickles() | st.binary(max_size=200))
def test_what_the_scheduler_reads_is_data_or_is_refused(pickled: bytes) -> None:
    with at_most(3 * MAX_ENVELOPE_BYTES), contextlib.suppress(ProtocolError):
        assert isinstance(DataOnlySerializer.loads(pickled), tuple | str | dict | list | None)
