"""What a rollout uses: `CriticClient` and the episodes and answers it gives."""

from vlac_queue.client.client import CriticClient
from vlac_queue.client.episode import Episode, Pending
from vlac_queue.client.reference import load_frames
from vlac_queue.client.sending import ClientStats

__all__ = ["ClientStats", "CriticClient", "Episode", "Pending", "load_frames"]
