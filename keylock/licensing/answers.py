"""The digests of what is asked and answered: of each image, prediction, explained class, map and scaling.

They are made of canonical JSON that has no numbers but integers: a float32 stands as the 8 hexadecimal digits of its
bits, a float64 as 16, so that every language makes the same bytes. Messages themselves are not digested, because
protobuf has several encodings of one message. docs/receipts.md specifies them.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keylock.crypto.digests import digest_of, digest_of_array
from keylock.crypto.signing import canonical_json
from keylock.licensing.charges import AnswerDigests
from keylock.v1 import explanation_pb2 as pb

__all__ = [
    "MAP_DTYPES",
    "digests_of",
    "image_digest",
    "map_digest",
    "prediction_digest",
    "scaling_digest",
    "target_digest",
]

MAP_DTYPES: dict[int, str] = {
    pb.DATA_TYPE_FLOAT32: "float32",
    pb.DATA_TYPE_FLOAT16: "float16",
    pb.DATA_TYPE_UINT8: "uint8",
}


def image_digest(image: pb.Image, data: bytes | None = None) -> str:
    """Returns the digest of an image as it was sent, which its sender can compute as well.

    Args:
        image: The image.
        data: The bytes of its file, or the elements of its tensor, where they were taken out of it already.
    """
    if image.WhichOneof("source") == "encoded":
        return digest_of(image.encoded if data is None else data)
    # An array of another type is refused before anything is charged; its digest is never used.
    dtype = MAP_DTYPES.get(image.tensor.dtype, "unknown")
    return digest_of_array(dtype, image.tensor.shape, image.tensor.data if data is None else data)


def digests_of(
    results: Sequence[pb.Explanation],
    maps: Sequence[bytes | bytearray | memoryview | None] | None = None,
    logits: Sequence[NDArray[np.float32]] | None = None,
) -> AnswerDigests:
    """Returns the digests of explanations.

    Args:
        results: The explanations, in order.
        maps: The elements of their maps, where they are not in the messages, or at hand without a copy; those of images
            that were skipped are not looked at.
        logits: Those of their predictions, float32 `(classes,)` each, where they are at hand as arrays.
    """
    elements = [one.map.data for one in results] if maps is None else maps
    numbers = [None] * len(results) if logits is None else logits
    return AnswerDigests(
        maps=tuple(
            None if one.skipped else map_digest(one.map, data or b"")
            for one, data in zip(results, elements, strict=True)
        ),
        scalings=tuple(scaling_digest(one.scaling) if one.HasField("scaling") else None for one in results),
        predictions=tuple(prediction_digest(one.prediction, own) for one, own in zip(results, numbers, strict=True)),
        targets=tuple(None if one.skipped else target_digest(one.target) for one in results),
    )


def map_digest(told: pb.Tensor, elements: bytes | bytearray | memoryview) -> str:
    """Returns the digest of a map as it is sent: type, shape and elements."""
    return digest_of_array(MAP_DTYPES.get(told.dtype, "unknown"), told.shape, elements)


def scaling_digest(told: pb.Scaling) -> str:
    """Returns the digest of what makes values of the elements of a map."""
    return digest_of(canonical_json({"offset": _float64(told.offset), "scale": _float64(told.scale)}))


def prediction_digest(told: pb.Prediction, logits: NDArray[np.float32] | None = None) -> str:
    """Returns the digest of a prediction: index, label, probability, logits, the most probable classes, keyed.

    Args:
        told: The prediction.
        logits: Its logits `(classes,)`, where they are at hand as an array.
    """
    numbers = np.ascontiguousarray(told.logits if logits is None else logits, "<f4")
    return digest_of(
        canonical_json(
            {
                "index": told.index,
                "keyed": told.keyed,
                "label": told.label,
                "logits": digest_of_array("float32", numbers.shape, numbers.data),
                "probability": _float32(told.probability),
                "top": [_score(one) for one in told.top],
            }
        )
    )


def target_digest(told: pb.ClassScore) -> str:
    """Returns the digest of a class that was explained."""
    return digest_of(canonical_json(_score(told)))


def _score(told: pb.ClassScore) -> dict[str, object]:
    return {"index": told.index, "label": told.label, "probability": _float32(told.probability)}


def _float32(value: float) -> str:
    return struct.pack(">f", value).hex()


def _float64(value: float) -> str:
    return struct.pack(">d", value).hex()
