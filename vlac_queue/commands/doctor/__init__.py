"""`vlac-queue doctor`: find what is wrong with settings, Redis, workers, packages, weights and GPU.

Each check is a small function that returns a `Finding`; the tables in examination.py say which there are. Nothing
is changed on Redis, and nothing heavy is imported: versions come from package metadata, and torch is asked about
the GPU in a process of its own.
"""
