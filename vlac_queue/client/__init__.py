"""What a rollout uses: `CriticClient` and the episodes and answers it gives."""

from vlac_queue.client.client import ClientStats, CriticClient, Episode, Pending, live_workers, load_frames

__all__ = ["ClientStats", "CriticClient", "Episode", "Pending", "live_workers", "load_frames"]
