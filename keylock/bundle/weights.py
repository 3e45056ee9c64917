"""The weights in a bundle: the published ones, and those that the sealed delta makes of them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from keylock.bundle.manifest import WEIGHTS_FILE
from keylock.errors import BundleError, InputError
from keylock.trigger.delta import Delta

__all__ = ["WeightArrays", "read_weights"]

WeightArrays = Mapping[str, NDArray[np.float32]]
"""Entries of a network's weights by name."""


def read_weights(content: bytes, delta: Delta | None) -> tuple[WeightArrays, WeightArrays | None]:
    """Returns the published weights, and the opened ones where there is a delta.

    Args:
        content: Of the bundle's file of weights.
        delta: What the trigger opens.

    Raises:
        BundleError: The file is damaged, or the delta does not fit it.
        ModuleNotFoundError: safetensors is not installed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        published = {name: array.astype(np.float32, copy=False) for name, array in load(content).items()}
        return published, None if delta is None else delta.added_to(published)
    except (SafetensorError, InputError) as error:
        raise BundleError(f"{WEIGHTS_FILE} does not fit the model's graphs: export the bundle again") from error
