"""From an image file to the pixels that a model sees, without ever holding the whole image in RGB.

What comes out is what `preprocessing.resized(decode(data))` gives, with one exception: JPEG files of more than
`WHOLE_PIXELS` are decoded at a half or a quarter of their size, as far as they stay four times as large as the model
needs them. Data sets and the server both come through here, so that a model is trained on what it is asked.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.imaging.decoding import ImageLimits, OpenedImage, decode, is_dicom
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["WHOLE_PIXELS", "read_framed"]

WHOLE_PIXELS: Final = 2**24
"""JPEG files of so many pixels are always decoded whole."""

_SPARE: Final = 4
# An eighth is the mean of each block, which differs by more than rounding.
_MOST: Final = 4
_BYTES: Final = 4


def read_framed(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    limits: ImageLimits | None = None,
    bits: int | None = None,
    dicom: bool = False,
    claim: Callable[[int], None] | None = None,
    check_pixels: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Decodes an image and frames it for a model.

    Args:
        data: The file, as `keylock.imaging.decoding.decode` takes it.
        preprocessing: That of the model.
        limits: What the image may cost.
        bits: How many bits the values have of an image with more than eight; those of the preprocessing when None.
        dicom: Whether DICOM files are converted too.
        claim: Told how many bytes this takes, about, before they are taken; may raise.
        check_pixels: Called with width times height before the image is decoded; raises where that is too much.

    Returns:
        The pixels the model sees, uint8 `(*size, channels)`.

    Raises:
        ImageError: As `decode` does.
    """
    limits = limits or ImageLimits()
    bits = preprocessing.bits if bits is None else bits
    if dicom and is_dicom(data):
        return preprocessing.resized(decode(data, limits=limits, bits=bits, dicom=True))
    opened = OpenedImage(data, limits=limits)
    width, height = opened.size
    if check_pixels is not None:
        check_pixels(width * height)
    opened.reduce(lambda height, width: _reduction(height, width, preprocessing))
    if claim is not None:
        # Beside the image, all of its rows at the width of the model; which side that is shows later in some files.
        claim(opened.decoding_bytes + _BYTES * max(preprocessing.size) * max(width, height))
    return preprocessing.framed(opened.read(bits=bits))


def _reduction(height: int, width: int, preprocessing: Preprocessing) -> int:
    """Returns by how much a JPEG file of this size is reduced while it is decoded."""
    left, top, right, bottom = preprocessing.source_box(height, width)
    spare = min((bottom - top) / preprocessing.size[0], (right - left) / preprocessing.size[1]) / _SPARE
    times = 1
    while times < _MOST and height * width > WHOLE_PIXELS * times**2 and spare >= 2 * times:
        times *= 2
    return times
