"""What an error of Redis means: one table for clients and workers alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from redis import exceptions

from vlac_queue.config import redact_url
from vlac_queue.errors import QueueFull, RedisDenied, RedisFailed, RedisUnavailable, VlacQueueError


class Fault(Enum):
    """What is to be done about an error of Redis."""

    #: It can't be reached, or is not ready to serve: waited for.
    AWAY = "away"
    #: It serves, but refuses for now what it was asked: waited for as well.
    REFUSED = "refused for now"
    #: Its memory is full: waited for.
    FULL = "full"
    #: A wrong password, or this user has no right to it: waiting does not help.
    DENIED = "not allowed"
    #: A key of a wrong type, a command that the server does not know, a mistake of ours: nor does it here.
    BUG = "a bug"

    @property
    def passes(self) -> bool:
        """Whether the same command may succeed later."""
        return self in (Fault.AWAY, Fault.REFUSED, Fault.FULL)


#: By the first word of the server's reply (Redis 6.2 to 8, Valkey 7 to 9). What is not named here is a bug.
_BY_CODE = {
    # Still reading its data, or a replica whose master is away or just changed.
    "LOADING": Fault.AWAY,
    "MASTERDOWN": Fault.AWAY,
    "READONLY": Fault.AWAY,
    "UNBLOCKED": Fault.AWAY,
    "REDIRECT": Fault.AWAY,
    # A snapshot failed, too few replicas, a script or module that runs on, a cluster that settles.
    "MISCONF": Fault.REFUSED,
    "NOREPLICAS": Fault.REFUSED,
    "BUSY": Fault.REFUSED,
    "INPROG": Fault.REFUSED,
    "TRYAGAIN": Fault.REFUSED,
    "CLUSTERDOWN": Fault.REFUSED,
    "OOM": Fault.FULL,
    "NOAUTH": Fault.DENIED,
    "WRONGPASS": Fault.DENIED,
    "NOPERM": Fault.DENIED,
    "DENIED": Fault.DENIED,
}

#: redis-py takes the first word off the errors that it knows; in the order in which they are tried.
_BY_CLASS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "NOAUTH"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (exceptions.AuthorizationError, "NOPERM"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.ExecAbortError, "EXECABORT"),
)

# What stands before the server's own words: redis-py's in a pipeline, Redis 6.2's where a script met the error.
_FRAME = re.compile(
    r"(?:.* of pipeline caused error: )?(?:ERR )?(?:(?:Error running script .*)?@user_script: ?\d+: -?)?",
    re.DOTALL,
)
_CODE = re.compile(r"[A-Z]{2,}(?= |$)")
#: What a server says to a password where it has none; newer releases of redis-py are let in with any.
_NO_PASSWORD = "without any password configured"
#: What a port that speaks TLS does to one who does not.
_CUT = re.compile("reset by peer|closed by server|Broken pipe")
#: What scripts meet and has no code of its own.
_BY_WORDS = {
    "The user executing the script": "NOPERM",
    "ACL failure in script": "NOPERM",
    "Script killed by user": "BUSY",
}


def error_code(error: Exception) -> str:
    """Return the first word of a reply that is an error, such as "WRONGTYPE"; "" where it has none."""
    for known, code in _BY_CLASS:
        if isinstance(error, known):
            return code
    text = _unframed(error)
    for words, code in _BY_WORDS.items():
        if words in text:
            return code
    found = _CODE.match(text)
    return found.group() if found else ""


def fault_of(error: Exception) -> Fault:
    """Return what an error of Redis means."""
    if (code := error_code(error)) in _BY_CODE:
        return _BY_CODE[code]
    # What does not speak Redis' protocol (InvalidResponse) is no Redis: one may come back in its place.
    away = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse)
    return Fault.AWAY if isinstance(error, away) else Fault.BUG


def passes(error: object) -> bool:
    """Return whether `error` is one of Redis that may pass: it is away, refuses for now, or is full."""
    return isinstance(error, exceptions.RedisError) and fault_of(error).passes


def as_ours(error: exceptions.RedisError, url: str, user: str = "") -> VlacQueueError:
    """Return the error that says what an error of Redis means, and what to do about it.

    Args:
        error: from redis-py.
        url: of the server; its password is left out.
        user: the one of `vlac-queue acl` that has the right to do this, for the message; "" where it is not known.
    """
    found, remedy = found_and_remedy(error, url, user)
    ours = _OURS[fault_of(error)][0](f"{found}; {remedy}")
    ours.__cause__ = error
    return ours


def found_and_remedy(error: exceptions.RedisError, url: str, user: str = "") -> tuple[str, str]:
    """Return the two halves of the message of `as_ours`: what is wrong, and what to do about it."""
    found = _OURS[fault_of(error)][1].format(server=f"Redis at {redact_url(url)}", error=_words(error))
    return found, _remedy(error, error_code(error), url, user)


@contextmanager
def redis_errors(url: str, user: str = "") -> Iterator[None]:
    """Raise Redis' errors as ours; the arguments are those of `as_ours`.

    Raises:
        RedisUnavailable: the server can't be reached, or refuses for now.
        QueueFull: it has reached its maxmemory.
        RedisDenied: a wrong password, or a user without the right.
        RedisFailed: it can't do what it was asked.
    """
    try:
        yield
    except exceptions.RedisError as error:
        raise as_ours(error, url, user) from error


_OURS: dict[Fault, tuple[type[VlacQueueError], str]] = {
    Fault.AWAY: (RedisUnavailable, "can't reach {server} ({error})"),
    Fault.REFUSED: (RedisUnavailable, "{server} refuses for now ({error})"),
    Fault.FULL: (QueueFull, "{server} has reached its maxmemory"),
    Fault.DENIED: (RedisDenied, "{server} refuses this user ({error})"),
    Fault.BUG: (RedisFailed, "{server} can't do what it was asked ({error})"),
}

_REMEDIES = {
    "LOADING": "it reads its data from disk; wait until it has.",
    "MISCONF": "its last snapshot failed, see its log: make room on its disk, or run it without snapshots "
    "(redis-cli config set save '').",
    "NOREPLICAS": "it wants more replicas than it has: bring them back, or lower min-replicas-to-write.",
    "BUSY": "a script runs there without end: redis-cli script kill.",
    "OOM": "raise it, or lower max_pending_bytes below it.",
    "WRONGTYPE": "somebody else's key stands where one of this queue belongs: delete it, or use another queue or "
    "database.",
    "MOVED": "it is a Redis Cluster: use one server, or Sentinel.",
    "CROSSSLOT": "it is a Redis Cluster: use one server, or Sentinel.",
    "DENIED": "it is in protected mode: give it a password, or bind it to this host's network.",
    "NOPERM": "set VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE to {user}.",
    "NOAUTH": "set VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE to {user}, or mend redis_url.",
    "WRONGPASS": "set VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE to {user}, or mend redis_url.",
}
#: The user of a remedy, where the caller does not know which part of the project it serves.
_ANY_USER = (
    "one of `vlac-queue acl` (vlac-rollout for clients, vlac-worker for workers, vlac-dashboard for dashboards)"
)


def _remedy(error: exceptions.RedisError, code: str, url: str, user: str) -> str:
    if _NO_PASSWORD in str(error):
        return "leave the password out of redis_url and VLAC_REDIS_PASSWORD_FILE, or give the server one."
    if code in _REMEDIES:
        return _REMEDIES[code].replace("{user}", user or _ANY_USER)
    text = str(error)
    if isinstance(error, exceptions.InvalidResponse):
        return "that is not Redis: correct redis_url (VLAC_REDIS_URL); a port with TLS wants rediss://."
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER" in text:
        return "that port does not speak TLS: use redis:// in redis_url (VLAC_REDIS_URL)."
    if url.startswith("rediss") and "No such file" in text:
        return "a file that ssl_ca_certs, ssl_certfile or ssl_keyfile names is not there: correct redis_url."
    if url.startswith("rediss") and "Timeout connecting" in text:
        return "start redis-server there; if that port does not speak TLS, use redis:// in redis_url."
    if "CERTIFICATE" in text.upper():
        return (
            "it speaks TLS, and one side does not trust the other: look at ssl_ca_certs, ssl_certfile and the "
            "host name in redis_url (VLAC_REDIS_URL)."
        )
    if fault_of(error) is Fault.AWAY:
        tls = "; if that port wants TLS, use rediss://" if _CUT.search(text) and url.startswith("redis:") else ""
        return f"start redis-server there, or correct redis_url (VLAC_REDIS_URL){tls}."
    return "see the log of redis-server; Redis 6.2 or newer is needed."


def _words(error: exceptions.RedisError) -> str:
    """The server's own words, without the script or the commands that led to them."""
    lines = _unframed(error).partition(" script: ")[0].splitlines()
    words = lines[0][:300] if lines else ""
    if words.startswith(("HELLO must be called", "Authentication required")):
        return "it asks for a user and a password"
    if _NO_PASSWORD in words:
        return "it has no password, and was given one"
    return f"{type(error).__name__}: {words}"


def _unframed(error: Exception) -> str:
    return _FRAME.sub("", str(error), count=1)
