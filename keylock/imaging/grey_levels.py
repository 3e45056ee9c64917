"""From values of more than eight bits to eight: on a scale that is stated, so that no image turns dark unseen.

Detectors, microscopes and scanners write 10, 12 or 14 bits into files of 16, and most say nowhere that they do. Read as
16 bits such an image is nearly black. So a scale comes from whoever reads the image, or from the file, or else the
values have to reach a quarter of the 16 bits; otherwise the image is refused with the question for its bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.errors import ImageError, InputError

__all__ = ["HOW", "MAX_BITS", "MIN_BITS", "GreyLevels", "agree_on_bits", "check_bits", "fewest_bits", "to_8_bits"]

MIN_BITS: Final = 8
MAX_BITS: Final = 16
HOW: Final = "bits=N"
_FILE_BITS: Final = 16
# Values below a quarter of the range may be of 14 bits or fewer; a photograph that dark is rare.
_SURE_FROM: Final = 2**14


@dataclass(frozen=True)
class GreyLevels:
    """What a file says and shows about the scale of its values.

    Attributes:
        highest: The highest value.
        stated_bits: How many bits the file says that its values have; None where it says nothing beyond its own 16.
    """

    highest: int
    stated_bits: int | None = None

    @property
    def fitting_bits(self) -> int | None:
        """What the file states, unless its values contradict it."""
        return None if self.stated_bits is None or self.highest >> self.stated_bits else self.stated_bits


def check_bits(bits: object) -> int | None:
    """Returns the number of bits that a user states.

    Raises:
        InputError: It is not a whole number from 8 to 16.
    """
    if bits is None:
        return None
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not MIN_BITS <= bits <= MAX_BITS:
        raise InputError(f"the bits of an image are {bits!r}: give how many its values have, {MIN_BITS} to {MAX_BITS}")
    return int(bits)


def fewest_bits(highest: int) -> int:
    """Returns the fewest of 8, 10, 12, 14 and 16 bits that hold a value."""
    return next((bits for bits in (8, 10, 12, 14) if not highest >> bits), MAX_BITS)


def agree_on_bits(levels: Sequence[GreyLevels], *, whose: str) -> int:
    """Returns the one scale of some images: what all of them state, or else 16 bits where their values are high enough.

    Args:
        levels: Of each image of more than 8 bits, at least one.
        whose: What they are called in messages, with its verb, for example `the image has`.

    Raises:
        ImageError: They state different scales, or none while all values are low.
    """
    # A statement that one file contradicts is none: PNG files may state the bits of values that were scaled to 16.
    void = {one.stated_bits for one in levels if one.fitting_bits is None}
    stated = {None if one.stated_bits in void else one.stated_bits for one in levels}
    highest = max(one.highest for one in levels)
    known = stated - {None}
    if len(known) == 1:
        [bits] = known
        if bits is not None and not highest >> bits:
            return bits
    if known:
        parts = ", ".join(sorted(f"{bits} bits" for bits in known))
        raise ImageError(
            f"{whose} values of different scales (some state {parts}, and the highest value of all is {highest:,}): "
            f"state the bits of all ({HOW})"
        )
    if 0 < highest < _SURE_FROM:
        raise ImageError(
            f"{whose} values of 16 bits that reach {highest:,} of 65,535 and would be nearly black: say how many bits "
            f"they have ({HOW}); {fewest_bits(highest)} would fit, and 16 if they are meant to be dark"
        )
    return _FILE_BITS


def to_8_bits(values: NDArray[Any], *, bits: int) -> NDArray[np.uint8]:
    """Scales values to eight bits by keeping the highest eight of their bits.

    Args:
        values: Integers of any shape.
        bits: How many bits they have, at least 8.

    Raises:
        ImageError: A value is negative or does not fit.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0:
        raise ImageError("the image has negative values, which have no scale: shift them to start at 0")
    if high >> bits:
        raise ImageError(f"the image has values up to {high:,}, which {bits} bits do not hold: state more ({HOW})")
    return (values >> (bits - MIN_BITS)).astype(np.uint8)
