"""Serves the VLAC vision-language critic to robot reinforcement learning, through Redis and RQ.

from vlac_queue import CriticClient, VlacConfig

client = CriticClient(VlacConfig(redis_url="redis://localhost:6379/0"))
with client.episode(task="open the drawer") as episode:
    episode.push(frames)
    verdict = episode.ask_done().result(timeout=30)
"""

from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.config import VlacConfig
from vlac_queue.errors import (
    ConfigError,
    CriticFailed,
    CriticTimeout,
    EpisodeLost,
    FrameError,
    NoWorkers,
    ProtocolError,
    QueueFull,
    RedisDenied,
    RedisFailed,
    RedisUnavailable,
    VlacQueueError,
)
from vlac_queue.gate import RolloutGate
from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.rule import Outcome

__all__ = [
    "ConfigError",
    "CriticClient",
    "CriticFailed",
    "CriticTimeout",
    "DoneVerdict",
    "Episode",
    "EpisodeLost",
    "FrameError",
    "NoWorkers",
    "Outcome",
    "Pending",
    "ProtocolError",
    "QueueFull",
    "RedisDenied",
    "RedisFailed",
    "RedisUnavailable",
    "RolloutGate",
    "ValueVerdict",
    "VlacConfig",
    "VlacQueueError",
]
