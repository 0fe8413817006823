"""`vlac-queue calibrate`: how often "done" is right at every threshold, and which threshold to take.

judged.py reads episodes whose end is known, tally.py counts, choice.py recommends, picture.py draws, and
command.py shows.
"""
