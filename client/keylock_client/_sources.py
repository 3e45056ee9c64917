"""Images as users have them, turned into what the server takes.

A file travels as it is. Pixels travel as a PNG file, which loses nothing. A float array is taken as an image that is
preprocessed already and travels as a tensor.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keylock import imaging
from keylock.errors import ImageError, InputError, TensorError
from keylock.imaging.decoding import decode, is_dicom, measure, to_rgb
from keylock.imaging.grey_levels import check_bits, to_8_bits
from keylock.v1 import explanation_pb2 as pb
from keylock_client._limits import RequestLimits

__all__ = ["ImageLike", "Source", "read_source", "read_sources"]

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""One image: a path, the bytes of a file, a Pillow image, pixels or a preprocessed array."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One image of a call; exactly one of the last three attributes is set.

    Attributes:
        name: What to call it in messages: its path, or its place in the call.
        encoded: The bytes of an image file.
        rgb: Pixels, uint8 `(height, width, 3)`.
        tensor: The preprocessed image, float32 `(channels, height, width)`.
    """

    name: str
    encoded: bytes | None = None
    rgb: NDArray[np.uint8] | None = None
    tensor: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        return f"Source({self.name!r})"

    @property
    def kind(self) -> str:
        """How it travels: `tensor` or `file`."""
        return "file" if self.tensor is None else "tensor"

    @property
    def size(self) -> int:
        """Bytes it takes in a message, at most or nearly so."""
        if self.encoded is not None:
            return len(self.encoded)
        array = self.rgb if self.tensor is None else self.tensor
        return 0 if array is None else array.nbytes

    def message(self) -> pb.Image:
        """Return the image in the form in which it is sent."""
        if self.tensor is not None:
            shape, data = self.tensor.shape, self.tensor.astype("<f4").tobytes()
            return pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=data))
        if self.encoded is not None:
            return pb.Image(encoded=self.encoded)
        return pb.Image(encoded=_png(self._pixels()))

    def pixels(self, preprocessing: "imaging.Preprocessing") -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
        """Return the image to draw a map on, and the part of it that the map covers.

        Args:
            preprocessing: That of the served model.

        Returns:
            RGB pixels, uint8 `(height, width, 3)`, and the box: left, upper, right and lower pixel.

        Raises:
            ImageError: The file cannot be decoded.
        """
        if self.tensor is not None:
            seen = preprocessing.denormalise(self.tensor)
            rgb = np.repeat(seen, 3, axis=2) if seen.shape[2] == 1 else seen
            return rgb, (0, 0, rgb.shape[1], rgb.shape[0])
        rgb = self._pixels()
        left, upper, right, lower = preprocessing.source_box(rgb.shape[0], rgb.shape[1])
        # Rounded outwards, so that the box of a very long image never becomes empty.
        return rgb, (int(left), int(upper), int(np.ceil(right)), int(np.ceil(lower)))

    def _pixels(self) -> NDArray[np.uint8]:
        if self.rgb is not None:
            return self.rgb
        # Only to look at: the scale that the server took is not known here.
        return decode(self.encoded or b"", guess=True)


def read_sources(
    images: ImageLike | Sequence[ImageLike], limits: RequestLimits | None = None, *, bits: int | None = None
) -> tuple[list[Source], bool]:
    """Read what a user gave to `predict` or `explain`.

    Args:
        images: One image, a sequence of images, or an array of several: float `(batch, channels, height, width)` or
            uint8 `(batch, height, width, 3)`.
        limits: What an image may have at most, where it is to be sent.
        bits: How many bits the values have of images with more than eight.

    Returns:
        The images, and whether one was given rather than a sequence.

    Raises:
        ImageError: A file cannot be read.
        TensorError: An array is neither pixels nor a preprocessed image.
        InputError: There is no image, or something that is none, or the bits are out of range.
    """
    bits = check_bits(bits)
    if isinstance(images, (list, tuple)):
        several: list[Any] = [*images]
    elif getattr(images, "ndim", None) == 4:
        several = [*_array(images, "the batch")]
    else:
        return [read_source(images, "the image", limits, bits=bits)], True
    if not several:
        raise InputError("no image was given: give at least one")
    return [
        read_source(image, f"image {place} of {len(several)}", limits, bits=bits)
        for place, image in enumerate(several, start=1)
    ], False


def read_source(
    image: Any,  # noqa: ANN401 - users give anything
    name: str,
    limits: RequestLimits | None = None,
    *,
    bits: int | None = None,
) -> Source:
    """Read one image.

    Args:
        image: What a user gave.
        name: What to call it, unless it is a path.
        limits: What an image may have at most, where it is to be sent; looked at before anything is copied.
        bits: How many bits its values have, where they have more than eight; it is then scaled here. Without it the
            server scales as the model was trained.

    Raises:
        ImageError: A file cannot be read.
        TensorError: An array is neither pixels nor a preprocessed image.
        InputError: It is something else.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        if limits is not None:
            limits.check_file(memoryview(image).nbytes, name)
        return _from_file(bytes(image), name, bits)
    if isinstance(image, (str, os.PathLike)):
        return _read_file(os.fspath(image), name, limits, bits)
    if isinstance(image, Image.Image):
        if limits is not None:
            limits.check_pixels(image.width, image.height, name)
        deep = image.mode.startswith("I") and bits is None
        return _from_deep(np.asarray(image), name) if deep else Source(name, rgb=to_rgb(image, bits=bits))
    if hasattr(image, "__array__"):
        return _read_array(_array(image, name), name, limits, bits)
    raise InputError(
        f"{name} is of type {type(image).__name__}: give a path, the bytes of an image file, a Pillow image or an array"
    )


def _read_file(path: str, name: str, limits: RequestLimits | None, bits: int | None) -> Source:
    if "://" in path:
        raise ImageError(f"{path!r} is an address: download the image and give its path or its bytes")
    try:
        with Path(path).open("rb") as file:
            # One byte more than is taken tells that there is more, of devices and pipes too, which have no size.
            data = file.read() if limits is None else file.read(limits.image_bytes + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not a path"
        raise ImageError(f"cannot read the image {path!r}: {why}") from None
    if not data:
        raise ImageError(f"the image {path!r} is empty (0 bytes): give the path of an image file")
    if limits is not None:
        limits.check_file(len(data), repr(path))
    return _from_file(data, path or name, bits)


def _from_file(data: bytes, name: str, bits: int | None) -> Source:
    """Returns a file as it is, unless it has to be converted here."""
    if is_dicom(data) or (bits is not None and measure(data) is not None):
        return Source(name, rgb=decode(data, bits=bits, dicom=True))
    return Source(name, encoded=data)


def _from_deep(values: NDArray[Any], name: str) -> Source:
    """Returns grey values of 16 bits as a file, which the server scales as the model was trained."""
    if values.min() < 0 or values.max() >= 2**16:
        raise TensorError(f"{name} has values outside of 0 to 65,535: scale them to 8 or 16 bits")
    return Source(name, encoded=_png(values.astype(np.uint16)))


def _read_array(array: NDArray[Any], name: str, limits: RequestLimits | None, bits: int | None) -> Source:
    if array.dtype.kind == "u" and array.dtype.itemsize == 2 and array.size and array.ndim in (2, 3):
        if limits is not None:
            limits.check_pixels(array.shape[1], array.shape[0], name)
        if bits is not None:
            array = to_8_bits(array, bits=bits)
        elif array.ndim == 2:
            return _from_deep(array, name)
        else:
            raise TensorError(f"{name} has colours of 16 bits: say how many bits their values have by bits=")
    if array.dtype == np.uint8 and array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        if limits is not None:
            limits.check_pixels(array.shape[1], array.shape[0], name)
        rgb = np.repeat(array[..., np.newaxis], 3, axis=2) if array.ndim == 2 else array
        # A copy, because an explanation may draw on it long after the caller has changed the array.
        return Source(name, rgb=np.array(rgb, order="C"))
    if array.dtype.kind == "f" and array.size and array.ndim == 3:
        if limits is not None:
            limits.check_tensor(array.shape, name)
        with np.errstate(over="ignore"):
            tensor = array.astype(np.float32)
        if not np.isfinite(tensor).all():
            raise TensorError(f"{name} holds NaN or infinite values: replace them")
        return Source(name, tensor=tensor)
    raise TensorError(
        f"{name} is an array of type {array.dtype} and shape {array.shape}: give pixels as uint8 (height, width, 3) or "
        "(height, width), uint16 with bits=, or a preprocessed image as float32 (channels, height, width)"
    )


def _array(value: Any, name: str) -> NDArray[Any]:  # noqa: ANN401 - anything with __array__
    try:
        return np.asarray(value)
    except Exception as error:  # Torch raises RuntimeError and TypeError for tensors that NumPy cannot see.
        raise TensorError(
            f"{name} cannot be read as a NumPy array ({error}): move it to the CPU and detach it"
        ) from None


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default and a few per cent larger.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
