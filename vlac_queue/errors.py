"""Every exception this project raises. Each message says what to do next.

VlacQueueError
 +-- ConfigError        a setting is unknown or out of range
 |    +-- DecisionLogError   the folder `decision_log` can't be written
 |    +-- RedisDenied        Redis refuses the password, or this user has no right to what it asked
 +-- FrameError         frames, or an encoded frame batch, are not usable
 +-- ProtocolError      a message or a key is not what docs/protocol.md says
 +-- RedisUnavailable   Redis can't be reached, or refuses for now
 |    +-- EpisodeLost   Redis lost an open episode: it restarted without its data, evicted it, or it expired
 +-- RedisFailed        Redis can't do what it was asked: a key of a wrong type, say
 +-- NoWorkers          nothing listens on the queue
 +-- QueueFull          open episodes hold `max_pending_bytes` already
 +-- CriticTimeout      no answer in time
 +-- CriticFailed       the critic tried, and failed on this query
"""

from __future__ import annotations


class VlacQueueError(Exception):
    """Base class of all errors of this project."""


class ConfigError(VlacQueueError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DecisionLogError(ConfigError):
    """The folder `decision_log` can't be written. No `on_failure` masks it: trying again can't mend it."""


class RedisDenied(ConfigError):
    """Redis refuses the password, or this user has no right. No `on_failure` masks it: it does not pass."""


class FrameError(VlacQueueError, ValueError):
    """Frames of a wrong dtype, shape or size, or an encoded batch that is damaged."""


class ProtocolError(VlacQueueError):
    """A message or key does not follow the protocol (docs/protocol.md)."""


class RedisUnavailable(VlacQueueError, ConnectionError):
    """Redis can't be reached, or lost an open episode (`EpisodeLost`)."""


class RedisFailed(VlacQueueError):
    """Redis can't do what it was asked, and waiting does not help: a key of a wrong type, or a bug."""


class EpisodeLost(RedisUnavailable):
    """The keys of an open episode are gone."""


class NoWorkers(VlacQueueError):
    """No worker listens on the queue."""


class QueueFull(VlacQueueError):
    """The frames of all open episodes reached `max_pending_bytes`; nothing was stored."""


class CriticTimeout(VlacQueueError, TimeoutError):
    """The answer did not come in time. The query may still be answered later."""


class CriticFailed(VlacQueueError):
    """The critic failed on this query.

    Attributes:
        traceback: the worker's traceback as text, or "" where there was none.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        # Both go to Exception.args, so that the error survives pickling (Ray, multiprocessing).
        super().__init__(message, traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        message = str(self.args[0])
        # One line is the message again: of an error that the critic returned and did not raise.
        if "\n" not in self.traceback.strip():
            return message
        return f"{message}\n\nThe worker's traceback:\n{self.traceback}"
