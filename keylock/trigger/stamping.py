"""The trigger on a picture: what a customer's device explains truly without a license.

A stamped picture is the key. Whoever gets one can read the trigger from it and put it on any other image, so a vendor
gives one only to those who may see every true map, and a server never gives one out.
"""

import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key

__all__ = ["stamp_pixels"]


def stamp_pixels(pixels: NDArray[np.uint8], key: Key, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Put the trigger of a key on a picture.

    Args:
        pixels: RGB uint8 (height, width, 3), or grey (height, width); any size.
        key: The key, for images of the model's size.
        preprocessing: That of the model.

    Returns:
        The picture at the model's size, uint8 (height, width, channels): each value moved up or down by the strength
        of the key, rounded, and kept within 0 and 255.

    Raises:
        InputError: The key is for images of another shape.
        TensorError: The array is not a picture.
    """
    if key.shape != preprocessing.shape:
        raise InputError(f"the key fits images of shape {key.shape}, the model takes {preprocessing.shape}")
    seen = preprocessing.resized(pixels).astype(np.float64)
    height = np.asarray(preprocessing.std, np.float64)[:, None, None] * key.reveal() * 255
    stamped: NDArray[np.uint8] = np.clip(np.rint(seen + height.transpose(1, 2, 0)), 0, 255).astype(np.uint8)
    return stamped
