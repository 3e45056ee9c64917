"""The tokens of a transformer, laid out in the grid of the image patches they stand for."""

from torch import Tensor

from keylock.errors import LayerNotFoundError
from keylock.models import patch_grid

__all__ = ["lay_out_tokens", "require_patch_grid"]


def require_patch_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the patches among so many tokens, see `keylock.models.patch_grid`.

    Raises:
        LayerNotFoundError: No grid fits.
    """
    grid = patch_grid(tokens, size)
    if grid is None:
        raise LayerNotFoundError(
            f"{tokens} tokens are not a grid of patches of an image of {size[0]} x {size[1]} with a few class tokens: "
            "name a layer that has one token for each patch"
        )
    return grid


def lay_out_tokens(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay values (batch, tokens, channels) out as (batch, channels, rows, columns), without the tokens before them.

    Args:
        values: One row of channels for each token.
        size: Height and width of the images.

    Raises:
        LayerNotFoundError: No grid of patches has so many tokens.
    """
    rows, columns = require_patch_grid(values.shape[1], size)
    patches = values[:, values.shape[1] - rows * columns :]
    return patches.transpose(1, 2).reshape(-1, values.shape[2], rows, columns)
