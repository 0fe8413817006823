"""Dashboards of the queue. They only read from Redis: `python -m dashboards.live` is safe to run anywhere."""
