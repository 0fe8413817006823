"""Datasets of recorded episodes: LeRobot's as they lie on disk (lerobot.py), and tables of files (table.py)."""
