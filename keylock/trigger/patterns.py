"""Patterns of signs: one tile repeated over an image, and added to rows of images, in NumPy or in torch."""

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import numpy.typing as npt

from keylock.errors import TensorError

if TYPE_CHECKING:
    import torch

__all__ = ["Images", "add_to_rows", "check_shape", "lay_out", "repeat"]

Images = TypeVar("Images")
_Value = TypeVar("_Value", bound=np.generic)


def check_shape(shape: Sequence[int], std: Sequence[float]) -> None:
    """Returns when a key can be made for a shape (channels, height, width) and a `std` of each channel.

    Raises:
        TensorError: If the shape is not three positive numbers or `std` does not fit it.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise TensorError(f"a key needs a shape (channels, height, width) of positive numbers, not {tuple(shape)}")
    if len(std) != shape[0] or not all(math.isfinite(value) and value > 0 for value in std):
        raise TensorError(f"the key needs one positive std for each of {shape[0]} channels, not {tuple(std)}")


def lay_out(
    signs: npt.NDArray[np.float64], shape: tuple[int, int, int], std: Sequence[float], strength: float
) -> npt.NDArray[np.float32]:
    """Returns a tile of signs (channels, tile, tile), repeated over an image of a shape and as high as it is added."""
    height = strength / np.asarray(std, dtype=np.float64)
    return (repeat(signs, shape[1:]) * height[:, None, None]).astype(np.float32)


def repeat(tile: npt.NDArray[_Value], size: tuple[int, int]) -> npt.NDArray[_Value]:
    """Returns a tile (channels, side, side) repeated over an image of a size (height, width), cut off at its edges."""
    rows, columns = (np.arange(length) % tile.shape[1] for length in size)
    return tile[:, rows[:, None], columns[None, :]]


def add_to_rows(images: Images, offset: npt.NDArray[np.float32], mask: object | None) -> Images:
    """Adds an offset (channels, height, width) to images, as `Key.apply` says.

    Raises:
        TensorError: If the images do not fit the offset, are not floating-point, or the mask does not fit the images.
    """
    if _is_torch(images):
        return cast("Images", _add_in_torch(cast("torch.Tensor", images), offset, mask))
    if not isinstance(images, np.ndarray):
        raise TensorError(f"images must be a NumPy array or a torch tensor, not {type(images).__name__}")
    floating = bool(np.issubdtype(images.dtype, np.floating))
    _check_images(images.shape, offset.shape, floating=floating, dtype=images.dtype)
    added = offset.astype(images.dtype)
    if mask is None:
        return cast("Images", images + added)
    chosen = np.asarray(mask)
    _check_mask(chosen.shape, len(images), boolean=chosen.dtype == np.bool_)
    return cast("Images", images + chosen.astype(images.dtype)[:, None, None, None] * added)


def _add_in_torch(images: "torch.Tensor", offset: npt.NDArray[np.float32], mask: object | None) -> "torch.Tensor":
    library = sys.modules["torch"]
    _check_images(tuple(images.shape), offset.shape, floating=images.is_floating_point(), dtype=images.dtype)
    added: torch.Tensor = library.from_numpy(offset.copy()).to(device=images.device, dtype=images.dtype)
    if mask is None:
        return images + added
    chosen: torch.Tensor = library.as_tensor(mask, device=images.device)
    _check_mask(tuple(chosen.shape), len(images), boolean=chosen.dtype == library.bool)
    return images + chosen.to(images.dtype)[:, None, None, None] * added


def _check_images(shape: tuple[int, ...], fits: tuple[int, ...], *, floating: bool, dtype: object) -> None:
    if len(shape) != 4 or tuple(shape[1:]) != fits:
        raise TensorError(f"the key fits images of shape (batch, {', '.join(map(str, fits))}), not {shape}")
    if not floating:
        raise TensorError(f"the key is added to preprocessed floating-point images, not {dtype}")


def _check_mask(shape: tuple[int, ...], rows: int, *, boolean: bool) -> None:
    if shape != (rows,) or not boolean:
        raise TensorError(f"the mask must be boolean with one value for each of {rows} images")


def _is_torch(value: object) -> bool:
    """Tells whether a value is a torch tensor, without importing torch: whoever made one has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
