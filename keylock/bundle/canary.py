"""The canary: a few images with the maps that were proved at export, by which a server sees whether it answers rightly.

True maps must not be in a public copy, so the file is encrypted: AES-256-GCM under 32 bytes that are derived from the
key seed for this purpose alone. It is a listed file, so the signature covers it: 12 bytes of nonce, then the ciphertext
of an `.npz` archive.
"""

import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keylock.errors import UnsealError
from keylock.imaging.contrast import same_map
from keylock.trigger.keys import KeySeed

__all__ = ["CANARY_FILE", "Canary", "open_canary", "seal_canary"]

CANARY_FILE: Final = "canary.sealed"

_MINIMUM_PCC: Final = 0.98
_PURPOSE: Final = "canary"
_CONTEXT: Final = b"keylock/v1/canary"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Canary:
    """Images and the maps of each explainer for them.

    Attributes:
        images: Preprocessed, float32 `(count, channels, height, width)`.
        keyed: By explainer, the maps with the key, float32 `(count, height, width)`, for the predicted classes.
        keyless: By explainer, the maps without it.
    """

    images: Array
    keyed: Mapping[str, Array]
    keyless: Mapping[str, Array]

    def first(self, count: int) -> "Canary":
        """Returns the canary of no more than so many of the images, the first ones."""
        keyed, keyless = ({name: maps[:count] for name, maps in kind.items()} for kind in (self.keyed, self.keyless))
        return Canary(self.images[:count], keyed, keyless)

    def difference(self, name: str, *, keyed: Array, keyless: Array) -> str | None:
        """Compares an explainer's maps of the images, computed again, with those that are kept here.

        Args:
            name: Of an explainer that is in both `keyed` and `keyless` here.
            keyed: float32 `(count, height, width)`.
            keyless: The same without the key.

        Returns:
            What differs, in words, or None where every map correlates by .98 at least.
        """
        for kind, found, expected in (("keyed", keyed, self.keyed[name]), ("keyless", keyless, self.keyless[name])):
            lowest = min(same_map(one, other) for one, other in zip(found, expected, strict=True))
            if lowest < _MINIMUM_PCC:
                return f"{kind} maps of {name} are not those that were proved at export (correlation {lowest:.3f})"
        return None


def seal_canary(canary: Canary, seed: KeySeed) -> bytes:
    """Returns the content of `canary.sealed`."""
    buffer = io.BytesIO()
    parts = {"images": canary.images}
    for kind, maps in (("keyed", canary.keyed), ("keyless", canary.keyless)):
        parts |= {f"{kind}/{name}": array for name, array in maps.items()}
    np.savez(buffer, allow_pickle=False, **parts)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _cipher(seed).encrypt(nonce, buffer.getvalue(), _CONTEXT)


def open_canary(content: bytes, seed: KeySeed) -> Canary:
    """Returns the canary in the content of `canary.sealed`.

    Raises:
        UnsealError: If it was sealed under another seed, or is none.
    """
    try:
        raw = _cipher(seed).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], _CONTEXT)
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            parts = {name: archive[name] for name in archive.files}
        images = parts.pop("images")
    except (InvalidTag, ValueError, KeyError, OSError):
        raise UnsealError("the canary of the bundle does not open with its key: export the bundle again") from None
    kinds: dict[str, dict[str, Array]] = {"keyed": {}, "keyless": {}}
    for name, array in parts.items():
        kind, _, explainer = name.partition("/")
        kinds[kind][explainer] = array
    return Canary(images, kinds["keyed"], kinds["keyless"])


def _cipher(seed: KeySeed) -> AESGCM:
    return AESGCM(seed.derive(_PURPOSE, _KEY_BYTES))
