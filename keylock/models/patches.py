"""The grid of image patches that a transformer's tokens stand for: one rule for whoever needs to know."""

import math

__all__ = ["patch_grid"]

_MOST_PREFIX_TOKENS = 8
"""Class, distillation and register tokens of the transformers in use are no more than this."""


def patch_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of the patches among so many tokens of an image (height, width) of square patches.

    The grid is the largest one of the image's proportions; what is left over stands before the patches, as class and
    register tokens do. None means that no grid fits with at most eight tokens before it.
    """
    common = math.gcd(*size)
    rows, columns = size[0] // common, size[1] // common
    scale = math.isqrt(tokens // (rows * columns))
    rows, columns = rows * scale, columns * scale
    if rows * columns < 2 or tokens - rows * columns > _MOST_PREFIX_TOKENS:
        return None
    return rows, columns
