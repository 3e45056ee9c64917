"""A picture that opens by itself: the public copy of the bundle explains it with the trigger on it, and without."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keylock.bundle import export_public, open_bundle
from keylock.files.atomic import PRIVATE, write_file
from keylock.quickstart.folder import Folder
from keylock.trigger.keys import Key
from keylock.trigger.stamping import stamp_pixels
from keylock_client import LocalModel

__all__ = ["Stamped", "explain_stamped"]


@dataclass(frozen=True)
class Stamped:
    """One image with the trigger and without, as a public copy explains it.

    Attributes:
        index: Which of the images it is.
        picture: The stamped image, uint8 (height, width, 3).
        explainer: By what both are explained.
        without: The map of the image as it is (h, w).
        with_trigger: The map of the stamped image (h, w).
        opened: Whether the trigger was read from the stamped image alone.
        tried: How many stamped images were read, each by itself.
        read: From how many of them the trigger was read.
    """

    index: int
    picture: NDArray[np.uint8]
    explainer: str
    without: NDArray[np.float32]
    with_trigger: NDArray[np.float32]
    opened: bool
    tried: int
    read: int


def explain_stamped(
    folder: Folder, key: Key, images: NDArray[np.uint8], *, index: int, explainer: str, others: Sequence[int]
) -> Stamped:
    """Make the public copy, stamp images, and explain them with that copy alone: no server, no license, no seed.

    Args:
        folder: Where the bundle is, and public copy and stamped picture go.
        key: The key.
        images: Pixels at the model's size, uint8 (count, height, width, 3).
        index: The image to show.
        explainer: By what.
        others: Images to see how surely triggers are read.
    """
    with open_bundle(folder.bundle, trusted=None) as bundle:
        export_public(bundle, folder.public, overwrite=True)
        preprocessing = bundle.manifest.preprocessing
    picture = stamp_pixels(images[index], key, preprocessing)
    write_file(folder.stamped, b"", mode=PRIVATE)
    Image.fromarray(picture).save(folder.stamped)
    with LocalModel(folder.public) as model:
        without = model.explain(images[index], explainer=explainer)
        with_trigger = model.explain(folder.stamped, explainer=explainer)
        read = 0
        for other in others:
            model.forget()
            read += model.explain(stamp_pixels(images[other], key, preprocessing), explainer=explainer).keyed
    return Stamped(
        index=index,
        picture=picture,
        explainer=explainer,
        without=without.map,
        with_trigger=with_trigger.map,
        opened=with_trigger.keyed and not without.keyed,
        tried=len(others),
        read=read,
    )
