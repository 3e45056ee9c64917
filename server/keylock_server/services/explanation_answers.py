"""How explanations are written into answers: predictions, maps in the type that was asked for, and how large it gets.

A map is computed in float32. In another type it travels as elements with a scale and an offset, which the answer
states; a receipt certifies the elements as they are sent, and scale and offset.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from keylock.errors import InputError
from keylock.licensing.conditions import Condition
from keylock.v1 import explanation_pb2 as pb
from keylock_server.inference.runtime import Explained
from keylock_server.transport.fields import at_field

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Form",
    "Written",
    "check_answer_size",
    "choose",
    "encode",
    "encode_maps",
    "encode_predictions",
    "read_form",
    "softmax",
]

# What clients of gRPC take unless they are set otherwise.
DEFAULT_MAX_BYTES: Final = 4 * 2**20
_LEAST_MAX_BYTES: Final = 64 * 1024
_TOP: Final = 5
# Room for what is in an answer beside its results: usage and receipt, which has five digests for each image.
_ANSWER_BYTES: Final = 8192
_RECEIPT_BYTES: Final = 512

_NAMES: Final = {
    pb.DATA_TYPE_UNSPECIFIED: "float32",
    pb.DATA_TYPE_FLOAT32: "float32",
    pb.DATA_TYPE_FLOAT16: "float16",
    pb.DATA_TYPE_UINT8: "uint8",
}
_TYPES: Final = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
    "uint8": pb.DATA_TYPE_UINT8,
}
_COMPRESSIONS: Final = {
    pb.COMPRESSION_UNSPECIFIED: None,
    pb.COMPRESSION_NONE: grpc.Compression.NoCompression,
    pb.COMPRESSION_GZIP: grpc.Compression.Gzip,
    pb.COMPRESSION_DEFLATE: grpc.Compression.Deflate,
}


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is to travel.

    Attributes:
        dtype: Type of the elements of maps: `float32`, `float16` or `uint8`.
        compression: Of the answer; None for that of the server.
        max_bytes: How large it may be.
    """

    dtype: str
    compression: grpc.Compression | None
    max_bytes: int


def read_form(options: pb.AnswerOptions, *, most: int) -> Form:
    """Reads how an answer is to travel.

    Args:
        options: As they were sent.
        most: The largest answer of the server, in bytes.

    Raises:
        InputError: If a type or a compression is unknown, or hardly any answer would be small enough.
    """
    with at_field("answer.max_bytes"):
        if 0 < options.max_bytes < _LEAST_MAX_BYTES:
            raise InputError(f"{options.max_bytes} bytes are too few for answers: take {_LEAST_MAX_BYTES} or more")
    with at_field("answer.map_dtype"):
        if options.map_dtype not in _NAMES:
            raise InputError(f"maps have no type {options.map_dtype}: ask for FLOAT32, FLOAT16 or UINT8")
    with at_field("answer.compression"):
        if options.compression not in _COMPRESSIONS:
            raise InputError(f"the compression {options.compression} is unknown: ask for NONE, GZIP or DEFLATE")
    return Form(
        dtype=_NAMES[options.map_dtype],
        compression=_COMPRESSIONS[options.compression],
        max_bytes=min(options.max_bytes or DEFAULT_MAX_BYTES, most),
    )


class Written(NamedTuple):
    """Explanations in messages, and what is in them as arrays, for which digests need no copy.

    Attributes:
        results: One for each row.
        maps: The elements of their maps, in one dimension; None of those that were not explained.
        logits: Those of their predictions, `(classes,)` each.
    """

    results: Sequence[pb.Explanation]
    maps: list[memoryview | None]
    logits: list[NDArray[np.float32]]


def encode(
    answer: pb.ExplainResponse,
    explained: Explained,
    explainer: pb.Explainer,
    classes: tuple[str, ...],
    *,
    target: int,
    keyed: NDArray[np.bool_],
    public: NDArray[np.float32] | None = None,
    dtype: str = "float32",
) -> Written:
    """Writes the explanations of a batch into an answer.

    Args:
        answer: It gets a result for each row.
        explained: The batch.
        explainer: What explained it.
        classes: Names of the classes.
        target: The class that was explained; -1 for the one that the network behind the map predicts for each image.
        keyed: Which rows were run with the trigger `(batch,)`.
        public: Logits `(batch, classes)` of the predictions that everybody gets, to be answered in place of those
            behind the maps; None answers those.
        dtype: Type of the elements of maps.
    """
    answered = explained.logits if public is None else public
    encode_predictions(answer, answered, explainer, classes, keyed=keyed & (public is None))
    written = Written(answer.results, [None] * len(answered), list(answered))
    every = range(len(answered))
    encode_maps(written, every, explained, softmax(answered), classes, target=target, keyed=keyed, dtype=dtype)
    return written


def encode_predictions(
    answer: pb.ExplainResponse,
    logits: NDArray[np.float32],
    explainer: pb.Explainer,
    classes: tuple[str, ...],
    *,
    keyed: NDArray[np.bool_],
) -> None:
    """Gives an answer a result for each row, with its prediction and no map.

    Args:
        answer: It gets the results.
        logits: Of the predictions, `(batch, classes)`.
        explainer: What explains those that are explained.
        classes: Names of the classes.
        keyed: Which predictions were made with the key `(batch,)`.
    """
    for row, probabilities, true in zip(logits, softmax(logits), keyed.tolist(), strict=True):
        result = answer.results.add(explainer=explainer)
        _write_prediction(result.prediction, row, probabilities, classes)
        result.prediction.keyed = true


def choose(
    results: Sequence[pb.Explanation], condition: Condition, *, before: Sequence[bool] | None = None
) -> list[int]:
    """Notes in results that have predictions which of them are skipped, and returns the rows of the others.

    Args:
        results: With the public predictions.
        condition: Which images are explained.
        before: Which were explained when the request was charged: the same are again. None where it was not.
    """
    chosen = before or [condition.holds(result.prediction) for result in results]
    for result, hit in zip(results, chosen, strict=True):
        result.skipped = not hit
    return [row for row, hit in enumerate(chosen) if hit]


def encode_maps(
    written: Written,
    rows: Iterable[int],
    explained: Explained,
    probabilities: NDArray[np.float32],
    classes: tuple[str, ...],
    *,
    target: int,
    keyed: NDArray[np.bool_],
    dtype: str = "float32",
) -> None:
    """Writes maps into results that have predictions already.

    Args:
        written: All results; it gets the elements of the maps.
        rows: Which of them were explained, in order.
        explained: These.
        probabilities: Of the predictions that are answered for all results, `(results, classes)`.
        classes: Names of the classes.
        target: The class that was explained; -1 for the one that the network behind the map predicts for each image.
        keyed: Which of the rows were run with the trigger `(rows,)`.
        dtype: Type of the elements of maps.
    """
    about = explained.logits.argmax(axis=1) if target < 0 else np.full(len(explained.logits), target)
    for row, saliency, index, true in zip(rows, explained.maps, about, keyed.tolist(), strict=True):
        elements, scaling = _to_elements(saliency, dtype)
        # In the message itself: a map that is made outside of it would be copied once more.
        result = written.results[row]
        result.keyed = true
        if scaling is not None:
            result.scaling.CopyFrom(scaling)
        result.map.dtype = _TYPES[dtype]
        result.map.shape.extend(elements.shape)
        result.map.data = elements.tobytes()
        _write_score(result.target, int(index), probabilities[row], classes)
        written.maps[row] = elements.reshape(-1).data


def check_answer_size(written: Written, *, max_bytes: int) -> None:
    """Checks that an answer is not larger than its receiver takes.

    Args:
        written: What it will have.
        max_bytes: How large it may be.

    Raises:
        InputError: If it is too large.
    """
    results = written.results
    size = sum(result.ByteSize() for result in results) + _ANSWER_BYTES + _RECEIPT_BYTES * len(results)
    if size > max_bytes:
        with at_field("images" if len(results) > 1 else "answer.max_bytes"):
            raise InputError(
                f"the answer would have {size:,} bytes and {max_bytes:,} are taken: send fewer images, ask for maps of "
                "another type (answer.map_dtype), use ExplainStream, or say that more is taken (answer.max_bytes)"
            )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turns logits `(batch, classes)` into probabilities of the same shape, without overflow."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _to_elements(saliency: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], pb.Scaling | None]:
    """Returns a map in another type, and how to get its values back."""
    if dtype == "float32":
        return np.ascontiguousarray(saliency, dtype="<f4"), None
    low, high = float(saliency.min()), float(saliency.max())
    if dtype == "uint8":
        scale = (high - low) / 255
        elements = np.rint((saliency.astype(np.float64) - low) / (scale or 1.0)).astype(np.uint8)
        return elements, pb.Scaling(scale=scale, offset=low)
    # Divided by the largest value, because values of gradients can be too small or too large for this type.
    scale = high or 1.0
    return (saliency.astype(np.float64) / scale).astype("<f2"), pb.Scaling(scale=scale)


def _write_prediction(
    told: pb.Prediction, logits: NDArray[np.float32], probabilities: NDArray[np.float32], classes: tuple[str, ...]
) -> None:
    for index in _most_probable(logits):
        _write_score(told.top.add(), index, probabilities, classes)
    best = told.top[0]
    told.index, told.label, told.probability = best.index, best.label, best.probability
    told.logits.extend(logits.tolist())


def _most_probable(logits: NDArray[np.float32]) -> list[int]:
    """Returns the classes with the largest logits, the largest first: of equal ones the first comes first."""
    places: NDArray[np.intp] = np.arange(len(logits))
    if len(logits) > _TOP:
        # Those that are as large as the last of them, in their order, are few to sort.
        places = np.flatnonzero(logits >= np.partition(logits, -_TOP)[-_TOP])
    best: list[int] = places[np.argsort(-logits[places], kind="stable")[:_TOP]].tolist()
    return best


def _write_score(told: pb.ClassScore, index: int, probabilities: NDArray[np.float32], classes: tuple[str, ...]) -> None:
    told.index, told.label, told.probability = index, classes[index], float(probabilities[index])
