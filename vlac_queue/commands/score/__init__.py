"""A recorded run and its score (`vlac-queue score`).

command.py asks the critic; the rest is what it needs before and after, without Redis: reading frames, VLAC's
figures of a value list, JSON and picture.
"""

from vlac_queue.commands.score.figures import Score, make_score, negative_rate, summary, value_order_correlation
from vlac_queue.commands.score.picture import Thumbnails, write_picture
from vlac_queue.commands.score.reading import open_clip, read_reference

__all__ = [
    "Score",
    "Thumbnails",
    "make_score",
    "negative_rate",
    "open_clip",
    "read_reference",
    "summary",
    "value_order_correlation",
    "write_picture",
]
