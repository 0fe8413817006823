"""Episodes looked at: open ones on Redis, and those of a decision log (`vlac-queue episodes`).

record.py is what is known of an episode, live.py and log.py read it, sheet.py draws it.
"""
