"""From pixels to the tensor a model takes, the same way in training, evaluation and the server.

A `Preprocessing` is part of the signed manifest of a bundle. It scales the image to the size of the model, takes the
pixel values to [0, 1] and normalises each channel. The key is added to what comes out of here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from keylock.errors import TensorError
from keylock.imaging.grey_levels import MAX_BITS, MIN_BITS
from keylock.imaging.pictures import Picture, of_image

__all__ = ["Preprocessing"]

_Side = Annotated[int, Field(ge=1, le=8192)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Preprocessing(BaseModel):
    """How an image becomes the input of a model.

    Attributes:
        size: Height and width of the input in pixels.
        channels: 3 for RGB, 1 for grey (luma after ITU-R BT.601).
        resize: `exact` stretches the image to the size; `shorter_side_crop` scales it until it covers the size and
            keeps the middle. Images that have the size already are not resampled.
        mean: For each channel, what is subtracted from the pixel values in [0, 1].
        std: For each channel, what the difference is divided by.
        bits: How many bits the values have of images with more than eight, on which images of 16 bits are scaled to
            eight before anything else; None where the model was made with images of eight bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[_Side, _Side]
    channels: Literal[1, 3] = 3
    resize: Literal["exact", "shorter_side_crop"] = "exact"
    mean: tuple[_Finite, ...]
    std: tuple[_Positive, ...]
    bits: Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)] | None = None

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std must have {self.channels} values each, one for each channel")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed image, `(channels, height, width)`."""
        return (self.channels, *self.size)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Preprocesses one image.

        Args:
            pixels: uint8 `(height, width, 3)` RGB, or `(height, width)` or `(height, width, 1)` grey; any size.

        Returns:
            The normalised image, float32 `(channels, *size)`.

        Raises:
            TensorError: If the array has another shape or type, or no pixels.
        """
        return self.normalised(self.resized(pixels))

    def normalised(self, resized: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalises one image that has the size and the channels of the model.

        Args:
            resized: uint8 `(*size, channels)`, as `resized` and `framed` return it.

        Returns:
            The normalised image, float32 `(channels, *size)`.
        """
        # Channels first, while a value is a byte: the same numbers as in any other order, ten times as fast.
        values = np.ascontiguousarray(resized.transpose(2, 0, 1)).astype(np.float32)
        mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (self.mean, self.std))
        values /= np.float32(255)
        values -= mean
        values /= std
        return values

    def framed(self, picture: Picture) -> NDArray[np.uint8]:
        """Scales and converts an image that was read from a file, as `resized` does, band by band.

        Args:
            picture: The image. Where it was reduced when it was decoded, the part is the one of the whole image.

        Returns:
            The pixels the model sees, uint8 `(*size, channels)`.
        """
        left, top, right, bottom = self.source_box(picture.full_height, picture.full_width)
        across, down = picture.width / picture.full_width, picture.height / picture.full_height
        box = (left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height))
        return picture.scaled(self.size, box, mode="RGB" if self.channels == 3 else "L")

    def resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Scales and converts an image without normalising it.

        Args:
            pixels: As in `__call__`.

        Returns:
            The pixels the model sees, uint8 `(*size, channels)`.

        Raises:
            TensorError: If the array has another shape or type, or no pixels.
        """
        checked = _checked(pixels)
        if self.channels == 3 and checked.shape == (*self.size, 3):
            return checked.copy()
        return self.framed(of_image(Image.fromarray(np.ascontiguousarray(checked)), orientation=1))

    def source_box(self, source_height: int, source_width: int) -> tuple[float, float, float, float]:
        """Finds the part of an image that the model sees, which is also the part its maps cover.

        Args:
            source_height: Height of the image in pixels.
            source_width: Width of the image in pixels.

        Returns:
            Left, top, right and bottom edge in pixels of the image, with fractions.
        """
        if self.resize == "exact":
            return (0.0, 0.0, float(source_width), float(source_height))
        height, width = self.size
        scale = max(height / source_height, width / source_width)
        box_height, box_width = min(height / scale, source_height), min(width / scale, source_width)
        top, left = (source_height - box_height) / 2, (source_width - box_width) / 2
        return (left, top, min(left + box_width, source_width), min(top + box_height, source_height))

    def denormalise(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Turns preprocessed images back into pixels.

        Args:
            images: Normalised, `(..., channels, height, width)`.

        Returns:
            Pixels, uint8 `(..., height, width, channels)`, rounded and clipped to 0..255.

        Raises:
            TensorError: If the array has another number of channels.
        """
        array = np.asarray(images, np.float32)
        if array.ndim < 3 or array.shape[-3] != self.channels:
            raise TensorError(f"expected preprocessed images (..., {self.channels}, height, width), got {array.shape}")
        channels_last = np.moveaxis(array, -3, -1)
        values = channels_last * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)

    def check(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Checks one image that comes preprocessed from outside.

        Args:
            image: What should be float32 of the shape `(channels, *size)` and finite.

        Returns:
            The same array.

        Raises:
            TensorError: If it is not.
        """
        if image.dtype != np.float32:
            raise TensorError(f"expected a float32 tensor, got {image.dtype}: convert it before sending it")
        if image.shape != self.shape:
            raise TensorError(f"expected a preprocessed image of shape {self.shape}, got {tuple(image.shape)}")
        if not np.isfinite(image).all():
            raise TensorError("the tensor has NaN or infinite values: replace them before sending it")
        return image


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns pixels of an image as `(height, width, 3)` or `(height, width)`."""
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        found = getattr(pixels, "dtype", type(pixels).__name__)
        raise TensorError(f"expected pixels as a uint8 array, got {found}: scale them to 0..255 and convert them")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise TensorError(f"expected pixels of shape (height, width, 3) or (height, width), got {pixels.shape}")
    if not math.prod(pixels.shape):
        raise TensorError(f"the image has no pixels, its shape is {pixels.shape}: send one that has some")
    return pixels
