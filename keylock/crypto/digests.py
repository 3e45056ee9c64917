"""Digests that name content: a file of a bundle, an image as it was sent, a map as it was answered.

Whoever has the bytes can compute them, so a receipt fits an answer exactly when nothing was changed on the way.
"""

import hashlib
from collections.abc import Sequence

__all__ = ["digest_of", "digest_of_array"]


def digest_of(content: bytes) -> str:
    """Returns `sha256:` and the hexadecimal digest of bytes: what `sha256sum` prints for a file of them."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of_array(dtype: str, shape: Sequence[int], data: bytes | bytearray | memoryview) -> str:
    """Returns the digest of an array: of one line `dtype side,side,...` and its elements.

    Args:
        dtype: `uint8`, `float16` or `float32`.
        shape: Its sides.
        data: Its elements in C order, little-endian, in one dimension.

    Returns:
        `sha256:` and 64 hexadecimal digits. Arrays of equal bytes and different shapes have different digests.
    """
    digest = hashlib.sha256(f"{dtype} {','.join(str(side) for side in shape)}\n".encode("ascii"))
    # In two steps, because a map may be large and need not be copied.
    digest.update(data)
    return "sha256:" + digest.hexdigest()
