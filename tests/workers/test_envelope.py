"""Job envelopes: what RQ writes is read, and nothing else on Redis runs code or hurts the worker."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from rq.job import Job
from rq.serializers import DefaultSerializer

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import JOB_FUNCTION, MAX_JOB_BYTES, Query, decode_job, encode_job
from workers.envelope import MAX_ENVELOPE_BYTES, DataOnlySerializer, read_envelope

_QUERIES = [Query(f"tok-{n}", f"ep-{n}", "done", n, n, "c1", 1.6e9, 1.7e9) for n in range(20)]
_TEXT = encode_job(_QUERIES)

#: Redis is never asked here: RQ only wants to know what it would use.
_CONNECTION = redis.Redis(port=1)


def rq_data(function: Any = JOB_FUNCTION, *args: Any, **kwargs: Any) -> bytes:
    """The field `data` of a job's hash, as RQ itself writes it."""
    job = Job.create(function, args=args, kwargs=kwargs, connection=_CONNECTION)
    written = job.to_dict()["data"]
    assert isinstance(written, bytes)
    return written


def envelope(*parts: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(parts, protocol=protocol)


# What RQ writes.


def test_a_job_written_by_rq_is_read() -> None:
    text = read_envelope(rq_data(JOB_FUNCTION, _TEXT))
    assert text == _TEXT
    assert decode_job(text) == _QUERIES


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "compress", [zlib.compress, lambda data: zlib.compress(data, 9), bytes], ids=["zlib", "zlib-9", "none"]
)
@pytest.mark.parametrize(
    "text", ["", "x", _TEXT, "Tür öffnen \U0001f916 " * 100], ids=["empty", "x", "job", "utf-8"]
)
def test_every_pickle_protocol_and_compression_is_read(protocol: int, compress: Any, text: str) -> None:
    data = compress(envelope(JOB_FUNCTION, None, (text,), {}, protocol=protocol))
    assert read_envelope(data) == text


def test_rqs_own_serializer_is_the_one_that_is_read() -> None:
    pickled = DefaultSerializer.dumps((JOB_FUNCTION, None, (_TEXT,), {}))
    assert read_envelope(pickled) == _TEXT
    assert DataOnlySerializer.loads(pickled) == DefaultSerializer.loads(pickled)


def test_the_largest_job_is_read() -> None:
    text = "x" * MAX_JOB_BYTES
    assert read_envelope(rq_data(JOB_FUNCTION, text)) == text
    assert read_envelope(envelope(JOB_FUNCTION, None, (text,), {})) == text


# Calls that are not ours.


@pytest.mark.parametrize("function", ["os.system", "workers.job.answer_", "workers.job", "", "Workers.job.answer"])
def test_another_function_is_refused_by_name(function: str) -> None:
    with pytest.raises(ProtocolError, match=f"calls '{function}'.*answers {JOB_FUNCTION} only"):
        read_envelope(zlib.compress(envelope(function, None, (_TEXT,), {})))


@pytest.mark.parametrize("function", [None, (), [], {}, (JOB_FUNCTION,)], ids=repr)
def test_a_function_that_is_no_name_is_refused(function: Any) -> None:
    with pytest.raises(ProtocolError, match="this worker answers"):
        read_envelope(envelope(function, None, (_TEXT,), {}))


@pytest.mark.parametrize(
    "data",
    [
        rq_data(JOB_FUNCTION),
        rq_data(JOB_FUNCTION, _TEXT, _TEXT),
        rq_data(JOB_FUNCTION, _TEXT, None),
        rq_data(JOB_FUNCTION, None),
        rq_data(JOB_FUNCTION, (_TEXT,)),
        envelope(JOB_FUNCTION, "instance", (_TEXT,), {}),
        envelope(JOB_FUNCTION, None, [_TEXT], {}),
        envelope(JOB_FUNCTION, None, _TEXT, {}),
        envelope(JOB_FUNCTION, None, None, {}),
    ],
    ids=["no argument", "two", "two with None", "None", "a tuple", "an instance", "a list", "a text", "no tuple"],
)
def test_other_arguments_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_envelope(data)


def test_keywords_are_refused() -> None:
    with pytest.raises(ProtocolError):
        read_envelope(rq_data(JOB_FUNCTION, _TEXT, text=_TEXT))


@pytest.mark.parametrize(
    "parts",
    [(), (JOB_FUNCTION,), (JOB_FUNCTION, None, (_TEXT,)), (JOB_FUNCTION, None, (_TEXT,), {}, None)],
    ids=len,
)
def test_an_envelope_has_four_parts(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ProtocolError, match="function, instance, args, kwargs"):
        read_envelope(envelope(*parts))


# Code.


class Marker:
    """Unpickling one writes a file: a test sees whether code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "ran"
    attack = Marker(path)
    pickle.loads(pickle.dumps(attack, protocol))  # noqa: S301  the attack works where pickle is trusted
    path.rmdir()
    hidden: list[Any] = [
        attack,
        (attack, None, (_TEXT,), {}),
        (JOB_FUNCTION, attack, (_TEXT,), {}),
        (JOB_FUNCTION, None, (attack,), {}),
        (JOB_FUNCTION, None, (_TEXT,), {"text": attack}),
        (JOB_FUNCTION, None, (_TEXT,), attack),
    ]
    for value in hidden:
        pickled = pickle.dumps(value, protocol)
        for data in (pickled, zlib.compress(pickled)):
            with pytest.raises(ProtocolError):
                read_envelope(data)
            with pytest.raises(ProtocolError):
                DataOnlySerializer.loads(pickled)
    # Also where a valid envelope comes first or last in the data.
    good = envelope(JOB_FUNCTION, None, (_TEXT,), {}, protocol=max(2, protocol))
    with pytest.raises(ProtocolError):
        read_envelope(good[:-1] + pickle.dumps(attack, protocol))
    assert not path.exists()


@pytest.mark.parametrize(
    "value",
    [
        os.system,
        functools.partial(print, "x"),
        random.Random(0),
        Path("/"),
        ValueError("x"),
        ProtocolError,
        range(3),
        {1, 2},
        frozenset([1]),
        bytearray(b"x"),
        1 + 2j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_class_and_no_global_is_named(value: Any) -> None:
    for protocol in range(6):
        with pytest.raises(ProtocolError):
            read_envelope(envelope(JOB_FUNCTION, None, (value,), {}, protocol=protocol))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n",  # GLOBAL
        b"\x8c\x02os\x8c\x06system\x93",  # STACK_GLOBAL
        b"(ios\nsystem\n",  # INST
        b"\x82\x01",  # EXT1
        b"\x83\x01\x00",  # EXT2
        b"\x84\x01\x00\x00\x00",  # EXT4
        b"Pid\n",  # PERSID
        b"NQ",  # BINPERSID
        b"\x97",  # NEXT_BUFFER
        b"N)R",  # REDUCE
        b"N)\x81",  # NEWOBJ
        b"NNb",  # BUILD
        b"K\x01",  # BININT1
        b"\x8b\x04\x00\x00\x00\xff\xff\xff\x7f",  # LONG4
    ],
    ids=lambda opcodes: repr(opcodes)[2:12],
)
def test_opcodes_that_do_more_than_spell_data_are_refused(opcodes: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_envelope(b"\x80\x04" + opcodes + b".")


# Damage, and data made to exhaust the worker.


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise: bytes) -> None:
    for data in (noise, b"\x80\x04" + noise, b"\x78\x9c" + noise, zlib.compress(noise)):
        with pytest.raises(ProtocolError):
            read_envelope(data)


@given(
    st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]) | st.binary(max_size=3))
)
def test_random_pickles_are_refused(opcodes: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        read_envelope(b"\x80\x04" + b"".join(opcodes) + b".")


@pytest.mark.parametrize("compress", [zlib.compress, bytes], ids=["zlib", "plain"])
def test_every_cut_is_refused(compress: Any) -> None:
    data = compress(envelope(JOB_FUNCTION, None, (encode_job(_QUERIES[:1]),), {}))
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            read_envelope(data[:length])


@given(data=st.data())
def test_a_changed_byte_gives_a_text_or_is_refused(data: st.DataObject) -> None:
    original = envelope(JOB_FUNCTION, None, (_TEXT,), {})
    damaged = bytearray(original)
    damaged[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        assert isinstance(read_envelope(bytes(damaged)), str)


def peak_bytes(data: bytes) -> int:
    """Most memory in use while `data` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            read_envelope(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def zip_bomb(start: bytes, size: int) -> bytes:
    """zlib data that unpacks to `start` and `size` zero bytes; about a thousandth of that itself."""
    packer = zlib.compressobj(9)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush a block stands for itself, so one of them can be repeated.
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size >> 20)


@pytest.mark.parametrize(
    "start",
    [b"", b"\x80\x04(\x8c\x12" + JOB_FUNCTION.encode() + b"NX" + struct.pack("<I", 2**31 - 1)],
    ids=["zeros", "like a job of ours"],
)
def test_a_zip_bomb_is_not_unpacked(start: bytes) -> None:
    bomb = zip_bomb(start, 2 << 30)
    assert zlib.decompressobj().decompress(bomb, 10_000).startswith(start + bytes(100))
    assert len(bomb) < MAX_JOB_BYTES
    assert peak_bytes(bomb) < 4 * MAX_ENVELOPE_BYTES


def test_an_envelope_above_the_limit_is_refused() -> None:
    large = envelope(JOB_FUNCTION, None, ("x" * (MAX_ENVELOPE_BYTES + 1),), {})
    for data in (large, zlib.compress(large)):
        with pytest.raises(ProtocolError, match=f"{MAX_ENVELOPE_BYTES}"):
            read_envelope(data)


@pytest.mark.parametrize(
    "opcode",
    [
        b"X" + struct.pack("<I", 2**32 - 1),  # BINUNICODE
        b"\x8d" + struct.pack("<Q", 2**62),  # BINUNICODE8
        b"\x95" + struct.pack("<Q", 2**62),  # FRAME
        b"r" + struct.pack("<I", 2**31 - 1),  # LONG_BINPUT: the unpickler's memo would grow to 16 GiB
        b"j" + struct.pack("<I", 2**31 - 1),  # LONG_BINGET
        b"p2147483647\n",  # PUT
    ],
    ids=["text", "long text", "frame", "memo put", "memo get", "memo put as text"],
)
def test_a_declared_length_is_not_allocated(opcode: bytes) -> None:
    assert peak_bytes(b"\x80\x04N" + opcode + b"N)}t.") < 1 << 20
    assert peak_bytes(b"\x80\x04\x8c\x01x" + opcode) < 1 << 20


def test_a_deeply_nested_tuple_is_refused() -> None:
    for depth in (5_000, 1_000_000):
        nested = b")" + b"\x85" * depth  # EMPTY_TUPLE, then TUPLE1 around it
        assert peak_bytes(b"\x80\x04(" + nested + b"N)}t.") < 100 * MAX_ENVELOPE_BYTES


def test_a_tuple_of_itself_many_times_over_is_refused_at_once() -> None:
    # Each level is a tuple of the level before, twice: 70 bytes that print as 2**17 tuples. With 40 levels
    # (140 bytes) the worker would never come back.
    doubled = b")\x94" + b"".join(b"h" + bytes([level]) + b"\x86\x94" for level in range(17))
    assert peak_bytes(b"\x80\x04(" + doubled + b"N)}t.") < 100_000
