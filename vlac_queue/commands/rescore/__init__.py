"""A decision log's frames asked about again, and the answers compared (`vlac-queue rescore`).

replay.py asks, comparison.py compares, command.py shows.
"""
