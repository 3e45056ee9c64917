"""From the messages of a request to arrays: pure functions that name the field when something is wrong with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from google.protobuf import struct_pb2
from numpy.typing import NDArray

from keylock.errors import InputError, LicenseError, LicenseReason, TensorError, UnknownNameError
from keylock.imaging.decoding import ImageLimits
from keylock.imaging.framing import read_framed
from keylock.imaging.preprocessing import Preprocessing
from keylock.licensing.answers import image_digest
from keylock.licensing.conditions import Condition
from keylock.text.class_names import normalise_class_name
from keylock.v1 import explanation_pb2 as pb
from keylock_server.scheduling.decoding import Claim, Step
from keylock_server.transport.fields import at_field

__all__ = [
    "SentImage",
    "check_count",
    "check_no_target",
    "check_parameters",
    "choose_target",
    "decode_encoded",
    "decoding_steps",
    "limits_for",
    "read_condition",
    "shaped",
    "wants_public_prediction",
]

PREDICTED: Final = -1

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image of a request. Messages copy a field of bytes for whoever looks at it, so it is taken out once.

    Attributes:
        message: The image.
        is_file: Whether it is an image file; otherwise it is a tensor, or nothing.
        data: The bytes of the file, or the elements of the tensor.
    """

    message: pb.Image
    is_file: bool
    data: bytes

    @classmethod
    def of(cls, message: pb.Image) -> "SentImage":
        """Takes the bytes out of an image."""
        is_file = message.WhichOneof("source") == "encoded"
        return cls(message, is_file, message.encoded if is_file else message.tensor.data)

    def digest(self) -> str:
        """Returns the digest of the image as it was sent."""
        return image_digest(self.message, self.data)


def check_count(count: int, *, limit: int, field: str) -> None:
    """Checks how many images a request has.

    Raises:
        InputError: If there is none, or more than the limit.
    """
    with at_field(field):
        if not count:
            raise InputError("the request has no images: send at least one")
        if count > limit:
            raise InputError(f"the request has {count} images and at most {limit} are accepted: send several requests")


def limits_for(preprocessing: Preprocessing, limits: ImageLimits, *, ratio: float | None) -> ImageLimits:
    """Returns what one image may cost where a model looks at it.

    Args:
        preprocessing: That of the model.
        limits: What any image may cost.
        ratio: Most pixels of an image for each pixel that the model looks at; None where that does not count.
    """
    if ratio is None:
        return limits
    return replace(limits, max_pixels=min(limits.max_pixels, int(ratio * math.prod(preprocessing.size))))


def decoding_steps(
    images: Sequence[SentImage],
    *,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    check_pixels: Callable[[int], None] | None = None,
) -> list[Step]:
    """Says how the images of a request are decoded and preprocessed.

    Args:
        images: At least one.
        preprocessing: That of the model.
        limits: What one image may cost.
        check_pixels: Called with width times height of every image that is not preprocessed yet; raises where that is
            too much for the caller.

    Returns:
        A step for each image. It raises `InputError`, which names the image, if that cannot be used.
    """
    return [
        partial(_prepare, f"images[{i}]", image, preprocessing, limits, check_pixels) for i, image in enumerate(images)
    ]


def _prepare(
    field: str,
    image: SentImage,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    check_pixels: Callable[[int], None] | None,
    claim: Claim,
) -> NDArray[np.float32]:
    with at_field(field):
        if image.is_file:
            return decode_encoded(
                image.data, preprocessing=preprocessing, limits=limits, claim=claim, check_pixels=check_pixels
            )
        if image.message.WhichOneof("source") is None:
            raise InputError("the image is empty: set its field encoded or tensor")
        array = _to_array(image.message.tensor, image.data)
        if array.dtype != np.uint8:
            return preprocessing.check(array.astype(np.float32, copy=False))[np.newaxis]
        if check_pixels is not None:
            check_pixels(math.prod(array.shape[:2]))
        return preprocessing(array)[np.newaxis]


def decode_encoded(
    data: bytes,
    *,
    preprocessing: Preprocessing,
    limits: ImageLimits,
    claim: Claim,
    check_pixels: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Decodes and preprocesses an image file.

    Returns:
        The preprocessed image, float32 `(1, channels, height, width)`.

    Raises:
        ImageError: If it cannot be used.
    """
    pixels = read_framed(data, preprocessing, limits=limits, claim=claim, check_pixels=check_pixels)
    return preprocessing.normalised(pixels)[np.newaxis]


def _to_array(tensor: pb.Tensor, data: bytes) -> NDArray[Any]:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise TensorError("the tensor has no known dtype: set it to DATA_TYPE_UINT8 or DATA_TYPE_FLOAT32")
    return shaped(data, shape=tensor.shape, dtype=dtype)


def shaped(data: bytes, *, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Lays bytes out as an array, without copying them.

    Raises:
        TensorError: If the number of bytes does not fit shape and type, or the shape is not a shape.
    """
    sides = tuple(shape)
    if any(side < 0 for side in sides) or len(sides) > 8:
        raise TensorError(f"{list(sides[:8])} is not a shape of a tensor: give up to eight sides, none negative")
    # Python's integers do not overflow, so that huge sides are compared rightly.
    expected = dtype.itemsize * math.prod(sides)
    if expected != len(data):
        raise TensorError(
            f"a {dtype.name} tensor of shape {list(sides)} takes {expected} bytes and {len(data)} were sent: "
            "make shape, type and data agree"
        )
    try:
        return np.frombuffer(data, dtype).reshape(sides)
    except (
        ValueError
    ):  # A side of zero takes no bytes however large the others are; NumPy multiplies them all the same.
        raise TensorError(
            f"a tensor of shape {list(sides)} has no elements and sides too large: send elements"
        ) from None


def choose_target(request: pb.ExplainRequest, classes: Sequence[str]) -> int:
    """Finds the class to explain.

    Returns:
        Its index, or -1 for the predicted class of each image.

    Raises:
        InputError: If the index is out of range.
        UnknownNameError: If no class has the label.
    """
    chosen = request.WhichOneof("target")
    if chosen == "target_index":
        with at_field("target_index"):
            if not 0 <= request.target_index < len(classes):
                raise InputError(
                    f"class {request.target_index} does not exist: the model has {len(classes)} classes, "
                    f"0 to {len(classes) - 1}"
                )
        return request.target_index
    if chosen == "target_label":
        with at_field("target_label"):
            label = normalise_class_name(request.target_label)
            if label not in classes:
                raise UnknownNameError("class", label, classes)
        return list(classes).index(label)
    return PREDICTED


def read_condition(request: pb.ExplainRequest, classes: Sequence[str]) -> Condition | None:
    """Reads which images are to be explained.

    Returns:
        The condition; None for all.

    Raises:
        InputError: If there is none in it, it is out of range or about a class that the model does not have, or the
            prediction with the key is asked for, which is no image's that is not explained.
    """
    if not request.HasField("explain_if"):
        return None
    if request.prediction == pb.PREDICTION_KIND_KEYED:
        with at_field("prediction"):
            raise InputError(
                "explain_if looks at the public prediction, and answers it: ask for PUBLIC, or leave prediction out"
            )
    try:
        return Condition.of(request.explain_if, classes)
    except InputError as error:
        error.field = "explain_if" if error.field is None else f"explain_if.{error.field}"
        raise


def check_no_target(request: pb.ExplainRequest) -> None:
    """Checks that a request leaves the class to the model, as it has to where the classes are a licensed caller's.

    What the decoys of several classes differ by tells of the true maps.

    Raises:
        LicenseError: If it names one; the error names the field.
    """
    chosen = request.WhichOneof("target")
    if chosen is not None:
        raise LicenseError(
            LicenseReason.NEEDED_FOR_TARGET,
            "the predicted class is explained to everybody, another one needs a license: send one as 'authorization: "
            f"Bearer ...', or leave out {chosen}",
            field=chosen,
        )


def check_parameters(asked: struct_pb2.Struct, used: Mapping[str, object], *, explainer: str) -> None:
    """Checks that the parameters a caller relies on are those in use.

    Raises:
        InputError: If one is unknown or has another value.
    """
    for name, value in asked.fields.items():
        with at_field(f"parameters.{name}"):
            if name not in used:
                raise UnknownNameError(f"parameter of {explainer}", name, used)
            if _plain(value) != used[name]:
                raise InputError(
                    f"the parameter {name} of {explainer} is {used[name]!r} in this model and cannot be changed: "
                    "leave it out"
                )


def _plain(value: struct_pb2.Value) -> object:
    """Returns a value of a parameter in Python's types, NaN and infinity too, which JSON does not have."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {name: _plain(inner) for name, inner in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(inner) for inner in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def wants_public_prediction(request: pb.ExplainRequest, *, licensed: bool) -> bool:
    """Returns whether the prediction beside a map is to be the one that everybody gets.

    Args:
        request: The request.
        licensed: Whether its caller has a license.

    Raises:
        InputError: If it asks for something else than the protocol knows.
        LicenseError: If it asks for the prediction with the key and has no license.
    """
    if request.prediction == pb.PREDICTION_KIND_KEYED and not licensed:
        raise LicenseError(
            LicenseReason.MISSING,
            "predictions with the key need a license: send one as 'authorization: Bearer ...', or ask for PUBLIC",
        )
    if request.prediction not in pb.PredictionKind.values():
        with at_field("prediction"):
            raise InputError(f"there is no prediction of the kind {request.prediction}: ask for PUBLIC or KEYED")
    return request.prediction == pb.PREDICTION_KIND_PUBLIC
