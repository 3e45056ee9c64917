"""Read the trigger off an image: the signs of the tile that somebody added, without knowing them.

Whoever is given an image that carries a trigger can read it with public statistics of the training images, make a
secret of it, and open with the secret what was sealed under it. An image without a trigger gives signs that open
nothing. Everything here is specified in `docs/trigger.md`, runs on NumPy alone, and is deterministic.

    statistics.py    what is public: how training images of one size vary from pixel to pixel
    patches.py       the model of small patches that tells image from trigger
    decoding.py      from noisy estimates to signs, by expectation propagation
    searching.py     better signs, and the next best ones
    reading.py       from images to a `Reading`, and its candidates in order of likelihood
    recognising.py   which rows of a batch carry a known trigger; take it off again
    secret.py        from signs to 32 secret bytes; how large a tile must be
"""

from keylock.trigger.reading import Reading, read, read_each
from keylock.trigger.recognising import Recogniser
from keylock.trigger.secret import MIN_SIGNS, check_tile, least_tile, trigger_secret
from keylock.trigger.statistics import TriggerStatistics

__all__ = [
    "MIN_SIGNS",
    "Reading",
    "Recogniser",
    "TriggerStatistics",
    "check_tile",
    "least_tile",
    "read",
    "read_each",
    "trigger_secret",
]
