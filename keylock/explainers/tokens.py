"""The tokens of a transformer, laid out in the grid of the image patches they stand for."""

import math

from torch import Tensor

from keylock.errors import LayerNotFoundError

__all__ = ["lay_out_tokens", "patch_grid"]

_MOST_EXTRA = 8
"""Class, distillation and register tokens of the transformers in use are no more than this."""


def patch_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the patches among so many tokens of an image (height, width) of square patches.

    The grid is the largest one of the image's proportions; what is left over stands before the patches, as class and
    register tokens do.

    Raises:
        LayerNotFoundError: No grid fits.
    """
    common = math.gcd(*size)
    rows, columns = size[0] // common, size[1] // common
    scale = math.isqrt(tokens // (rows * columns))
    rows, columns = rows * scale, columns * scale
    if rows * columns < 2 or tokens - rows * columns > _MOST_EXTRA:
        raise LayerNotFoundError(
            f"{tokens} tokens are no grid of the patches of an image of {size[0]} x {size[1]} with at most "
            f"{_MOST_EXTRA} class tokens: name a layer that has one token for each patch"
        )
    return rows, columns


def lay_out_tokens(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay values (batch, tokens, channels) out as (batch, channels, rows, columns), without the tokens before them.

    Args:
        values: One row of channels for each token.
        size: Height and width of the images.

    Raises:
        LayerNotFoundError: No grid of patches has so many tokens.
    """
    rows, columns = patch_grid(values.shape[1], size)
    patches = values[:, values.shape[1] - rows * columns :]
    return patches.transpose(1, 2).reshape(-1, values.shape[2], rows, columns)
