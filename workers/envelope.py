"""RQ's job envelope, read as data.

RQ's default serializer is pickle, and a plain `rq worker vlac` knows no other. So our jobs are pickled, but
a CriticWorker does not unpickle what it finds on Redis: it accepts only the few opcodes that spell a tuple
of texts, refuses every class and global, and checks sizes before it unpacks anything.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zlib
from typing import Any, NoReturn

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import JOB_FUNCTION, MAX_JOB_BYTES

#: Most bytes of an envelope once unpacked: a job's text in UTF-8, and what pickle adds.
MAX_ENVELOPE_BYTES = MAX_JOB_BYTES + 4096

#: Most opcodes of an envelope, or of what else RQ pickles for us.
_MAX_OPCODES = 256

# Opcodes that make texts, tuples, None and empty containers, in pickle protocols 2 to 5. Nothing that
# imports, calls, sets state, or makes the unpickler allocate more than the data itself holds.
_DATA_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "NONE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "MEMOIZE",
        "BINPUT",
        "BINGET",
    ]
)


class _DataUnpickler(pickle.Unpickler):
    """Second line of defence behind the opcodes: no class, no global, no persistent object."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise ProtocolError(f"a pickle names {module_name}.{global_name}; only plain data is read.")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ProtocolError("a pickle refers to a persistent object; only plain data is read.")


def read_envelope(data: bytes) -> str:
    """Return the one argument of a job of ours.

    Args:
        data: the field `data` of an RQ job's hash: a pickled tuple (function, instance, args, kwargs),
            compressed with zlib or not.

    Returns:
        The text made by `vlac_queue.messages.encode_job`.

    Raises:
        ProtocolError: the envelope is too large, holds anything but plain data, or names another function.
    """
    envelope = _load_data(_decompress(data))
    if not isinstance(envelope, tuple) or len(envelope) != 4:
        raise ProtocolError("the job's envelope is not (function, instance, args, kwargs).")
    function, instance, args, kwargs = envelope
    if function != JOB_FUNCTION:
        raise ProtocolError(f"the job calls {_shown(function)}; this worker answers {JOB_FUNCTION} only.")
    if (
        instance is not None
        or kwargs
        or not isinstance(args, tuple)
        or len(args) != 1
        or not isinstance(args[0], str)
    ):
        raise ProtocolError(f"{JOB_FUNCTION} takes one text and nothing else.")
    return args[0]


def _shown(function: Any) -> str:
    # Never str() of a container: a few bytes of pickle can make one that prints without end.
    return repr(function[:100]) if isinstance(function, str) else f"a {type(function).__name__}"


def _load_data(pickled: bytes) -> Any:
    try:
        for count, (opcode, _, _) in enumerate(pickletools.genops(pickled)):
            if count >= _MAX_OPCODES:
                raise ProtocolError(f"a pickle holds more than {_MAX_OPCODES} opcodes; a job needs about 12.")
            if opcode.name not in _DATA_OPCODES:
                raise ProtocolError(f"a pickle holds the opcode {opcode.name}; only plain data is read.")
        return _DataUnpickler(io.BytesIO(pickled)).load()
    except ProtocolError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it runs into
        raise ProtocolError(f"a pickle is damaged ({type(error).__name__}: {error}).") from None


def _decompress(data: bytes) -> bytes:
    if not data.startswith(b"\x78"):  # not zlib's header: RQ before compression
        if len(data) > MAX_ENVELOPE_BYTES:
            raise ProtocolError(
                f"the job's envelope of {len(data)} bytes exceeds the limit of {MAX_ENVELOPE_BYTES}."
            )
        return data
    unpacker = zlib.decompressobj()
    try:
        pickled = unpacker.decompress(data, MAX_ENVELOPE_BYTES)
    except zlib.error as error:
        raise ProtocolError(f"the job's envelope is damaged ({error}).") from None
    if not unpacker.eof:
        raise ProtocolError(
            f"the job's envelope unpacks to more than {MAX_ENVELOPE_BYTES} bytes, or is cut short."
        )
    return pickled


class DataOnlySerializer:
    """RQ's default serializer for writing; for reading, one that refuses everything but plain data.

    A CriticWorker hands it to the parts of RQ that it uses (its scheduler), in place of pickle.
    """

    @staticmethod
    def dumps(obj: Any) -> bytes:
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes) -> Any:
        return _load_data(data)
