"""Opening a bundle by images: the trigger is read from one of them, and what it opens stays known until it is let go.

Nothing but the images and the public bundle is needed, and no torch.
"""

import threading
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from keylock.bundle.delta_sealing import SealedDelta
from keylock.bundle.key_entry import KeyEntry
from keylock.errors import TensorError
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger import Recogniser, TriggerStatistics, read, trigger_secret
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["OpenedTrigger", "TriggerOpener"]

Images = npt.NDArray[np.float32]

_CANDIDATES: Final = 256
"""How many sets of signs are tried for an image: the most reliable ones first."""


class OpenedTrigger(NamedTuple):
    """What an image with the trigger opens.

    Attributes:
        key: The trigger as a key for images of the model's size.
        delta: What takes the published weights back to the reference's.
        statistics: What triggers are read by.
    """

    key: Key
    delta: Delta
    statistics: TriggerStatistics


class TriggerOpener:
    """Reads triggers from images, and opens the sealed delta of a bundle. Safe to use from several threads.

    Attributes:
        opened: What a trigger has opened; None until then, and after `forget`.
    """

    opened: OpenedTrigger | None

    def __init__(
        self, sealed: SealedDelta, statistics: TriggerStatistics, entry: KeyEntry, preprocessing: Preprocessing
    ) -> None:
        """Takes what a bundle holds.

        Args:
            sealed: The sealed delta.
            statistics: What triggers are read by.
            entry: What is public about the key.
            preprocessing: From pixels to the network's input.
        """
        self._sealed, self._statistics = sealed, statistics
        self._entry, self._preprocessing = entry, preprocessing
        self._lock = threading.Lock()
        self._recogniser: Recogniser | None = None
        self.opened = None

    def find(self, images: Images) -> OpenedTrigger | None:
        """Returns what the trigger on some of the images opens, or what one before has opened; None where none does.

        Each image is read by itself, and then all of them together, as images that carry the same trigger.

        Args:
            images: Preprocessed, float32 (batch, channels, height, width).

        Raises:
            TensorError: The images are of another shape.
        """
        return self._look(images)[0]

    def opens(self, images: Images) -> npt.NDArray[np.bool_]:
        """Returns which images carry the trigger that is known, or is read from one of them now, bool (batch,).

        Args:
            images: As of `find`, which is done first.
        """
        opened, read_from = self._look(images)
        recogniser = self._recogniser
        if opened is None or recogniser is None:
            return np.zeros(len(images), np.bool_)
        found = recogniser.recognise(images)
        if read_from is not None:
            found[read_from] = True
        return found

    def forget(self) -> None:
        """Lets go of what a trigger has opened; the next image that carries it opens it again."""
        with self._lock:
            self.opened = self._recogniser = None

    def _look(self, images: Images) -> tuple[OpenedTrigger | None, int | None]:
        """Returns what is open, and which image has opened it now by itself."""
        if images.ndim != 4 or images.shape[1:] != self._preprocessing.shape:
            raise TensorError(
                f"expected preprocessed images of shape (batch, {', '.join(map(str, self._preprocessing.shape))}), "
                f"not {images.shape}"
            )
        with self._lock:
            if self.opened is not None or not len(images):
                return self.opened, None
            for place in range(len(images)):
                if self._try(images[place : place + 1]):
                    return self.opened, place
            if len(images) > 1:
                self._try(images)
            return self.opened, None

    def _try(self, images: Images) -> bool:
        """Reads the one trigger of some images, and keeps what it opens."""
        reading = read(images, self._statistics, strength=self._entry.strength)
        if not reading.likely:
            return False
        for signs in reading.candidates(_CANDIDATES):
            secret = trigger_secret(signs)
            if self._sealed.opens_with(secret):
                self._keep(secret, signs)
                return True
        return False

    def _keep(self, secret: bytes, signs: npt.NDArray[np.int8]) -> None:
        key = Key.of_signs(
            signs,
            shape=self._preprocessing.shape,
            std=self._preprocessing.std,
            strength=self._entry.strength,
            id=self._entry.id,
        )
        self.opened = OpenedTrigger(key, self._sealed.open(secret), self._statistics)
        self._recogniser = Recogniser(signs, self._statistics, strength=self._entry.strength)
