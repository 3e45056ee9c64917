"""DICOM files to eight bits, as a viewer shows them: rescaled, windowed, and with MONOCHROME1 the right way round.

It needs pydicom (`pip install '.[dicom]'`). DICOM is converted where the images are, by the vendor's data sets and by
the client; a server takes none.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.errors import ImageError
from keylock.imaging.grey_levels import GreyLevels, to_8_bits

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["is_dicom", "measure_dicom", "read_dicom"]

CheckSize = Callable[[int, int], None]

_MARK_AT: Final = 128
# Unfolds while it is opened, so that no size can be checked before.
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_HEADER: Final = 4096


def is_dicom(data: bytes) -> bool:
    """Returns whether the bytes are those of a DICOM file (PS3.10, section 7.1)."""
    return data[_MARK_AT : _MARK_AT + 4] == b"DICM"


def measure_dicom(data: bytes, *, check_size: CheckSize) -> GreyLevels | None:
    """Returns what a file says about the scale of its values, or None where it has a window or is in colour.

    Args:
        data: The file.
        check_size: Called with width and height before anything is decoded; raises where they are too many.

    Raises:
        ImageError: It cannot be read.
    """
    dataset = _open(data, check_size)
    if _is_colour(dataset) or _has_window(dataset):
        return None
    return _levels(dataset, _pixels(dataset))


def read_dicom(data: bytes, *, check_size: CheckSize, choose_bits: Callable[[GreyLevels], int]) -> NDArray[np.uint8]:
    """Decodes a file.

    Args:
        data: The file.
        check_size: As of `measure_dicom`.
        choose_bits: Decides on the scale of a file without a window.

    Returns:
        RGB pixels, uint8 `(height, width, 3)`.

    Raises:
        ImageError: It cannot be read, has several frames, or values with a sign and no window.

    References:
        PS3.3, sections C.11.1 (Modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (Photometric Interpretation).
    """
    dataset = _open(data, check_size)
    pixels = _pixels(dataset)
    if _is_colour(dataset):
        return _colour(dataset, pixels)
    if _has_window(dataset):
        grey = _windowed(dataset, pixels)
    else:
        if int(dataset.get("PixelRepresentation", 0)):
            raise ImageError("the DICOM image has values with a sign and no window: add WindowCenter and WindowWidth")
        grey = to_8_bits(pixels, bits=choose_bits(_levels(dataset, pixels)))
    return np.repeat((255 - grey if _is_inverted(dataset) else grey)[..., np.newaxis], 3, axis=2)


def _open(data: bytes, check_size: CheckSize) -> "Dataset":
    try:
        from pydicom import dcmread
    except ImportError:
        raise ImageError(
            "the image is a DICOM file, which needs pydicom: pip install '.[dicom]'"
        ).for_missing_extra() from None
    if _DEFLATED in data[:_HEADER]:
        raise ImageError("the DICOM image is deflated as a whole, which is not read: save it without")
    dataset = dcmread(io.BytesIO(data))
    width, height = int(dataset.get("Columns", 0) or 0), int(dataset.get("Rows", 0) or 0)
    if "PixelData" not in dataset or not width or not height:
        raise ImageError("the DICOM file has no pixels: give one with an image")
    check_size(width, height)
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise ImageError(f"the DICOM image has {dataset.NumberOfFrames} frames: save a single one")
    return dataset


def _pixels(dataset: "Dataset") -> NDArray[Any]:
    try:
        return np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError) as error:  # pydicom has no decoder for this compression.
        name = dataset.file_meta.TransferSyntaxUID.name
        raise ImageError(f"the DICOM image is compressed as {name}, which is not read: save it uncompressed") from error


def _is_colour(dataset: "Dataset") -> bool:
    return int(dataset.get("SamplesPerPixel", 1)) > 1 or str(dataset.PhotometricInterpretation) == "PALETTE COLOR"


def _has_window(dataset: "Dataset") -> bool:
    window = [dataset.get(name) for name in ("WindowCenter", "WindowWidth")]
    return "VOILUTSequence" in dataset or not any(value is None or value == "" for value in window)


def _is_inverted(dataset: "Dataset") -> bool:
    """Returns whether low values are bright. An inverse presentation says the same as MONOCHROME1, not the opposite."""
    shape = str(dataset.get("PresentationLUTShape", ""))
    return str(dataset.PhotometricInterpretation) == "MONOCHROME1" or shape == "INVERSE"


def _levels(dataset: "Dataset", pixels: NDArray[Any]) -> GreyLevels:
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    return GreyLevels(int(pixels.max()), stored if 8 <= stored < allocated or stored == 8 else None)


def _colour(dataset: "Dataset", pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns RGB pixels. pydicom has turned YBR into RGB already, whatever the attribute still says."""
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    return to_8_bits(pixels[..., :3], bits=max(bits, 8))


def _windowed(dataset: "Dataset", pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns grey values of the first window, or of the first table of values, on a scale to 255."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(pixels, dataset)
    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return to_8_bits(apply_voi(values, dataset), bits=max(bits, 8))
    centre, width = (float(_first(dataset[name].value)) for name in ("WindowCenter", "WindowWidth"))
    if width <= 0:
        raise ImageError(f"the DICOM image has a window of width {width:g}: give it one above 0")
    kind = str(dataset.get("VOILUTFunction", "LINEAR")).upper()
    shown = _shown(values.astype(np.float64), centre, width, kind)
    grey: NDArray[np.uint8] = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    return grey


def _shown(values: NDArray[np.float64], centre: float, width: float, kind: str) -> NDArray[np.float64]:
    """Returns brightness from 0 to 1 (PS3.3, sections C.11.2.1.2 and C.11.2.1.3)."""
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if kind == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _first(value: Any) -> Any:  # noqa: ANN401 - one number, or several of which the first is the default
    return value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value
